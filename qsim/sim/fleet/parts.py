"""A trace in the parts that a fleet takes at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from qsim.traces.trace import Trace

__all__ = ["in_parts"]

#: requests that the fleet takes at a time
PART = 1 << 15


def in_parts(
    trace: Trace, output_tokens: npt.NDArray[np.int64], size: int | None = None
) -> Iterator[tuple[Trace, list[int]]]:
    """The parts with their output tokens, of ``size`` requests each; :data:`PART` by default."""
    n = len(trace)
    size = PART if size is None else size
    for begin in range(0, n, size):
        end = min(begin + size, n)
        part = trace if end - begin == n else trace.take(np.arange(begin, end))
        yield part, output_tokens[begin:end].tolist()
