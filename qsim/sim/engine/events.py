"""What replicas and the fleet share: events, and what is reported."""

from __future__ import annotations

from array import array
from typing import Protocol

import simpy

from qsim.sim.results.timeline import Timeline
from qsim.sim.scheduler.request import Request

__all__ = ["At", "Sink"]


class Sink(Protocol):
    """Where a replica reports what happened; all times are in ps."""

    #: inter-token gaps: entries of :class:`qsim.sim.results.itl.Gaps`
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
    """An event after a delay, in order of planning among those of one time."""

    def __init__(self, env: simpy.Environment, delay: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, delay=delay)
