"""Clients: when each sends its next request, or one again, and until when it waits for an answer.

Requests of an open trace come at their arrivals, which the fleet feeds itself. What comes at other
times is planned here: the next request of a closed loop or of a session, and one whose server
failed.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable
from heapq import heappush

import numpy as np

from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import Setup
from qsim.traces.trace import Trace, Turns

#: in the place of a request that a client sends: the next one of the trace
NEXT = -1


class Clients:
    """Plans what clients will do; the fleet takes it from the heaps when its time has come.

    The setup says how many clients there are and how long they wait, the first part of the trace
    whether it has sessions and timeouts. ``planned`` is called whenever a request is planned,
    perhaps for earlier than what is being waited for.
    """

    def __init__(self, setup: Setup, trace: Trace, planned: Callable[[], None]) -> None:
        self._concurrency = setup.concurrency
        self._think_ps = (setup.think_time_s or 0.0) * PS_PER_S
        #: whether clients of a closed loop wait after an answer: exponentially distributed, drawn
        #: in the order of the requests
        self.thinks = self._think_ps > 0
        self._seed = setup.seed
        self._draws: list[int] = []
        self._rng: np.random.Generator | None = None
        self._thinking: dict[int, int] = {}  # by request, how long after its answer, ps
        self._followers = {} if trace.turns is None else _followers(trace.turns)
        self._planned = planned
        self._entries = 0
        self._losses: dict[int, int] = {}  # how often requests under way were lost
        self._again: dict[int, int] = {}  # by lost request, the entry that sends it again
        self._until: dict[int, int] = {}  # by request, until when its client waits
        #: heap of (time_ps, entry, place, arrival_ps): requests still to be sent; the arrival is -1
        #: unless it was sent before
        self.coming: list[tuple[int, int, int, int]] = []
        #: heap of (time_ps, place, arrival_ps): when clients give up on requests that were sent
        self.deadlines: list[tuple[int, int, int]] = []
        #: whether it is because the trace has sessions
        self.sessions = bool(self._followers)
        #: whether requests are sent after answers, not at the trace's times
        self.waits = self._concurrency is not None or self.sessions
        #: whether clients may give up
        self.times_out = setup.client_timeout_s is not None or trace.timeout_s is not None

    def begin(self, start_ps: int, places: range, arrival_ps: array[int]) -> None:
        """Plan the first requests of clients that wait for answers."""
        if self._concurrency is not None:
            for _ in range(self._concurrency):
                self.plan(start_ps + (self._draw() if self.thinks else 0), NEXT, -1)
        elif self.sessions:
            waiting = {i for found in self._followers.values() for i, _ in found}
            for i in places:
                if i not in waiting:
                    self.plan(arrival_ps[i], i, -1)

    def _draw(self) -> int:
        if not self._draws:
            if self._rng is None:
                self._rng = np.random.default_rng([self._seed, 0x7410])
            drawn = np.rint(self._rng.exponential(self._think_ps, 1024)).astype(np.int64)
            self._draws = drawn[::-1].tolist()
        return self._draws.pop()

    def taken(self, i: int) -> None:
        """A client of a closed loop sends this request: it will think after the answer."""
        self._thinking[i] = self._draw()

    def plan(self, time_ps: int, i: int, arrival_ps: int) -> None:
        """A request is sent then, or sent again if it has arrived before (else -1)."""
        self._entries += 1
        heappush(self.coming, (time_ps, self._entries, i, arrival_ps))
        self._planned()

    def plan_again(self, time_ps: int, i: int, arrival_ps: int) -> None:
        """A request that was lost is sent again then."""
        self.plan(time_ps, i, arrival_ps)
        self._again[i] = self._entries

    def sends_again(self, i: int, entry: int) -> bool:
        """Whether that entry is of the request at this place, and it has not ended."""
        return self._again.get(i) == entry

    def sent(self, i: int, now_ps: int, timeout_ps: int) -> None:
        """Note until when the client waits."""
        self._until[i] = now_ps + timeout_ps
        heappush(self.deadlines, (now_ps + timeout_ps, i, now_ps))

    def waits_until(self, i: int, time_ps: int) -> bool:
        """Whether a client waits until then for the request at this place, which has not ended."""
        return self._until.get(i) == time_ps

    def answered(self, i: int, time_ps: int) -> None:
        """A client has its answer, or none: whoever waits for it sends the next request."""
        if self._concurrency is not None:
            if self.thinks:
                time_ps += self._thinking.pop(i)
            self.plan(time_ps, NEXT, -1)
        elif i in self._followers:
            for follower, delay_ps in self._followers[i]:
                self.plan(time_ps + delay_ps, follower, -1)

    def lost(self, i: int) -> int:
        """A request was lost; how often it was by now."""
        self._losses[i] = self._losses.get(i, 0) + 1
        return self._losses[i]

    def ended(self, i: int) -> None:
        """A request has ended, in whatever way: its place may be that of another one."""
        self._until.pop(i, None)
        if self._losses:
            self._losses.pop(i, None)
            self._again.pop(i, None)


def _followers(turns: Turns) -> dict[int, list[tuple[int, int]]]:
    """By request: those that wait for its answer, and for how long after it, ps."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i in np.flatnonzero(turns.previous >= 0).tolist():
        found[int(turns.previous[i])].append((i, round(float(turns.delay_s[i]) * PS_PER_S)))
    return dict(found)
