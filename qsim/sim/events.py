"""What replicas and the fleet share: the order of events at one time, and what is reported."""

from __future__ import annotations

from array import array
from typing import Protocol

import simpy
from simpy.events import EventPriority

from qsim.sim.request import Request
from qsim.sim.timeline import Timeline

__all__ = ["ARRIVAL", "ENGINE", "REFRESH", "At", "Sink"]

#: priorities of events at one time: requests first, then what routers see, then engines
ARRIVAL, REFRESH, ENGINE = 0, 1, 2


class Sink(Protocol):
    """Where a replica reports what happened; all times are in ps."""

    #: no request is submitted before this time
    horizon_ps: int
    #: when the engine's queue has the next request, if the fleet is one replica
    next_ready_ps: int
    #: inter-token gaps: entries of :class:`qsim.sim.gaps.Gaps`
    gaps: array[int]
    #: a place for the time of each request's latest token; -1 before the first
    emitted_ps: array[int]
    #: power and queue lengths over time
    timeline: Timeline

    def first_token(self, time_ps: int, request: Request, rows: int) -> None:
        """``request`` has its first token; ``rows`` requests ran in that step."""

    def finished(self, time_ps: int, request: Request, rows: int) -> None:
        """``request`` has its last token; ``rows`` requests ran in that step."""


class At(simpy.Event):
    """A timeout with a priority: of events at one time, those with the lowest come first."""

    def __init__(self, env: simpy.Environment, delay: int, priority: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, EventPriority(priority), delay)
