"""vLLM's V1 scheduler as a state machine without a clock.

``schedule()`` chooses the next batch, ``update(batch)`` applies its result; whoever calls them
decides how long things take. Asynchronous scheduling needs no rule of its own here: it is the
order of the calls, ``schedule`` k+1 before ``update`` k, and the tokens then in flight
(``Request.in_flight``) do the rest.
"""

from __future__ import annotations

from collections import deque

from qsim.sim.scheduler.batch import Batch, Update
from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.decode_group import DecodeGroup
from qsim.sim.scheduler.request import FINISHED, RUNNING, Request
from qsim.sim.scheduler.rules import Rules


class Scheduler(Rules):
    """The scheduler of one engine.

    Parameters
    ----------
    config
        Token budget, ``max_num_seqs``, KV blocks and policy.

    Attributes
    ----------
    outstanding_tokens
        Tokens still to be computed or generated for all unfinished requests: prompt tokens not
        yet scheduled plus output tokens not yet known. A preemption adds the prompt again.
    """

    __slots__ = (
        "_fresh",
        "_group",
        "_grouped",
        "_in_flight",
        "_tail",
        "last_abort",
    )

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._in_flight: deque[Batch] = deque()  # scheduled, not yet applied
        self.last_abort = 0  # the step after which a running request was aborted last
        # While ``_grouped``, decodes are members of the group. Others that run: those in
        # ``_fresh``, which the last batch brought to their first decode; those whose last token is
        # in flight; and at most one in the midst of its prefill, ``_tail``, the last in the list.
        self._group = DecodeGroup(config.block_size, config.enable_prefix_caching)
        self._grouped = True
        self._fresh: list[Request] = []
        self._tail: Request | None = None

    @property
    def decodes_as_group(self) -> bool:
        """Whether the decodes of the last batch ran as one group (decode_group.py)."""
        return self._grouped

    def cached_tokens(self, request: Request) -> int:
        """Tokens of the prompt of a request that is not here which the prefix cache holds."""
        found = self._kv.lookup(request, request.prompt_tokens)
        return self._kv.block_size * sum([stop - start for _, start, stop in found])

    def abort(self, request: Request) -> None:
        """End a request now: it leaves the batch, its blocks are free, tokens in flight dropped."""
        if request.state == FINISHED:
            return
        if request.group is not None:
            self._group.release(request)
            self._group.forget(request)
        if request is self._tail:
            self._tail = None
        self.outstanding_tokens -= request.limit - request.prompt_tokens
        self.outstanding_tokens += request.num_output_tokens
        self.outstanding_tokens -= max(0, request.prompt_tokens - request.computed)
        if request.state == RUNNING:
            self.last_abort = self._group.scheduled
            self._kv.release(request, preempted=False)
            del self._running[request]
        self._close(request)

    # ---------------------------------------------------------------------------- schedule

    def schedule(self) -> Batch:
        """Choose what the next step computes, and take the blocks that it needs."""
        self._handover = False
        if self._threshold:
            self._set_cap()
        group = self._group
        plain = not ((self._grouped or self._regroup()) and self._fits_group())
        if plain and self._grouped:
            self._ungroup()
        group.scheduled += 1
        batch = Batch(group.scheduled)
        budget = self._schedule_running(batch) if plain else self._schedule_group(batch)
        if budget and self._waiting.count and not batch.preempted:
            self._schedule_waiting(batch, budget)
        self._in_flight.append(batch)
        if not plain:
            self._sort_explicit(batch)
        return batch

    def _fits_group(self) -> bool:
        """Whether this step serves every member and the tail without a preemption."""
        group = self._group
        phase = len(self._in_flight)
        if group.phase != phase:
            if phase > 1 or group.members or group.leaving:
                return False
            group.phase = phase
        self._join_fresh()
        members = len(group.members)
        budget = self.config.max_num_batched_tokens
        if members > budget:
            return False
        need = group.blocks_needed()
        tail = self._tail
        if tail is not None and members < budget:
            n = self._tokens_for(tail, budget - members)
            need -= -(tail.computed + n) // self.config.block_size + tail.blocks
        return need <= self._kv.free

    def _join_fresh(self) -> None:
        """Take those who decode from now on into the group.

        Prefills end in order of admission as long as only the last running request can be in the
        midst of one, so the group stays in the order of ``running``.
        """
        group = self._group
        for request in self._fresh:
            # Not one that was aborted meanwhile, or whose only token is in flight.
            if request.state == RUNNING and request.computed + 1 < request.limit:
                group.join(request)
        self._fresh = []

    def _tokens_for(self, request: Request, budget: int) -> int:
        n = request.target - request.computed
        threshold = self._cap
        if 0 < threshold < n:
            n = threshold
        return n if n < budget else budget

    def _schedule_group(self, batch: Batch) -> int:
        """Serve the group and then the tail; return what is left of the budget."""
        group = self._group
        budget = self.config.max_num_batched_tokens
        if group.members:
            need = group.blocks_needed()
            if need:
                self._kv.take(need)
            group.step(batch)
            budget -= batch.num_tokens
        tail = self._tail
        if tail is not None and budget:
            n = self._tokens_for(tail, budget)
            need = -(-(tail.computed + n) // self.config.block_size) - tail.blocks
            if need > 0:
                self._kv.take(need)
                tail.blocks += need
            self._serve(batch, tail, n)
            budget -= n
        return budget

    def _sort_explicit(self, batch: Batch) -> None:
        """After a step of the group: who joins it next, and who is in the midst of prefill."""
        explicit, sampled = batch.explicit, batch.sampled
        self._fresh = sampled
        if explicit:
            last = explicit[-1][0]
            unfinished = len(explicit) - len(sampled)
            if not unfinished:
                self._tail = None
            elif unfinished == 1 and not (sampled and sampled[-1] is last):
                self._tail = last
            else:
                self._ungroup()

    def _regroup(self) -> bool:
        """Form the group again if all but the last of the running requests decode."""
        phase = len(self._in_flight)
        if phase > 1:
            return False
        decodes: list[Request] = []
        tail: Request | None = None
        for request in self._running:
            if tail is not None or request.in_flight not in (0, phase):
                return False
            computed = request.computed
            if request.in_flight:
                if computed + 1 < request.limit:
                    decodes.append(request)
            elif phase == 0 and computed + 1 == request.target > request.prompt_tokens:
                decodes.append(request)
            else:
                tail = request
        self._grouped = True
        self._group.phase = phase
        self._tail = tail
        self._fresh = decodes
        return True

    def _ungroup(self) -> None:
        """Give every request its own counters again, for the rules in full."""
        self._grouped = False
        self._group.dissolve()
        self._fresh = []
        self._tail = None
        for batch in self._in_flight:
            batch.spell_out()

    # ------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> Update:
        """Apply the result of a batch: one token to each request that it brought up to date.

        Raises
        ------
        ValueError
            If batches are not applied in the order in which they were scheduled.
        """
        if not self._in_flight or batch is not self._in_flight[0]:
            raise ValueError(
                f"update of step {batch.step}; must be step {self._group.updated + 1}, the first "
                f"that is in flight"
            )
        self._in_flight.popleft()
        group = self._group
        group.updated += 1
        tokens = batch.members
        if tokens and batch.step <= self.last_abort:
            tokens = [request for request in tokens if request.state != FINISHED]
        first: list[Request] = []
        finished: list[Request] = []
        for request in batch.ending:
            if request.state != FINISHED:
                group.finish(request)
                finished.append(request)
                self._finish(request)
        if batch.sampled:
            tokens = tokens + self._update_explicit(batch, first, finished)
        self.outstanding_tokens -= len(tokens)
        return Update(tokens, first, finished)

    def _update_explicit(
        self, batch: Batch, first: list[Request], finished: list[Request]
    ) -> list[Request]:
        kv = self._kv
        tokens: list[Request] = []
        for request in batch.sampled:
            if request.state == FINISHED:
                continue  # aborted
            tokens.append(request)
            if request.group is not None:  # it decodes already, which the group counts
                if request.num_output_tokens == 1:
                    first.append(request)
                continue
            in_flight = request.in_flight - 1
            request.in_flight = in_flight
            known = request.target - in_flight
            if known == request.prompt_tokens + 1:
                first.append(request)
            if not in_flight and request.state == RUNNING and kv.caching:
                full = request.computed // kv.block_size
                if full > request.hashed:
                    kv.enter(request, full)
            if known >= request.limit:
                finished.append(request)
                self._finish(request)
        return tokens
