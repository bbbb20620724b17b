"""A machine's factors from windows of its telemetry, and its workload with them.

Metrics tell how many requests came and how long they were; not how they came within a scrape, nor
which lengths went together. Both are parameters beside the machine's factors: the coefficient of
variation of the gaps, and the rank correlation of prompt and output. Every replay draws the
requests anew under its own parameters, so what they scatter is part of the error of what was
measured. Otherwise the method is that of :mod:`qsim.calibrate.adapt.fitting`, with windows as its
loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from qsim.calibrate.adapt.adapting import AS_IS, as_is
from qsim.calibrate.adapt.fitting import LOAD_SD, FactorFit, information, pooled
from qsim.calibrate.adapt.telemetry import Window
from qsim.calibrate.validate.comparison import percent
from qsim.errors import CalibrationError
from qsim.profiles.factors import FACTORS, Factors, apply
from qsim.profiles.schema import Adapted, Profile
from qsim.profiles.spread import Prior, shipped_spread
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import HashIds, Trace

__all__ = ["TelemetryFit", "adapt_to_windows", "drawn_trace", "simulated"]

FloatArray = npt.NDArray[np.float64]

_ROUNDS, _LEFT_OUT_ROUNDS, _DRAWS, _DRAWS_A_TASK = 4, 3, 48, 4
#: parameters of the workload: logarithm of the CV of gaps, and Fisher's z of the rank correlation;
#: their standard deviations before anything is known, and from window to window
_WORKLOAD = ("cv", "correlation")
_WORKLOAD_SD, _WORKLOAD_WINDOW_SD = (0.4, 0.4), (0.2, 0.1)
_MOST_Z, _CV = 1.5, (0.25, 4.0)
#: error of the simulator itself in a window's figures, logarithms
_MODEL_SD = {"first_ms": 0.04, "token_ms": 0.01, "power_w": 0.01}
#: factors of which metrics must tell one at least: it must be known this much better than before
_TOLD, _KNOWN_BETTER = ("launch", "scheduler", "memory", "compute"), 0.7
#: replays that what a window would be is a mean of
_REPLAYS = 6
_SMALL = 1e-6
_BLOCK_TOKENS = 16


@dataclass(frozen=True, eq=False)
class TelemetryFit:
    """What metrics tell of a machine, and of its workload.

    Attributes
    ----------
    profile : Profile
        The adapted one.
    factors : dict
        With the ends of their 90% intervals.
    cv, correlation : tuple of three floats
        Of the gaps between requests, and of the ranks of prompt and output; with 90% intervals.
    left_out : dict
        Window to figure to error in percent when the others were fitted.
    error_percent, error_as_is_percent : float or None
        Means of the absolute errors on what was left out: adapted, and of the profile as it was.
    error_left_percent : float
        Of what was fitted to.
    kept : str
        ``all factors``, or that the profile was kept as it is.
    """

    profile: Profile
    factors: Mapping[str, tuple[float, float, float]]
    cv: tuple[float, float, float]
    correlation: tuple[float, float, float]
    left_out: Mapping[str, Mapping[str, float | None]]
    error_percent: float | None
    error_as_is_percent: float | None
    error_left_percent: float
    kept: str

    @property
    def most_error_percent(self) -> float:
        """Of what was fitted to, and of what was left out of what was kept: the larger one."""
        own = self.error_as_is_percent if self.kept == AS_IS else self.error_percent
        return max(self.error_left_percent, own or 0.0)


def drawn_trace(window: Window, cv: float, correlation: float, seed: int) -> Trace:
    """Requests as they may have come, from the lead-in's begin to the window's end.

    Lengths are drawn evenly over their distributions, so that their sums are those of the window.

    Parameters
    ----------
    cv : float
        Of the gaps between requests; 1 is Poisson. Between two scrapes as many come as did.
    correlation : float
        Of the ranks of prompt and output.
    """
    rng = np.random.default_rng(seed)
    counts = np.floor(window.arrivals + rng.uniform(size=len(window.arrivals))).astype(np.int64)
    n = int(counts.sum())
    if n == 0:
        raise CalibrationError(f"window {window.name}: no request came in it")
    ends = np.concatenate([[0], np.cumsum(counts)])
    shape = 1.0 / cv**2
    steady = np.concatenate([[0.0], np.cumsum(rng.gamma(shape, 1.0 / shape, n + 1))])
    # a step begins somewhere in the gap between the requests before it and in it
    begins = steady[ends] + rng.uniform(size=len(ends)) * (steady[ends + 1] - steady[ends])
    begins[[0, -1]] = steady[[0, -1]]
    step = np.repeat(np.arange(len(counts)), counts)
    share = (steady[1:-1] - begins[step]) / (begins[step + 1] - begins[step])
    at = window.edges_s[step] + share * np.diff(window.edges_s)[step]
    ranks = rng.standard_normal((2, n))
    ranks[1] = correlation * ranks[0] + math.sqrt(1.0 - correlation**2) * ranks[1]
    even_u = (np.arange(n) + 0.5) / n
    u = np.empty((2, n))
    for row, values in zip(u, ranks, strict=True):
        row[np.argsort(values, kind="stable")] = even_u
    prompts = window.prompt.tokens_at(u[0])
    return Trace(
        arrival_s=np.sort(at),
        prompt_tokens=prompts,
        output_tokens=window.output.tokens_at(u[1]),
        hash_ids=_prefixes(prompts, window.cached),
        name=window.name,
    )


def _prefixes(prompts: npt.NDArray[np.int64], cached: float) -> HashIds | None:
    """Prompts that begin alike, each for the share that the cache held."""
    if cached < 0.01:
        return None
    blocks = (prompts * cached / _BLOCK_TOKENS).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    values = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], blocks)
    return HashIds(values, offsets, _BLOCK_TOKENS)


def simulated(
    window: Window,
    profile: Profile,
    options: EngineOptions,
    cv: float,
    correlation: float,
    seed: int,
) -> dict[str, float]:
    """The figures of ``window.measured``, of drawn requests."""
    trace = drawn_trace(window, cv, correlation, seed)
    result = simulate(
        trace, profile, options=options, frontend=not window.engine, too_long="reject"
    )
    done = result.arrival_s + result.e2el_ms / 1e3
    mine = result.completed & (done >= window.begin_s) & (done < window.end_s)
    if not mine.any():
        mine = result.completed
    first, whole = result.ttft_ms[mine], result.e2el_ms[mine]
    gaps = float((result.output_tokens[mine] - 1).sum())
    found = {
        "first_ms": float(first.mean()),
        "token_ms": float((whole - first).sum()) / max(gaps, 1.0),
    }
    if "power_w" in window.measured:
        t, power = result.timeline["t_s"], result.timeline["power_w"]
        width = float(t[1] - t[0]) if len(t) > 1 else max(result.duration_s, 1e-3)
        edges = np.append(t - width / 2, t[-1] + width / 2)
        idle_w = profile.power.idle_w
        above = np.concatenate([[0.0], np.cumsum((power - idle_w) * width)])
        a, b = np.interp([window.begin_s, window.end_s], edges, above)
        found["power_w"] = idle_w + float(b - a) / (window.end_s - window.begin_s)
    return {k: found[k] for k in window.measured}


def _row(
    windows: Sequence[Window], profile: Profile, options: EngineOptions, x: FloatArray, seed: int
) -> FloatArray:
    """Logarithms of all windows' figures under parameters."""
    f = len(FACTORS)
    adapted = apply(profile, Factors.of(np.exp(np.clip(x[:f], -6.0, 6.0))))
    cv = float(np.exp(np.clip(x[f], math.log(_CV[0]), math.log(_CV[1]))))
    rho = math.tanh(float(np.clip(x[f + 1], -_MOST_Z, _MOST_Z)))
    values = [
        v
        for i, w in enumerate(windows)
        for v in simulated(w, adapted, options, cv, rho, seed + i).values()
    ]
    return np.log(np.maximum(values, _SMALL))


def _rows(
    windows: Sequence[Window],
    profile: Profile,
    options: EngineOptions,
    draws: FloatArray,
    seeds: Sequence[int],
) -> FloatArray:
    return np.array(
        [_row(windows, profile, options, x, s) for x, s in zip(draws, seeds, strict=True)]
    )


@dataclass(frozen=True, eq=False)
class _Fitting:
    """How windows are fitted: what does not change from fit to fit."""

    profile: Profile
    options: EngineOptions
    prior: Prior
    executor: Executor | None
    seed: int

    def rows(self, windows: Sequence[Window], draws: FloatArray, first_seed: int) -> FloatArray:
        seeds = [first_seed + 1000 * i for i in range(len(draws))]
        if self.executor is None:
            return _rows(windows, self.profile, self.options, draws, seeds)
        futures = [
            self.executor.submit(
                _rows,
                windows,
                self.profile,
                self.options,
                draws[i : i + _DRAWS_A_TASK],
                seeds[i : i + _DRAWS_A_TASK],
            )
            for i in range(0, len(draws), _DRAWS_A_TASK)
        ]
        return np.concatenate([f.result() for f in futures])

    def fit(
        self, windows: Sequence[Window], rounds: int, say: Callable[[str], None] | None = None
    ) -> FactorFit:
        """Factors and the workload's parameters behind them."""
        measured = np.log([v for w in windows for v in w.measured.values()])
        noise = np.array(
            [
                _MODEL_SD[k] ** 2 + (w.power_sd**2 if k == "power_w" else 0.0)
                for w in windows
                for k in w.measured
            ]
        )
        ends = np.cumsum([0, *(len(w.measured) for w in windows)]).tolist()
        load_sd = [*(LOAD_SD[n] for n in FACTORS), *_WORKLOAD_WINDOW_SD]
        rng = np.random.default_rng(self.seed)
        mean, around = self.prior.mean.copy(), self.prior.covariance * 0.5
        precision: FloatArray = np.asarray(np.linalg.inv(self.prior.covariance), np.float64)
        covariance = self.prior.covariance
        for i in range(rounds):
            if say is not None:
                say(f"replaying under {_DRAWS} draws of machine and workload, round {i + 1}")
            half = rng.standard_normal((_DRAWS // 2, len(mean)))
            steps = np.concatenate([half, -half]) @ np.linalg.cholesky(around).T
            out = self.rows(windows, mean + steps, self.seed + 1_000_000 * (i + 1))
            told = information(steps, out, measured, noise, 1.0, ends)
            step, covariance = pooled(
                told, precision, precision @ (self.prior.mean - mean), load_sd
            )
            mean = mean + np.clip(step, -1.5, 1.5)
            around = 1.5 * covariance + 0.0025 * np.diag(np.diag(self.prior.covariance))
        return FactorFit(mean, covariance)

    def errors(self, windows: Sequence[Window], x: FloatArray) -> dict[str, dict[str, float]]:
        """Of each window under parameters: simulated against measured, percent."""
        draws = np.repeat(x[None, :], _REPLAYS, axis=0)
        rows = np.exp(self.rows(windows, draws, self.seed + 77)).mean(axis=0).tolist()
        found: dict[str, dict[str, float]] = {}
        at = 0
        for w in windows:
            found[w.name] = {}
            for name, value in w.measured.items():
                found[w.name][name] = (rows[at] / value - 1.0) * 100
                at += 1
        return found


def adapt_to_windows(
    windows: Sequence[Window],
    profile: Profile,
    *,
    options: EngineOptions | None = None,
    num_gpu_blocks: int | None = None,
    notes: Sequence[str] = (),
    prior: Prior | None = None,
    progress: Callable[[str], None] | None = None,
    executor: Executor | None = None,
    seed: int = 0,
) -> TelemetryFit:
    """Adapt a profile to the machine whose metrics the windows are of.

    Its stated error is that of each window left out in turn; with fewer than three there is none.

    Parameters
    ----------
    options : EngineOptions, optional
        The server's settings, where they are not the profile's.
    num_gpu_blocks : int, optional
        KV blocks of the server, where they are not the profile's.

    Raises
    ------
    CalibrationError
        If the metrics do not tell the machine's speed from what is known of machines anyway.
    """
    known = shipped_spread().prior(profile) if prior is None else prior
    whole = _with_workload(known)
    served = profile
    if num_gpu_blocks is not None:
        served = replace(profile, memory=replace(profile.memory, num_gpu_blocks=num_gpu_blocks))
    how = _Fitting(served, options or EngineOptions(), whole, executor, seed)
    fit = how.fit(windows, _ROUNDS, progress)
    sd = np.sqrt(np.diag(fit.log_covariance)) / np.sqrt(np.diag(whole.covariance))
    best = min(float(sd[FACTORS.index(n)]) for n in _TOLD)
    if best > _KNOWN_BETTER:
        raise CalibrationError(
            f"not enough traffic to tell: {len(windows)} windows narrow no factor of speed below "
            f"{best:.0%} of what is known of machines anyway; take a longer range, with busier "
            "stretches"
        )
    left_out: dict[str, dict[str, float]] = {}
    plain: dict[str, dict[str, float]] = {}
    if len(windows) >= 3:
        at_one = np.zeros(len(whole.mean))
        for i, window in enumerate(windows):
            if progress is not None:
                progress(f"leaving out {window.name}")
            rest = [w for j, w in enumerate(windows) if j != i]
            x = how.fit(rest, _LEFT_OUT_ROUNDS).log_mean
            left_out |= how.errors([window], x)
            at_one[len(FACTORS) :] = x[len(FACTORS) :]
            plain |= how.errors([window], at_one)
    error, error_plain = _mean_error(left_out), _mean_error(plain)
    left = _mean_error(how.errors(windows, fit.log_mean)) or 0.0
    f = len(FACTORS)
    machine = FactorFit(fit.log_mean[:f], fit.log_covariance[:f, :f])
    kept, chosen = "all factors", left_out
    factors, adapted = machine.intervals(), apply(profile, machine.factors)
    if error is not None and error_plain is not None and error_plain < error:
        kept, chosen = AS_IS, plain
        factors, adapted = as_is(known), replace(profile, measured_host=None)
    cv, rho = _workload(fit)
    beyond = machine.beyond(known)
    told = [
        *notes,
        f"from metrics of a running server; gaps of requests of CV {cv[0]:.2f} ({cv[1]:.2f} to "
        f"{cv[2]:.2f}), lengths with a rank correlation of {rho[0]:.2f} ({rho[1]:.2f} to "
        f"{rho[2]:.2f})",
        *([f"no known machine has {', '.join(beyond)}"] if beyond else []),
    ]
    rounded = {w: {k: percent(v) for k, v in e.items()} for w, e in chosen.items()}
    adapted = replace(
        adapted,
        fit_error=_stated(rounded),
        adapted=Adapted(
            profile=profile.id,
            recordings=list(profile.identity.recordings),
            loads=[f"metrics, {w.name}" for w in windows],
            factors={k: [max(round(x, 4), 1e-4) for x in v] for k, v in factors.items()},
            notes=told,
        ),
    )
    return TelemetryFit(adapted, factors, cv, rho, rounded, error, error_plain, left, kept)


def _with_workload(known: Prior) -> Prior:
    """What is known of a machine, and of a workload."""
    f = len(FACTORS)
    covariance = np.zeros((f + 2, f + 2))
    covariance[:f, :f] = known.covariance
    covariance[f:, f:] = np.diag(np.array(_WORKLOAD_SD) ** 2)
    return Prior(np.concatenate([known.mean, np.zeros(2)]), covariance)


def _workload(fit: FactorFit) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """CV of the gaps and correlation of the lengths, with 90% intervals."""
    z = NormalDist().inv_cdf(0.95)
    f = len(FACTORS)
    told = []
    for i, back in ((f, math.exp), (f + 1, math.tanh)):
        mean, half = float(fit.log_mean[i]), z * math.sqrt(float(fit.log_covariance[i, i]))
        told.append((back(mean), back(mean - half), back(mean + half)))
    return told[0], told[1]


def _mean_error(errors: Mapping[str, Mapping[str, float]]) -> float | None:
    values = [abs(e) for one in errors.values() for e in one.values()]
    return float(np.mean(values)) if values else None


def _stated(left_out: Mapping[str, Mapping[str, float | None]]) -> dict[str, object]:
    """``fit_error`` of the adapted profile."""
    if not left_out:
        return {}

    def worst(*names: str) -> float | None:
        errors = (e.get(n) for e in left_out.values() for n in names)
        return max((abs(x) for x in errors if x is not None), default=None)

    return {
        "unit": "percent, simulated against measured",
        "how": "each window of the metrics left out in turn, factors fitted to the rest",
        "worst_mean": worst("first_ms", "token_ms"),
        "worst_energy": worst("power_w"),
        "phases": {"left out": {k: dict(v) for k, v in left_out.items()}},
    }
