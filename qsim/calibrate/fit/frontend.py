"""The front end: from the client's send to the engine's queue, and from an update to the client.

The recorded steps do not name their requests, so requests are matched to steps first: a chunk
``n@0`` begins a prompt, the chunks behind it continue it, and its total is the prompt's length;
requests of one length are served in the order in which they were sent. A request whose prompt is
complete in step p gets its last token in step ``p + output_tokens - 1``, since every running
request decodes in every step.

The API server's process is one event loop. Its times cannot be told apart in light load and are in
a fixed proportion to each other (:data:`API`); their size is what explains arrivals and last tokens
of the recorded loads best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qsim.arrays import BoolArray, FloatArray, IntArray
from qsim.calibrate.recordings.data import Recording, Requests, Steps
from qsim.errors import CalibrationError
from qsim.profiles.schema import ApiTimes, FrontEnd
from qsim.sim.engine.api_process import ApiProcess
from qsim.sim.engine.timing import PS_PER_MS, PS_PER_S
from qsim.sim.scheduler.request import Request

#: of a recording: what :func:`backlogs_ms` returns
Backlog = tuple[FloatArray, FloatArray]

#: the times of the API server's process, in proportion, by when requests and tokens passed through
#: that of a vLLM 0.33 (docs/profile-format.md; tools/check_api_server.py)
API = ApiTimes(
    request_ms=0.6,
    request_ms_per_1k_prompt_tokens=0.12,
    tokenize_ms_per_1k_prompt_tokens=1.5,
    input_ms_per_1k_prompt_tokens=0.18,
    token_ms=0.016,
    send_ms=0.03,
    turns=8,
)
#: so many times these are tried
_SIZES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
#: by what share they must explain arrivals and last tokens better than none
_WORTH = 0.02


@dataclass(frozen=True, eq=False)
class Matches:
    """Steps of each request: of its first chunk, its first token, its last; -1 if not matched."""

    first_chunk: IntArray
    first_token: IntArray
    last_token: IntArray


def match_requests(recording: Recording) -> Matches:
    """Match every request to its steps; arrays of shape (requests,)."""
    s, q = recording.steps, recording.requests
    n = len(q)
    begun, first, last = (np.full(n, -1, dtype=np.int64) for _ in range(3))
    phase_steps = {i: np.flatnonzero(s.phase == i) for i in range(len(recording.phases))}
    for phase, steps in phase_steps.items():
        waiting: dict[int, list[int]] = {}
        for j in np.flatnonzero(q.phase == phase).tolist():
            waiting.setdefault(int(q.prompt_tokens[j]), []).append(j)
        open_prompts: dict[int, int] = {}  # tokens computed -> step of the first chunk
        ends = []
        for position, k in enumerate(steps.tolist()):
            still_open: dict[int, int] = {}
            for new, computed in s.chunks[k]:
                start = k if computed == 0 else open_prompts.pop(computed, -1)
                total = new + computed
                queue = waiting.get(total)
                # a chunk that ends at the length of a waiting prompt completes it; only the last
                # chunk of a step can be partial
                complete = queue and q.sent_s[queue[0]] < s.schedule_s[max(start, 0)]
                if complete and queue and start >= 0:
                    i = queue.pop(0)
                    begun[i], first[i] = start, k
                    ends.append((i, position + int(q.output_tokens[i]) - 1))
                else:
                    still_open[total] = start
            open_prompts = still_open
        for i, position in ends:
            if position < len(steps):
                last[i] = steps[position]
    return Matches(begun, first, last)


def _fit(columns: Sequence[FloatArray], y: FloatArray, importance: FloatArray) -> FloatArray:
    """Non-negative coefficients, robust against a tail of late outputs."""
    from sklearn.linear_model import LinearRegression

    a = np.stack([np.ones(len(y)), *columns], axis=1)
    c = np.zeros(a.shape[1])
    weight = importance.copy()
    for _ in range(10):
        c = LinearRegression(positive=True, fit_intercept=False).fit(a, y, weight).coef_
        error = np.abs(y - a @ c)
        weight = importance * np.minimum(1.0, 1.0 / np.maximum(error, 1e-3))
        weight[error > 30.0] = 0.0
    return c


@dataclass(frozen=True, eq=False)
class _Arrivals:
    """When requests were taken up, after they were sent: within (early_ms, late_ms]."""

    prompt_k: FloatArray
    early_ms: FloatArray
    late_ms: FloatArray
    idle: BoolArray
    #: of each request, and the end-to-end time of its first token
    index: IntArray
    total_ms: FloatArray


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a recording tells of the front end."""

    recording: Recording
    arrivals: _Arrivals
    #: requests outside of bursts, and their steps
    index: IntArray
    last_step: IntArray
    rows: FloatArray
    first_ms: FloatArray
    last_rows: FloatArray
    last_ms: FloatArray
    total_ms: FloatArray

    @property
    def prompt_k(self) -> FloatArray:
        return np.asarray(self.recording.requests.prompt_tokens[self.index] / 1e3)


def fit_frontend(
    recordings: Sequence[Recording], excluded: Sequence[frozenset[int]]
) -> tuple[FrontEnd, float]:
    """Fit the front end's times, and how long an idle engine takes to wake up (ms).

    Raises
    ------
    CalibrationError
        If fewer than 20 requests could be matched to steps.
    """
    seen = []
    serial = []
    for recording, skip in zip(recordings, excluded, strict=True):
        s, q = recording.steps, recording.requests
        m = match_requests(recording)
        good = (m.first_token >= 0) & (m.last_token >= 0) & ~np.isin(q.phase, list(skip))
        rows = (s.decodes + s.num_chunks).astype(float)
        burst = np.array([p.load == "burst" for p in recording.phases])[q.phase]
        serial += _serial_ms(recording, m, burst & good)
        i = np.flatnonzero(good & ~burst)
        if not len(i):
            continue
        first, last = m.first_token[i], m.last_token[i]
        seen.append(
            _Seen(
                recording,
                _arrivals(recording, m, i),
                i,
                last,
                rows[first],
                (q.first_token_s[i] - s.update_s[first]) * 1e3,
                rows[last],
                (q.last_token_s[i] - s.update_s[last]) * 1e3,
                (q.first_token_s[i] - q.sent_s[i]) * 1e3,
            )
        )
    count = sum(len(x.index) for x in seen)
    if count < 20:
        raise CalibrationError(
            f"{count} requests outside of bursts could be matched to steps; the front "
            "end needs at least 20: record single requests and a light Poisson load"
        )
    api = _api(seen)
    backlogs = [backlogs_ms(x.recording, api) for x in seen]
    arrivals = _less_waits(seen, backlogs)
    late_ms = _less_lateness(seen, backlogs)
    receive, receive_1k, wake = _receive(arrivals)
    # a millisecond matters by its share of the latency that it is a part of
    importance = 1.0 / np.maximum(np.concatenate([x.total_ms for x in seen]), 5.0) ** 2
    first_c = _fit(
        [np.concatenate([x.prompt_k for x in seen]), np.concatenate([x.rows for x in seen])],
        np.concatenate([x.first_ms for x in seen]),
        importance,
    )
    last_c = _fit([np.concatenate([x.last_rows for x in seen])], late_ms, importance)
    frontend = FrontEnd(
        receive_ms=round(receive, 4),
        receive_ms_per_1k_prompt_tokens=round(receive_1k, 5),
        receive_serial_ms=round(float(np.min(serial)), 4) if serial else 0.4,
        first_token_ms=round(float(first_c[0]), 4),
        first_token_ms_per_1k_prompt_tokens=round(float(first_c[1]), 5),
        first_token_ms_per_running=round(float(first_c[2]), 6),
        last_token_ms=round(float(last_c[0]), 4),
        last_token_ms_per_running=round(float(last_c[1]), 6),
    )
    return frontend if api is None else frontend.with_api(api), round(wake, 4)


def backlogs_ms(recording: Recording, api: ApiTimes | None) -> Backlog:
    """What requests and results wait for the API server's process.

    Returns
    -------
    waits_ms : array, shape (requests,)
        How much later each reaches the engine than if it were alone.
    late_ms : array, shape (steps,)
        How much the process is behind at each update.
    """
    s, q = recording.steps, recording.requests
    waits_ms, late_ms = np.zeros(len(q)), np.zeros(len(s))
    if api is None:
        return waits_ms, late_ms
    process = ApiProcess(api)
    updates_ps = np.rint(s.update_s * PS_PER_S).astype(np.int64)
    sends_ps = np.rint(q.sent_s * PS_PER_S).astype(np.int64)
    rows = (s.decodes + s.num_chunks).tolist()
    times_ps = np.concatenate([updates_ps, sends_ps])
    steps = len(updates_ps)
    requests = [Request(j, p, 1) for j, p in enumerate(q.prompt_tokens.tolist())]
    through = []
    for i in np.argsort(times_ps, kind="stable").tolist():
        now_ps = int(times_ps[i])
        if i < steps:
            through += process.advance(now_ps - 1)
            process.result(now_ps, rows[i])
            late_ms[i] = process.late_ps / PS_PER_MS
        else:
            process.enter(requests[i - steps], now_ps, 0)
    through += process.advance(int(times_ps.max()) + PS_PER_S * 3600)
    for ready_ps, request in through:
        alone_ms = (
            api.request_ms + api.request_ms_per_1k_prompt_tokens * request.prompt_tokens / 1e3
        )
        took_ms = (ready_ps - int(sends_ps[request.index])) / PS_PER_MS
        waits_ms[request.index] = max(took_ms - alone_ms, 0.0)
    return waits_ms, late_ms


def _api(seen: Sequence[_Seen]) -> ApiTimes | None:
    """The times of the API server's process that explain best what came late; None if none do."""
    importance = 1.0 / np.maximum(np.concatenate([x.total_ms for x in seen]), 5.0)
    last_rows = np.concatenate([x.last_rows for x in seen])
    busy = np.concatenate([~x.arrivals.idle & (x.arrivals.late_ms < 1000.0) for x in seen])
    weight = 1.0 / np.maximum(np.concatenate([x.arrivals.total_ms for x in seen]), 5.0)
    if busy.sum() < 100:
        return None

    def arrivals_off(backlogs: Sequence[Backlog]) -> float:
        arrivals = _less_waits(seen, backlogs)
        early = np.concatenate([p.early_ms for p in arrivals])[busy]
        late = np.concatenate([p.late_ms for p in arrivals])[busy]
        prompt = np.concatenate([p.prompt_k for p in arrivals])[busy]
        least = np.inf
        for b in (0.0, 0.25, 0.5, 1.0):
            for a in np.arange(0.0, 8.0, 0.25):
                at = a + b * prompt
                miss = np.maximum(early - at, 0.0) + np.maximum(at - late, 0.0)
                least = min(least, float((weight[busy] * np.minimum(miss, 30.0)).mean()))
        return least

    def last_tokens_off(backlogs: Sequence[Backlog]) -> float:
        last_ms = _less_lateness(seen, backlogs)
        c = _fit([last_rows], last_ms, importance**2)
        error = np.abs(last_ms - c[0] - c[1] * last_rows)
        return float((importance * np.minimum(error, 30.0)).mean())

    none = [backlogs_ms(x.recording, None) for x in seen]
    best = (arrivals_off(none) + last_tokens_off(none)) * (1.0 - _WORTH)
    found = None
    for size in _SIZES:
        times = {k: round(v * size, 6) for k, v in vars(API).items() if k != "turns"}
        api = ApiTimes(**times, turns=API.turns)
        backlogs = [backlogs_ms(x.recording, api) for x in seen]
        left = arrivals_off(backlogs) + last_tokens_off(backlogs)
        if left < best:
            best, found = left, api
    return found


def _less_waits(seen: Sequence[_Seen], backlogs: Sequence[Backlog]) -> list[_Arrivals]:
    """Bounds on arrivals, less what the process makes requests wait."""
    arrivals = []
    for x, (waits_ms, _) in zip(seen, backlogs, strict=True):
        a, wait_ms = x.arrivals, waits_ms[x.arrivals.index]
        arrivals.append(replace(a, early_ms=a.early_ms - wait_ms, late_ms=a.late_ms - wait_ms))
    return arrivals


def _less_lateness(seen: Sequence[_Seen], backlogs: Sequence[Backlog]) -> FloatArray:
    """Delays of last tokens, less how much the process was behind; a first token is never."""
    last_ms = []
    for x, (_, late_ms) in zip(seen, backlogs, strict=True):
        several = x.recording.requests.output_tokens[x.index] > 1
        last_ms.append(x.last_ms - np.where(several, late_ms[x.last_step], 0.0))
    return np.concatenate(last_ms)


def _arrivals(recording: Recording, matches: Matches, i: IntArray) -> _Arrivals:
    """Bounds on when the requests ``i`` were in the engine's queue."""
    s, q = recording.steps, recording.requests
    first = matches.first_chunk[i]
    before, idle = _step_before(s, first, q.sent_s[i])
    # who waits for seats or tokens was in the queue long before
    clear = (s.waiting[before] == 0) | idle
    i, first, before, idle = i[clear], first[clear], before[clear], idle[clear]
    sent = q.sent_s[i]
    early = np.where(idle, -np.inf, (s.schedule_s[before] - sent) * 1e3)
    late = (s.schedule_s[first] - sent) * 1e3
    total = (q.first_token_s[i] - sent) * 1e3
    return _Arrivals(q.prompt_tokens[i] / 1e3, early, late, idle, i, total)


def _step_before(s: Steps, first: IntArray, sent_s: FloatArray) -> tuple[IntArray, BoolArray]:
    """The step before each, and whether all results were out, the engine idle, at the send."""
    before = np.maximum(first - 1, 0)
    return before, (first == 0) | (np.maximum.accumulate(s.update_s)[before] < sent_s)


def modelled_arrivals_s(
    q: Requests, index: IntArray, frontend: FrontEnd, waits_ms: FloatArray
) -> FloatArray:
    """When the model of the front end hands requests to the engine, s; shape as ``index``.

    Parameters
    ----------
    index : integer array
        Requests of one phase in order of sending, for the API process takes them in turn.
    waits_ms : array, shape (requests,)
        What they wait for that process: of :func:`backlogs_ms`.
    """
    ready_s = np.empty(len(index))
    last_s = -np.inf
    for j, i in enumerate(index):
        took_ms = (
            frontend.receive_ms
            + frontend.receive_ms_per_1k_prompt_tokens * q.prompt_tokens[i] / 1000
            + waits_ms[i]
        )
        last_s = max(q.sent_s[i] + took_ms / 1e3, last_s + frontend.receive_serial_ms / 1e3)
        ready_s[j] = last_s
    return ready_s


def late_arrivals_ms(recording: Recording, frontend: FrontEnd) -> FloatArray:
    """How much later requests came to the engine than the front end's model says, at least.

    A request was not there yet at the last schedule call before the one that took it, provided
    that the engine's queue was empty in between: else it may have waited for seats or tokens. So
    it is late at least by the time of that call less the modelled arrival: it was held in the API
    process or in the client, which the simulator does not model.

    Returns
    -------
    array of shape (requests,), ms
        Below 0 for a request that can have been in time. NaN where nothing is known: not matched
        to a step, met an idle engine or a queue, or of a burst, where the API process is the queue.
    """
    s, q = recording.steps, recording.requests
    modelled_s = np.full(len(q), np.nan)
    waits_ms, _ = backlogs_ms(recording, frontend.api)
    for p, phase in enumerate(recording.phases):
        if phase.load != "burst":
            index = np.flatnonzero(q.phase == p)
            index = index[np.argsort(q.sent_s[index], kind="stable")]
            modelled_s[index] = modelled_arrivals_s(q, index, frontend, waits_ms)
    result = np.full(len(q), np.nan)
    first = match_requests(recording).first_chunk
    i = np.flatnonzero(first >= 0)
    before, idle = _step_before(s, first[i], q.sent_s[i])
    # the queue is recorded at updates. The step before may be updated after the call that took
    # the request, when a queue is empty again, so the last update that came before that call tells
    updates_s = np.maximum.accumulate(s.update_s)
    last_update = np.searchsorted(updates_s, s.schedule_s[first[i]]) - 1
    empty = (last_update >= 0) & (s.waiting[np.maximum(last_update, 0)] == 0)
    known = empty & ~idle
    result[i[known]] = (s.schedule_s[before] - modelled_s[i])[known] * 1e3
    return result


def _receive(parts: Sequence[_Arrivals]) -> tuple[float, float, float]:
    """receive_ms, receive_ms_per_1k_prompt_tokens and the wake-up of an idle engine, ms.

    A busy engine takes a request up at its next schedule call, so each request only says that it
    came between two calls; the values with the least violation of these bounds are taken.
    """
    prompt = np.concatenate([p.prompt_k for p in parts])
    early = np.concatenate([p.early_ms for p in parts])
    late = np.concatenate([p.late_ms for p in parts])
    idle = np.concatenate([p.idle for p in parts])
    busy = ~idle & (late < 1000.0)
    per_1k = np.arange(0.0, 1.01, 0.05)
    if busy.sum() >= 20:
        tried = []
        for b in per_1k:
            for a in np.arange(0.0, 8.0, 0.025):
                at = a + b * prompt[busy]
                miss = np.maximum(early[busy] - at, 0.0) + np.maximum(at - late[busy], 0.0)
                tried.append((float(np.minimum(miss, 3.0).mean()), float(a), float(b)))
        # many values do equally well: the middle of them
        least = min(tried)[0]
        equal = np.array([(a, b) for loss, a, b in tried if loss <= least + 0.002])
        receive, receive_1k = (float(v) for v in equal.mean(axis=0))
        rest = late[idle] - receive - receive_1k * prompt[idle]
        return receive, receive_1k, max(float(np.median(rest)), 0.0) if idle.any() else 0.0
    if not idle.any():
        raise CalibrationError(
            "no request met an idle engine and fewer than 20 a busy one without a queue: "
            "record single requests and a light Poisson load"
        )
    c = _fit([prompt[idle]], late[idle], np.ones(int(idle.sum())))
    return float(c[0]), float(c[1]), 0.0


def _serial_ms(recording: Recording, matches: Matches, burst: BoolArray) -> list[float]:
    """Time a request of the API process, from bursts of at least 32 short prompts; ms.

    The last request of a burst came in at the latest when the engine began it, or at the first
    update after which all were running or in the queue.
    """
    s, q = recording.steps, recording.requests
    result = []
    for i in range(len(recording.phases)):
        mine = np.flatnonzero(burst & (q.phase == i))
        if len(mine) < 32 or q.prompt_tokens[mine].max() > 512:
            continue
        sent_s = q.sent_s[q.phase == i]
        if np.ptp(sent_s) > 0.15:  # not one burst: the sends themselves took that long
            continue
        begun_s = np.sort(s.schedule_s[matches.first_chunk[mine]])
        last_s = float(begun_s[-1])
        if len(mine) >= 0.99 * len(sent_s):  # else too many are not accounted for
            steps = np.flatnonzero(s.phase == i)
            ends_s = s.update_s[steps] + s.update_dur_s[steps]
            known = np.searchsorted(begun_s, ends_s) + s.waiting[steps]
            if np.any(known >= len(mine)):
                last_s = min(last_s, float(ends_s[known >= len(mine)].min()))
        result.append((last_s - float(sent_s.min())) * 1e3 / len(mine))
    return result
