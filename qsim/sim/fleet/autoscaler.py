"""What decides how many servers are on, and all that it may know: the present and the past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Constant", "Observation", "Policy"]


@dataclass(frozen=True)
class Observation:
    """What a controller can see. Tuples have one entry a pool.

    Attributes
    ----------
    now_s : float
        Time of the trace.
    on, starting, draining, asleep : tuple of int
        Servers; those that wake up count as starting.
    waiting : tuple of int
        Requests in the servers' queues that have not begun to run.
    outstanding : tuple of int
        Requests that were sent to servers and are not finished.
    held : int
        Requests at the gateway, for want of a server that is on.
    arrivals : int64 array
        Requests that came in each period of the policy so far; read only.
    """

    now_s: float
    on: tuple[int, ...]
    starting: tuple[int, ...]
    draining: tuple[int, ...]
    asleep: tuple[int, ...]
    waiting: tuple[int, ...]
    outstanding: tuple[int, ...]
    held: int
    arrivals: npt.NDArray[np.int64]


class Policy(Protocol):
    """Asked at the start of the trace and then once a period."""

    @property
    def period_s(self) -> float:
        """Seconds between two decisions."""

    def initial(self) -> tuple[int, ...]:
        """Servers of each pool that are on when the trace begins."""

    def decide(self, seen: Observation) -> tuple[int, ...]:
        """Servers of each pool that are to be on, or on their way there, from now on."""


@dataclass(frozen=True)
class Constant:
    """The same servers all the time."""

    counts: tuple[int, ...]
    period_s: float = 3600.0

    def initial(self) -> tuple[int, ...]:
        """The counts."""
        return self.counts

    def decide(self, seen: Observation) -> tuple[int, ...]:
        """The counts."""
        return self.counts
