"""A load through a profile beside what its client measured, and what would explain the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.calibrate.adapt.fitting import LEAST_REQUESTS, FactorFit, fit_factors
from qsim.calibrate.adapt.load import Load, Replay, replay
from qsim.calibrate.validate.comparison import METRICS, latencies, percent
from qsim.profiles.factors import HOST, apply
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Prior, shipped_spread
from qsim.sim.scheduler.config import EngineOptions

__all__ = ["CAUSES", "Cause", "Compared", "compare_load"]

FloatArray = npt.NDArray[np.float64]

#: what a machine may differ in, and the factors of each
CAUSES: Mapping[str, tuple[str, ...]] = {
    "host": HOST,
    "GPU speed": ("memory", "compute"),
    "power limit": ("limit",),
    "power": ("idle_power", "busy_power", "work_power"),
}
#: engine settings that are often other than was thought
_SETTINGS: Mapping[str, EngineOptions] = {
    "no asynchronous scheduling": EngineOptions(async_scheduling=False),
    "2,048 batched tokens": EngineOptions(max_num_batched_tokens=2048),
    "16,384 batched tokens": EngineOptions(max_num_batched_tokens=16384),
    "at most 128 requests at a time": EngineOptions(max_num_seqs=128),
    "at most 256 requests at a time": EngineOptions(max_num_seqs=256),
}
#: a setting is named if it leaves less than this share of the mismatch
_CLEARER = 0.6
#: rounds of a fit of one part of a machine alone
_ALONE_ROUNDS = 3
#: below this mismatch, percent, nothing needs explaining
_FINE = 2.0


@dataclass(frozen=True)
class Cause:
    """Something that would explain a part of the difference.

    Attributes
    ----------
    name : str
    mismatch_percent : float
        Mean absolute error of means, medians and energy that it leaves.
    factors : dict
        Of a machine: the factors, with 90% intervals. Empty for a setting.
    """

    name: str
    mismatch_percent: float
    factors: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True, eq=False)
class Compared:
    """A load, measured and simulated.

    Attributes
    ----------
    load : Load
    profile : Profile
    replay : Replay
    measured, simulated : dict
        ``mean_ttft_ms`` and so on, and ``energy_j``.
    causes : tuple of Cause
        What would explain the difference: parts of a machine, then settings; the best first.
    fit : FactorFit or None
        Factors of the machine; None if they were not asked for, or the load is too small.
    fitted_mismatch_percent : float or None
        What all factors together leave.
    beyond : tuple of str
        Factors that no known machine has: what the others explain is doubtful then.
    """

    load: Load
    profile: Profile
    replay: Replay
    measured: Mapping[str, float]
    simulated: Mapping[str, float]
    causes: tuple[Cause, ...] = ()
    fit: FactorFit | None = None
    fitted_mismatch_percent: float | None = None
    beyond: tuple[str, ...] = ()

    @property
    def mismatch_percent(self) -> float:
        """Mean absolute error of means, medians and energy."""
        return _mismatch(self.load, self.replay)

    def error_percent(self, name: str) -> float:
        """Simulated against measured."""
        m = self.measured[name]
        return (self.simulated[name] / m - 1.0) * 100 if m else float("nan")

    def pairs(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Measured and simulated values of single requests by metric."""
        outputs = self.load.trace.output_tokens
        measured = self.load.values()
        simulated = latencies(self.replay.ttft_ms, self.replay.e2el_ms, outputs)
        return {m: (measured[m], simulated[m]) for m in METRICS if m in measured}

    def request_errors(self) -> dict[str, dict[str, float]]:
        """Of single requests, by metric: quantiles of simulated against measured, percent."""
        found = {}
        for metric, (measured, simulated) in self.pairs().items():
            e = (simulated / np.maximum(measured, 1e-6) - 1) * 100
            low, middle, high = np.percentile(e, [5, 50, 95])
            found[metric] = {
                "median_absolute_percent": float(np.median(np.abs(e))),
                "p5_percent": float(low),
                "median_percent": float(middle),
                "p95_percent": float(high),
            }
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        t = self.load.trace
        pairs = zip(
            t.arrival_s, t.prompt_tokens, t.output_tokens, self.load.ttft_ms, self.replay.ttft_ms,
            self.load.e2el_ms, self.replay.e2el_ms, strict=True,
        )  # fmt: skip
        return {
            "load": self.load.name,
            "profile": self.profile.id,
            "requests": len(self.load),
            "measured": {k: round(v, 4) for k, v in self.measured.items()},
            "simulated": {k: round(v, 4) for k, v in self.simulated.items()},
            "error_percent": {k: percent(self.error_percent(k)) for k in self.measured},
            "request_errors": {
                m: {k: percent(v) for k, v in e.items()} for m, e in self.request_errors().items()
            },
            "mismatch_percent": round(self.mismatch_percent, 2),
            "explained_by": [
                {
                    "cause": c.name,
                    "mismatch_percent": round(c.mismatch_percent, 2),
                    "factors": {k: [round(x, 3) for x in v] for k, v in c.factors.items()},
                }
                for c in self.causes
            ],
            "mismatch_with_all_factors_percent": None
            if self.fitted_mismatch_percent is None
            else round(self.fitted_mismatch_percent, 2),
            "beyond_known_machines": list(self.beyond),
            "of_requests": [
                {
                    "arrival_s": round(float(at), 6),
                    "prompt_tokens": int(p),
                    "output_tokens": int(o),
                    "measured_ttft_ms": round(float(mt), 3),
                    "simulated_ttft_ms": round(float(st), 3),
                    "measured_e2el_ms": round(float(me), 3),
                    "simulated_e2el_ms": round(float(se), 3),
                }
                for at, p, o, mt, st, me, se in pairs
            ],
        }


def _mismatch(load: Load, seen: Replay) -> float:
    measured, simulated = load.measured(), seen.statistics(load)
    errors = [
        abs(simulated[k] / m - 1) * 100
        for k, m in measured.items()
        if m and k.split("_")[0] in ("mean", "median", "energy")
    ]
    return float(np.mean(errors)) if errors else float("nan")


def compare_load(
    load: Load,
    profile: Profile,
    *,
    explain: bool = True,
    prior: Prior | None = None,
    progress: Callable[[str], None] | None = None,
) -> Compared:
    """Replay a load through a profile, and see what would explain the difference.

    Parameters
    ----------
    explain : bool
        Also fit the factors of the machine, all and part by part, and try engine settings: some
        700 replays.
    prior : Prior, optional
        What is known of machines; by default the shipped spread.
    """
    seen = replay(load, profile)
    plain = Compared(load, profile, seen, load.measured(), seen.statistics(load))
    if not explain or len(load) < LEAST_REQUESTS:
        return plain
    known = shipped_spread().prior(profile) if prior is None else prior
    fit = fit_factors([load], profile, known, of_the_load=True, progress=progress)
    causes = []
    for name, factors in CAUSES.items():
        if name == "power" and load.energy_j is None:
            continue
        if progress is not None:
            progress(f"would the {name} explain it?")
        alone = fit_factors(
            [load], profile, known, only=factors, rounds=_ALONE_ROUNDS, of_the_load=True
        )
        left = _mismatch(load, replay(load, apply(profile, alone.factors)))
        causes.append(Cause(name, left, {f: alone.intervals()[f] for f in factors}))
    together = _mismatch(load, replay(load, apply(profile, fit.factors)))
    settings = []
    if plain.mismatch_percent > _FINE:
        for name, change in _SETTINGS.items():
            other = _changed(load.options, change)
            if other is None:
                continue
            left = _mismatch(load, replay(replace(load, options=other), profile))
            if left < _CLEARER * plain.mismatch_percent:
                settings.append(Cause(name, left, {}))
    return replace(
        plain,
        causes=tuple(sorted([*causes, *settings], key=lambda c: c.mismatch_percent)),
        fit=fit,
        fitted_mismatch_percent=together,
        beyond=tuple(fit.beyond(known)),
    )


def _changed(options: EngineOptions, change: EngineOptions) -> EngineOptions | None:
    """``options`` with the fields that ``change`` sets; None if they are set already."""
    fields = {k: v for k, v in vars(change).items() if v is not None}
    if all(getattr(options, k) == v for k, v in fields.items()):
        return None
    return replace(options, **fields)
