"""Factors of a machine from loads that its clients saw.

The loads are replayed under draws of factors, a line is laid through what comes out (statistical
linearisation: single replays are not smooth, a hair's difference regroups batches), and the line
is solved for the factors that give what was measured, held to what is known of machines. This is
done a few times around the last answer: an iterated, regularised Gauss-Newton method whose
derivatives are averages over draws. What is left of uncertainty is the posterior's covariance.

What is compared are means of the logarithms of TTFT, TPOT and E2EL over groups of requests (by
time of arrival, prompt and output), some statistics over all of them, and the energy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qsim.calibrate.adapt.load import Load, Replay, replay
from qsim.errors import CalibrationError
from qsim.profiles.factors import FACTORS, HOST, Factors, apply
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Prior

__all__ = [
    "LEAST_REQUESTS",
    "LOAD_SD",
    "FactorFit",
    "fit_factors",
    "information",
    "pooled",
    "unexplained",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_ROUNDS, _DRAWS = 5, 40
#: draws that one task of an executor replays
_DRAWS_A_TASK = 4
#: error of the simulator itself in a group's mean, logarithms; and the scatter of one request
_MODEL_SD = {"ttft": 0.04, "tpot": 0.010, "e2el": 0.010}
_REQUEST_SD = {"ttft": 0.20, "tpot": 0.05, "e2el": 0.05}
_ENERGY_SD = 0.01
#: and as much as a machine draws in so many seconds: counters of energy move every 0.1 s, so what
#: lies before or after a load is counted to it or not
_ENERGY_EDGE_S = 0.1
#: every request is counted in so many groups, so each is worth less
_OVERLAP = 3.0
#: how the factors change from load to load of one machine, standard deviations of logarithms
LOAD_SD = {
    "launch": 0.15,
    "scheduler": 0.15,
    "front_end": 0.15,
    "memory": 0.01,
    "compute": 0.015,
    "limit": 0.3,
    "idle_power": 0.005,
    "busy_power": 0.02,
    "work_power": 0.01,
}
#: degrees of freedom of a load's deviation, the deviations that a load tells, and rounds
_T_DEGREES, _T_EFFECTIVE, _REWEIGHTED = 4.0, 2.0, 12
#: so many loads tell together which of them is odd
_MANY_LOADS = 3
#: of a factor that may not differ from 1
_FIXED_SD = 1e-4
#: beyond so many standard deviations a difference weighs less (Huber)
_HUBER = 2.5
#: fewer requests are no load to learn from
LEAST_REQUESTS = 20
_SMALL_MS = 1e-3
#: machines lie within so many standard deviations of what is known of them, and no host is so many
#: times as slow, or as fast, as that of a profile
_MOST_SD, _MOST_HOST = 3.0, 5.0


@dataclass(frozen=True, eq=False)
class FactorFit:
    """Factors with what is left of uncertainty.

    Attributes
    ----------
    log_mean : array of shape (f,)
        Logarithms of the factors, in the order of ``FACTORS``.
    log_covariance : array of shape (f, f)
    """

    log_mean: FloatArray
    log_covariance: FloatArray

    @property
    def factors(self) -> Factors:
        """The factors."""
        return Factors.of(np.exp(self.log_mean))

    def intervals(self) -> dict[str, tuple[float, float, float]]:
        """By factor: it, and the ends of its 90% interval."""
        half = 1.645 * np.sqrt(np.diag(self.log_covariance))
        return {
            name: (float(np.exp(m)), float(np.exp(m - h)), float(np.exp(m + h)))
            for name, m, h in zip(FACTORS, self.log_mean, half, strict=True)
        }

    def beyond(self, known: Prior) -> list[str]:
        """Factors that no machine of which something is known has, each beside what those have."""
        found = []
        for i, name in enumerate(FACTORS):
            log, mean = float(self.log_mean[i]), float(known.mean[i])
            sd = float(np.sqrt(known.covariance[i, i]))
            slow = name in HOST and abs(log) > np.log(_MOST_HOST)
            if abs(log - mean) > _MOST_SD * sd or slow:
                low, high = np.exp(mean - 1.645 * sd), np.exp(mean + 1.645 * sd)
                found.append(
                    f"{name} x{np.exp(log):.2f} (90% of machines: {low:.2f} to {high:.2f})"
                )
        return found

    def held(self, names: Sequence[str], prior: Prior) -> FactorFit:
        """What is told of the other factors if some are as a prior has them.

        The normal law's conditional mean; the factors that are held keep the prior's variance, and
        are then independent of the others.
        """
        if not names:
            return self
        i = np.array([n in names for n in FACTORS])
        mean, covariance = self.log_mean.copy(), self.log_covariance.copy()
        cross, own = covariance[np.ix_(~i, i)], covariance[np.ix_(i, i)]
        gain = np.linalg.solve(own, cross.T).T
        mean[~i] += gain @ (prior.mean[i] - mean[i])
        mean[i] = prior.mean[i]
        covariance[np.ix_(~i, ~i)] -= gain @ cross.T
        covariance[np.ix_(~i, i)] = covariance[np.ix_(i, ~i)] = 0.0
        covariance[np.ix_(i, i)] = prior.covariance[np.ix_(i, i)]
        return FactorFit(mean, covariance)


@dataclass(frozen=True, eq=False)
class _View:
    """What of a load is compared: groups of requests by metric, and the weight of each."""

    load: Load
    groups: tuple[tuple[str, BoolArray], ...]
    sd: FloatArray
    #: whether the energy is compared too
    energy: bool

    def vector(self, seen: Load | Replay) -> FloatArray:
        """Logarithms: of each group's geometric mean, each metric's mean, and the energy."""
        outputs = self.load.trace.output_tokens
        gaps = np.maximum(outputs - 1, 1)
        values = {
            "ttft": seen.ttft_ms,
            "tpot": (seen.e2el_ms - seen.ttft_ms) / gaps,
            "e2el": seen.e2el_ms,
        }
        logs = {k: np.log(np.maximum(v, _SMALL_MS)) for k, v in values.items()}
        found = [float(logs[metric][mask].mean()) for metric, mask in self.groups]
        whole = self.groups[: 3 if outputs.max() > 1 else 2]
        for metric, mask in whole:
            v = values[metric][mask]
            found.append(float(np.log(max(v.mean(), _SMALL_MS))))
            found.append(float(np.log(max(np.median(v), _SMALL_MS))))
        if self.energy and seen.energy_j is not None:
            found.append(float(np.log(seen.energy_j)))
        return np.array(found)


def _view(load: Load, part: BoolArray | None = None) -> _View:
    """Groups of a load's requests, or of a part of them (then without the energy)."""
    n = len(load)
    chosen = np.ones(n, dtype=bool) if part is None else part
    trace = load.trace
    many = trace.output_tokens > 1
    metrics = ("ttft", "e2el", "tpot") if (many & chosen).any() else ("ttft", "e2el")

    def cut(values: npt.NDArray[np.generic], pieces: int) -> list[BoolArray]:
        order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        return [(order * pieces) // n == i for i in range(pieces)]

    masks: list[tuple[str, BoolArray]] = [
        (m, chosen & many if m == "tpot" else chosen) for m in metrics
    ]
    sets = [*cut(trace.arrival_s, 5), *cut(trace.prompt_tokens, 3), *cut(trace.output_tokens, 3)]
    for metric in metrics:
        for one in sets:
            mask = one & chosen & (many if metric == "tpot" else True)
            if mask.sum() >= 5:
                masks.append((metric, mask))
    sd = [np.sqrt(_MODEL_SD[m] ** 2 + _REQUEST_SD[m] ** 2 / g.sum()) for m, g in masks]
    for metric, mask in masks[: len(metrics)]:
        whole = np.sqrt(_MODEL_SD[metric] ** 2 + _REQUEST_SD[metric] ** 2 / mask.sum())
        sd += [whole, 1.5 * whole]
    weights = np.array(sd) * np.sqrt(_OVERLAP)
    energy = load.energy_j is not None and load.energy_j > 0 and part is None
    if energy:
        seconds = float(np.max(trace.arrival_s + load.e2el_ms / 1e3))
        weights = np.append(weights, np.hypot(_ENERGY_SD, _ENERGY_EDGE_S / max(seconds, 1e-3)))
    return _View(load, tuple(masks), weights, energy)


def fit_factors(
    loads: Sequence[Load],
    profile: Profile,
    prior: Prior,
    *,
    parts: Sequence[BoolArray | None] | None = None,
    only: Sequence[str] = FACTORS,
    rounds: int = _ROUNDS,
    of_the_load: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    executor: Executor | None = None,
) -> FactorFit:
    """Fit the factors by which a machine differs from a profile's.

    Parameters
    ----------
    loads : sequence of Load
        What was sent to the machine, and what its client saw.
    prior : Prior
        What is known of machines: what the loads do not tell stays there.
    parts : sequence of arrays of shape (n,), optional
        Of each load, the requests that may be looked at; the energy then is not.
    only : sequence of str
        The factors that may differ from 1.
    rounds : int
        How often the line is laid anew.
    of_the_load : bool
        What the factors were while these loads ran, not what they will be for others: a host that
        something held is then told of as it was.
    executor : Executor, optional
        Replays the draws; by default this process does. What comes out is the same.

    Raises
    ------
    CalibrationError
        If the loads have too few requests to tell anything.
    """
    if not loads or sum(len(x) for x in loads) < LEAST_REQUESTS:
        n = sum(len(x) for x in loads)
        raise CalibrationError(
            f"{n} requests are too few to tell machines apart; send {LEAST_REQUESTS} at least"
        )
    views = [_view(x, p) for x, p in zip(loads, parts or [None] * len(loads), strict=True)]
    measured = np.concatenate([v.vector(v.load) for v in views])
    noise = np.concatenate([v.sd for v in views]) ** 2
    rng = np.random.default_rng(seed)
    prior = _held(prior, only)
    mean, f = prior.mean.copy(), len(prior.mean)
    ends = np.cumsum([0, *(len(v.sd) for v in views)]).tolist()
    around = prior.covariance * 0.5
    precision: FloatArray = np.asarray(np.linalg.inv(prior.covariance), dtype=np.float64)
    covariance = prior.covariance
    for i in range(rounds):
        if progress is not None:
            progress(f"replaying under {_DRAWS} draws of factors, round {i + 1} of {rounds}")
        half = rng.standard_normal((_DRAWS // 2, f))
        draws = mean + np.concatenate([half, -half]) @ np.linalg.cholesky(around).T
        out = _replayed(views, profile, draws, executor)
        told = information(draws - mean, out, measured, noise, 0.5, ends)
        pull = precision @ (prior.mean - mean)
        if of_the_load:
            covariance = np.asarray(np.linalg.inv(precision + sum(x for x, _ in told)))
            step = covariance @ (pull + sum(y for _, y in told))
        else:
            step, covariance = pooled(told, precision, pull, [LOAD_SD[n] for n in FACTORS])
        mean = mean + np.clip(step, -1.5, 1.5)
        around = 1.5 * covariance + 0.0025 * np.diag(np.diag(prior.covariance))
    return FactorFit(mean, covariance)


def unexplained(load: Load, profile: Profile) -> float:
    """What a profile leaves of a load, over the noise that is expected: a mean of squares."""
    view = _view(load)
    off = view.vector(load) - view.vector(replay(load, profile))
    return float(np.mean((off / view.sd) ** 2))


def information(
    steps: FloatArray,
    out: FloatArray,
    measured: FloatArray,
    noise: FloatArray,
    scatter_share: float,
    ends: Sequence[int],
) -> list[tuple[FloatArray, FloatArray]]:
    """What loads tell of parameters: of each its information, and what pulls the parameters.

    A line is laid through what came out of draws of the parameters.

    Parameters
    ----------
    steps : array of shape (d, f)
        The draws, from where they are around.
    out : array of shape (d, m)
        What came out.
    measured, noise : arrays of shape (m,)
        What should have, and its variance.
    scatter_share : float
        How much of the draws' scatter around the line is an error of what was measured, too.
    ends : sequence of int
        Where the loads' parts of the m begin and end.

    Returns
    -------
    list of (array of shape (f, f), array of shape (f,))
    """
    line = np.column_stack([np.ones(len(steps)), steps])
    coefficients = np.linalg.lstsq(line, out, rcond=None)[0]
    scatter = ((out - line @ coefficients) ** 2).sum(axis=0) / (len(steps) - line.shape[1])
    variance = noise + scatter_share * scatter
    slopes, off = coefficients[1:].T, measured - coefficients[0]
    weight = 1.0 / (variance * np.maximum(1.0, np.abs(off) / np.sqrt(variance) / _HUBER))
    told = []
    for a, b in itertools.pairwise(ends):
        weighted = slopes[a:b].T * weight[a:b]
        told.append((weighted @ slopes[a:b], weighted @ off[a:b]))
    return told


def pooled(
    told: Sequence[tuple[FloatArray, FloatArray]],
    precision: FloatArray,
    pull: FloatArray,
    load_sd: Sequence[float],
) -> tuple[FloatArray, FloatArray]:
    """Step and covariance where every load has a deviation of its own from its machine.

    The deviations are multivariate t (Lange, Little and Taylor, 1989, by reweighting): most are
    about ``load_sd``, and one that is far larger takes its load's word with it. Of three loads or
    more the half that deviate least keep theirs: what most loads say is the machine.
    """
    spread = np.diag(np.asarray(load_sd, dtype=np.float64) ** 2)
    f, wide = len(load_sd), [1.0] * len(told)
    step: FloatArray = np.zeros(f)
    covariance: FloatArray = spread
    for _ in range(_REWEIGHTED):
        total, right, solved = precision.copy(), pull.copy(), []
        for (own, off), u in zip(told, wide, strict=True):
            gain = np.linalg.inv(np.linalg.inv(spread * u) + own)
            solved.append(gain)
            total += own - own @ gain @ own
            right += off - own @ gain @ off
        covariance = np.asarray(np.linalg.inv(total))
        step = covariance @ right
        for i, ((own, off), gain) in enumerate(zip(told, solved, strict=True)):
            deviation = gain @ (off - own @ step)
            r2 = float(deviation @ np.linalg.solve(spread, deviation))
            wide[i] = max(1.0, (_T_DEGREES + r2) / (_T_DEGREES + _T_EFFECTIVE))
        if len(wide) >= _MANY_LOADS:
            usual = float(np.median(wide))
            wide = [max(1.0, w / usual) for w in wide]
    return step, covariance


def _held(prior: Prior, only: Sequence[str]) -> Prior:
    """A prior under which all factors but some are 1."""
    free = np.array([name in only for name in FACTORS])
    if free.all():
        return prior
    covariance = prior.covariance * np.outer(free, free)
    covariance[~free, ~free] = _FIXED_SD**2
    return Prior(np.where(free, prior.mean, 0.0), covariance)


def _replayed(
    views: Sequence[_View], profile: Profile, draws: FloatArray, executor: Executor | None
) -> FloatArray:
    """What the views compare, simulated under each draw: a row a draw."""
    if executor is None:
        return _simulated(views, profile, draws)
    parts = [draws[i : i + _DRAWS_A_TASK] for i in range(0, len(draws), _DRAWS_A_TASK)]
    futures = [executor.submit(_simulated, views, profile, x) for x in parts]
    return np.concatenate([f.result() for f in futures])


def _simulated(views: Sequence[_View], profile: Profile, draws: FloatArray) -> FloatArray:
    rows = []
    for logs in draws:
        adapted = apply(profile, Factors.of(np.exp(np.clip(logs, -6.0, 6.0))))
        rows.append(np.concatenate([v.vector(replay(v.load, adapted)) for v in views]))
    return np.array(rows)
