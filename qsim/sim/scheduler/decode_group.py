"""Running requests that decode one token in every step, kept as one group with a clock.

A decoding request changes in every step, but always in the same way. So the group counts the steps
(``clock``), and a member stores only its distance from that count: with ``base`` its computed
tokens are ``base + clock``. From this follow, without a look at the members:

* the context of a step: the sum of the bases plus members x clock;
* the KV blocks that a step takes: the members whose ``base + clock`` is a multiple of the block
  size, counted by ``base`` modulo the block size;
* who is scheduled for the last time: a heap of the clock's reading at that step.

A step thus costs O(1), and n steps cost O(block size), however many requests run.

The *phase* is the number of batches in flight when the next one is scheduled: 0 in synchronous
mode, 1 in asynchronous mode. Every member was part of each of them.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from qsim.sim.scheduler.batch import Batch
from qsim.sim.scheduler.request import Request


class DecodeGroup:
    """The group of one scheduler."""

    __slots__ = (
        "_base_sum",
        "_block_size",
        "_caching",
        "_crossings",
        "_ends",
        "_snapshot",
        "clock",
        "leaving",
        "members",
        "phase",
        "scheduled",
        "updated",
    )

    def __init__(self, block_size: int, caching: bool) -> None:
        self._block_size = block_size
        self._caching = caching
        #: in the order in which they run; the values mean nothing
        self.members: dict[Request, None] = {}
        #: former members whose last token is in flight
        self.leaving: dict[Request, None] = {}
        #: steps that the group has been scheduled for
        self.clock = 0
        #: batches in flight at each schedule call
        self.phase = 0
        #: numbers of the last batch that was scheduled and applied, whoever was in it
        self.scheduled = 0
        self.updated = 0
        self._base_sum = 0
        self._crossings = [0] * block_size  # members by base modulo the block size
        self._ends: list[tuple[int, int, Request]] = []  # (clock at the last step, order, who)
        self._snapshot: list[Request] | None = []  # the members as a list; None: to be made

    # ------------------------------------------------------------------------- membership

    def join(self, request: Request) -> None:
        """Make a decoding request the youngest member, from the next step on."""
        base = request.computed - self.clock
        request.base = base
        request.group = self
        self.members[request] = None
        self._base_sum += base
        self._crossings[base % self._block_size] += 1
        heappush(self._ends, (request.limit - 2 - base, request.order, request))
        self._snapshot = None

    def _drop(self, request: Request) -> None:
        del self.members[request]
        self._base_sum -= request.base
        self._crossings[request.base % self._block_size] -= 1
        self._snapshot = None

    def known_tokens(self, request: Request) -> int:
        """Tokens of a member, or a leaving one, whose steps were applied; prompt included."""
        if request.end:
            return request.limit - (request.end - self.updated)
        return request.base + self.clock + 1 - (self.scheduled - self.updated)

    def release(self, request: Request) -> None:
        """Let a member or a leaving request go, with its own counters brought up to date."""
        if request.end:
            del self.leaving[request]
        else:
            self._drop(request)
        self._settle(request)

    def forget(self, request: Request) -> None:
        """Do not expect the last step of somebody who was let go before it."""
        self._ends[:] = [end for end in self._ends if end[2] is not request]
        heapify(self._ends)

    def counters(self, request: Request) -> tuple[int, int, int, int]:
        """Computed tokens, tokens in flight, blocks held and blocks entered in the prefix cache."""
        if request.end:
            computed = request.limit - 1
            in_flight = request.end - self.updated
        else:
            computed = request.base + self.clock
            in_flight = self.scheduled - self.updated
        hashed = request.hashed
        if self._caching:
            # A schedule call enters full blocks of known tokens: all but those in flight then.
            hashed = max(hashed, (computed - self.phase) // self._block_size)
        return computed, in_flight, -(-computed // self._block_size), hashed

    def _settle(self, request: Request) -> None:
        computed, request.in_flight, request.blocks, request.hashed = self.counters(request)
        request.computed = computed
        request.target = computed + 1
        request.group = None
        request.end = 0

    def finish(self, request: Request) -> None:
        """Let a leaving request go whose last token has been applied."""
        del self.leaving[request]
        self._settle(request)
        if self._caching:
            request.hashed = request.computed // self._block_size

    def dissolve(self) -> None:
        """Let everybody go."""
        for request in self.leaving:
            self._settle(request)
        for request in self.members:
            self._settle(request)
        self.leaving.clear()
        self.members.clear()
        self._ends.clear()
        self._crossings = [0] * self._block_size
        self._base_sum = 0
        self._snapshot = []

    # ------------------------------------------------------------------------------ steps

    def blocks_needed(self) -> int:
        """KV blocks that the next step takes."""
        return self._crossings[-self.clock % self._block_size]

    def steps_within(self, free_blocks: int, most: int) -> int:
        """How many steps these blocks allow, at most ``most``."""
        members = len(self.members)
        size = self._block_size
        if (most // size + 1) * members <= free_blocks:
            return most
        rounds, left = divmod(free_blocks, members)
        steps = rounds * size
        crossings = self._crossings
        while steps < most:
            left -= crossings[-(self.clock + steps) % size]
            if left < 0:
                return steps
            steps += 1
        return most

    def step(self, batch: Batch) -> None:
        """Put one token of every member into an empty batch, and move the clock on."""
        clock = self.clock
        members = len(self.members)
        if self._snapshot is None:
            self._snapshot = list(self.members)
        batch.members = self._snapshot
        batch.clock = clock
        batch.num_decodes = batch.num_tokens = members
        batch.decode_context_tokens = self._base_sum + members * clock
        self.clock = clock + 1
        ends = self._ends
        while ends and ends[0][0] <= clock:
            request = heappop(ends)[2]
            if not request.finished:
                self._drop(request)
                request.end = batch.step
                self.leaving[request] = None
                batch.ending.append(request)
