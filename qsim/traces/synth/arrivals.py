"""Arrival processes: a rate over time, bursts in it, and how evenly requests follow it.

A process is a renewal process of mean 1 (Poisson, Gamma or Weibull gaps) on the clock of
"expected requests so far", mapped to seconds through the integral of the rate. With a constant
rate this is the plain renewal process; with a rate that varies it keeps the local gap CV.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qsim.arrays import FloatArray
from qsim.errors import ScenarioError
from qsim.traces.synth.lengths import QuantileTable

#: Requests are drawn this many at a time, however many are wanted.
BLOCK_REQUESTS = 1 << 16
#: of smaller ones a gamma's draws are one number, and Weibull shapes are not searched
_LEAST_CV = 0.003
#: most steps of a rate profile that is repeated
_MOST_STEPS = 50_000_000
KINDS = ("poisson", "gamma", "weibull")


@dataclass(frozen=True)
class Gaps:
    """The gaps of a renewal process of mean 1."""

    #: ``"poisson"``, ``"gamma"`` or ``"weibull"``
    kind: str = "poisson"
    #: standard deviation over mean of the gaps, 0.003 to 100; 1 is Poisson for all kinds
    cv: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ScenarioError(f"arrivals is {self.kind!r}; must be one of {', '.join(KINDS)}")
        if not (_LEAST_CV <= self.cv <= 100):
            raise ScenarioError(f"cv is {self.cv!r}; must be from {_LEAST_CV} to 100")
        if self.kind == "poisson" and self.cv != 1:
            raise ScenarioError(
                f"cv is {self.cv!r}; Poisson arrivals have 1: choose gamma or weibull"
            )

    def draw(self, rng: np.random.Generator, n: int) -> FloatArray:
        """``n`` gaps."""
        if self.kind == "poisson":
            return rng.standard_exponential(n)
        if self.kind == "gamma":
            shape = 1 / self.cv**2
            return rng.standard_gamma(shape, n) / shape
        shape = weibull_shape(self.cv)
        return rng.weibull(shape, n) / math.gamma(1 + 1 / shape)


def weibull_shape(cv: float) -> float:
    """The Weibull shape k whose CV is ``cv``: 1 + cv^2 = G(1 + 2/k) / G(1 + 1/k)^2."""
    target = math.log1p(cv * cv)

    def excess(k: float) -> float:
        return math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k) - target

    low, high = 0.05, 500.0  # CV falls as k rises; these cover CV from 0.003 to 1e5
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


@dataclass(frozen=True, eq=False)
class RateProfile:
    """A rate that is constant in steps, and repeats after its end."""

    #: float64 array, shape (n + 1,): where the steps begin and the last one ends; from 0, rising
    #: strictly
    edges_s: FloatArray
    #: float64 array, shape (n,): requests a second in each step, >= 0, not all 0
    rates_rps: FloatArray

    def __post_init__(self) -> None:
        edges, rates = self.edges_s, self.rates_rps
        if len(edges) != len(rates) + 1 or len(rates) == 0:
            raise ScenarioError(
                f"rate profile: {len(edges)} edges for {len(rates)} rates; must be one more"
            )
        if edges[0] != 0 or not (np.diff(edges) > 0).all():
            raise ScenarioError("rate profile: edges must begin at 0 and rise")
        if not (np.isfinite(rates).all() and (rates >= 0).all() and rates.sum() > 0):
            raise ScenarioError("rate profile: rates must be finite, >= 0 and not all 0")

    @classmethod
    def constant(cls, rate_rps: float) -> RateProfile:
        """One rate for ever."""
        return cls(np.array([0.0, 1e9]), np.array([float(rate_rps)]))

    @classmethod
    def steps(cls, rates_rps: FloatArray, step_s: float) -> RateProfile:
        """Steps of equal length."""
        edges = np.arange(len(rates_rps) + 1, dtype=np.float64) * step_s
        return cls(np.asarray(edges, np.float64), np.asarray(rates_rps, np.float64))

    @classmethod
    def sinusoid(
        cls, mean_rps: float, peak_to_trough: float, peak_at_s: float, period_s: float = 86400.0
    ) -> RateProfile:
        """A day: a sine in 144 steps whose highest rate is ``peak_to_trough`` times the lowest."""
        if not peak_to_trough >= 1:
            raise ScenarioError(f"peak_to_trough is {peak_to_trough!r}; must be >= 1")
        swing = (peak_to_trough - 1) / (peak_to_trough + 1)
        middle = (np.arange(144) + 0.5) / 144
        wave = np.cos(2 * np.pi * (middle - peak_at_s / period_s))
        return cls.steps(mean_rps * (1 + swing * wave), period_s / 144)

    @property
    def period_s(self) -> float:
        """After how many seconds it repeats."""
        return float(self.edges_s[-1])

    @property
    def mean_rps(self) -> float:
        """The mean rate over a period."""
        return float((self.rates_rps * np.diff(self.edges_s)).sum() / self.period_s)

    def scaled(self, factor: float) -> RateProfile:
        """Every rate times ``factor``."""
        return RateProfile(self.edges_s, self.rates_rps * factor)

    def window(self, start_s: float, duration_s: float) -> RateProfile:
        """The part from ``start_s`` on, repeated as often as ``duration_s`` needs."""
        first = math.floor(start_s / self.period_s)
        last = math.ceil((start_s + duration_s) / self.period_s)
        if (last - first) * len(self.rates_rps) > _MOST_STEPS:
            raise ScenarioError(
                f"a rate profile of {len(self.rates_rps)} steps in {self.period_s:.3g} s would be "
                f"repeated {last - first:,} times to last {duration_s:.3g} s; at most "
                f"{_MOST_STEPS:,} steps: take longer ones"
            )
        laps = np.arange(first, max(last, first + 1)) * self.period_s
        edges: FloatArray = np.append(
            (laps[:, None] + self.edges_s[None, :-1]).ravel(), laps[-1] + self.period_s
        )
        rates = np.tile(self.rates_rps, len(laps))
        end_s = start_s + duration_s
        low = int(np.searchsorted(edges, start_s, side="right")) - 1
        high = int(np.searchsorted(edges, end_s, side="left"))
        inside = np.clip(edges[low : high + 1], start_s, end_s) - start_s
        return RateProfile(np.asarray(inside, np.float64), rates[low:high])

    def times(self, other: RateProfile) -> RateProfile:
        """The product with a profile that ends where this one does."""
        edges = np.union1d(self.edges_s, other.edges_s[other.edges_s < self.period_s])
        middle = (edges[:-1] + edges[1:]) / 2
        own = self.rates_rps[np.searchsorted(self.edges_s, middle) - 1]
        factor = other.rates_rps[np.searchsorted(other.edges_s, middle) - 1]
        return RateProfile(edges, own * factor)

    def seconds_at(self, expected: FloatArray) -> FloatArray:
        """When ``expected`` requests have been expected: the inverse of the rate's integral."""
        if len(self.rates_rps) == 1:
            return np.asarray(expected / self.rates_rps[0])
        steps = self.rates_rps * np.diff(self.edges_s)
        # a step below the resolution of the sum is a pause: its slope would overflow
        steps = np.where(steps < 1e-15 * steps.sum(), 0.0, steps)
        cumulative = np.concatenate([[0.0], np.cumsum(steps)])
        lap = np.floor(expected / cumulative[-1])
        inside = np.interp(expected - lap * cumulative[-1], cumulative, self.edges_s)
        return np.asarray(lap * self.period_s + inside)


def arrival_blocks(
    profile: RateProfile,
    gaps: Gaps,
    rng: np.random.Generator,
    *,
    duration_s: float | None = None,
    requests: int | None = None,
) -> Iterator[FloatArray]:
    """Arrival times in blocks of at most ``BLOCK_REQUESTS``: rising times, s.

    ``gaps`` is the renewal process on the rate's clock, and only it draws from ``rng``. It stops
    before the first arrival at or after ``duration_s``, or after so many ``requests``; one of the
    two must be given.
    """
    if duration_s is None and requests is None:
        raise ScenarioError("duration and requests: give at least one of them")
    expected = 0.0
    left = requests
    done = False
    while not done:
        clock = expected + np.cumsum(gaps.draw(rng, BLOCK_REQUESTS))
        expected = float(clock[-1])
        times = profile.seconds_at(clock)
        if duration_s is not None:
            within = int(np.searchsorted(times, duration_s, side="left"))
            done = within < len(times)
            times = times[:within]
        if left is not None:
            times = times[:left]
            left -= len(times)
            done = done or left == 0
        if len(times):
            yield times


@dataclass(frozen=True)
class Bursts:
    """Busy spells and quiet spells in turn; multiplied with a rate profile."""

    #: how long the spells last
    busy_s: QuantileTable
    quiet_s: QuantileTable
    #: rate in a quiet spell over the typical rate in a busy one, in [0, 1)
    quiet_level: float = 0.0
    #: busy spells differ in rate: standard deviation of the logarithm of their levels
    level_sigma: float = 0.0
    #: draw the durations evenly over their distribution, in random order, instead of independently.
    #: A short trace then shows the whole distribution whatever the seed.
    stratified: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.quiet_level < 1:
            raise ScenarioError(f"quiet_level is {self.quiet_level!r}; must be >= 0 and < 1")
        if not 0 <= self.level_sigma <= 3:
            raise ScenarioError(f"level_sigma is {self.level_sigma!r}; must be >= 0 and <= 3")

    def path(self, rng: np.random.Generator, horizon_s: float) -> RateProfile:
        """One realisation over ``horizon_s`` seconds: levels, not yet scaled to a rate."""
        cycle_s = self.busy_s.mean + self.quiet_s.mean
        busy: list[FloatArray] = []
        quiet: list[FloatArray] = []
        covered_s = 0.0
        while covered_s < horizon_s:
            n = max(1, math.ceil((horizon_s - covered_s) / cycle_s))
            busy.append(self.busy_s.at(self._uniform(rng, n)))
            quiet.append(self.quiet_s.at(self._uniform(rng, n)))
            covered_s += float(busy[-1].sum() + quiet[-1].sum())
        durations = np.column_stack([np.concatenate(busy), np.concatenate(quiet)])
        levels = np.column_stack(
            [
                np.exp(self.level_sigma * rng.standard_normal(len(durations))),
                np.full(len(durations), self.quiet_level),
            ]
        )
        if rng.random() >= self.busy_s.mean / cycle_s:
            durations, levels = durations[:, ::-1], levels[:, ::-1]
        edges = np.concatenate([[0.0], np.cumsum(durations.ravel())])
        last = int(np.searchsorted(edges, horizon_s, side="left"))
        edges = np.append(edges[:last], horizon_s)
        chosen = levels.ravel()[:last]
        if not (chosen > 0).any():
            chosen = np.ones_like(chosen)  # a horizon inside one silent spell
        return RateProfile(edges, chosen)

    def _uniform(self, rng: np.random.Generator, n: int) -> FloatArray:
        if not self.stratified:
            return rng.random(n)
        return np.asarray((rng.permutation(n) + rng.random(n)) / n)


def bursts_for_fano(
    fano: float, window_s: float, rate_rps: float, busy_fraction: float, busy_mean_s: float
) -> Bursts:
    """Exponential spells (a two-state Markov-modulated Poisson process) with a Fano factor.

    With rates r1 (busy, a fraction f of the time) and r2, V = f (1 - f) (r1 - r2)^2 and
    correlation time T = 1 / (1 / busy + 1 / quiet), counts in windows of w seconds have
    variance over mean 1 + 2 V T^2 (w / T - 1 + exp(-w / T)) / (rate w)
    (Fischer and Meier-Hellstern, "The Markov-modulated Poisson process cookbook", 1993).

    Raises
    ------
    ScenarioError
        If no quiet rate >= 0 gives that Fano factor; the message gives the largest one.
    """
    if not fano >= 1:
        raise ScenarioError(f"fano is {fano!r}; must be >= 1 (1 is Poisson)")
    if not 0 < busy_fraction < 1:
        raise ScenarioError(f"busy_fraction is {busy_fraction!r}; must be > 0 and < 1")
    if not (busy_mean_s > 0 and window_s > 0 and rate_rps > 0):
        raise ScenarioError(
            f"busy spells of {busy_mean_s!r} s, windows of {window_s!r} s and a rate of "
            f"{rate_rps!r} requests/s must all be > 0"
        )
    quiet_mean_s = busy_mean_s * (1 - busy_fraction) / busy_fraction
    memory_s = 1 / (1 / busy_mean_s + 1 / quiet_mean_s)
    x = window_s / memory_s
    per_variance = 2 * memory_s**2 * (x - 1 + math.exp(-x)) / (rate_rps * window_s)
    difference = math.sqrt((fano - 1) / per_variance / (busy_fraction * (1 - busy_fraction)))
    quiet_rps = rate_rps - busy_fraction * difference
    if quiet_rps < 0:
        most = 1 + per_variance * rate_rps**2 * (1 - busy_fraction) / busy_fraction
        raise ScenarioError(
            f"fano is {fano:g} over {window_s:g} s; with {rate_rps:g} requests/s, busy "
            f"{busy_fraction:g} of the time for {busy_mean_s:g} s, it can be at most {most:.3g}: "
            "lower it, make the busy spells longer or rarer"
        )
    return Bursts(
        QuantileTable.exponential(busy_mean_s),
        QuantileTable.exponential(quiet_mean_s),
        quiet_level=quiet_rps / (quiet_rps + difference),
    )
