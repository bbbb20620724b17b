"""A profile adapted to a machine by loads that were sent to it, with the error that it states.

An adapted profile is never worse than the one that it came from by its own cross-validation. All
factors are kept, unless the profile as it is foretells better what was left out, or no machine
would answer a single load so: something held the server, and nothing beside the load tells when.
Then that is kept which foretells best: some factors, what is expected of a machine, or the profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.bounds import MOST_PERCENT
from qsim.calibrate.adapt.fitting import LEAST_REQUESTS, FactorFit, fit_factors, unexplained
from qsim.calibrate.adapt.load import Load, replay
from qsim.calibrate.validate.comparison import METRICS, latencies, percent, statistics
from qsim.errors import CalibrationError
from qsim.profiles.factors import FACTORS, HOST, apply
from qsim.profiles.schema import Adapted, Profile
from qsim.profiles.spread import Prior, shipped_spread

__all__ = ["AS_IS", "CHOICES", "Adaptation", "adapt", "as_is", "errors_percent"]

BoolArray = npt.NDArray[np.bool_]
Errors = dict[str, float | None]

#: rounds of a fit without one of several loads
_LEFT_OUT_ROUNDS = 3
#: halves of a load with fewer requests say nothing of each other
_LEAST_HALF = LEAST_REQUESTS
#: a load of which times are predicted within this error, percent, and energy is not: no machine
#: draws a multiple of what its steps explain, so it is the energy that was misread
_MOST_ENERGY_ERROR = 100.0
#: how well some seconds without load tell idle power: it rises with the GPU's temperature
_IDLE_SD, _MOST_IDLE_SD = 0.01, 2.0


#: what may be kept of a fit, the most first: its name, and the factors that stay as expected of a
#: machine before any load was seen
CHOICES: Mapping[str, tuple[str, ...]] = {
    "all factors": (),
    "all factors but the power limit": ("limit",),
    "factors of host and power": ("memory", "compute", "limit"),
    "factors of power": (*HOST, "memory", "compute", "limit"),
    "what is expected of a machine": FACTORS,
}
#: nothing was adapted
AS_IS = "the profile as it is"
#: what may be kept of a load that no machine would answer so: its times tell nothing
_WITHOUT_TIMES = ("factors of power", "what is expected of a machine", AS_IS)
#: if no machine would answer a load so, its best fit leaves more than this of the noise that is
#: expected, in squares: of 29 recorded loads 27 leave below 0.4; two, whose hosts were held, 2.8
_MOST_MISFIT = 1.0
#: a single load is left out by halves: every other one of so many stretches
_STRETCHES = 8


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What came of it.

    Attributes
    ----------
    profile : Profile
        The adapted one.
    base : Profile
        What the factors are applied to.
    fit : FactorFit
        Of all factors.
    kept : str
        What of it the profile has: a name of :data:`CHOICES`, or :data:`AS_IS`.
    factors : dict
        The profile's, with the ends of their 90% intervals.
    left_out : dict
        Load (or half of one) to statistic to error in percent, of what was kept when it was fitted
        without it. Empty if there was too little to leave anything out.
    errors : dict
        By choice, :data:`AS_IS` among them: mean absolute error of means, medians and energy of
        what was left out, percent.
    loads : tuple of Load
        What was fitted to: without their energy if that was of no use.
    notes : tuple of str
        What was found to be of no use.
    """

    profile: Profile
    base: Profile
    fit: FactorFit
    kept: str
    factors: Mapping[str, tuple[float, float, float]]
    left_out: Mapping[str, Errors]
    errors: Mapping[str, float]
    loads: tuple[Load, ...]
    notes: tuple[str, ...]


def errors_percent(load: Load, profile: Profile, part: BoolArray | None = None) -> Errors:
    """Simulated against measured statistics of a load, or of some of its requests, percent."""
    seen = replay(load, profile)
    mask = np.ones(len(load), dtype=bool) if part is None else part
    outputs = load.trace.output_tokens[mask]
    measured = statistics(latencies(load.ttft_ms[mask], load.e2el_ms[mask], outputs))
    simulated = statistics(latencies(seen.ttft_ms[mask], seen.e2el_ms[mask], outputs))
    if part is None and load.energy_j:
        measured["energy_j"], simulated["energy_j"] = load.energy_j, seen.energy_j
    return {k: percent((simulated[k] / m - 1) * 100) if m else None for k, m in measured.items()}


def adapt(
    loads: Sequence[Load],
    profile: Profile,
    *,
    idle_w: float | None = None,
    prior: Prior | None = None,
    notes: Sequence[str] = (),
    cross_validate: bool = True,
    progress: Callable[[str], None] | None = None,
    executor: Executor | None = None,
) -> Adaptation:
    """Adapt a profile to the machine that answered ``loads``.

    Its stated error is that of loads left out in turn; of a single load, that of each half of the
    requests (every other eighth) when only the other half was looked at. If the times of a load are
    predicted but its energy is not by far, power was misread: all of it is left alone, and a note
    says so.

    Parameters
    ----------
    idle_w : float, optional
        Power of the machine while it served nothing.
    prior : Prior, optional
        What is known of machines; by default the shipped spread.
    executor : Executor, optional
        Replays the loads; by default this process does.

    Raises
    ------
    CalibrationError
        If the loads have too few requests, or tell so little of each other that no profile can
        state it.
    """
    expected = shipped_spread().prior(profile) if prior is None else prior
    base, known = profile, expected
    if idle_w is not None and profile.power.idle_w > 0:
        base = replace(profile, power=replace(profile.power, idle_w=round(idle_w, 3)))
        known = _idle_seen(expected, float(np.log(idle_w / profile.power.idle_w)))
    found = _fitted(loads, base, known, notes, cross_validate, progress, executor)
    misread = _misread_energy(found.left_out)
    if misread is None:
        return _checked(found)
    if progress is not None:
        progress(f"again without power: {misread}")
    loads = [replace(x, energy_j=None) for x in loads]
    lost = (f"{misread}; power and energy stay those expected of a machine",)
    found = _fitted(loads, profile, expected, [*notes, *lost], cross_validate, progress, executor)
    return _checked(replace(found, notes=lost))


def _idle_seen(prior: Prior, log: float) -> Prior:
    """A prior once idle power was measured, for a profile that has it: its factor is about 1.

    What goes with idle power is expected up to where machines lie: beyond, it may be misread.
    """
    at = FACTORS.index("idle_power")
    far = _MOST_IDLE_SD * float(np.sqrt(prior.covariance[at, at]))
    seen = prior.seen(
        "idle_power", float(np.clip(log, prior.mean[at] - far, prior.mean[at] + far)), _IDLE_SD
    )
    mean = seen.mean.copy()
    mean[at] = 0.0
    return Prior(mean, seen.covariance)


def _fitted(
    loads: Sequence[Load],
    profile: Profile,
    prior: Prior,
    notes: Sequence[str],
    cross_validate: bool,
    progress: Callable[[str], None] | None,
    executor: Executor | None,
) -> Adaptation:
    fit = fit_factors(loads, profile, prior, progress=progress, executor=executor)
    left_out = _cross_validated(loads, profile, prior, progress, executor) if cross_validate else {}
    errors = {name: _mean_error(one) for name, one in left_out.items()}
    odd = None if len(loads) > 1 else _misfit(loads[0], profile, prior, executor)
    kept = _best(errors, odd is not None) if errors else next(iter(CHOICES))
    if kept == AS_IS:
        factors, adapted = as_is(prior), replace(profile, measured_host=None)
    else:
        held = fit.held(CHOICES[kept], prior)
        factors, adapted = held.intervals(), apply(profile, held.factors)
    chosen = left_out.get(kept, {})
    beyond = fit.beyond(prior)
    strange = [f"no known machine has {', '.join(beyond)}"] if beyond else []
    told = [*notes, *([odd] if odd else []), *strange, *_remarks(kept, errors)]
    adapted = replace(
        adapted,
        fit_error=_stated(chosen, len(loads)),
        adapted=Adapted(
            profile=profile.id,
            recordings=list(profile.identity.recordings),
            loads=[x.name for x in loads],
            factors={k: [max(round(x, 4), 1e-4) for x in v] for k, v in factors.items()},
            notes=told,
        ),
    )
    return Adaptation(adapted, profile, fit, kept, factors, chosen, errors, tuple(loads), ())


def _misread_energy(left_out: Mapping[str, Errors]) -> str | None:
    """A sentence on the load whose energy cannot be what the machine drew; None without one."""
    off = {}
    for name, errors in left_out.items():
        times = [errors.get(f"mean_{m}") for m in METRICS]
        energy = errors.get("energy_j")
        if energy is not None and all(abs(t or 0.0) < _MOST_ENERGY_ERROR for t in times):
            off[name] = energy
    worst = max(off, key=lambda k: off[k], default=None)
    if worst is None or off[worst] <= _MOST_ENERGY_ERROR:
        return None
    return (
        f"the energy measured is of no use: for the load {worst!r} it is off by {off[worst]:,.0f}% "
        "from what its times and the other loads say"
    )


def _checked(found: Adaptation) -> Adaptation:
    """An adaptation whose errors a profile can state.

    Raises
    ------
    CalibrationError
        If it has others.
    """
    for name, errors in found.left_out.items():
        for what, error in errors.items():
            if error is not None and abs(error) > MOST_PERCENT:
                raise CalibrationError(
                    f"{what} of the load {name!r} is off by {error:,.0f}% by factors fitted "
                    f"without it: this is not the server of {found.profile.id} (model, "
                    "quantization, GPU or flags differ), or something else used its machine. "
                    "Nothing was written; send more and longer loads while nothing else runs"
                )
    return found


def _best(errors: Mapping[str, float], without_times: bool) -> str:
    """All factors, unless the profile as it is foretells better; then what foretells best."""
    if not without_times:
        most = next(iter(CHOICES))
        if errors[most] <= errors[AS_IS]:
            return most
    among = {k: v for k, v in errors.items() if not without_times or k in _WITHOUT_TIMES}
    return min(among, key=lambda k: among[k])


def _misfit(load: Load, profile: Profile, prior: Prior, executor: Executor | None) -> str | None:
    """A sentence on a load that no machine would answer so; None for one that fits."""
    own = fit_factors([load], profile, prior, of_the_load=True, executor=executor)
    if unexplained(load, apply(profile, own.factors)) <= _MOST_MISFIT:
        return None
    return (
        f"no machine of this type answers the load {load.name!r} so, whatever its factors: "
        "something held the server, or it is not the profile's; its times were not used"
    )


def as_is(prior: Prior) -> dict[str, tuple[float, float, float]]:
    """Factors of 1, whose intervals hold what is expected of a machine as well."""
    expected = FactorFit(prior.mean, prior.covariance).intervals()
    return {n: (1.0, min(1.0, low), max(1.0, high)) for n, (_, low, high) in expected.items()}


def _remarks(kept: str, errors: Mapping[str, float]) -> list[str]:
    """What was kept, and why not all."""
    most = next(iter(CHOICES))
    if not errors or kept == most:
        return []
    text = (
        f"kept: {kept}, off by {errors[kept]:.1f}% on what was left out; {most} are off by "
        f"{errors[most]:.1f}%"
    )
    return [text if kept == AS_IS else f"{text}, {AS_IS} by {errors[AS_IS]:.1f}%"]


def _mean_error(left_out: Mapping[str, Errors]) -> float:
    """Mean absolute error of means, medians and energy."""
    values = [
        abs(e)
        for errors in left_out.values()
        for name, e in errors.items()
        if e is not None and name.split("_")[0] in ("mean", "median", "energy")
    ]
    return float(np.mean(values)) if values else float("inf")


def _cross_validated(
    loads: Sequence[Load],
    profile: Profile,
    prior: Prior,
    say: Callable[[str], None] | None,
    executor: Executor | None,
) -> dict[str, dict[str, Errors]]:
    """By choice: errors of each load left out in turn, or of each half of the only one."""
    found: dict[str, dict[str, Errors]] = {}

    def judge(name: str, load: Load, fit: FactorFit, part: BoolArray | None = None) -> None:
        for choice, held in CHOICES.items():
            one = apply(profile, fit.held(held, prior).factors)
            found.setdefault(choice, {})[name] = errors_percent(load, one, part)
        found.setdefault(AS_IS, {})[name] = errors_percent(load, profile, part)

    if len(loads) > 1:
        for i, load in enumerate(loads):
            rest = [x for j, x in enumerate(loads) if j != i]
            if sum(map(len, rest)) < LEAST_REQUESTS or len(load) < _LEAST_HALF:
                continue
            if say is not None:
                say(f"leaving out {load.name}")
            fit = fit_factors(rest, profile, prior, rounds=_LEFT_OUT_ROUNDS, executor=executor)
            judge(load.name, load, fit)
        return found
    load = loads[0]
    if len(load) < 2 * _LEAST_HALF:
        return {}
    first = (np.arange(len(load)) * _STRETCHES // len(load)) % 2 == 0
    for name, part in (("one half", first), ("other half", ~first)):
        if say is not None:
            say(f"leaving out the {name} of {load.name}")
        fit = fit_factors(loads, profile, prior, parts=[~part], executor=executor)
        judge(f"{load.name}, {name}", load, fit, part)
    return found


def _stated(left_out: Mapping[str, Errors], loads: int) -> dict[str, Any]:
    """``fit_error`` of the adapted profile."""
    if not left_out:
        return {}

    def worst(names: Sequence[str]) -> float | None:
        errors = (e.get(n) for e in left_out.values() for n in names)
        return max((abs(x) for x in errors if x is not None), default=None)

    kind = "each load" if loads > 1 else "each half of the load, every other eighth,"
    return {
        "unit": "percent, simulated against measured",
        "how": f"{kind} left out in turn, factors fitted to the rest, simulated end to end",
        "worst_mean": worst([f"mean_{m}" for m in METRICS]),
        "worst_median": worst([f"median_{m}" for m in METRICS]),
        "worst_p99": worst([f"p99_{m}" for m in METRICS]),
        "worst_energy": worst(["energy_j"]),
        "phases": {"left out": dict(left_out)},
    }
