"""The waiting queue of each scheduling policy.

A request that finishes or is aborted while it waits is only counted out; its entry is dropped when
it comes to the head.
"""

from __future__ import annotations

import heapq
from collections import deque

from qsim.sim.scheduler.request import Request


class FcfsQueue:
    """First come, first served; a preempted request goes to the front."""

    __slots__ = ("_queue", "count")

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()
        self.count = 0

    def add(self, request: Request) -> None:
        self._queue.append(request)
        self.count += 1

    def put_back(self, request: Request) -> None:
        self._queue.appendleft(request)
        self.count += 1

    def drop(self, request: Request) -> None:
        """Count out a request that has finished."""
        self.count -= 1

    def head(self) -> Request:
        queue = self._queue
        while queue[0].finished:
            queue.popleft()
        return queue[0]

    def pop_head(self) -> None:
        self._queue.popleft()
        self.count -= 1


class PriorityQueue:
    """Smallest (priority, arrival) first, preempted or not."""

    __slots__ = ("_heap", "count")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Request]] = []  # arrivals differ: requests never compare
        self.count = 0

    def add(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.priority, request.arrival, request))
        self.count += 1

    def put_back(self, request: Request) -> None:
        self.add(request)

    def drop(self, request: Request) -> None:
        """Count out a request that has finished."""
        self.count -= 1

    def head(self) -> Request:
        heap = self._heap
        while heap[0][2].finished:
            heapq.heappop(heap)
        return heap[0][2]

    def pop_head(self) -> None:
        heapq.heappop(self._heap)
        self.count -= 1
