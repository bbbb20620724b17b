"""How machines differ, learnt from recordings of servers whose profiles were measured elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qsim.calibrate.adapt.fitting import fit_factors
from qsim.calibrate.adapt.load import Load, of_phase
from qsim.calibrate.fit.host import recorded_own_ms
from qsim.calibrate.fit.timeline import launch_ratio, step_modes
from qsim.calibrate.recordings.data import SKIP, Recording
from qsim.catalog.versions import parse_version
from qsim.errors import CalibrationError
from qsim.profiles.carry import carry
from qsim.profiles.factors import FACTORS, HOST, scheduler_ms
from qsim.profiles.lookup import list_profiles, load_profile
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Known, Prior, Spread

__all__ = ["Machine", "foreign_profile", "learn_spread", "loads_of", "machine"]

FloatArray = npt.NDArray[np.float64]

#: before anything is known of machines: standard deviations of the factors' logarithms
_BROAD_SD = {
    "launch": 0.7,
    "scheduler": 0.7,
    "front_end": 0.7,
    "memory": 0.05,
    "compute": 0.05,
    "limit": 1.0,
    "idle_power": 0.03,
    "busy_power": 0.15,
    "work_power": 0.1,
}
#: of a factor that the steps' own times tell
_KNOWN_SD = 0.03
#: correlations of a dozen machines are believed by so much
_BELIEVED = 0.75
#: logarithm of the slowdown at the power limit; most loads hardly tell it from the speed of
#: arithmetic, so its median is believed by a part, and it is not known better than this
_MOST_LIMIT, _LIMIT_BELIEVED, _LEAST_LIMIT_SD = 1.2, 0.3, 0.7
#: between the quartiles of a normal law lie so many standard deviations
_QUARTILES = 1.349
#: a dozen machines cannot tell that machines are more alike than this; and what else a host does
#: changes its speed from load to load
_LEAST_SD, _LEAST_HOST_SD = 0.02, 0.25
#: loads of this kind and length are like traffic
_LEAST_S = 5.0
_TRAFFIC = ("rows", "poisson")


@dataclass(frozen=True, eq=False)
class Machine:
    """The factors of one recorded machine against a profile of another one."""

    recording: str
    profile: Profile
    log_factors: FloatArray
    #: variances of these
    variance: FloatArray


def loads_of(recording: Recording) -> list[Load]:
    """The phases of a recording that are like traffic, of 5 s at least."""
    return [
        of_phase(recording, p.label)
        for p in recording.phases
        if p.load in _TRAFFIC and p.use != SKIP and p.end_s - p.start_s >= _LEAST_S
    ]


def foreign_profile(recording: Recording) -> Profile | None:
    """The shipped profile of a recorded server that was measured elsewhere; None without one.

    Where the profile of the recording's version of vLLM was fitted on this recording, one of
    another version is taken that can be carried to it.
    """
    server = recording.server
    for entry in list_profiles(all_versions=True):
        if entry.id != server.profile_id:
            continue
        profile = load_profile(entry.name)
        if recording.name in profile.identity.recordings or profile.transferred:
            continue
        mine = ".".join(map(str, parse_version(profile.identity.vllm_version)[:2]))
        if mine == server.release:
            return profile
        carried = carry(profile, server.release)
        if carried is not None:
            return carried
    return None


def machine(
    recording: Recording, profile: Profile, say: Callable[[str], None] | None = None
) -> Machine:
    """Fit the factors of a recorded machine on all of its loads, with hardly any prior.

    How fast it launched and scheduled, and what it drew when idle, is read from its steps and
    power: client times would hardly tell these from each other.

    Raises
    ------
    CalibrationError
        If the recording has no load that is like traffic.
    """
    loads = loads_of(recording)
    if not loads:
        raise CalibrationError(f"{recording.name}: no load of {_LEAST_S:g} s that is like traffic")
    mean, sd = np.zeros(len(FACTORS)), np.array([_BROAD_SD[n] for n in FACTORS])
    for name, value in _told(recording, profile).items():
        at = FACTORS.index(name)
        mean[at], sd[at] = np.log(value), _KNOWN_SD
    fit = fit_factors(loads, profile, Prior(mean, np.diag(sd**2)), of_the_load=True, progress=say)
    return Machine(recording.name, profile, fit.log_mean, np.diag(fit.log_covariance))


def _told(recording: Recording, profile: Profile) -> dict[str, float]:
    """Factors that the recording's steps and power tell by themselves."""
    found = {}
    s = recording.steps
    traffic = [i for i, p in enumerate(recording.phases) if p.load in _TRAFFIC and p.use != SKIP]
    chosen = np.isin(s.phase, traffic)
    mode = step_modes(recording, max(profile.latency.graph_sizes, default=0))
    if recording.server.tensor_parallel == 1:
        launch = launch_ratio(recording, mode, profile.host, chosen)
        if launch is not None and launch > 0:
            found["launch"] = launch
    own_ms = recorded_own_ms(recording)
    if np.isfinite(own_ms) and own_ms > 0:
        found["scheduler"] = own_ms / scheduler_ms(profile.host)
    idle_w = _idle_w(recording)
    if idle_w is not None and profile.power.idle_w > 0:
        found["idle_power"] = idle_w / profile.power.idle_w
    return found


def _idle_w(recording: Recording) -> float | None:
    for p in recording.phases:
        if p.load == "idle" and p.end_s - p.start_s >= 1.0 and np.isfinite(p.energy_j):
            return float(p.energy_j / (p.end_s - p.start_s))
    return None


def learn_spread(machines: Sequence[Machine]) -> Spread:
    """The spread of some machines.

    Means and standard deviations of the factors' logarithms are told by their median and quartiles;
    correlations are taken for three quarters of what a dozen machines show. What several
    machines say of one profile is kept by profile: their mean, shrunk as that of a sample of n by
    n / (n + 1).

    Raises
    ------
    CalibrationError
        If there are fewer than four machines.
    """
    if len(machines) < 4:
        raise CalibrationError(f"{len(machines)} machines are too few for a spread; 4 at least")
    logs = np.array([m.log_factors for m in machines])
    at = FACTORS.index("limit")  # a slowdown of a third and one of none are told apart by nothing
    logs[:, at] = np.clip(logs[:, at], -_MOST_LIMIT, _MOST_LIMIT)
    # by quartiles: a host that changed while it was measured does not tell how machines differ
    low, mean, high = np.percentile(logs, [25, 50, 75], axis=0)
    least = [_LEAST_HOST_SD if n in HOST else _LEAST_SD for n in FACTORS]
    least[at] = _LEAST_LIMIT_SD
    sd = np.maximum((high - low) / _QUARTILES, least)
    mean[at] *= _LIMIT_BELIEVED
    correlation = np.corrcoef(logs.T) * _BELIEVED
    np.fill_diagonal(correlation, 1.0)
    by_profile: dict[str, list[Machine]] = {}
    for m in machines:
        by_profile.setdefault(json.dumps(m.profile.identity.recordings), []).append(m)
    known = []
    for mine in by_profile.values():
        off = logs[[machines.index(m) for m in mine]].mean(axis=0) - mean
        shrunk = off * len(mine) / (len(mine) + 1)
        shrunk[at] *= _LIMIT_BELIEVED
        known.append(
            Known(
                profile=mine[0].profile.id,
                recordings=list(mine[0].profile.identity.recordings),
                off={n: round(float(x), 4) for n, x in zip(FACTORS, shrunk, strict=True)},
            )
        )
    reference = float(np.median([scheduler_ms(m.profile.host) for m in machines]))
    return Spread(
        mean={n: round(float(x), 4) for n, x in zip(FACTORS, mean, strict=True)},
        sd={n: round(float(x), 4) for n, x in zip(FACTORS, sd, strict=True)},
        correlation=[[round(float(x), 3) for x in row] for row in correlation],
        scheduler_ms=round(reference, 5),
        machines=[m.recording for m in machines],
        known=known,
    )
