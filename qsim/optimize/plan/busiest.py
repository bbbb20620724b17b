"""The busiest stretch of a trace by a number of requests."""

from __future__ import annotations

import numpy as np

from qsim.traces.trace import Trace

__all__ = ["busiest_requests"]


def busiest_requests(trace: Trace, count: int) -> Trace:
    """The ``count`` requests in a row that arrive within the shortest time; all if there are fewer.

    Times are those of the trace.
    """
    if len(trace) <= count:
        return trace
    at = trace.arrival_s
    first = int(np.argmin(at[count - 1 :] - at[: len(at) - count + 1]))
    return trace.take(np.arange(first, first + count))
