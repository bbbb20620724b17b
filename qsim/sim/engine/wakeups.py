"""When each replica of a fleet wants to be called: a heap, without events."""

from __future__ import annotations

from heapq import heappop, heappush


class WakeUps:
    """One time a replica, or none.

    Parameters
    ----------
    replicas
        How many there are.
    """

    __slots__ = ("_heap", "_n", "_times", "time_ps")

    def __init__(self, replicas: int) -> None:
        self._n = replicas
        self.time_ps = 0  # of what ``next_before`` returned last
        self._times = [-1] * replicas  # -1: none
        # time x replicas + replica; entries that no longer hold are dropped when they come up
        self._heap: list[int] = []

    def set(self, replica: int, time_ps: int) -> None:
        """Call the replica at that time and no other; -1: not at all."""
        if time_ps != self._times[replica]:
            self._times[replica] = time_ps
            if time_ps >= 0:
                heappush(self._heap, time_ps * self._n + replica)

    def next_before(self, horizon_ps: int) -> int:
        """The replica that is to be called next, if that is before the horizon; -1 if none is.

        It has no time then.
        """
        heap, times, n = self._heap, self._times, self._n
        limit = horizon_ps * n
        while heap and heap[0] < limit:
            key = heappop(heap)
            time_ps = key // n
            replica = key - time_ps * n
            if times[replica] == time_ps:
                times[replica] = -1
                self.time_ps = time_ps
                return replica
        return -1
