"""How well a profile predicts a recording: its loads through the simulator, end to end.

A phase's own send times and lengths are replayed under the recorded engine settings, and the
latencies and the energy are compared with the measured ones. An honest error comes from a phase
that was not fitted: each hold-out phase is left out of a fit in turn and predicted by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qsim.arrays import FloatArray
from qsim.calibrate.fit.fitting import FitResult, fit
from qsim.calibrate.fit.frontend import late_arrivals_ms
from qsim.calibrate.fit.host import recorded_own_ms
from qsim.calibrate.fit.span import GRAPH_SIZES
from qsim.calibrate.fit.timeline import Timeline, late_updates_ms, launch_ratio, timeline_of
from qsim.calibrate.recordings.data import HOLDOUT, Recording
from qsim.calibrate.validate.comparison import (
    METRICS,
    STATISTICS,
    Comparison,
    latencies,
    nearby,
    percent,
    statistics,
)
from qsim.errors import CalibrationError, RecordingError
from qsim.profiles.schema import HostTimes, Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace

Progress = Callable[[str], None]

#: send times are shaken by this much to see how far a percentile moves, ms
_JITTER_MS = 1.0
_JITTERED_REPLAYS = 5
#: updates and arrivals count as late from here on, ms
_LATE_MS = 20.0


def phase_trace(recording: Recording, label: str, jitter_ms: FloatArray | None = None) -> Trace:
    """The requests of a phase, from its first send on; optionally with shaken send times.

    Raises
    ------
    RecordingError
        If there is no such phase, or it has no requests.
    """
    q = recording.requests
    index = np.flatnonzero(q.phase == recording.phase_index(label))
    if not len(index):
        raise RecordingError(f"{recording.name}: phase {label!r} has no requests")
    sent = q.sent_s[index]
    if jitter_ms is not None:
        sent = sent + jitter_ms / 1e3
    order = np.argsort(sent, kind="stable")
    index, sent = index[order], sent[order]
    return Trace(
        arrival_s=sent - sent[0],
        prompt_tokens=q.prompt_tokens[index],
        output_tokens=q.output_tokens[index],
        name=f"{recording.name}: {label}",
    )


def engine_settings(recording: Recording) -> EngineOptions:
    """The engine as it was recorded."""
    server = recording.server
    flags = server.server_flags
    seqs = None
    if "--max-num-seqs" in flags[:-1]:
        seqs = int(flags[flags.index("--max-num-seqs") + 1])
    return EngineOptions(
        max_num_seqs=seqs,
        max_num_batched_tokens=server.max_num_batched_tokens,
        max_model_len=server.max_model_len,
        # prompts of the recorded loads share nothing
        enable_prefix_caching=False,
        num_gpu_blocks_override=server.num_gpu_blocks,
        vllm_version=server.vllm_version or None,
    )


def measured_values(recording: Recording, label: str) -> dict[str, FloatArray]:
    """What the client measured for each request of a phase, ms, by metric."""
    q = recording.requests
    m = q.phase == recording.phase_index(label)
    ttft = (q.first_token_s[m] - q.sent_s[m]) * 1e3
    e2el = (q.last_token_s[m] - q.sent_s[m]) * 1e3
    return latencies(ttft, e2el, q.output_tokens[m])


def measured_metrics(recording: Recording, label: str) -> dict[str, float]:
    """What the client measured in a phase, under vLLM bench's definitions; and its energy."""
    result = statistics(measured_values(recording, label))
    energy_j = recording.phases[recording.phase_index(label)].energy_j
    if np.isfinite(energy_j):
        result["energy_j"] = energy_j
    return result


def compare(recording: Recording, label: str, profile: Profile, *, held_out: bool) -> Comparison:
    """Replay a phase and compare.

    Raises
    ------
    RecordingError
        If there is no such phase, or it has no requests.
    """
    options = engine_settings(recording)
    # the recorded server had this many blocks, whatever the profile's had
    blocks = recording.server.num_gpu_blocks
    profile = replace(profile, memory=replace(profile.memory, num_gpu_blocks=blocks))
    trace = phase_trace(recording, label)
    phase = recording.phases[recording.phase_index(label)]
    # clients of a closed loop send when they have the simulated answers
    result = simulate(trace, profile, concurrency=phase.clients, options=options)
    simulated = statistics(latencies(result.ttft_ms, result.e2el_ms, result.output_tokens))
    measured = measured_metrics(recording, label)
    if "energy_j" in measured:
        simulated["energy_j"] = float(sum(r["energy_j"] for r in result.replica_stats))
    rng = np.random.default_rng(0)
    p99 = [simulated["p99_ttft_ms"]]
    for _ in range(0 if phase.clients else _JITTERED_REPLAYS):
        shaken = phase_trace(recording, label, rng.normal(0.0, _JITTER_MS, len(trace)))
        p99.append(float(np.percentile(simulate(shaken, profile, options=options).ttft_ms, 99)))
    return Comparison(
        recording=recording.name,
        profile=profile.id,
        phase=label,
        what=phase.what,
        requests=len(trace),
        held_out=held_out,
        measured=measured,
        simulated=simulated,
        p99_ttft_band_ms=(min(p99), max(p99)),
        nearby=nearby(measured_values(recording, label), measured, simulated),
    )


def group_servers(recordings: Sequence[Recording]) -> list[list[Recording]]:
    """Recordings of one server configuration together, those with GPU spans first.

    Those of machines of different speed are not: the host times of a profile are those of one. Nor
    are those of different versions of vLLM.
    """
    groups: dict[tuple[object, ...], list[Recording]] = {}
    for r in recordings:
        s = r.server
        key = (s.gpu, s.model, s.method, s.tensor_parallel, s.kv_cache_dtype, s.release)
        groups.setdefault(key, []).append(r)
    alike = [m for g in groups.values() for m in _machines(g)]
    ordered = [sorted(g, key=lambda r: not r.steps.has_gpu_spans) for g in alike]
    return sorted(ordered, key=lambda g: not g[0].steps.has_gpu_spans)


#: machines are alike if the engine's own work takes at most so many times as long
LIKE_MACHINES = 1.25


def _machines(recordings: Sequence[Recording]) -> list[list[Recording]]:
    """Recordings by machine, told by how long the engine's own work took; the fastest first."""
    if len(recordings) == 1:
        return [list(recordings)]
    own = {id(r): recorded_own_ms(r) for r in recordings}
    result: list[list[Recording]] = []
    for r in sorted(recordings, key=lambda r: own[id(r)]):
        if result and not own[id(r)] > LIKE_MACHINES * own[id(result[-1][0])]:
            result[-1].append(r)
        else:
            result.append([r])
    order = {id(r): i for i, r in enumerate(recordings)}
    return [sorted(g, key=lambda r: order[id(r)]) for g in result]


def fit_servers(
    recordings: Sequence[Recording],
    *,
    host_from: HostTimes | None = None,
    frontend_from: Profile | None = None,
    exclude_phases: Sequence[str] = (),
    progress: Progress | None = None,
    held_out: bool = True,
) -> list[FitResult]:
    """One fit for each server configuration.

    A server without launch times borrows the host times of another one of the same model that
    has them, if ``host_from`` gives none.

    Raises
    ------
    CalibrationError
        If a server cannot be fitted.
    """
    say = progress or (lambda text: None)
    _check_labels(recordings, exclude_phases)
    results: list[FitResult] = []
    for group in group_servers(recordings):
        server = group[0].server
        labels = {p.label for r in group for p in r.phases}
        borrowed, lender = host_from, "--host-from"
        if borrowed is None and not any(r.steps.has_gpu_spans for r in group):
            for other in results:
                i = other.profile.identity
                if i.gpu == server.gpu and i.model == server.model:
                    borrowed, lender = other.profile.host, other.profile.id
                    break
        name = f"{server.gpu}/{server.model}/{server.method}"
        results.append(
            fit(
                group,
                host_from=borrowed,
                host_from_name=lender,
                frontend_from=frontend_from,
                exclude_phases=[e for e in exclude_phases if e in labels],
                progress=lambda text, name=name: say(f"{name}: {text}"),  # type: ignore[misc]
                held_out=held_out,
            )
        )
    return results


def _check_labels(recordings: Sequence[Recording], labels: Sequence[str]) -> None:
    known = {p.label: None for r in recordings for p in r.phases}
    for label in labels:
        if label not in known:
            raise CalibrationError(
                f"no recording has a phase {label!r}; they have: {', '.join(known)}"
            )


def chosen_phases(recordings: Sequence[Recording], labels: Sequence[str] = ()) -> list[str]:
    """The phases to replay: those asked for, or by default those of use "holdout".

    Raises
    ------
    CalibrationError
        If no recording has such a phase, or none is of that use.
    """
    chosen = list(labels) or sorted(
        {p.label for r in recordings for p in r.phases if p.use == HOLDOUT}
    )
    if not chosen:
        raise CalibrationError(
            "the recordings have no phases of use 'holdout': give --phase with a label"
        )
    _check_labels(recordings, chosen)
    return chosen


def validate(
    recordings: Sequence[Recording],
    *,
    host_from: HostTimes | None = None,
    labels: Sequence[str] = (),
    in_sample: bool = True,
    fits: Sequence[FitResult] | None = None,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Replay phases with profiles that were fitted without them, and with ones fitted on all.

    ``labels`` are by default those of use "holdout"; without ``in_sample`` only the former are
    done. ``fits`` are fits of these recordings on all phases, if there are such already.

    Raises
    ------
    CalibrationError
        If a server cannot be fitted, or there is no phase to replay.
    """
    say = progress or (lambda text: None)
    chosen = chosen_phases(recordings, labels)
    result: list[Comparison] = []
    rounds: list[tuple[str, ...]] = [(c,) for c in chosen]
    for excluded in [*rounds, ()] if in_sample else rounds:
        if excluded or fits is None:
            say(f"fitting without {excluded[0]}" if excluded else "fitting on all phases")
            results = fit_servers(
                _needed(recordings, excluded[0], host_from) if excluded else recordings,
                host_from=host_from,
                exclude_phases=excluded,
                progress=progress,
                held_out=False,
            )
        else:
            results = list(fits)
        for fitted in results:
            for recording in fitted.recordings:
                timeline = fitted.timelines[fitted.recordings.index(recording)]
                result += _replayed(
                    recording, excluded or chosen, fitted.profile, timeline, bool(excluded), say
                )
    order = {r.name: i for i, r in enumerate(recordings)}
    phase = {label: i for i, label in enumerate(chosen)}
    return sorted(result, key=lambda c: (order[c.recording], phase[c.phase], not c.held_out))


def check_profiles(
    recordings: Sequence[Recording],
    profiles: Sequence[Profile],
    labels: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[Comparison]:
    """Replay phases with profiles as they are, each with that of its server; nothing is fitted.

    ``held_out`` is False in comparisons of recordings that the profile was fitted on. ``labels``
    are by default those of use "holdout".

    Raises
    ------
    CalibrationError
        If a recording has no profile among them, or there is no phase to replay.
    """
    say = progress or (lambda text: None)
    chosen = chosen_phases(recordings, labels)
    mine = {id(r): profile_of(r, profiles) for r in recordings}
    result: list[Comparison] = []
    for recording in recordings:
        profile = mine[id(recording)]
        seen = recording.name in profile.identity.recordings
        timeline = timeline_of(recording, GRAPH_SIZES[-1], profile.host)
        result += _replayed(recording, chosen, profile, timeline, not seen, say)
    return result


def _replayed(
    recording: Recording,
    labels: Sequence[str],
    profile: Profile,
    timeline: Timeline,
    held_out: bool,
    say: Progress,
) -> Iterator[Comparison]:
    """Compare those of the phases that the recording has."""
    for label in labels:
        if label in {p.label for p in recording.phases}:
            say(f"replaying {label} of {recording.name}")
            c = compare(recording, label, profile, held_out=held_out)
            yield _with_holds(c, recording, timeline, profile)


def profile_of(recording: Recording, profiles: Sequence[Profile]) -> Profile:
    """The profile of the recorded server's kind.

    Raises
    ------
    CalibrationError
        If there is none.
    """
    wanted, version = recording.server.profile_id, recording.server.release
    mine = [p for p in profiles if p.id == wanted]
    for p in (*(p for p in mine if p.identity.vllm_version.startswith(f"{version}.")), *mine):
        return p
    raise CalibrationError(
        f"{recording.name} is of {wanted}; --profile gives {', '.join(p.id for p in profiles)}: "
        "give a profile of that server too"
    )


def _needed(
    recordings: Sequence[Recording], label: str, host_from: HostTimes | None
) -> list[Recording]:
    """Those of servers that a phase can be left out of, and of those that lend them host times."""
    groups = group_servers(recordings)
    with_it = [any(p.label == label for r in g for p in r.phases) for g in groups]
    with_spans = [any(r.steps.has_gpu_spans for r in g) for g in groups]
    models = [(g[0].server.gpu, g[0].server.model) for g in groups]
    borrowing = {
        m for m, it, own in zip(models, with_it, with_spans, strict=True) if it and not own
    }
    kept: set[int] = set()
    for group, model, it, own in zip(groups, models, with_it, with_spans, strict=True):
        if it or (host_from is None and own and model in borrowing):
            kept |= {id(r) for r in group}
    return [r for r in recordings if id(r) in kept]


def _with_holds(
    c: Comparison, recording: Recording, timeline: Timeline, profile: Profile
) -> Comparison:
    """Tell what the host did in that load that the simulator does not model."""
    phase = recording.phase_index(c.phase)
    steps = recording.steps.phase == phase
    held_ms = _late(late_updates_ms(recording, timeline, profile.host)[steps])
    mine = recording.requests.phase == phase
    arrived_ms = _late(late_arrivals_ms(recording, profile.frontend)[mine])
    return replace(
        c,
        held_updates=len(held_ms),
        longest_hold_ms=float(held_ms.max(initial=0.0)),
        late_arrivals=len(arrived_ms),
        longest_arrival_ms=float(arrived_ms.max(initial=0.0)),
        launch_ratio=launch_ratio(recording, timeline.mode, profile.host, steps),
    )


def _late(ms: FloatArray) -> FloatArray:
    return ms[ms > _LATE_MS]


def fit_error(comparisons: Sequence[Comparison], profile_id: str) -> dict[str, Any]:
    """What a profile states about its error: only of phases left out of a fit, in percent."""
    mine = [c for c in comparisons if c.profile == profile_id and c.held_out]
    if not mine:
        return {}
    names = [f"{s}_{m}" for m in METRICS for s in STATISTICS] + ["energy_j"]
    phases: dict[str, Any] = {}
    for c in mine:
        phases.setdefault(c.phase, {})[c.recording] = {
            n: percent(c.error_percent(n)) for n in names if n in c.measured
        }

    def worst(wanted: Sequence[str]) -> float | None:
        errors = [c.error_percent(n) for c in mine for n in wanted if n in c.measured]
        return percent(max((abs(e) for e in errors if np.isfinite(e)), default=np.nan))

    return {
        "unit": "percent, simulated against measured",
        "how": "each phase left out of the fit in turn and simulated end to end",
        "worst_mean": worst([f"mean_{m}" for m in METRICS]),
        "worst_median": worst([f"median_{m}" for m in METRICS]),
        "worst_p99": worst([f"p99_{m}" for m in METRICS]),
        "worst_energy": worst(["energy_j"]),
        "phases": phases,
    }
