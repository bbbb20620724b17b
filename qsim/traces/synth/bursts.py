"""Bursts: a rate that switches between busy and quiet spells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qsim.errors import ScenarioError
from qsim.traces.synth.arrivals import RateProfile
from qsim.traces.synth.lengths import QuantileTable

__all__ = ["Bursts", "bursts_for_fano"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bursts:
    """Busy spells and quiet spells in turn; multiplied with a rate profile.

    Attributes
    ----------
    busy_s, quiet_s : QuantileTable
        How long the spells last.
    quiet_level : float
        Rate in a quiet spell over the typical rate in a busy one, in [0, 1).
    level_sigma : float
        Busy spells differ in rate: standard deviation of the logarithm of their levels.
    stratified : bool
        Draw the durations evenly over their distribution, in random order, instead of
        independently. A short trace then shows the whole distribution whatever the seed.
    """

    busy_s: QuantileTable
    quiet_s: QuantileTable
    quiet_level: float = 0.0
    level_sigma: float = 0.0
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
