"""When each recorded step was on the GPU.

With launch times and GPU spans recorded, a step starts at the later of its launch and the end of
the step before it, and ends its span later. Without them the ends must be inferred from the
updates: ``update(k)`` comes ``result_ms`` after the later of the GPU's end of step k and the end
of the launch of step k + 1. Where the launch was the later one, the GPU's end is hidden; it is
then taken from a prediction, and the step is not used to fit spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qsim.arrays import BoolArray, FloatArray, IntArray
from qsim.calibrate.recordings.data import SKIP, Recording
from qsim.profiles.schema import HostTimes

#: execution modes of a step: full CUDA graph, piecewise graphs, no graph
DECODE, PIECEWISE, EAGER = 0, 1, 2

#: from the end of ``schedule`` to the start of the launch, and a span's own end to be seen, s
_TO_LAUNCH_S = 4e-6
_GPU_GAP_S = 3e-6
#: a step seen to take this many times its prediction was not seen: the host was held
_HELD = 1.3
#: a load with fewer launches without a full graph is judged by all of its launches
_ENOUGH_LAUNCHES = 20


@dataclass(frozen=True, eq=False)
class Timeline:
    """GPU times of the steps of one recording; arrays of shape (n,).

    ``span_ms[k] = end_s[k] - start_s[k]``. ``usable`` marks the steps whose span was seen and is
    that of the GPU's work: not of a hidden end, nor of a GPU that waited for its launch.
    """

    mode: IntArray
    start_s: FloatArray
    end_s: FloatArray
    span_ms: FloatArray
    usable: BoolArray


def step_modes(recording: Recording, graph_max: int) -> IntArray:
    """The execution mode of every step, shape (n,)."""
    s = recording.steps
    tokens = s.decodes + s.prefill_tokens
    graph = np.where(s.num_chunks == 0, DECODE, PIECEWISE)
    return np.where(tokens <= graph_max, graph, EAGER).astype(np.int64)


def recorded_timeline(recording: Recording, graph_max: int) -> Timeline:
    """The timeline from recorded launch times and GPU spans."""
    s = recording.steps
    n = len(s)
    start, end = np.empty(n), np.empty(n)
    previous = -np.inf
    gpu_s = s.gpu_ms / 1e3
    for k in range(n):
        t = max(s.launch_start_s[k], previous + _GPU_GAP_S)
        start[k] = t
        end[k] = previous = t + gpu_s[k]
    # a span that ends with its own launch says how fast the host was, not the GPU
    waited_for_launch = s.sample_end_s > end - 5e-5
    # and a full graph is launched whole at the end of execute_model: where the GPU was free by
    # then, the span holds the host's preparations, too
    mode = step_modes(recording, graph_max)
    waited_for_launch |= (mode == DECODE) & (s.launch_end_s > start + 2e-4)
    return Timeline(
        mode,
        start,
        end,
        s.gpu_ms.copy(),
        np.isfinite(s.gpu_ms) & ~waited_for_launch,
    )


def behind_eager(mode: IntArray) -> BoolArray:
    """Steps behind one without a graph, shape (n,): their launch can block on the launch queue."""
    result: BoolArray = np.r_[False, mode[:-1] == EAGER]
    return result


def _launch_ms(recording: Recording, mode: IntArray, host: HostTimes) -> FloatArray:
    """How long each step's launch should have taken, by the host times; shape (n,)."""
    s = recording.steps
    pairs = (host.launch_decode_ms, host.launch_piecewise_ms, host.launch_eager_ms)
    constant = np.array([p[0] for p in pairs])[mode]
    per_row = np.array([p[1] for p in pairs])[mode]
    result: FloatArray = constant + per_row * (s.decodes + s.num_chunks)
    return result


def _launch_end_s(recording: Recording, mode: IntArray, host: HostTimes) -> FloatArray:
    """When each step's launch should have ended, by the host times; shape (n,)."""
    s = recording.steps
    launch_s = _launch_ms(recording, mode, host) / 1e3
    result: FloatArray = s.schedule_s + s.schedule_dur_s + _TO_LAUNCH_S + launch_s
    return result


#: progress at the return of a launch, below which the queue of launches tells nothing
_HARDLY_FULL = -0.75


def launch_progress(recording: Recording, timeline: Timeline) -> FloatArray:
    """How much of a step's own GPU span was over when its launch had returned; shape (n,).

    Below 0 the step before was still running. NaN where launches or spans were not recorded.
    """
    return (recording.steps.sample_end_s - timeline.start_s) * 1e3 / timeline.span_ms


def launch_queue(
    recordings: Sequence[Recording], excluded: Sequence[frozenset[int]], graph_max: int
) -> list[float]:
    """How many times over the launches of a step without a graph fill the queue of launches.

    Of K launches, Q of which fit into the queue, the last is made when all but Q are done. Behind
    another such step that is when the share ``f = 1 - Q/K`` of the step's own span is over, or,
    where f is below 0, when about the same share of the span before is left. So
    ``K/Q = 1 / (1 - f)``, fitted as a constant and a term per 1000 tokens. Nothing is known, and
    both are 0, if the queue was hardly full (f below -0.75: the host itself takes as long), with
    several GPUs, whose workers launch, or with fewer than 5 such steps. ``excluded`` holds the
    numbers of each recording's phases that are left out.
    """
    from sklearn.linear_model import LinearRegression

    tokens, passed, spans = [], [], []
    for recording, out in zip(recordings, excluded, strict=True):
        s = recording.steps
        if not s.has_gpu_spans or recording.server.tensor_parallel > 1:
            continue
        timeline = recorded_timeline(recording, graph_max)
        used = np.array([p.use != SKIP for p in recording.phases])[s.phase]
        used &= ~np.isin(s.phase, list(out))
        waited = np.r_[False, timeline.end_s[:-1] > s.launch_start_s[1:]]
        progress = launch_progress(recording, timeline)
        chosen = (timeline.mode == EAGER) & behind_eager(timeline.mode) & used & waited
        chosen &= np.isfinite(progress)
        tokens.append((s.decodes + s.prefill_tokens)[chosen] / 1e3)
        passed.append(progress[chosen])
        spans.append(timeline.span_ms[chosen])
    x, f, span = (np.concatenate(v) if v else np.empty(0) for v in (tokens, passed, spans))
    large = x >= 0.75 * x.max(initial=0.0)
    if large.sum() < 5 or np.median(f[large]) < _HARDLY_FULL:
        return [0.0, 0.0]
    # 1: the step was over, of a host that was held by something else
    told = (f > _HARDLY_FULL) & (f < 0.9)
    x, y = x[told], 1.0 / (1.0 - f[told])
    weight = importance = span[told]  # a share of a long step is a long time
    a = np.stack([np.ones(len(x)), x], axis=1)
    c = np.zeros(2)
    for _ in range(20):  # robust against launches that the host itself made slowly
        c = LinearRegression(positive=True, fit_intercept=False).fit(a, y, weight).coef_
        weight = importance / np.maximum(np.abs(y - a @ c), 1e-3)
    return [round(float(c[0]), 4), round(float(c[1]), 5)]


def launch_ratio(
    recording: Recording, mode: IntArray, host: HostTimes, chosen: BoolArray
) -> float | None:
    """How slowly the host launched in the chosen steps, against the host times.

    The median of measured over modelled launch times, over steps without a full CUDA graph, or
    over all if there are fewer than 20 such: above 1 for a host that was slower, None if no launch
    time was recorded. A launch behind a step without a graph does not count, as in the fit of the
    host times: it can block on the launch queue for as long as the GPU works. Under tensor
    parallelism the launches are those that the engine's process sees. ``mode`` (of
    :func:`step_modes`) and ``chosen`` have shape (n,).
    """
    s = recording.steps
    with np.errstate(divide="ignore", invalid="ignore"):  # a profile may launch in no time
        ratio = (s.sample_end_s - s.launch_start_s) * 1e3 / _launch_ms(recording, mode, host)
    known = chosen & np.isfinite(ratio) & ~behind_eager(mode)
    no_graph = known & (mode != DECODE)
    if no_graph.sum() >= _ENOUGH_LAUNCHES:
        known = no_graph
    return float(np.median(ratio[known])) if known.any() else None


def late_updates_ms(recording: Recording, timeline: Timeline, host: HostTimes) -> FloatArray:
    """How much later each update came than the GPU and the next launch explain; shape (n,).

    Now and then the host thread is held (an allocation, by all signs) until its own step has
    ended, so that the update of the step before is late by a whole step.
    """
    s = recording.steps
    launch_end = _launch_end_s(recording, timeline.mode, host)
    share = host.held(s.decodes + s.prefill_tokens)
    if share.any():
        held = timeline.start_s + share * timeline.span_ms / 1e3
        launch_end = np.where(timeline.mode == EAGER, np.maximum(launch_end, held), launch_end)
    next_launch_end = np.r_[launch_end[1:], -np.inf]
    next_first = np.r_[s.schedule_s[1:] < s.update_s[:-1], False]
    due = np.maximum(timeline.end_s, np.where(next_first, next_launch_end, -np.inf))
    result: FloatArray = (s.update_s - due) * 1e3 - host.result_ms
    return result


def estimate_launch_ms(recording: Recording, mode: IntArray, which: int, result_ms: float) -> float:
    """The launch time of mode ``which``, from updates that had to wait for a launch; ms.

    An update of a short decode step is held by the launch of the step behind it in more than
    half of the cases, so the 30th percentile of the time from the end of ``schedule(k)`` to
    ``update(k-1)`` is that of held ones. NaN if there are fewer than 20 such steps.
    """
    s = recording.steps
    behind_decode = np.r_[False, (mode[:-1] == DECODE) & (s.update_s[:-1] > s.schedule_s[1:])]
    wait_ms = np.r_[0.0, s.update_s[:-1] - (s.schedule_s + s.schedule_dur_s)[1:]] * 1e3
    chosen = wait_ms[(mode == which) & behind_decode]
    return float(np.percentile(chosen, 30)) - result_ms if len(chosen) >= 20 else float("nan")


def infer_timeline(
    recording: Recording,
    graph_max: int,
    host: HostTimes,
    predict_ms: Callable[[int], float] | None = None,
) -> Timeline:
    """The timeline from update times alone.

    ``host`` has the launch times of this server, or of one like it; ``predict_ms`` predicts a
    step's span where its end is hidden; without it the update is taken.
    """
    s = recording.steps
    n = len(s)
    mode = step_modes(recording, graph_max)
    launch_start = s.schedule_s + s.schedule_dur_s + _TO_LAUNCH_S
    launch_end = _launch_end_s(recording, mode, host)
    seen_end = s.update_s - host.result_ms / 1e3
    # does the launch of the next step come before this update, and may it have held it?
    tolerance_s = np.array([2e-4, 6e-4, 1.2e-3])
    next_first = np.r_[s.schedule_s[1:] < s.update_s[:-1], False]
    next_launch_end = np.r_[launch_end[1:], np.inf]
    next_tolerance = np.r_[tolerance_s[mode[1:]], 0.0]
    hidden = next_first & (next_launch_end + next_tolerance > seen_end)
    start, end = np.empty(n), np.empty(n)
    previous, previous_known = -np.inf, True
    usable = np.zeros(n, dtype=np.bool_)
    for k in range(n):
        waits = launch_start[k] > previous + _GPU_GAP_S
        t = launch_start[k] if waits else previous + _GPU_GAP_S
        start[k] = t
        guess_s = np.inf if predict_ms is None else predict_ms(k) / 1e3
        # an update far too late after a step is that of a host that was held
        lost = hidden[k] or seen_end[k] - t > _HELD * guess_s + 1e-3
        if not lost:
            previous = max(seen_end[k], t + 1e-5)
            usable[k] = (waits or previous_known) and previous > launch_end[k] + 5e-5
        else:
            previous = max(min(t + guess_s, seen_end[k]), t + 1e-5)
        end[k] = previous
        # a predicted end of a short step before a long one costs the long one little
        previous_known = not lost or (predict_ms is not None and mode[k] == DECODE)
    return Timeline(mode, start, end, (end - start) * 1e3, usable)


def timeline_of(
    recording: Recording,
    graph_max: int,
    host: HostTimes,
    predict_ms: Callable[[int], float] | None = None,
) -> Timeline:
    """The recorded timeline where there is one, else the inferred one."""
    if recording.steps.has_gpu_spans:
        return recorded_timeline(recording, graph_max)
    return infer_timeline(recording, graph_max, host, predict_ms)
