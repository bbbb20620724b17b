"""Distributions given by quantile tables, and request lengths drawn from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.bounds import shown
from qsim.errors import ScenarioError

#: longest prompt or output that is drawn, tokens
MAX_LENGTH = 1e9


#: Probabilities at which a closed form is tabulated: every half percent, and both tails.
_FINE_P = (1e-4, 1e-3, *(i / 200 for i in range(1, 200)), 0.999, 0.9999)


@dataclass(frozen=True)
class QuantileTable:
    """The quantiles of a positive quantity, joined by straight lines in log space."""

    #: probabilities, rising strictly from 0 to 1
    p: tuple[float, ...]
    #: the quantile at each ``p``, > 0 and never decreasing. Equal neighbours are an atom.
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        p, values = np.asarray(self.p), np.asarray(self.values)
        if len(p) != len(values) or len(p) < 2:
            raise ScenarioError(
                f"quantile table: {len(p)} probabilities and {len(values)} values; must be equal "
                "in number, at least 2"
            )
        if p[0] != 0 or p[-1] != 1 or not (np.diff(p) > 0).all():
            raise ScenarioError(f"quantile table: p is {list(self.p)}; must rise from 0 to 1")
        if not (np.isfinite(values).all() and values[0] > 0 and (np.diff(values) >= 0).all()):
            raise ScenarioError(
                f"quantile table: values are {list(self.values)}; must be > 0 and never go down"
            )

    @classmethod
    def of(cls, p: Sequence[float], values: Sequence[float]) -> QuantileTable:
        """From lists, as data files hold them."""
        return cls(tuple(float(x) for x in p), tuple(float(v) for v in values))

    @classmethod
    def constant(cls, value: float) -> QuantileTable:
        """Always the same."""
        return cls((0.0, 1.0), (float(value), float(value)))

    @classmethod
    def lognormal(cls, median: float, sigma: float, low: float, high: float) -> QuantileTable:
        """A log-normal between ``low`` and ``high``.

        ``sigma`` is the standard deviation of the natural logarithm.
        """
        normal = NormalDist()
        inner = [median * math.exp(sigma * normal.inv_cdf(x)) for x in _FINE_P]
        values = [inner[0], *inner, high]
        return cls((0.0, *_FINE_P, 1.0), tuple(min(max(v, low), high) for v in values))

    @classmethod
    def exponential(cls, mean: float) -> QuantileTable:
        """An exponential (cut off at 12 means, which 6 draws in a million would pass)."""
        inner = [-mean * math.log1p(-x) for x in _FINE_P]
        return cls((0.0, *_FINE_P, 1.0), (inner[0] / 10, *inner, 12 * mean))

    def at(self, u: FloatArray) -> FloatArray:
        """The value at probability ``u``."""
        return np.asarray(np.exp(np.interp(u, self.p, np.log(self.values))))

    def tokens_at(self, u: FloatArray) -> IntArray:
        """The value at probability ``u`` in whole tokens, at least 1."""
        return np.maximum(np.rint(self.at(u)).astype(np.int64), 1)

    @property
    def mean(self) -> float:
        """The mean, in closed form: each piece is a stretch of exp between two values."""
        p, v = np.asarray(self.p), np.asarray(self.values)
        low, high = v[:-1], v[1:]
        ratio = np.log(high / low)
        flat = ratio < 1e-12
        piece = np.where(flat, low, (high - low) / np.where(flat, 1.0, ratio))
        return float((piece * np.diff(p)).sum())


@dataclass(frozen=True)
class LengthModel:
    """Prompt and output lengths of one kind of request."""

    #: the two marginal distributions in tokens, which the draws keep exactly
    prompt: QuantileTable
    output: QuantileTable
    #: correlation of the Gaussian copula that joins them, in (-1, 1)
    rho: float = 0.0

    def __post_init__(self) -> None:
        if not -1 < self.rho < 1:
            raise ScenarioError(f"correlation is {self.rho!r}; must be > -1 and < 1")

    def draw(self, rng: np.random.Generator, n: int) -> tuple[IntArray, IntArray]:
        """``n`` pairs of (prompt, output) tokens."""
        z = rng.standard_normal((n, 2))
        joined = self.rho * z[:, 0] + math.sqrt(1 - self.rho**2) * z[:, 1]
        prompt = self.prompt.tokens_at(_normal_cdf(z[:, 0]))
        return prompt, self.output.tokens_at(_normal_cdf(joined))


def parse_lengths(option: str, text: str) -> QuantileTable:
    """A length distribution as a command line gives it.

    ``512`` (constant), ``lognormal:MEDIAN,SIGMA[,MAX]``, ``exponential:MEAN``, or
    ``quantiles:0=10,0.5=200,0.9=900,1=4000``.

    Raises
    ------
    ScenarioError
        If it is none of them.
    """
    kind, colon, rest = text.partition(":")

    def length(part: str) -> float:
        value = float(part)
        if not abs(value) <= MAX_LENGTH:
            raise ScenarioError(
                f"{option} is {shown(text)}; {shown(part)} is no number of tokens up to "
                f"{MAX_LENGTH:g}"
            )
        return value

    try:
        if not colon:
            value = length(kind)
            if not value >= 1:
                raise ScenarioError(f"{option} is {text!r}; a length must be >= 1 token")
            return QuantileTable.constant(value)
        if kind == "quantiles":
            pairs = [part.split("=") for part in rest.split(",")]
            return QuantileTable.of([float(p) for p, _ in pairs], [length(v) for _, v in pairs])
        numbers = [length(part) for part in rest.split(",")]
        if kind == "exponential" and len(numbers) == 1 and numbers[0] > 0:
            return QuantileTable.exponential(numbers[0])
        if kind == "lognormal" and len(numbers) in (2, 3) and min(numbers) > 0:
            median, sigma = numbers[0], numbers[1]
            widest = median * math.exp(min(4 * sigma, 700.0))
            high = numbers[2] if len(numbers) == 3 else min(widest, MAX_LENGTH)
            return QuantileTable.lognormal(median, sigma, 1.0, max(high, 1.0))
    except ValueError:
        pass
    raise ScenarioError(
        f"{option} is {shown(text)}; must be a number of tokens, lognormal:MEDIAN,SIGMA[,MAX], "
        "exponential:MEAN or quantiles:0=10,0.5=200,0.9=900,1=4000"
    )


@cache
def _normal_grid() -> tuple[FloatArray, FloatArray]:
    z = np.linspace(-8.5, 8.5, 8501)
    normal = NormalDist()
    return z, np.array([normal.cdf(x) for x in z.tolist()])


def _normal_cdf(z: FloatArray) -> FloatArray:
    # Tabulated (error below 1e-6): scipy would cost more to import than the draw takes.
    grid, cdf = _normal_grid()
    return np.asarray(np.interp(z, grid, cdf))
