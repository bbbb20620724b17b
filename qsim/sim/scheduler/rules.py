"""vLLM's scheduling rules, request by request: who is served, admitted and preempted.

Rules that differ between releases of vLLM have their names in versions.py.
"""

from __future__ import annotations

from qsim.catalog.versions import rules_of
from qsim.errors import ScenarioError
from qsim.sim.scheduler.batch import Batch
from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.kv_cache import KVCache
from qsim.sim.scheduler.request import FINISHED, RUNNING, WAITING, Request
from qsim.sim.scheduler.waiting import FcfsQueue, PriorityQueue


class Rules:
    """The queues and blocks of one engine, and the two passes of a schedule call over them.

    :class:`qsim.sim.scheduler.scheduler.Scheduler` is what to use; it describes the parameters.
    """

    __slots__ = (
        "_adaptive",
        "_admissions",
        "_arrivals",
        "_blocked_at",
        "_by_priority",
        "_cap",
        "_handover",
        "_kv",
        "_lone_uncapped",
        "_running",
        "_scan_follows_victim",
        "_seats",
        "_survives_self_preemption",
        "_threshold",
        "_waiting",
        "config",
        "outstanding_tokens",
    )

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        rules = rules_of(config.vllm_version)
        self._lone_uncapped = rules.lone_request_uncapped
        self._scan_follows_victim = rules.scan_follows_victim
        self._survives_self_preemption = rules.pass_survives_self_preemption
        self._seats = config.seats
        self._threshold = config.long_prefill_token_threshold
        self._adaptive = config.long_prefill_token_threshold_adaptive
        self._cap = self._threshold  # the longest chunk in the present schedule call; 0: no limit
        self.outstanding_tokens = 0
        self._kv = KVCache(config.num_gpu_blocks, config.block_size, config.enable_prefix_caching)
        # In order of admission. A dict, for removal in O(1); its values mean nothing.
        self._running: dict[Request, None] = {}
        self._by_priority = config.scheduling_policy == "priority"
        self._waiting: FcfsQueue | PriorityQueue = (
            PriorityQueue() if self._by_priority else FcfsQueue()
        )
        self._arrivals = 0
        self._admissions = 0
        self._handover = False  # ids of finished requests wait for the next schedule call
        self._blocked_at = -1  # the KV cache's count of changes when the head last did not fit

    # ------------------------------------------------------------------------------ queues

    def add(self, request: Request) -> None:
        """Put a new request at the end of the waiting queue.

        Raises
        ------
        ScenarioError
            If its lengths are not positive, its prompt leaves no room for an output token, the
            KV cache could never hold it, or it names more content blocks than it fills.
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
        tokens = prompt_tokens + request.output_tokens
        if len(request.block_ids) * config.block_size > tokens:
            raise ScenarioError(
                f"request {request.index} has {len(request.block_ids)} block_ids; must be <= "
                f"{tokens // config.block_size}, the full blocks of the {tokens} tokens of its "
                f"prompt and its answer"
            )
        if self._by_priority:
            self._blocked_at = -1  # it may be the new head
        request.limit = limit
        request.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.add(request)
        self.outstanding_tokens += limit

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

    # ------------------------------------------------------------------------------ passes

    def _set_cap(self) -> None:
        """Settle the longest chunk of this schedule call, before anybody is served."""
        cap = self._threshold
        if cap:
            eligible = len(self._running) + self._waiting.count
            if eligible <= 1 and self._lone_uncapped:
                cap = 0  # there is nobody whose share it could take
            elif self._adaptive:
                share = self.config.max_num_batched_tokens // eligible
                if share > cap:
                    cap = share
        self._cap = cap

    def _schedule_running(self, batch: Batch) -> int:
        """Serve the running requests in order; return what is left of the budget."""
        config = self.config
        budget = config.max_num_batched_tokens
        threshold = self._cap
        follows_victim = self._scan_follows_victim
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
            preempted_itself = False
            while need > kv.free:
                victim = self._pick_victim(order)
                if victim is not order[-1]:
                    # Without ``follows_victim`` the scan goes back only for a victim that was
                    # served in this step. For one that was passed over, the request after this
                    # one loses its turn.
                    served = self._withdraw(batch, victim)
                    budget += served
                    if served or (follows_victim and order.index(victim) < i):
                        i -= 1
                order.remove(victim)
                self._preempt(victim)
                batch.preempted.append(victim)
                if victim is request:
                    preempted_itself = True
                    break
            if preempted_itself:
                if self._by_priority and self._survives_self_preemption:
                    continue  # the next request stands in its place
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
        threshold = self._cap
        seats = self._seats
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
            batch.prefill = [item[1:] for item in batch.explicit if item[1] > 1]
            batch.num_prefill_tokens -= n
        if request in batch.sampled:
            batch.sampled.remove(request)
            request.target -= 1
            request.in_flight -= 1
        return n

    def _pick_victim(self, order: list[Request]) -> Request:
        if self._by_priority:
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

    def _head_is_blocked(self) -> bool:
        kv = self._kv
        if self._blocked_at != kv.changes:
            known = self._waiting.head().target
            if kv.shortage(kv.lookup(self._waiting.head(), known), known) <= 0:
                return False
            self._blocked_at = kv.changes
        return True

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
