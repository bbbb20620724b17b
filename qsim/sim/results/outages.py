"""What failures of servers did to a run: availability, lost requests, attainment around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.sim.results.recovery import TimeCounts, attainment_recovery_s

__all__ = ["Outages", "Windows", "longest"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_PHASES = ("before", "during", "after")


class Windows:
    """Counts requests that arrive before, during and after outages, and those within all limits."""

    def __init__(self) -> None:
        self.requests = [0, 0, 0]
        self.good = [0, 0, 0]
        self.over_time = TimeCounts()

    def add(
        self, arrival_s: FloatArray, good: BoolArray, outages: Sequence[tuple[int, float, float]]
    ) -> None:
        """Count requests.

        Parameters
        ----------
        outages : sequence of (server, begin_s, end_s)
            On the same clock.
        """
        self.over_time.add(arrival_s, arrival_s[good])
        phase = np.zeros(len(arrival_s), np.int64)
        if outages:
            phase[arrival_s >= min(begin for _, begin, _ in outages)] = 2
            for _, begin, end in outages:
                phase[(arrival_s >= begin) & (arrival_s < end)] = 1
        for k in range(3):
            self.requests[k] += int((phase == k).sum())
            self.good[k] += int((good & (phase == k)).sum())

    def to_dict(self) -> dict[str, float | None]:
        """Attainment by phase; None over nothing."""
        pairs = zip(_PHASES, self.requests, self.good, strict=True)
        return {f"attainment_{name}": good / n if n else None for name, n, good in pairs}

    def recovery_s(self, outages: Sequence[tuple[int, float, float]]) -> list[float | None]:
        """By outage, how long the attainment took to be back: see `attainment_recovery_s`."""
        return attainment_recovery_s(self.over_time, [(begin, end) for _, begin, end in outages])


@dataclass(frozen=True)
class Outages:
    """The failures of a run.

    Attributes
    ----------
    failures : int
        How often a server failed.
    lost : int
        Requests that were under way at a server that failed, each time.
    retried : int
        How often one was sent again.
    availability : float
        The share of the time in which a server was on, over all servers.
    outages : tuple of (server, begin_s, end_s)
        When each was down, its start-up included, on the trace's clock.
    recovery_s : tuple
        By outage, how long the requests in the fleet took to be back at their number before, s
        (:func:`qsim.sim.results.recovery.backlog_recovery_s`); None where that is not known.
    """

    failures: int
    lost: int
    retried: int
    availability: float
    outages: tuple[tuple[int, float, float], ...]
    recovery_s: tuple[float | None, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "failures": self.failures,
            "lost": self.lost,
            "retried": self.retried,
            "availability": self.availability,
            "outages": [
                {"server": server, "begin_s": begin, "end_s": end, "recovery_s": recovery}
                for (server, begin, end), recovery in zip(
                    self.outages, self.recovery_s, strict=True
                )
            ],
            "time_to_recover_s": longest(self.recovery_s),
        }


def longest(recovery_s: Sequence[float | None]) -> float | None:
    """The longest time to recover; None if one is not known, or there is none."""
    known = [r for r in recovery_s if r is not None]
    return max(known) if known and len(known) == len(recovery_s) else None
