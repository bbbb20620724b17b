"""What a fleet would do on other machines: simulations under what is known of them.

A profile was measured on one machine. The range of a figure is that of re-simulations whose
profiles are multiplied by factors of the known spread (:mod:`qsim.profiles.spread`); of an adapted
profile of the intervals that it states. All servers of a pool are on machines alike.

:func:`machine_ranges` simulates all of the traffic on machines that are drawn.
:func:`quick_ranges` is what every answer shows, by ten simulations of a stretch of the traffic: the
profile's machine, the mean of all, and eight that stand for the spread. These are a two-level
orthogonal design (Plackett and Burman, 1946), a standard deviation to both sides along seven
directions: the principal axes of the six factors of time, with the power that is expected of such
machines; and, of power by itself, the one direction that changes what this traffic draws. So the
variance of the logarithm of a figure over the eight is the sum of the squared effects of all
directions. What their mean is off the mean machine's figure tells how bent a figure is: it is a
third moment, with which Cornish and Fisher (1937) correct the normal quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qsim.arrays import FloatArray
from qsim.profiles.factors import FACTORS, Factors, apply
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Prior, Spread, shipped_spread
from qsim.sim.fleet.pool import Pool
from qsim.sim.results.machine_ranges import MachineRanges
from qsim.sim.results.result import SimulationResult
from qsim.sim.results.summary import parse_statistic
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace

_LATENCIES = tuple(
    (m, s) for m in ("ttft", "tpot", "itl", "e2el") for s in ("mean", "median", "p90", "p99")
)
FIGURES = (
    *(f"{s}_{m}_ms" for m, s in _LATENCIES), "energy_j", "avg_power_w", "joules_per_output_token",
)  # fmt: skip
#: an interval of 90% is so many standard deviations to each side
_Z = 1.645
_LEAST_SD = 1e-4
#: requests that quick ranges are from: the fewest, what a server has at least, and as many times
#: the requests in the fleet, which a fleet that fills up and empties hardly changes
_FEWEST, _A_SERVER, _TIMES_INSIDE = 200, 45, 22
#: the most, and of larger fleets the most a server
_MOST, _MOST_A_SERVER = 1000, 150
#: factors of time; the others are of power
_OF_TIME = 6
#: machines that stand for the spread, by direction: seven columns that are orthogonal
_DESIGN = np.array([
    [1, 1, 1, -1, 1, -1, -1],
    [-1, 1, 1, 1, -1, 1, -1],
    [-1, -1, 1, 1, 1, -1, 1],
    [1, -1, -1, 1, 1, 1, -1],
    [-1, 1, -1, -1, 1, 1, 1],
    [1, -1, 1, -1, -1, 1, 1],
    [1, 1, -1, 1, -1, -1, 1],
    [-1, -1, -1, -1, -1, -1, -1],
], dtype=np.float64)  # fmt: skip
#: of how bent a figure is, what lies along the directions that matter to it: they are not known
_BENT = 0.5
#: a percentile is told by those around it, within so much of what is beyond it and at most so far
_AROUND, _FAR = 0.75, 5.0
#: no range is wider: an overloaded fleet's waiting times grow without end
_MOST_LOG = math.log(100.0)


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
    """90% ranges of figures over machines, by ten simulations of a stretch of the traffic.

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
    wanted = tuple(dict.fromkeys([*_LATENCIES, *statistics]))
    servers = sum(p.replicas for p in pools)

    def run(part: Trace, logs: Sequence[FloatArray] | None = None) -> SimulationResult:
        """On the profiles' machines, or on others by the logarithms of their factors."""
        drawn = profiles
        if logs is not None:
            drawn = [apply(p, Factors.of(np.exp(x))) for p, x in zip(profiles, logs, strict=True)]
        on = [replace(pool, profile=p) for pool, p in zip(pools, drawn, strict=True)]
        return simulate(part, pools=on, seed=seed, **fleet)

    part = _stretch(trace, max(_FEWEST, _A_SERVER * servers))
    result = run(part)
    enough = min(_inside(result) * _TIMES_INSIDE, max(_MOST, _MOST_A_SERVER * servers))
    if len(part) < len(trace) and enough > len(part):
        part = _stretch(trace, math.ceil(enough))
        result = run(part)
    here = _logs(result, wanted)
    priors = [expected_machines(p, spread) for p in profiles]
    rows = _rows(result, pools)
    directions = [
        _directions(prior.covariance, _of_power(profile, own))
        for prior, profile, own in zip(priors, profiles, rows, strict=True)
    ]
    middle = _logs(run(part, [prior.mean for prior in priors]), wanted)
    eight = [
        _logs(run(part, [p.mean + z @ d for p, d in zip(priors, directions, strict=True)]), wanted)
        for z in _DESIGN
    ]
    ratios = {}
    for name, value in here.items():
        seen = np.array([logs.get(name, math.nan) for logs in eight]) - value
        mean, sd = float(seen.mean()), float(seen.std())
        bent = _BENT * (mean - (middle.get(name, math.nan) - value))
        if not math.isfinite(bent):
            continue
        # no further than where the figure would turn back
        bent = min(max(bent, -sd / (2 * _Z)), sd / (2 * _Z))
        own = max(_own_sd(p, name) for p in profiles)
        center, width = mean + bent * (_Z**2 - 1), _Z * math.hypot(sd, own)
        low, high = (min(max(x, -_MOST_LOG), _MOST_LOG) for x in (center - width, center + width))
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


def _inside(result: SimulationResult) -> float:
    """Requests in the fleet at a time, on average (Little's law)."""
    total_s = float(result.metric("e2el").sum()) / 1000
    return total_s / result.duration_s if result.duration_s > 0 else 0.0


def _logs(result: SimulationResult, wanted: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Logarithms of figures, by name; of a percentile the mean of those around it."""
    values: dict[str, list[float]] = {}
    around: dict[str, dict[str, list[float]]] = {}
    for metric, statistic in wanted:
        q = parse_statistic(statistic)
        if q is None:
            values[f"{statistic}_{metric}_ms"] = [result.statistic(metric, statistic)]
        else:
            reach = min(_AROUND * min(q, 100 - q), _FAR)
            near = [q + reach * t for t in (-1, -0.5, 0, 0.5, 1)]
            around.setdefault(metric, {})[statistic] = near
    for metric, by_statistic in around.items():  # all of one in one go
        found = iter(result.percentiles(metric, [q for qs in by_statistic.values() for q in qs]))
        for statistic, qs in by_statistic.items():
            values[f"{statistic}_{metric}_ms"] = [next(found) for _ in qs]
    energy, seconds = result.energy_j, result.duration_s
    tokens = int(result.output_tokens[result.completed].sum())
    values["energy_j"] = [energy]
    values["avg_power_w"] = [energy / seconds if seconds > 0 else math.nan]
    values["joules_per_output_token"] = [energy / tokens if tokens else math.nan]
    return {
        n: math.fsum(map(math.log, vs)) / len(vs)
        for n, vs in values.items()
        if all(0 < v < math.inf for v in vs)
    }


def _rows(result: SimulationResult, pools: Sequence[Pool]) -> list[list[dict[str, Any]]]:
    """What each server did, by pool."""
    stats = iter(result.replica_stats)
    return [[next(stats) for _ in range(pool.replicas)] for pool in pools]


def _of_power(profile: Profile, rows: Sequence[Mapping[str, Any]]) -> FloatArray:
    """Shares of the energy by factor of power: idle, busy, work."""
    energy_j = sum(r["energy_j"] for r in rows)
    if not energy_j > 0:
        return np.full(3, 1 / 3)
    idle = profile.power.idle_w * sum(r["on_s"] for r in rows) / energy_j
    busy = profile.power.busy_w * sum(r["busy_s"] for r in rows) / energy_j
    shares = np.array([idle, busy, max(1.0 - idle - busy, 0.0)])
    return np.asarray(shares / shares.sum())


def _directions(covariance: FloatArray, shares: FloatArray) -> FloatArray:
    """Seven directions of the logarithms of factors, a standard deviation each; shape (7, f).

    Six are the principal axes of the factors of time, towards slower machines, with the power
    that is expected of these. The last is of power that has nothing to do with time: of all such
    directions the one that changes the energy, ``shares`` of it by factor of power.
    """
    t = _OF_TIME
    times, both, powers = covariance[:t, :t], covariance[t:, :t], covariance[t:, t:]
    values, vectors = np.linalg.eigh(times)
    rows = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    rows = rows * np.where(rows.sum(axis=1) >= 0, 1.0, -1.0)[:, None]
    expected = both @ np.linalg.pinv(times)
    left = powers - expected @ both.T
    along = left @ shares
    sd = math.sqrt(max(float(shares @ along), 0.0))
    last = np.zeros(len(covariance))
    if sd > 0:
        last[t:] = along / sd
    return np.vstack([np.hstack([rows, rows @ expected.T]), last])


def _profile(pool: Pool) -> Profile:
    if isinstance(pool.profile, Profile):
        return pool.profile
    return load_profile(pool.profile, pool.options.vllm_version)


def _stretch(trace: Trace, n: int) -> Trace:
    """The busiest ``n`` requests in a row."""
    if len(trace) <= n:
        return trace
    first = int(np.argmin(trace.arrival_s[n - 1 :] - trace.arrival_s[: len(trace) - n + 1]))
    return trace.take(np.arange(first, first + n))


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
    variance: FloatArray = np.array(sd) ** 2
    return Prior(np.array(mean), np.diag(variance))
