"""vLLM 0.24's V1 scheduler as a state machine without a clock.

``schedule()`` chooses the next batch, ``update(batch)`` applies its result; whoever calls them
decides how long things take. Asynchronous scheduling needs no rule of its own here: it is the
order of the calls, ``schedule`` k+1 before ``update`` k, and the tokens then in flight
(``Request.in_flight``) do the rest.
"""

from __future__ import annotations

from collections import deque

from qsim.errors import ScenarioError
from qsim.sim.batch import Batch, Update
from qsim.sim.config import EngineConfig
from qsim.sim.kv_cache import KVCache
from qsim.sim.lockstep import Lockstep
from qsim.sim.request import FINISHED, RUNNING, WAITING, Request
from qsim.sim.waiting import FcfsQueue, PriorityQueue

__all__ = ["Batch", "Request", "Scheduler", "Update"]


class Scheduler:
    """The scheduler of one engine.

    Parameters
    ----------
    config
        Token budget, seats, KV blocks and policy.

    Attributes
    ----------
    outstanding_tokens
        Tokens still to be computed or generated for all unfinished requests: prompt tokens not
        yet scheduled plus output tokens not yet known. A preemption adds the prompt again.
    """

    __slots__ = (
        "_admissions",
        "_arrivals",
        "_blocked_at",
        "_fresh",
        "_group",
        "_grouped",
        "_handover",
        "_horizon",
        "_in_flight",
        "_kv",
        "_last_abort",
        "_running",
        "_tail",
        "_waiting",
        "config",
        "outstanding_tokens",
    )

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.outstanding_tokens = 0
        self._kv = KVCache(config.num_gpu_blocks, config.block_size, config.enable_prefix_caching)
        # In order of admission. A dict, for removal in O(1); its values mean nothing.
        self._running: dict[Request, None] = {}
        self._waiting: FcfsQueue | PriorityQueue = (
            PriorityQueue() if config.scheduling_policy == "priority" else FcfsQueue()
        )
        self._arrivals = 0
        self._admissions = 0
        self._handover = False  # ids of finished requests wait for the next schedule call
        self._in_flight: deque[Batch] = deque()  # scheduled, not yet applied
        self._last_abort = 0  # the step after which a running request was aborted last
        self._blocked_at = -1  # the KV cache's count of changes when the head last did not fit
        # While ``_grouped``, decodes are members of the group. Others that run: those in
        # ``_fresh``, which the last batch brought to their first decode; those whose last token is
        # in flight; and at most one in the midst of its prefill, ``_tail``, the last in the list.
        self._group = Lockstep(config.block_size, config.enable_prefix_caching)
        self._grouped = True
        self._fresh: list[Request] = []
        self._tail: Request | None = None
        self._horizon = 0  # turns that ``advance`` may make

    # ------------------------------------------------------------------------------ queues

    def add(self, request: Request) -> None:
        """Put a new request at the end of the waiting queue.

        Raises
        ------
        ScenarioError
            If its lengths are not positive, its prompt leaves no room for an output token, the
            KV cache could never hold it, or it names more content blocks than its prompt fills.
        """
        config = self.config
        prompt_tokens = request.prompt_tokens
        if prompt_tokens < 1 or request.output_tokens < 1:
            raise ScenarioError(
                f"request {request.index} has prompt_tokens {prompt_tokens} and output_tokens "
                f"{request.output_tokens}; each must be >= 1: drop or correct the request"
            )
        if prompt_tokens >= config.max_model_len:
            raise ScenarioError(
                f"request {request.index} has prompt_tokens {prompt_tokens}; must be < "
                f"max_model_len {config.max_model_len}: raise max_model_len or drop the request"
            )
        limit = min(prompt_tokens + request.output_tokens, config.max_model_len)
        if limit - 1 > self._kv.usable * config.block_size:
            raise ScenarioError(
                f"request {request.index} needs KV blocks for {limit - 1} tokens; the cache holds "
                f"{self._kv.usable} blocks of {config.block_size} tokens: give it more blocks or "
                f"lower max_model_len"
            )
        if len(request.block_ids) * config.block_size > prompt_tokens:
            raise ScenarioError(
                f"request {request.index} has {len(request.block_ids)} block_ids; must be <= "
                f"{prompt_tokens // config.block_size}, the full blocks of its {prompt_tokens} "
                f"prompt tokens"
            )
        self._horizon = 0
        if config.scheduling_policy == "priority":
            self._blocked_at = -1  # it may be the new head
        request.limit = limit
        request.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.add(request)
        self.outstanding_tokens += limit

    def abort(self, request: Request) -> None:
        """End a request now: its seat and blocks are free, tokens in flight are dropped."""
        if request.state == FINISHED:
            return
        self._horizon = 0
        if request.group is not None:
            self._group.release(request)
        if request is self._tail:
            self._tail = None
        self.outstanding_tokens -= request.limit - request.prompt_tokens
        self.outstanding_tokens += request.num_output_tokens
        self.outstanding_tokens -= max(0, request.prompt_tokens - request.computed)
        if request.state == RUNNING:
            self._last_abort = self._group.scheduled
            self._kv.release(request, preempted=False)
            del self._running[request]
        self._close(request)

    def has_unfinished(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._running or self._waiting.count)

    def has_work(self) -> bool:
        """Whether a schedule call is due: unfinished requests, or finished ids to hand over."""
        return bool(self._running or self._waiting.count or self._handover)

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests in the waiting queue, preempted ones among them."""
        return self._waiting.count

    @property
    def free_blocks(self) -> int:
        """KV blocks without a user, cached or not."""
        return self._kv.free

    @property
    def used_blocks(self) -> int:
        """KV blocks held by requests; a shared block counts once."""
        return self._kv.usable - self._kv.free

    # ---------------------------------------------------------------------------- schedule

    def schedule(self) -> Batch:
        """Choose what the next step computes, and take the blocks that it needs."""
        self._handover = False
        self._horizon = 0
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
        threshold = self.config.long_prefill_token_threshold
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

    def _schedule_running(self, batch: Batch) -> int:
        """Serve the running requests in order; return what is left of the budget."""
        config = self.config
        budget = config.max_num_batched_tokens
        threshold = config.long_prefill_token_threshold
        block_size = config.block_size
        kv = self._kv
        order = list(self._running)
        i = 0
        while i < len(order) and budget:
            request = order[i]
            computed = request.computed
            if request.in_flight and computed + 1 >= request.limit:
                i += 1  # its last token is in flight
                continue
            n = request.target - computed
            if 0 < threshold < n:
                n = threshold
            if n > budget:
                n = budget
            need = -(-(computed + n) // block_size) - request.blocks
            while need > kv.free:
                victim = self._pick_victim(order)
                if victim is not order[-1]:
                    # The scan goes back only for a victim that was served in this step. For one
                    # that was passed over, the request after this one loses its turn.
                    served = self._withdraw(batch, victim)
                    if served:
                        budget += served
                        i -= 1
                order.remove(victim)
                self._preempt(victim)
                batch.preempted.append(victim)
                if victim is request:
                    return budget
            if need > 0:
                kv.take(need)
                request.blocks += need
            self._serve(batch, request, n)
            budget -= n
            i += 1
        return budget

    def _schedule_waiting(self, batch: Batch, budget: int) -> None:
        """Admit from the head of the waiting queue while seats, budget and blocks allow."""
        config = self.config
        threshold = config.long_prefill_token_threshold
        seats = config.max_num_seqs
        kv = self._kv
        running = self._running
        waiting = self._waiting
        while waiting.count and budget and len(running) < seats:
            if self._blocked_at == kv.changes:
                return
            request = waiting.head()
            known = request.target
            hits = kv.lookup(request, known)
            # The whole known sequence must fit, though only this step's blocks are taken.
            if kv.shortage(hits, known) > 0:
                self._blocked_at = kv.changes
                return
            waiting.pop_head()
            blocks = sum([stop - start for _, start, stop in hits])
            cached = blocks * config.block_size
            n = known - cached
            if 0 < threshold < n:
                n = threshold
            if n > budget:
                n = budget
            kv.admit(request, hits, blocks, cached + n)
            self._admissions += 1
            if not request.order:
                request.cached_tokens = cached
            request.order = self._admissions
            request.state = RUNNING
            request.computed = cached
            self.outstanding_tokens -= min(cached, request.prompt_tokens)
            running[request] = None
            self._serve(batch, request, n)
            budget -= n

    def _serve(self, batch: Batch, request: Request, n: int) -> None:
        """Record n tokens of a request, whose blocks are taken, and move its counters on."""
        computed = request.computed
        after = computed + n
        target = request.target
        kv = self._kv
        if kv.caching:
            known = target - request.in_flight
            full = (after if after < known else known) // kv.block_size
            if full > request.hashed:
                kv.enter(request, full)
        batch.explicit.append((request, n, computed))
        batch.num_tokens += n
        if n == 1:
            batch.num_decodes += 1
            batch.decode_context_tokens += computed
        else:
            batch.prefill.append((n, computed))
            batch.num_prefill_tokens += n
        prompt_tokens = request.prompt_tokens
        if computed < prompt_tokens:
            self.outstanding_tokens -= n if after <= prompt_tokens else prompt_tokens - computed
        request.computed = after
        if after >= target:
            request.target = after + 1
            request.in_flight += 1
            batch.sampled.append(request)

    def _withdraw(self, batch: Batch, request: Request) -> int:
        """Undo what ``_serve`` recorded in this batch; return the tokens given back (0: none).

        Blocks that were entered in the prefix cache stay there, as in vLLM.
        """
        item = next((item for item in batch.explicit if item[0] is request), None)
        if item is None:
            return 0
        batch.explicit.remove(item)
        _, n, computed = item
        batch.num_tokens -= n
        if n == 1:
            batch.num_decodes -= 1
            batch.decode_context_tokens -= computed
        else:
            batch.prefill.remove((n, computed))
            batch.num_prefill_tokens -= n
        if request in batch.sampled:
            batch.sampled.remove(request)
            request.target -= 1
            request.in_flight -= 1
        return n

    def _pick_victim(self, order: list[Request]) -> Request:
        if self.config.scheduling_policy == "priority":
            return max(order, key=lambda request: (request.priority, request.arrival))
        return order[-1]

    def _preempt(self, request: Request) -> None:
        """Take its blocks and progress, and put it back in the waiting queue."""
        self._kv.release(request, preempted=True)
        self.outstanding_tokens += min(request.computed, request.prompt_tokens)
        request.computed = 0
        request.preemptions += 1
        request.state = WAITING
        del self._running[request]
        self._waiting.put_back(request)

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
        self._horizon = 0
        group = self._group
        group.updated += 1
        tokens = batch.members
        if tokens and batch.step <= self._last_abort:
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

    def _finish(self, request: Request) -> None:
        if request.state == RUNNING:
            self._kv.release(request, preempted=False)
            del self._running[request]
        else:  # preempted with its last token in flight: its prompt need not be computed again
            self.outstanding_tokens -= request.prompt_tokens
        self._close(request)

    def _close(self, request: Request) -> None:
        if request.state == WAITING:
            self._waiting.drop(request)
            self._blocked_at = -1  # it may have been the head
        request.state = FINISHED
        request.finished = True
        self._handover = True

    # ------------------------------------------------------------------------------- jumps

    def decode_horizon(self, in_flight: Batch | None) -> int:
        """How many turns from here repeat the same decodes, with nobody finishing.

        Parameters
        ----------
        in_flight
            The one batch that was scheduled and not applied yet. A turn then schedules the next
            batch and applies the one before. ``None`` if no batch is in flight; a turn then
            schedules a batch and applies it.

        Returns
        -------
        int
            The largest number of turns, or 0 if the next turn is of another kind or that cannot
            be told: in the midst of prefill, or after a step that ran out of blocks.
        """
        self._horizon = 0
        group = self._group
        members = len(group.members)
        if not self._grouped or self._tail is not None:
            return 0
        if in_flight is None:
            if self._in_flight or group.phase:
                return 0
            self._join_fresh()
            members = len(group.members)
        elif (
            in_flight.explicit
            or in_flight.ending
            or len(self._in_flight) != 1
            or in_flight is not self._in_flight[0]
            or group.phase != 1
            or len(in_flight.members) != members
        ):
            return 0
        config = self.config
        budget = config.max_num_batched_tokens
        if not members or members != len(self._running) or members > budget:
            return 0
        kv = self._kv
        # While blocks are only taken, a head of line that does not fit never will.
        room = members < config.max_num_seqs and members < budget
        if room and self._waiting.count and not self._head_is_blocked():
            return 0
        turns = group.steps_to_end()
        if in_flight is not None:
            turns += 1  # the last batch of the run stays in flight: it may hold a last token
        self._horizon = group.steps_within(kv.free, turns)
        return self._horizon

    def _head_is_blocked(self) -> bool:
        kv = self._kv
        if self._blocked_at != kv.changes:
            known = self._waiting.head().target
            if kv.shortage(kv.lookup(self._waiting.head(), known), known) <= 0:
                return False
            self._blocked_at = kv.changes
        return True

    def advance(self, in_flight: Batch | None, n: int) -> Batch | None:
        """Perform n turns at once; return the batch that is then in flight, if one was before.

        All state is as after n times ``schedule`` and ``update``.

        Raises
        ------
        ValueError
            If n is not between 1 and what ``decode_horizon`` has just returned.
        """
        if not 1 <= n <= self._horizon:
            raise ValueError(
                f"n is {n}; must be between 1 and {self._horizon}, which decode_horizon returned "
                f"for this state"
            )
        self._horizon -= n
        self._handover = False
        group = self._group
        need = group.blocks_needed_for(n)
        if need:
            self._kv.take(need)
        self.outstanding_tokens -= n * len(group.members)
        group.scheduled += n
        group.updated += n
        if in_flight is None:
            group.skip(n)
            return None
        group.skip(n - 1)
        batch = Batch(group.scheduled)
        group.step(batch)
        self._in_flight[0] = batch
        return batch
