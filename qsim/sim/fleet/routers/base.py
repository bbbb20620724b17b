"""What a router is, what it may know of the fleet, and how it draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from qsim.sim.fleet.routers.server_speed import ServerSpeed

#: makes the generator of a router that draws
Rng = Callable[[], "np.random.Generator"]  # a name only: importing numpy.random takes time
#: how many requests each replica gets beside the others; None: all the same
Weights = list[float] | None
#: a router's parameters, by name (:data:`qsim.sim.fleet.routers.spec.PARAMETERS`)
Values = dict[str, float]


class FleetView(Protocol):
    """What a router may know of the fleet; lists have one entry a replica."""

    #: requests sent to the replica and not finished
    outstanding_requests: list[int]
    #: prompt and output tokens of those requests
    outstanding_tokens: list[int]

    def queue_lengths(self) -> list[tuple[int, int]]:
        """(waiting, running) of every replica, as its engine would report them now."""

    def kv_usage(self) -> list[float]:
        """The share of its KV blocks that every replica uses now."""

    def prefix_ids(self, request: int) -> list[int]:
        """The trace's prefix-block ids of a request; empty if it has none."""

    def prefix_block_tokens(self, request: int) -> int:
        """For how many tokens of its prompt each of them is."""

    def cached_tokens(self, request: int, now_ps: int) -> list[int]:
        """How many tokens of its prompt the prefix cache of every replica holds now."""

    def session_of(self, request: int) -> int:
        """The number of the session that a request is a turn of; -1: none."""

    def length_of(self, request: int) -> tuple[int, int]:
        """Prompt and output tokens of a request."""

    def estimate(self) -> list[ServerSpeed]:
        """How fast each replica is, by its profile."""


class Router(Protocol):
    """Chooses a replica for each request, in order of arrival."""

    def choose(self, request: int, now_ps: int) -> int:
        """The replica (0 .. n - 1) for the trace's request number ``request``."""

    def only(self, servers: list[int]) -> None:
        """From now on these take requests, in ascending order, and no others; all at first."""

    # Further methods that a router may have: ``finished(replica)`` is called when a request has
    # its last token, ``finished_tokens(output)`` too; ``first_token(replica, request)`` and
    # ``ended(replica, request)`` (also if it was lost, aborted or rejected); ``forget(replica)``
    # when a KV cache is gone; ``refresh()`` every ``period_ps`` while requests are outstanding. If
    # it has a true ``reads_kv_usage``, it may read ``FleetView.kv_usage`` there, and
    # ``cached_tokens`` whenever it chooses.


class Draws:
    """Whole numbers in [0, n) from ``rng``, drawn a block at a time."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self._n = n
        self._rng = rng
        self._block: list[int] = []

    def draw(self) -> int:
        if not self._block:
            self._block = self._rng.integers(self._n, size=4096).tolist()
        return self._block.pop()


class Pairs:
    """Two different replicas of those that are open, drawn at random; one twice, if it is alone."""

    def __init__(self, n: int, generator: np.random.Generator) -> None:
        self._n = n
        self.open = list(range(n))
        self._first = Draws(n, generator)
        self._second = Draws(max(1, n - 1), generator)

    def draw(self) -> tuple[int, int]:
        if len(self.open) == self._n:
            a = self._first.draw()
            if self._n == 1:
                return a, a
            b = self._second.draw()
            return a, b + 1 if b >= a else b
        if len(self.open) == 1:
            return self.open[0], self.open[0]
        while (a := self._first.draw()) not in self.open:
            pass
        while (b := self._first.draw()) not in self.open or b == a:
            pass
        return a, b


class Least:
    """The replica with the least load; ties go to the next one in turn."""

    def __init__(self, load: list[int]) -> None:
        self._load = load
        self._open: list[int] | None = None  # all
        self._last = -1

    def only(self, servers: list[int]) -> None:
        self._open = servers if len(servers) < len(self._load) else None

    def least_load(self) -> int:
        """Of those that take requests."""
        if self._open is None:
            return min(self._load)
        return min([self._load[i] for i in self._open])

    def choose(self, request: int, now_ps: int) -> int:
        load = self._load
        least = self.least_load()
        if self._open is not None:
            those = [i for i in self._open if load[i] == least]
            later = [i for i in those if i > self._last]
            self._last = later[0] if later else those[0]
            return self._last
        start = self._last + 1
        # list.index runs in C: a rotating scan without a Python loop
        try:
            self._last = load.index(least, start)
        except ValueError:
            self._last = load.index(least)
        return self._last
