"""The clock of a run: whole picoseconds in 64 bits, from near the trace's first arrival on."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from qsim.errors import TraceError
from qsim.sim.engine.timing import PS_PER_S

#: 64 bits hold 9,223,372 s (106 days) of ps; the last arrivals need time to be answered
MOST_S = 9_000_000.0
#: a trace that begins later than this, 11 days, is on some other clock
_FAR_S = 1_000_000.0


def clock_origin_s(first_arrival_s: float) -> float:
    """The trace's time at which the run's clock is 0: 0, or near a first arrival that is far."""
    return float(math.floor(first_arrival_s)) if first_arrival_s > _FAR_S else 0.0


def arrivals_ps(name: str, arrival_s: npt.NDArray[np.float64], origin_s: float = 0.0) -> array[int]:
    """Arrival times on the clock of a run, ps.

    Raises
    ------
    TraceError
        If the trace is longer than the clock goes.
    """
    since_s = arrival_s - origin_s if origin_s else arrival_s
    if not since_s[-1] <= MOST_S:
        raise TraceError(
            f"{name}: a request arrives {since_s[-1] / 86400:,.1f} days after the start; a run "
            f"counts whole picoseconds in 64 bits and takes at most {MOST_S / 86400:.0f} days: "
            "simulate a part (--start, --end, --head), or let it go faster (--speed)"
        )
    return array("q", np.rint(since_s * PS_PER_S).astype(np.int64).tobytes())


@contextmanager
def within_clock(name: str) -> Iterator[None]:
    """Tell a run whose last answers come after the end of the clock.

    Raises
    ------
    TraceError
        In the place of the overflow.
    """
    try:
        yield
    except (OverflowError, struct.error):
        raise TraceError(
            f"{name}: the fleet would answer for more than {2**63 / PS_PER_S / 86400:.0f} days, "
            "where the 64-bit picoseconds of a run end; it is far too slow for this trace: give "
            "it more replicas, or a part of the trace (--head, --end)"
        ) from None
