"""Requests that have had their last token, and the rows that a result has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import BoolArray, IntArray
from qsim.sim.engine.timing import PS_PER_MS, PS_PER_S
from qsim.traces.trace import Trace, taken

#: in the place of the server of a request that has no answer: a server rejected it, its client gave
#: up, or the servers that had it failed
REJECTED, TIMED_OUT, FAILED = -1, -2, -3


@dataclass(frozen=True, eq=False)
class Finished:
    """Requests that have had their last token, in order of arrival: int64 arrays, one length."""

    #: times at the client, ps
    arrival_ps: IntArray
    first_token_ps: IntArray
    last_token_ps: IntArray
    #: where each request went; below 0 why it has no answer. Its times are then when it ended.
    replica: IntArray
    #: as in :class:`qsim.sim.scheduler.request.Request`
    cached_tokens: IntArray
    preemptions: IntArray

    def take(self, index: npt.NDArray[Any]) -> Finished:
        """Some of them."""
        return Finished(**{name: values[index] for name, values in vars(self).items()})


def joined(parts: Sequence[Finished]) -> Finished:
    """The requests of all parts."""
    names = Finished.__dataclass_fields__
    return Finished(**{k: np.concatenate([getattr(p, k) for p in parts]) for k in names})


def outcomes(finished: Finished) -> dict[str, int]:
    """How many have no answer, by why."""
    names = {"rejected": REJECTED, "timed_out": TIMED_OUT, "failed": FAILED}
    return {name: int((finished.replica == code).sum()) for name, code in names.items()}


def outcome_notes(counts: Mapping[str, int]) -> list[str]:
    """What a reader should know of requests without an answer that no server rejected."""
    told = (
        ("timed_out", "timed out: their clients gave up, and the servers stopped working on them"),
        ("failed", "failed: the servers that had them failed"),
    )
    return [
        f"{counts[key]} requests {what}; they count as failed, and latencies are those of the "
        "others"
        for key, what in told
        if counts[key]
    ]


def as_sent(
    trace: Trace, admissible: BoolArray, finished: Finished | None, origin_s: float
) -> Trace:
    """A trace whose clients waited for answers, with the times at which they sent its requests.

    What a server would refuse at once is sent with the next one.
    """
    if finished is None:
        return trace
    arrival_s = np.full(len(trace), np.nan)
    arrival_s[admissible] = origin_s + finished.arrival_ps / PS_PER_S
    last = float(arrival_s[admissible][-1])
    for i in np.flatnonzero(~admissible)[::-1].tolist():
        arrival_s[i] = arrival_s[i + 1] if i + 1 < len(trace) else last
    return replace(trace, arrival_s=arrival_s)


def in_order_of_arrival(
    trace: Trace,
    output_tokens: IntArray,
    admissible: BoolArray,
    finished: Finished,
    origin_s: float,
) -> tuple[Trace, IntArray, BoolArray, Finished]:
    """A run whose later turns came when they came: all its columns in order of arrival.

    ``trace`` has all requests, later turns at times that are not theirs; ``output_tokens`` and
    ``finished`` are of the admissible ones, in its order. The clock of the run is at 0 at the
    trace's time ``origin_s``.
    """
    assert trace.turns is not None
    arrival_s = trace.arrival_s.copy()
    waited = np.flatnonzero(admissible & (trace.turns.previous >= 0))
    place = np.cumsum(admissible) - 1  # of each request among the admissible ones
    arrival_s[waited] = origin_s + finished.arrival_ps[place[waited]] / PS_PER_S
    order = np.argsort(arrival_s, kind="stable")
    own = place[order[admissible[order]]]
    columns = taken({**trace.columns(), "arrival_s": arrival_s}, order)
    return (
        replace(trace, **{**columns, "turns": None, "session": None}),
        output_tokens[own],
        admissible[order],
        finished.take(own),
    )


def without_rejected(
    output_tokens: IntArray, admissible: BoolArray, finished: Finished
) -> tuple[IntArray, BoolArray, Finished]:
    """The same of those that have their answer."""
    served = finished.replica >= 0
    if served.all():
        return output_tokens, admissible, finished
    completed = admissible.copy()
    completed[np.flatnonzero(admissible)[~served]] = False
    return output_tokens[served], completed, finished.take(served)


def spread(values: npt.NDArray[Any], admissible: BoolArray, fill: float) -> npt.NDArray[Any]:
    """A column of the admissible requests as one of all, with ``fill`` for the others."""
    if len(values) == len(admissible):
        return values
    column = np.full(len(admissible), fill, values.dtype)
    column[admissible] = values
    return column


def request_columns(
    trace: Trace,
    output_tokens: IntArray,
    admissible: BoolArray,
    finished: Finished | None,
    first: int = 0,
) -> dict[str, Any]:
    """The columns of :data:`qsim.sim.results.requests.COLUMNS`, rejected requests among them.

    ``output_tokens`` and ``finished`` (None if there are none) are of the admissible requests of
    ``trace``, the first of which has the number ``first``.
    """
    none = np.empty(0, np.int64)
    f = finished or Finished(none, none, none, none, none, none)
    ttft_ms = (f.first_token_ps - f.arrival_ps) / PS_PER_MS
    e2el_ms = (f.last_token_ps - f.arrival_ps) / PS_PER_MS
    tpot_ms = np.full(len(output_tokens), np.nan)
    np.divide(e2el_ms - ttft_ms, output_tokens - 1, out=tpot_ms, where=output_tokens > 1)
    return {
        "request_id": np.arange(first, first + len(trace), dtype=np.int64),
        "arrival_s": trace.arrival_s,
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": spread(output_tokens, admissible, 0),
        "replica": spread(f.replica, admissible, -1),
        "cached_tokens": spread(f.cached_tokens, admissible, 0),
        "ttft_ms": spread(ttft_ms, admissible, np.nan),
        "tpot_ms": spread(tpot_ms, admissible, np.nan),
        "e2el_ms": spread(e2el_ms, admissible, np.nan),
        "preemptions": spread(f.preemptions, admissible, 0),
    }
