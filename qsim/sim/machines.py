"""What a fleet would do on other machines: simulations under what is known of them.

A profile was measured on one machine. The range of a figure is that of re-simulations whose
profiles are multiplied by factors of the known spread (:mod:`qsim.profiles.spread`); of an adapted
profile of the intervals that it states. All servers of a pool are on machines alike.

:func:`machine_ranges` simulates all of the traffic on machines that are drawn.
:func:`quick_ranges` is what every answer shows: a delta method over a stretch of the traffic, by a
dozen simulations. The covariance of the factors' logarithms has nine principal axes. One simulation
is at the mean of all machines, one along each axis at the 95th percentile towards slower machines;
their effects on the logarithm of a figure are added in squares. Faster machines matter less, since
another part then sets the pace: one simulation in the direction that matters most tells by how
much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.profiles.factors import FACTORS, Factors, apply
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Prior, Spread, shipped_spread
from qsim.sim.fleet.pool import Pool
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace

__all__ = [
    "FIGURES",
    "MachineRanges",
    "expected_machines",
    "machine_at",
    "machine_ranges",
    "quick_ranges",
]

FIGURES = (
    *(f"{s}_{m}_ms" for m in ("ttft", "tpot", "itl", "e2el")
      for s in ("mean", "median", "p90", "p99")),
    "energy_j", "avg_power_w", "joules_per_output_token",
)  # fmt: skip
#: an interval of 90% is so many standard deviations to each side
_Z = 1.645
_LEAST_SD = 1e-4
#: machines that are faster are so in the direction that changes this most
_LEADS = "mean_e2el_ms"
#: a stretch of the traffic that quick ranges are from: so many requests, and so many a server
_REQUESTS, _A_SERVER = 1000, 150
#: factors of time; the others are of power
_OF_TIME = 6
#: no range is wider: an overloaded fleet's waiting times grow without end
_MOST_LOG = math.log(100.0)


@dataclass(frozen=True)
class MachineRanges:
    """90% ranges of figures over machines, as multiples of the figures.

    Attributes
    ----------
    ratios : dict
        By figure: what it is multiplied by at the low and at the high end.
    requests : int
        That the ranges are from.
    stretch : bool
        They are a stretch of the traffic.
    adapted : bool
        The machines are those of an adapted profile's intervals.
    """

    ratios: Mapping[str, tuple[float, float]]
    requests: int
    stretch: bool
    adapted: bool

    def of(self, figures: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        """The ranges of figures by their names; those that are not known are left out."""
        found = {}
        for name, (low, high) in self.ratios.items():
            value = figures.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = (low * value, high * value)
        return found

    def told(self) -> str:
        """Where they are from."""
        where = f"the busiest {self.requests:,} requests" if self.stretch else "the traffic"
        if self.adapted:
            return (
                f"90%: what the figures may be on the machine that the profile was adapted to, by "
                f"the intervals of its factors over {where} (docs/adapt.md)"
            )
        outside = any(low > 1 or high < 1 for low, high in self.ratios.values())
        why = " (outside it: the measured machine is faster or slower than most)" if outside else ""
        return (
            f"90%: what the figures may be on your machine{why}, by how known machines differ over "
            f"{where} (docs/adapt.md); 'qsim calibrate adapt' makes the profile one of yours"
        )


def machine_ranges(
    trace: Trace,
    pools: Sequence[Pool],
    draws: int,
    seed: int = 0,
    statistics: Iterable[tuple[str, str]] = (),
    **fleet: Any,
) -> dict[str, tuple[float, float]]:
    """90% ranges of means, percentiles and energy over machines.

    Parameters
    ----------
    draws : int
        Machines for each pool, each a simulation of its own.
    seed : int
        Of the draws, and of the simulations.
    statistics : iterable of pairs of str
        Further statistics, as :func:`quick_ranges` takes them.
    **fleet
        Other arguments of :func:`qsim.sim.simulate.simulate`.

    Returns
    -------
    dict
        By figure of the summary: the 5th and 95th percentile over the draws.
    """
    profiles = [_profile(p) for p in pools]
    rng, wanted = np.random.default_rng(seed), tuple(statistics)
    logs = [expected_machines(p).draw(draws, rng) for p in profiles]
    seen: list[dict[str, float]] = []
    for i in range(draws):
        drawn = [
            replace(pool, profile=apply(profile, Factors.of(np.exp(x[i]))))
            for pool, profile, x in zip(pools, profiles, logs, strict=True)
        ]
        seen.append(_figures(trace, drawn, seed, wanted, fleet))
    ranges = {}
    for name in seen[0] if seen else ():
        values = [s[name] for s in seen if name in s]
        if len(values) == draws:
            low, high = np.percentile(values, [5, 95])
            ranges[name] = (float(low), float(high))
    return ranges


def quick_ranges(
    trace: Trace,
    pools: Sequence[Pool],
    *,
    seed: int = 0,
    statistics: Iterable[tuple[str, str]] = (),
    spread: Spread | None = None,
    **fleet: Any,
) -> MachineRanges:
    """90% ranges of figures over machines, by a few simulations of a stretch of the traffic.

    Parameters
    ----------
    seed : int
        Of the simulations.
    statistics : iterable of pairs of str
        Further statistics of latencies, such as ``("ttft", "p95")``; named ``p95_ttft_ms``.
    spread : Spread, optional
        Of known machines; by default the shipped one.
    **fleet
        Other arguments of :func:`qsim.sim.simulate.simulate`.
    """
    profiles = [_profile(p) for p in pools]
    part = _stretch(trace, sum(p.replicas for p in pools))
    wanted = tuple(statistics)

    def logs(z: npt.NDArray[np.float64] | None) -> dict[str, float]:
        """Logarithms of the figures, on the profiles' machines or on others."""
        drawn = profiles
        if z is not None:
            drawn = [
                apply(p, Factors.of(np.exp(prior.mean + z @ axis)))
                for p, prior, axis in zip(profiles, priors, axes, strict=True)
            ]
        on = [replace(pool, profile=p) for pool, p in zip(pools, drawn, strict=True)]
        figures = _figures(part, on, seed, wanted, fleet)
        return {n: math.log(v) for n, v in figures.items() if 0 < v < math.inf}

    priors = [expected_machines(p, spread) for p in profiles]
    axes = [_axes(p.covariance) for p in priors]
    here, middle = logs(None), logs(np.zeros(len(FACTORS)))
    slower = [logs(z) for z in _Z * np.eye(len(FACTORS))]
    slopes = {
        n: np.array([seen.get(n, math.nan) - middle.get(n, math.nan) for seen in slower])
        for n in here
    }
    along = slopes.get(_LEADS, np.zeros(len(FACTORS)))
    length = float(np.linalg.norm(along))
    faster = along / length if length > 0 else along
    quick = logs(-_Z * faster)
    ratios = {}
    for name, value in here.items():
        up2 = float(slopes[name] @ slopes[name])
        if name not in quick or not math.isfinite(up2):
            continue
        # of what the faster machines change, the part along their direction is simulated
        down2 = up2 - float(slopes[name] @ faster) ** 2 + (middle[name] - quick[name]) ** 2
        own2 = (_Z * max(_own_sd(p, name) for p in profiles)) ** 2
        off = middle[name] - value
        low, high = off - math.sqrt(max(down2, 0.0) + own2), off + math.sqrt(up2 + own2)
        low, high = (min(max(x, -_MOST_LOG), _MOST_LOG) for x in (low, high))
        ratios[name] = (math.exp(low), math.exp(high))
    adapted = all(p.adapted is not None for p in profiles)
    return MachineRanges(ratios, len(part), len(part) < len(trace), adapted)


def _figures(
    trace: Trace,
    pools: Sequence[Pool],
    seed: int,
    statistics: Iterable[tuple[str, str]],
    fleet: Mapping[str, Any],
) -> dict[str, float]:
    """What ranges are shown of, after one simulation; figures over nothing are left out."""
    result = simulate(trace, pools=pools, seed=seed, **fleet)
    summary = result.summary(())
    found = {n: summary[n] for n in FIGURES if isinstance(summary.get(n), int | float)}
    return found | {f"{s}_{m}_ms": result.statistic(m, s) for m, s in statistics}


def _profile(pool: Pool) -> Profile:
    if isinstance(pool.profile, Profile):
        return pool.profile
    return load_profile(pool.profile, pool.options.vllm_version)


def _stretch(trace: Trace, servers: int) -> Trace:
    """The busiest requests in a row, as many as it takes to load the servers."""
    n = max(_REQUESTS, _A_SERVER * servers)
    if len(trace) <= n:
        return trace
    first = int(np.argmin(trace.arrival_s[n - 1 :] - trace.arrival_s[: len(trace) - n + 1]))
    return trace.take(np.arange(first, first + n))


def _axes(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows: a standard deviation along each principal axis, towards the slower machines."""
    values, vectors = np.linalg.eigh(covariance)
    rows = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    slower = np.where(rows[:, :_OF_TIME].sum(axis=1) >= 0, 1.0, -1.0)
    return np.asarray(rows * slower[:, None])


def _own_sd(profile: Profile, figure: str) -> float:
    """What a profile that was not measured is off by itself, standard deviation of the logarithm.

    Transferred and carried profiles state their errors; those of a measured one are far below
    what machines differ by.
    """
    if profile.transfer is None and profile.carried is None:
        return 0.0
    key = "worst_mean" if figure.endswith("_ms") else "worst_energy"
    value = profile.fit_error.get(key)
    stated = abs(float(value)) / 100 if isinstance(value, int | float) else 0.0
    if profile.carried is not None and not stated:
        stated = max(profile.carried.error_percent.values(), default=0.0) / 100
    return math.log1p(stated)


def machine_at(profile: Profile, z: Sequence[float]) -> Factors:
    """The machine at a point of what is known of a profile's machines.

    Parameters
    ----------
    z : sequence of float
        Standard normal numbers, one a factor.
    """
    prior = expected_machines(profile)
    return Factors.of(np.exp(prior.mean + np.linalg.cholesky(prior.covariance) @ np.asarray(z)))


def expected_machines(profile: Profile, spread: Spread | None = None) -> Prior:
    """The spread around a profile; of an adapted one what it states of its factors."""
    a = profile.adapted
    if a is None:
        return (spread or shipped_spread()).prior(profile)
    mean, sd = [], []
    for name in FACTORS:
        value, low, high = a.factors.get(name, [1.0, 1.0, 1.0])
        if low < high:  # of a profile that was kept as it is the factor is not in the middle
            mean.append(float(np.log(low * high)) / 2 - float(np.log(value)))
            sd.append(max(float(np.log(high / low)) / (2 * _Z), _LEAST_SD))
        else:
            mean.append(0.0)
            sd.append(_LEAST_SD)
    variance: npt.NDArray[np.float64] = np.array(sd) ** 2
    return Prior(np.array(mean), np.diag(variance))
