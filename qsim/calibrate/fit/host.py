"""Host times: schedule, launch by mode, update, each a constant plus a cost per request.

Fitted on medians per class of batch size, so that rare long calls (an allocation, a full launch
queue) do not count. What a launch costs for each request is the preparation of its inputs, which is
the same code in every mode, so all modes share one slope: that of the launches under full graphs,
which are thousands, of 1 to 512 requests, and hardly ever wait. Launches of the other modes are
few, of few batch sizes, each size in loads of its own, between which the speed of a host varies by
half, and some wait in a full launch queue: a slope of their own would be that of the loads (up to
0.3 ms a request, where the shared one is 0.001 to 0.02). Launch times that a recording lacks are
borrowed from another server; the launches without a graph can still be scaled to this server, from
updates that waited for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qsim.arrays import BoolArray, FloatArray
from qsim.calibrate.fit.timeline import (
    DECODE,
    EAGER,
    PIECEWISE,
    behind_eager,
    estimate_launch_ms,
    launch_queue,
    step_modes,
)
from qsim.calibrate.recordings.data import Recording
from qsim.errors import CalibrationError
from qsim.profiles.schema import HostTimes, MeasuredHost, Profile, held_shares

__all__ = ["fit_host", "own_ms", "recorded_own_ms", "slower_than", "with_host_like"]


#: fewer launches than this say nothing
_ENOUGH_LAUNCHES = 10
_CLASSES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def _line(rows: FloatArray, ms: FloatArray) -> list[float]:
    """[constant, per request] through the medians of classes of batch size, both >= 0."""
    from sklearn.linear_model import LinearRegression

    x, y, weight = [], [], []
    for lo, hi in zip((0, *_CLASSES), (*_CLASSES, 1 << 30), strict=True):
        inside = (rows > lo) & (rows <= hi)
        if inside.sum() >= 5:
            x.append(float(np.median(rows[inside])))
            y.append(float(np.median(ms[inside])))
            weight.append(float(min(inside.sum(), 200)) / max(y[-1], 1e-3) ** 2)
    if not x:
        if not len(ms):
            return []
        return [round(float(np.median(ms)), 5), 0.0]
    if len(x) == 1:
        return [round(y[0], 5), 0.0]
    a = np.stack([np.ones(len(x)), np.array(x)], axis=1)
    c = LinearRegression(positive=True, fit_intercept=False).fit(a, y, sample_weight=weight).coef_
    return [round(float(c[0]), 5), round(float(c[1]), 7)]


def _scheduled_ms(recording: Recording) -> FloatArray:
    """From the start of ``schedule`` to the launch of each step, shape (n,)."""
    s = recording.steps
    has_launch = np.isfinite(s.launch_start_s) & np.isfinite(s.sample_end_s)
    result: FloatArray = np.where(
        has_launch, (s.launch_start_s - s.schedule_s) * 1e3, s.schedule_dur_s * 1e3 + 0.004
    )
    return result


#: running requests at which machines are compared
_ROWS = 32


def own_ms(schedule_ms: Sequence[float], update_ms: Sequence[float]) -> float:
    """What scheduling and updating a step of 32 requests takes, ms, by [constant, per request]."""
    return sum(constant + per_row * _ROWS for constant, per_row in (schedule_ms, update_ms))


def recorded_own_ms(recording: Recording) -> float:
    """:func:`own_ms` of a recording; NaN if no step was recorded."""
    s = recording.steps
    if not len(s):
        return float("nan")
    in_step = (s.decodes + s.num_chunks).astype(float)
    return own_ms(
        _line(s.running.astype(float), _scheduled_ms(recording)),
        _line(in_step, s.update_dur_s * 1e3),
    )


def fit_host(
    recordings: Sequence[Recording],
    excluded: Sequence[frozenset[int]],
    graph_max: int,
    borrowed: HostTimes | None,
    lender: str = "another server",
) -> tuple[HostTimes, list[str]]:
    """Fit the host times; returns them and notes on what was borrowed.

    Raises
    ------
    CalibrationError
        If no recording has launch times and none were given to borrow.
    """
    rows: dict[str, list[FloatArray]] = {}
    times: dict[str, list[FloatArray]] = {}

    def add(name: str, requests: FloatArray, ms: FloatArray, keep: BoolArray) -> None:
        keep = keep & np.isfinite(ms)
        rows.setdefault(name, []).append(requests[keep])
        times.setdefault(name, []).append(ms[keep])

    turns = []
    queue = launch_queue(recordings, excluded, graph_max)
    for recording, out in zip(recordings, excluded, strict=True):
        s = recording.steps
        mode = step_modes(recording, graph_max)
        keep = ~np.isin(s.phase, list(out))
        running = s.running.astype(float)
        in_step = (s.decodes + s.num_chunks).astype(float)
        has_launch = np.isfinite(s.launch_start_s) & np.isfinite(s.sample_end_s)
        add("schedule", running, _scheduled_ms(recording), keep)
        add("update", in_step, s.update_dur_s * 1e3, keep)
        launch_ms = (s.sample_end_s - s.launch_start_s) * 1e3
        # behind another large step a launch can block on the launch queue; that hides nothing
        behind_large = behind_eager(mode)
        for name, which in (("decode", DECODE), ("piecewise", PIECEWISE), ("eager", EAGER)):
            chosen = keep & has_launch & (mode == which) & ~behind_large
            if which == EAGER and any(queue):
                chosen &= _not_held(recording, chosen, queue)
            add(name, in_step, launch_ms, chosen)
        if len(s) > 2:
            turn = (s.schedule_s[2:] - s.update_s[:-2] - s.update_dur_s[:-2]) * 1e3
            turns.append(turn[(turn > 0) & (turn < 0.5)])

    def line(name: str) -> list[float]:
        return _line(np.concatenate(rows[name]), np.concatenate(times[name]))

    notes: list[str] = []
    launches = {"decode": line("decode")}
    for name in ("piecewise", "eager"):
        slope = launches["decode"][1] if launches["decode"] else 0.0
        beside = np.concatenate(times[name]) - slope * np.concatenate(rows[name])
        if len(beside):
            launches[name] = [round(max(float(np.median(beside)), 0.0), 5), slope]
        else:
            launches[name] = []
    result_ms = _result_ms(recordings)
    if not launches["decode"]:
        if borrowed is None:
            names = ", ".join(r.name for r in recordings)
            raise CalibrationError(
                f"{names}: no launch times were recorded, so the host times must come from "
                "elsewhere: give --host-from with a profile or a recording of the same model "
                "that has them"
            )
        result_ms = borrowed.result_ms
        launches = {
            "decode": borrowed.launch_decode_ms,
            "piecewise": borrowed.launch_piecewise_ms,
            "eager": borrowed.launch_eager_ms,
        }
        notes.append(f"launch times (not recorded here) were borrowed from {lender}")
        estimates = [
            estimate_launch_ms(r, step_modes(r, graph_max), EAGER, result_ms) for r in recordings
        ]
        seen = [e for e in estimates if np.isfinite(e)]
        if seen:
            eager = launches["eager"]
            scale = float(np.median(seen)) / (eager[0] + 30 * eager[1])
            scale = min(max(scale, 0.8), 1.25)
            notes.append(
                f"they were multiplied by {scale:.3f}, from updates that waited for a launch"
            )
            launches = {
                name: [round(v * (scale if name != "decode" else 1.0), 7) for v in pair]
                for name, pair in launches.items()
            }
    for name in ("piecewise", "eager"):
        if not launches[name]:
            raise CalibrationError(f"no {name} launches were recorded: record prefills too")
    turn_ms = round(float(np.median(np.concatenate(turns))), 4) if turns else 0.045
    host = HostTimes(
        schedule_ms=line("schedule"),
        update_ms=line("update"),
        launch_decode_ms=launches["decode"],
        launch_piecewise_ms=launches["piecewise"],
        launch_eager_ms=launches["eager"],
        result_ms=result_ms,
        turn_ms=turn_ms,
        launch_eager_queue=queue,
    )
    return (replace(host, idle_sleep_ms=borrowed.idle_sleep_ms) if borrowed else host), notes


def _not_held(recording: Recording, chosen: BoolArray, queue: list[float]) -> BoolArray:
    """Of the chosen launches without a graph those that the GPU cannot have held, shape (n,).

    They are told by their spans, not by how long they took, which would choose slow ones. Where
    there are hardly any, the quickest tenth stands for the host.
    """
    s = recording.steps
    held_s = held_shares(queue, s.decodes + s.prefill_tokens) * s.gpu_ms / 1e3
    launch_s = s.sample_end_s - s.launch_start_s
    if not chosen.any():
        return chosen
    quick_s = np.quantile(launch_s[chosen], 0.1)
    free: BoolArray = chosen & (held_s < 0.8 * quick_s)
    quickest: BoolArray = chosen & (launch_s <= quick_s)
    return free if free.sum() >= _ENOUGH_LAUNCHES else quickest


def _result_ms(recordings: Sequence[Recording]) -> float:
    """From the end of a step on the GPU to the start of its update; median, ms.

    With tensor parallelism the workers are processes of their own: a step also takes its way to
    them, after the launch that the engine sees. So only steps that found the GPU idle count,
    whose start is known.
    """
    waits = []
    for recording in recordings:
        s = recording.steps
        if not s.has_gpu_spans:
            continue
        alone = recording.server.tensor_parallel == 1
        end, previous = np.empty(len(s)), -np.inf
        idle = np.r_[True, s.launch_start_s[1:] > s.update_s[:-1]]
        for k in range(len(s)):
            previous = max(s.launch_start_s[k], previous + 3e-6) + s.gpu_ms[k] / 1e3
            end[k] = previous
        wait = (s.update_s - end) * 1e3
        waits.append(wait[(wait > 0) & ((wait < 0.3) if alone else (idle & (wait < 5.0)))])
    found = np.concatenate(waits) if waits else np.empty(0)
    return round(float(np.median(found)), 4) if len(found) else 0.06


def slower_than(host: HostTimes, other: HostTimes) -> float:
    """How many times as long as on ``other`` the engine's own work takes on ``host``."""
    return own_ms(host.schedule_ms, host.update_ms) / own_ms(other.schedule_ms, other.update_ms)


def _over(pair: list[float], factor: float) -> list[float]:
    return [round(v / factor, 7) for v in pair]


def with_host_like(profile: Profile, reference: Profile) -> Profile:
    """Give ``profile`` the host and the front end of the machine of ``reference``.

    How long the engine's host thread and the API process take depends on the machine, and on what
    else it is doing, far more than on the quantization method: on virtual machines of one kind, 1.0
    to 1.8 times as long. Methods that were measured on different machines can only be compared once
    they are put on one. What the scheduler does is Python, the same for every method, so its time
    says how fast a machine was. Launches differ between methods (in the number of kernels), so they
    are kept and divided by that.

    Front end, scheduling, updating and the small times between are those of the reference;
    launches are the profile's own over :func:`slower_than`. What was measured is kept in
    ``measured_host``; :meth:`qsim.profiles.schema.Profile.as_measured` brings it back.

    Raises
    ------
    CalibrationError
        If the two differ in their number of GPUs (with several, workers launch, and the engine's
        thread only hands steps on), or the reference is not a measurement of its own host.
    """
    measured = profile.as_measured()
    if reference.transferred or reference.measured_host is not None:
        raise CalibrationError(
            f"--host-like: {reference.id} has the host of another profile; give one that was "
            "measured on its own"
        )
    numbers = [p.identity.tensor_parallel_size for p in (measured, reference)]
    if numbers[0] != numbers[1]:
        raise CalibrationError(
            f"--host-like: {reference.id} runs on {numbers[1]} GPUs and {measured.id} on "
            f"{numbers[0]}; give one with as many"
        )
    slower = slower_than(measured.host, reference.host)
    kept = MeasuredHost(reference.id, round(slower, 3), measured.host, measured.frontend)
    return replace(
        measured,
        host=replace(
            reference.host,
            launch_decode_ms=_over(measured.host.launch_decode_ms, slower),
            launch_piecewise_ms=_over(measured.host.launch_piecewise_ms, slower),
            launch_eager_ms=_over(measured.host.launch_eager_ms, slower),
            launch_eager_queue=measured.host.launch_eager_queue,
        ),
        frontend=reference.frontend,
        measured_host=kept,
    )
