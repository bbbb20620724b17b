"""A fleet of replicas behind a router, fed by a trace."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import simpy
from simpy.events import URGENT

from qsim.profile import FrontEnd, Profile
from qsim.sim.config import EngineConfig
from qsim.sim.energy import PowerMeter
from qsim.sim.engine import Replica
from qsim.sim.kv_cache import prompt_block_ids
from qsim.sim.router import make_router
from qsim.sim.scheduler import Request
from qsim.sim.steplog import Step
from qsim.sim.timeline import Timeline
from qsim.sim.timing import PS_PER_MS, PS_PER_S, Timing
from qsim.traces.trace import Trace

__all__ = ["Fleet"]

_FREE_FRONTEND = FrontEnd(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class _Arrival(simpy.Event):
    """A timeout that comes before everything else at its time: requests first, then engines."""

    def __init__(self, env: simpy.Environment, delay: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, URGENT, delay)


class Fleet:
    """Runs a trace through ``replicas`` equal engines; one instance, one run.

    Parameters
    ----------
    trace : Trace
        Its requests must all be admissible (no prompt of ``max_model_len`` or more tokens).
    output_tokens : sequence of int
        Tokens that each request will generate.
    jump : bool
        Plan decode runs in one go (the default) or step one by one; the results are equal.
    step_log : list, optional
        Takes every launched step of every replica (and makes the engines step one by one).

    Attributes
    ----------
    replica : list of int
        Where each request went.
    first_token_ps, last_token_ps : list of int
        When the client has the first and the last token of each request.
    gaps : array of int64
        Inter-token gaps as the engine emits them: entries of :class:`qsim.sim.gaps.Gaps`.
    """

    def __init__(
        self,
        trace: Trace,
        output_tokens: Sequence[int],
        profile: Profile,
        config: EngineConfig,
        *,
        replicas: int,
        router: str,
        seed: int,
        frontend: bool = True,
        jump: bool = True,
        step_log: list[Step] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        n = len(trace)
        self.env = simpy.Environment(initial_time=0)
        self.arrival_ps: list[int] = np.rint(trace.arrival_s * PS_PER_S).astype(np.int64).tolist()
        self._prompt: list[int] = trace.prompt_tokens.tolist()
        self._output = list(output_tokens)
        self._hash_ids = trace.hash_ids if config.enable_prefix_caching else None
        self._block_size = config.block_size
        self._usable_blocks = config.num_gpu_blocks - 1
        self._progress = progress
        self._next = 0

        timing = Timing(profile, config)
        self.timeline = Timeline(self.arrival_ps[0], self.arrival_ps[-1])
        one = replicas == 1
        self.replicas = [
            Replica(
                self.env,
                i,
                config,
                timing,
                PowerMeter(profile.power, timing),
                self,
                jump=jump and step_log is None,
                step_log=step_log,
                next_arrival_ps=self._next_ready if one else None,
            )
            for i in range(replicas)
        ]
        self.outstanding_requests = [0] * replicas
        self.outstanding_tokens = [0] * replicas
        self._trace_ids = trace.hash_ids
        self._router = make_router(router, self, np.random.default_rng(seed))
        self._refresh: Callable[[], None] | None = getattr(self._router, "refresh", None)
        self._refresh_due = False

        f = profile.frontend if frontend else _FREE_FRONTEND
        self._receive_ps = f.receive_ms * PS_PER_MS
        self._receive_token_ps = f.receive_ms_per_1k_prompt_tokens * PS_PER_MS / 1000
        self._serial_ps = round(f.receive_serial_ms * PS_PER_MS)
        self._first_ps = f.first_token_ms * PS_PER_MS
        self._first_token_ps = f.first_token_ms_per_1k_prompt_tokens * PS_PER_MS / 1000
        self._first_row_ps = f.first_token_ms_per_running * PS_PER_MS
        self._last_ps = f.last_token_ms * PS_PER_MS
        self._last_row_ps = f.last_token_ms_per_running * PS_PER_MS
        self._ready_ps = [-(1 << 62)] * replicas  # when each front end handed on its last request

        self.requests: list[Request | None] = [None] * n
        self.replica = [0] * n
        self.first_token_ps = [-1] * n
        self.last_token_ps = [-1] * n
        self.cached_tokens = [0] * n
        self.preemptions = [0] * n
        self.finished_count = 0
        self._emitted_ps = [-1] * n  # the engine's time of each request's latest token
        self.gaps = array("q")  # entries of qsim.sim.gaps.Gaps

    def run(self) -> None:
        """Run to the last token."""
        start = self.arrival_ps[0]
        for replica in self.replicas:
            replica.meter.start(start)
        self._schedule_arrival()
        self.env.run()
        end = max(self.last_token_ps)
        for replica in self.replicas:
            replica.look(end)

    # ------------------------------------------------------------------ arrivals

    def _schedule_arrival(self) -> None:
        if self._next < len(self.arrival_ps):
            event = _Arrival(self.env, self.arrival_ps[self._next] - int(self.env.now))
            event.callbacks.append(self._arrive)

    def _arrive(self, _event: simpy.Event) -> None:
        now = int(self.env.now)
        arrival = self.arrival_ps
        n = len(arrival)
        while self._next < n and arrival[self._next] == now:
            i = self._next
            self._next = i + 1
            if self._refresh is not None and not self._refresh_due:
                self._plan_refresh()
            target = self._router.choose(i, now)
            prompt, output = self._prompt[i], self._output[i]
            self.replica[i] = target
            self.outstanding_requests[target] += 1
            self.outstanding_tokens[target] += prompt + output
            request = Request(i, prompt, output, block_ids=self._block_ids(i, prompt))
            ready = self._ready(i, target, now)
            self._ready_ps[target] = ready
            self.replicas[target].submit(request, ready)
            if self._progress is not None and i % 256 == 0:
                self._progress(i / n)
        self._schedule_arrival()

    def _plan_refresh(self) -> None:
        """Let the router see the queues at the next multiple of its period."""
        period: int = self._router.period_ps  # type: ignore[attr-defined]
        timer = self.env.timeout(period - self.env.now % period)
        timer.callbacks.append(self._on_refresh)
        self._refresh_due = True

    def _on_refresh(self, _event: simpy.Event) -> None:
        assert self._refresh is not None
        self._refresh_due = False
        self._refresh()
        if any(self.outstanding_requests):
            self._plan_refresh()

    def queue_lengths(self) -> list[tuple[int, int]]:
        return [(r.num_unscheduled, r.scheduler.num_running) for r in self.replicas]

    def prefix_ids(self, request: int) -> list[int]:
        ids: list[int] = [] if self._trace_ids is None else self._trace_ids[request].tolist()
        return ids

    def _ready(self, i: int, target: int, now: int) -> int:
        """When the engine's queue has request ``i``."""
        ready = now + round(self._receive_ps + self._receive_token_ps * self._prompt[i])
        return max(ready, self._ready_ps[target] + self._serial_ps)

    def _next_ready(self) -> int:
        """When the engine's queue will have the next request of the trace (one replica)."""
        if self._next >= len(self.arrival_ps):
            return 1 << 100
        return self._ready(self._next, 0, self.arrival_ps[self._next])

    def _block_ids(self, i: int, prompt: int) -> Sequence[int]:
        if self._hash_ids is None:
            return ()
        ids: list[int] = self._hash_ids[i].tolist()
        return prompt_block_ids(ids, self._hash_ids.block_tokens, self._block_size, prompt)

    # ------------------------------------------------------------------ what replicas report

    def tokens(self, time_ps: int, batch: list[Request], rows: int) -> None:
        emitted = self._emitted_ps
        common = 0
        gap = -1
        for request in batch:
            i = request.index
            before = emitted[i]
            emitted[i] = time_ps
            if before < 0:
                self.first_token_ps[i] = time_ps + round(
                    self._first_ps
                    + self._first_token_ps * self._prompt[i]
                    + self._first_row_ps * rows
                )
            elif time_ps - before == gap:
                common += 1
            else:
                if common:
                    self.gaps.extend((gap, 0, 1, common))
                gap = time_ps - before
                common = 1
        if common:
            self.gaps.extend((gap, 0, 1, common))

    def decode_run(self, times_ps: list[int], batch: list[Request]) -> None:
        self.tokens(times_ps[0], batch, len(batch))
        if len(times_ps) == 1:
            return
        rows = len(batch)
        for a, b in pairwise(times_ps):
            self.gaps.extend((b - a, 0, 1, rows))
        emitted = self._emitted_ps
        last = times_ps[-1]
        for request in batch:
            emitted[request.index] = last

    def finished(self, time_ps: int, request: Request, rows: int) -> None:
        i = request.index
        if request.output_tokens == 1:
            self.last_token_ps[i] = self.first_token_ps[i]
        else:
            last = time_ps + round(self._last_ps + self._last_row_ps * rows)
            self.last_token_ps[i] = max(last, self.first_token_ps[i])
        self.cached_tokens[i] = request.cached_tokens
        self.preemptions[i] = request.preemptions
        self.finished_count += 1
        target = self.replica[i]
        self.outstanding_requests[target] -= 1
        self.outstanding_tokens[target] -= self._prompt[i] + self._output[i]

    def power(self, replica: Replica, now_ps: int, energy_j: float) -> None:
        scheduler = replica.scheduler
        self.timeline.add(
            replica.index,
            now_ps,
            energy_j,
            scheduler.num_running,
            replica.num_unscheduled,
            1.0 - scheduler.free_blocks / self._usable_blocks,
        )
