"""Closed-loop requests: the next turn of a session is sent when the answer before it is there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.results.finished import Finished
from qsim.traces.trace import Trace, Turns

__all__ = ["followers", "in_order_of_arrival"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def followers(turns: Turns) -> dict[int, list[tuple[int, int]]]:
    """By request: those that wait for its answer, and for how long after it, ps."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i in np.flatnonzero(turns.previous >= 0).tolist():
        found[int(turns.previous[i])].append((i, round(float(turns.delay_s[i]) * PS_PER_S)))
    return dict(found)


def in_order_of_arrival(
    trace: Trace,
    output_tokens: IntArray,
    admissible: BoolArray,
    finished: Finished,
    origin_s: float,
) -> tuple[Trace, IntArray, BoolArray, Finished]:
    """A run whose later turns came when they came: all its columns in order of arrival.

    Parameters
    ----------
    trace : Trace
        All requests, later turns at times that are not theirs.
    output_tokens : int64 array
        Of the admissible ones.
    admissible : bool array
        Which they are.
    finished : Finished
        How they fared, in the order of ``trace``.
    origin_s : float
        The trace's time when the clock of the run was at 0.
    """
    assert trace.turns is not None
    arrival_s = trace.arrival_s.copy()
    waited = np.flatnonzero(admissible & (trace.turns.previous >= 0))
    place = np.cumsum(admissible) - 1  # of each request among the admissible ones
    arrival_s[waited] = origin_s + finished.arrival_ps[place[waited]] / PS_PER_S
    order = np.argsort(arrival_s, kind="stable")
    own = place[order[admissible[order]]]
    ids = trace.hash_ids
    return (
        replace(
            trace,
            arrival_s=arrival_s[order],
            prompt_tokens=trace.prompt_tokens[order],
            output_tokens=trace.output_tokens[order],
            hash_ids=None if ids is None else ids.take(order),
            turns=None,
            session=None,
        ),
        output_tokens[own],
        admissible[order],
        Finished(**{k: getattr(finished, k)[own] for k in Finished.__dataclass_fields__}),
    )
