"""Request lengths drawn from quantile tables, with a rank correlation between the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from qsim.errors import ScenarioError

__all__ = ["LengthModel", "QuantileTable"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class QuantileTable:
    """The quantiles of a length, joined by straight lines in log space.

    Attributes
    ----------
    p : tuple of float
        Probabilities, rising strictly from 0 to 1.
    tokens : tuple of float
        The quantile at each ``p``, never decreasing, >= 1. Equal neighbours are an atom.
    """

    p: tuple[float, ...]
    tokens: tuple[float, ...]

    def __post_init__(self) -> None:
        p, tokens = np.asarray(self.p), np.asarray(self.tokens)
        if len(p) != len(tokens) or len(p) < 2:
            raise ScenarioError(
                f"quantile table: {len(p)} probabilities and {len(tokens)} values; must be equal "
                "in number, at least 2"
            )
        if p[0] != 0 or p[-1] != 1 or not (np.diff(p) > 0).all():
            raise ScenarioError(f"quantile table: p is {self.p}; must rise from 0 to 1")
        if not (np.isfinite(tokens).all() and tokens[0] >= 1 and (np.diff(tokens) >= 0).all()):
            raise ScenarioError(
                f"quantile table: tokens are {self.tokens}; must be >= 1 and never go down"
            )

    @classmethod
    def constant(cls, tokens: float) -> QuantileTable:
        """Every length the same."""
        return cls((0.0, 1.0), (tokens, tokens))

    @classmethod
    def lognormal(cls, median: float, sigma: float, most: float) -> QuantileTable:
        """A log-normal length between 1 and ``most``.

        ``sigma`` is the standard deviation of the natural logarithm.
        """
        normal = NormalDist()
        p = [0.0, *(i / 200 for i in range(1, 200)), 0.999, 0.9999, 1.0]
        inner = [median * float(np.exp(sigma * normal.inv_cdf(x))) for x in p[1:-1]]
        tokens = [inner[0], *inner, most]
        return cls(tuple(p), tuple(float(np.clip(t, 1, most)) for t in tokens))

    def at(self, u: FloatArray) -> IntArray:
        """The length at probability ``u``, in whole tokens (>= 1)."""
        value = np.exp(np.interp(u, self.p, np.log(self.tokens)))
        return np.maximum(np.rint(value).astype(np.int64), 1)

    def scaled(self, factor: float) -> QuantileTable:
        """Every length ``factor`` times as long (at least 1 token)."""
        return QuantileTable(self.p, tuple(max(1.0, t * factor) for t in self.tokens))


@dataclass(frozen=True)
class LengthModel:
    """Prompt and output lengths of one kind of request.

    Attributes
    ----------
    prompt, output : QuantileTable
        The two marginal distributions, which every draw keeps exactly.
    rho : float
        Correlation of the Gaussian copula that joins them, in (-1, 1).
    """

    prompt: QuantileTable
    output: QuantileTable
    rho: float = 0.0

    def __post_init__(self) -> None:
        if not -1 < self.rho < 1:
            raise ScenarioError(f"rho is {self.rho!r}; must be > -1 and < 1")

    def draw(self, rng: np.random.Generator, n: int) -> tuple[IntArray, IntArray]:
        """``n`` pairs of (prompt, output) tokens."""
        z = rng.standard_normal((n, 2))
        joined = self.rho * z[:, 0] + np.sqrt(1 - self.rho**2) * z[:, 1]
        return self.prompt.at(_normal_cdf(z[:, 0])), self.output.at(_normal_cdf(joined))


@cache
def _normal_grid() -> tuple[FloatArray, FloatArray]:
    z = np.linspace(-8.5, 8.5, 8501)
    normal = NormalDist()
    return z, np.array([normal.cdf(x) for x in z.tolist()])


def _normal_cdf(z: FloatArray) -> FloatArray:
    # Tabulated (error below 1e-7): scipy would cost more to import than the draw takes.
    grid, cdf = _normal_grid()
    return np.interp(z, grid, cdf)


def table_from(p: Sequence[float], tokens: Sequence[float]) -> QuantileTable:
    """A table from lists, as the data files hold them."""
    return QuantileTable(tuple(float(x) for x in p), tuple(float(t) for t in tokens))
