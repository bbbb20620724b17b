"""The front end: from the client's send to the engine's queue, and from an update to the client.

The recorded steps do not name their requests, so requests are matched to steps first: a chunk
``n@0`` begins a prompt, the chunks behind it continue it, and its total is the prompt's length;
requests of one length are served in the order in which they were sent. A request whose prompt is
complete in step p gets its last token in step ``p + output_tokens - 1``, since every running
request decodes in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qsim.calibrate.recording import Recording
from qsim.errors import CalibrationError
from qsim.profile import FrontEnd

__all__ = ["Matches", "fit_frontend", "match_requests"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


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
        waiting = {}
        for i in np.flatnonzero(q.phase == phase):
            waiting.setdefault(int(q.prompt_tokens[i]), []).append(int(i))
        open_prompts: dict[int, int] = {}  # tokens computed -> step of the first chunk
        ends = []
        for position, k in enumerate(steps):
            still_open: dict[int, int] = {}
            for new, computed in s.chunks[k]:
                start = int(k) if computed == 0 else open_prompts.pop(computed, -1)
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


def fit_frontend(recordings: Sequence[Recording], excluded: Sequence[frozenset[int]]) -> FrontEnd:
    """Fit the front end's times.

    Raises
    ------
    CalibrationError
        If fewer than 20 requests could be matched to steps, or none met an idle engine.
    """
    arrive: dict[str, list[FloatArray]] = {"prompt": [], "ms": []}
    out: dict[str, list[FloatArray]] = {
        k: [] for k in ("prompt", "rows", "ms", "total", "rows2", "ms2")
    }
    serial = []
    for recording, skip in zip(recordings, excluded, strict=True):
        s, q = recording.steps, recording.requests
        m = match_requests(recording)
        good = (m.first_token >= 0) & (m.last_token >= 0) & ~np.isin(q.phase, list(skip))
        i = np.flatnonzero(good)
        if not len(i):
            continue
        rows = (s.decodes + s.num_chunks).astype(float)
        burst = np.array([p.load == "burst" for p in recording.phases])[q.phase]
        serial += _serial_ms(recording, m, burst & good)
        latest_update = np.maximum.accumulate(s.update_s)
        before = m.first_chunk[i] - 1
        idle = (before < 0) | (latest_update[np.maximum(before, 0)] < q.sent_s[i])
        j = i[idle & ~burst[i]]
        arrive["prompt"].append(q.prompt_tokens[j] / 1e3)
        arrive["ms"].append((s.schedule_s[m.first_chunk[j]] - q.sent_s[j]) * 1e3)
        i = i[~burst[i]]
        first, last = m.first_token[i], m.last_token[i]
        out["prompt"].append(q.prompt_tokens[i] / 1e3)
        out["rows"].append(rows[first])
        out["ms"].append((q.first_token_s[i] - s.update_s[first]) * 1e3)
        out["total"].append((q.first_token_s[i] - q.sent_s[i]) * 1e3)
        out["rows2"].append(rows[last])
        out["ms2"].append((q.last_token_s[i] - s.update_s[last]) * 1e3)
    arrived = {k: np.concatenate(v) if v else np.zeros(0) for k, v in arrive.items()}
    sent = {k: np.concatenate(v) if v else np.zeros(0) for k, v in out.items()}
    if len(sent["ms"]) < 20 or len(arrived["ms"]) < 5:
        raise CalibrationError(
            f"{len(sent['ms'])} requests could be matched to steps and {len(arrived['ms'])} of "
            "them met an idle engine; the front end needs at least 20 and 5: record single "
            "requests and a light Poisson load"
        )
    # a millisecond matters by its share of the latency that it is a part of
    importance = 1.0 / np.maximum(sent["total"], 5.0) ** 2
    inward = _fit([arrived["prompt"]], arrived["ms"], np.ones(len(arrived["ms"])))
    first = _fit([sent["prompt"], sent["rows"]], sent["ms"], importance)
    last = _fit([sent["rows2"]], sent["ms2"], importance)
    return FrontEnd(
        receive_ms=round(float(inward[0]), 4),
        receive_ms_per_1k_prompt_tokens=round(float(inward[1]), 5),
        receive_serial_ms=round(float(np.min(serial)), 4) if serial else 0.4,
        first_token_ms=round(float(first[0]), 4),
        first_token_ms_per_1k_prompt_tokens=round(float(first[1]), 5),
        first_token_ms_per_running=round(float(first[2]), 6),
        last_token_ms=round(float(last[0]), 4),
        last_token_ms_per_running=round(float(last[1]), 6),
    )


def _serial_ms(recording: Recording, matches: Matches, burst: BoolArray) -> list[float]:
    """Time a request of the API process, from bursts of at least 32 short prompts; ms."""
    s, q = recording.steps, recording.requests
    result = []
    for i in range(len(recording.phases)):
        mine = np.flatnonzero(burst & (q.phase == i))
        if len(mine) < 32 or q.prompt_tokens[mine].max() > 512:
            continue
        span_s = s.schedule_s[matches.first_chunk[mine]].max() - q.sent_s[mine].min()
        result.append(float(span_s) * 1e3 / len(mine))
    return result
