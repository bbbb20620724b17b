"""What replicas and the fleet share: the order of events at one time, and what is reported."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Protocol

import simpy
from simpy.events import EventPriority

from qsim.sim.results.timeline import Timeline
from qsim.sim.scheduler.request import Request

__all__ = ["ARRIVAL", "ENGINE", "REFRESH", "At", "Sink", "Timers"]

#: priorities of events at one time: requests first, then what routers see, then engines
ARRIVAL, REFRESH, ENGINE = 0, 1, 2


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
    """A timeout with a priority: of events at one time, those with the lowest come first."""

    def __init__(self, env: simpy.Environment, delay: int, priority: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, EventPriority(priority), delay)


class Timers:
    """Calls each replica when it wants to be called, by events of SimPy.

    Parameters
    ----------
    call
        Calls the replica of this number; returns when it wants to be called next, -1 for never.
    """

    def __init__(self, env: simpy.Environment, call: Callable[[int], int]) -> None:
        self._env = env
        self._call = call
        self._timers: dict[int, tuple[int, simpy.Event]] = {}

    def set(self, replica: int, time_ps: int) -> None:
        """Call the replica at that time and no other; -1: not at all."""
        before = self._timers.get(replica)
        if before is not None and before[0] == time_ps:
            return
        if time_ps < 0:
            self._timers.pop(replica, None)
            return
        timer = At(self._env, time_ps - int(self._env.now), ENGINE)
        timer.callbacks.append(lambda event: self._go_off(replica, event))
        self._timers[replica] = time_ps, timer

    def _go_off(self, replica: int, event: simpy.Event) -> None:
        if self._timers.get(replica, (0, None))[1] is event:  # else another has taken over
            del self._timers[replica]
            self.set(replica, self._call(replica))
