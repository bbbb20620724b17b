"""What replicas report to the fleet."""

from __future__ import annotations

from array import array
from typing import Protocol

from qsim.sim.results.timeline import Timeline
from qsim.sim.scheduler.request import Request


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

    def finished(self, time_ps: int, request: Request, rows: int, late_ps: int) -> None:
        """``request`` has its last token; ``rows`` requests ran in that step.

        The API server's process was ``late_ps`` behind then.
        """
