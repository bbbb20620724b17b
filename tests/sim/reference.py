"""The scheduling rules written out with no thought of speed, to compare the scheduler with.

Those of vLLM's ``Scheduler.schedule`` from release to release, of which ``self.version`` is one.

Every physical block is an object with a number and a user count, the free queue is a list, a hash
is the whole content of a block's prefix, and every request is visited in every step.
"""

from __future__ import annotations

from typing import Any

from qsim.catalog.versions import parse_version
from qsim.sim.replay import Arrival, Scenario


class Block:
    def __init__(self) -> None:
        self.users = 0
        self.content: tuple[Any, ...] | None = None


class Pool:
    def __init__(self, blocks: int) -> None:
        self.queue = [Block() for _ in range(blocks - 1)]
        self.cached: dict[tuple[Any, ...], list[Block]] = {}

    def find(self, content: tuple[Any, ...]) -> Block | None:
        blocks = self.cached.get(content)
        return blocks[0] if blocks else None

    def pop(self) -> Block:
        block = self.queue.pop(0)
        if block.content is not None:
            self.cached[block.content].remove(block)
            block.content = None
        block.users = 1
        return block

    def touch(self, block: Block) -> None:
        if block.users == 0:
            self.queue.remove(block)
        block.users += 1

    def free(self, blocks: list[Block]) -> None:
        unhashed = []
        for block in reversed(blocks):
            block.users -= 1
            assert block.users >= 0
            if block.users == 0:
                if block.content is None:
                    unhashed.append(block)
                else:
                    self.queue.append(block)
        self.queue[:0] = unhashed

    def by_block(self) -> list[object]:
        """The free queue: "unhashed", "own" (only its request can find it), or its content."""
        return [
            "unhashed"
            if block.content is None
            else "own"
            if isinstance(block.content[-1], tuple)
            else block.content
            for block in self.queue
        ]


class Job:
    def __init__(self, index: int, arrival: Arrival, block_size: int) -> None:
        self.index = index
        self.arrival = arrival
        self.key = (arrival.priority, index)
        self.block_size = block_size
        self.outputs = 0
        self.computed = 0
        self.placeholders = 0
        self.status = "waiting"
        self.blocks: list[Block] = []
        self.registered = 0
        self.preemptions = 0
        self.cached_tokens: int | None = None

    @property
    def tokens(self) -> int:
        return self.arrival.prompt_tokens + self.outputs

    def content(self, position: int) -> tuple[Any, ...]:
        ids = self.arrival.hash_ids
        own = [(self.index, i) for i in range(len(ids), position + 1)]
        return (*ids[: position + 1], *own)


class ReferenceScheduler:
    def __init__(self, scenario: Scenario) -> None:
        self.config = scenario.config
        self.version = parse_version(scenario.config.vllm_version)[:2]
        self.pool = Pool(self.config.num_gpu_blocks)
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.handover = False
        self.steps = 0

    @property
    def free_blocks(self) -> int:
        return len(self.pool.queue)

    def add(self, job: Job) -> None:
        self.waiting.append(job)
        self._sort_waiting()

    def abort(self, job: Job) -> None:
        if job.status == "finished":
            return
        (self.running if job.status == "running" else self.waiting).remove(job)
        self._release(job)
        job.status = "finished"
        self.handover = True

    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.handover)

    def _sort_waiting(self) -> None:
        if self.config.scheduling_policy == "priority":
            self.waiting.sort(key=lambda job: job.key)

    def _register(self, job: Job, tokens: int) -> None:
        if not self.config.enable_prefix_caching:
            return
        for position in range(job.registered, tokens // job.block_size):
            block = job.blocks[position]
            block.content = job.content(position)
            self.pool.cached.setdefault(block.content, []).append(block)
            job.registered = position + 1

    def _release(self, job: Job) -> None:
        self.pool.free(job.blocks)
        job.blocks = []
        job.registered = 0

    def _allocate(self, job: Job, n: int) -> bool:
        need = -(-(job.computed + n) // job.block_size) - len(job.blocks)
        if need > len(self.pool.queue):
            return False
        job.blocks += [self.pool.pop() for _ in range(need)]
        self._register(job, min(job.computed + n, job.tokens))
        return True

    def _threshold(self) -> int:
        threshold = self.config.long_prefill_token_threshold
        if self.version >= (0, 31):
            eligible = len(self.running) + len(self.waiting)
            if eligible <= 1:
                return 0
            if threshold and self.config.long_prefill_token_threshold_adaptive:
                return max(threshold, self.config.max_num_batched_tokens // eligible)
        return threshold

    def schedule(self) -> dict[str, Any]:
        self.handover = False
        self.steps += 1
        budget = self.config.max_num_batched_tokens
        threshold = self._threshold()
        active = self.config.max_num_active_seqs or self.config.max_num_seqs
        scheduled: list[tuple[Job, int, int]] = []
        preempted: list[Job] = []
        i = 0
        while i < len(self.running) and budget > 0:
            job = self.running[i]
            last = job.arrival.prompt_tokens + job.arrival.output_tokens
            if job.placeholders and job.computed + 2 - job.placeholders >= last:
                i += 1
                continue
            n = job.tokens + job.placeholders - job.computed
            n = min(n, threshold or n, budget)
            n = min(n, self.config.max_model_len - job.computed - 1)
            if n == 0:
                i += 1
                continue
            while not (fits := self._allocate(job, n)):
                if self.config.scheduling_policy == "priority":
                    victim = max(self.running, key=lambda job: job.key)
                else:
                    victim = self.running[-1]
                position = self.running.index(victim)
                del self.running[position]
                if self.version >= (0, 28) and position < i:
                    i -= 1
                for item in scheduled:
                    if item[0] is victim:
                        scheduled.remove(item)
                        budget += item[1]
                        if self.version < (0, 28):
                            i -= 1
                        break
                self._release(victim)
                victim.computed = 0
                victim.status = "waiting"
                victim.preemptions += 1
                self.waiting.insert(0, victim)
                preempted.append(victim)
                if victim is job:
                    break
            if not fits:
                if self.version >= (0, 33) and self.config.scheduling_policy == "priority":
                    continue
                break
            scheduled.append((job, n, job.computed))
            budget -= n
            i += 1
        self._sort_waiting()
        while not preempted and self.waiting and budget > 0 and len(self.running) < active:
            job = self.waiting[0]
            hits: list[Block] = []
            if self.config.enable_prefix_caching:
                for position in range((job.tokens - 1) // job.block_size):
                    block = self.pool.find(job.content(position))
                    if block is None:
                        break
                    hits.append(block)
            need = -(-job.tokens // job.block_size) - sum(block.users > 0 for block in hits)
            if need > len(self.pool.queue):
                break
            for block in hits:
                self.pool.touch(block)
            job.blocks = hits
            job.registered = len(hits)
            job.computed = len(hits) * job.block_size
            if job.cached_tokens is None:
                job.cached_tokens = job.computed
            n = job.tokens - job.computed
            n = min(n, threshold or n, budget)
            assert self._allocate(job, n)
            self.waiting.pop(0)
            self.running.append(job)
            job.status = "running"
            scheduled.append((job, n, job.computed))
            budget -= n
        sampled = []
        for job, n, _ in scheduled:
            job.computed += n
            if job.computed >= job.tokens + job.placeholders:
                job.placeholders += 1
                sampled.append(job)
        return {
            "step": self.steps,
            "items": scheduled,
            "preempted": preempted,
            "sampled": sampled,
        }

    def update(self, batch: dict[str, Any]) -> tuple[list[Job], list[Job]]:
        tokens: list[Job] = []
        finished: list[Job] = []
        for job in batch["sampled"]:
            if job.status == "finished":
                continue
            tokens.append(job)
            job.outputs += 1
            job.placeholders -= 1
            if job.status == "running":
                self._register(job, job.computed - job.placeholders)
            if job.outputs >= job.arrival.output_tokens or job.tokens >= self.config.max_model_len:
                finished.append(job)
                (self.running if job.status == "running" else self.waiting).remove(job)
                self._release(job)
                job.status = "finished"
                self.handover = True
        return tokens, finished
