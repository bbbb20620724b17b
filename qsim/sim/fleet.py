"""A fleet of replicas behind a router, fed by a trace."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from qsim.profile import FrontEnd, Profile
from qsim.sim.config import EngineConfig
from qsim.sim.energy import PowerMeter
from qsim.sim.engine import Replica
from qsim.sim.events import ARRIVAL, REFRESH, At
from qsim.sim.kv_cache import prompt_block_ids
from qsim.sim.router import make_router
from qsim.sim.scheduler import Request
from qsim.sim.steplog import Step
from qsim.sim.timeline import Timeline
from qsim.sim.timing import PS_PER_MS, PS_PER_S, Timing
from qsim.traces.trace import Trace

__all__ = ["Fleet"]

_NEVER = 1 << 100
_FREE_FRONTEND = FrontEnd(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


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
    replica : array of int64
        Where each request went.
    first_token_ps, last_token_ps : int64 arrays
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
        self.horizon_ps = 0
        self.next_ready_ps = 0
        self.arrival_ps = _integers(np.rint(trace.arrival_s * PS_PER_S))
        self._prompt = _integers(trace.prompt_tokens)
        self._output = array("q", output_tokens)
        self._hash_ids = trace.hash_ids if config.enable_prefix_caching else None
        self._block_size = config.block_size
        self._progress = progress
        self._next = 0

        # the engine's time of each request's latest token, and entries of qsim.sim.gaps.Gaps
        self.emitted_ps = array("q", [-1]) * n
        self.gaps = array("q")
        timing = Timing(profile, config)
        self.timeline = Timeline(
            self.arrival_ps[0], self.arrival_ps[-1], replicas, config.num_gpu_blocks - 1
        )
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
                sole=one,
            )
            for i in range(replicas)
        ]
        self.outstanding_requests = [0] * replicas
        self.outstanding_tokens = [0] * replicas
        self._trace_ids = trace.hash_ids
        self._router = make_router(router, self, np.random.default_rng(seed))
        self._refresh: Callable[[], None] | None = getattr(self._router, "refresh", None)
        self._refresh_ps = _NEVER

        f = profile.frontend if frontend else _FREE_FRONTEND
        prompt = trace.prompt_tokens.astype(np.float64)
        token_ps = f.receive_ms_per_1k_prompt_tokens * PS_PER_MS / 1000
        self._receive_ps = _integers(np.rint(f.receive_ms * PS_PER_MS + token_ps * prompt))
        self._serial_ps = round(f.receive_serial_ms * PS_PER_MS)
        self._frontend = f
        self._ready_ps = [-(1 << 62)] * replicas  # when each front end handed on its last request

        self.replica = _column(n)
        self.cached_tokens = _column(n)
        self.preemptions = _column(n)
        # the engine's time of the first, the latest and the last token, and the rows of their steps
        self._first_ps, self._first_rows = _column(n), _column(n)
        self._last_ps, self._last_rows = _column(n), _column(n)

    def run(self) -> None:
        """Run to the last token."""
        start = self.arrival_ps[0]
        for replica in self.replicas:
            replica.meter.start(start)
        self._schedule_arrival()
        with _rare_collections():
            self.env.run()
        self._add_frontend()
        end = int(self.last_token_ps.max())
        for replica in self.replicas:
            replica.look(end)

    def _add_frontend(self) -> None:
        """When the client has the first and the last token of each request."""
        f = self._frontend
        token_ps = f.first_token_ms_per_1k_prompt_tokens * PS_PER_MS / 1000
        row_ps = f.first_token_ms_per_running * PS_PER_MS
        first = f.first_token_ms * PS_PER_MS + token_ps * np.array(self._prompt, np.float64)
        first += row_ps * np.frombuffer(self._first_rows, np.int64)
        self.first_token_ps = np.frombuffer(self._first_ps, np.int64) + np.rint(first).astype(
            np.int64
        )
        row_ps = f.last_token_ms_per_running * PS_PER_MS
        last = f.last_token_ms * PS_PER_MS + row_ps * np.frombuffer(self._last_rows, np.int64)
        last_ps = np.frombuffer(self._last_ps, np.int64) + np.rint(last).astype(np.int64)
        one = np.array(self._output, np.int64) == 1
        self.last_token_ps = np.where(
            one, self.first_token_ps, np.maximum(last_ps, self.first_token_ps)
        )

    # ------------------------------------------------------------------ arrivals

    def _schedule_arrival(self) -> None:
        if self._next < len(self.arrival_ps):
            time = self.arrival_ps[self._next]
            event = At(self.env, time - int(self.env.now), ARRIVAL)
            event.callbacks.append(self._arrive)
            self.horizon_ps = min(time, self._refresh_ps)
            self.next_ready_ps = self._ready(self._next, 0, time)
        else:
            self.horizon_ps = self._refresh_ps
            self.next_ready_ps = _NEVER

    def _arrive(self, _event: simpy.Event) -> None:
        arrival = self.arrival_ps
        i = self._next
        now = arrival[i]
        n = len(arrival)
        while i < n and arrival[i] == now:
            if self._refresh is not None and self._refresh_ps == _NEVER:
                self._plan_refresh()
            target = self._router.choose(i, now)
            prompt, output = self._prompt[i], self._output[i]
            self.replica[i] = target
            self.outstanding_requests[target] += 1
            self.outstanding_tokens[target] += prompt + output
            block_ids = () if self._hash_ids is None else self._block_ids(i, prompt)
            request = Request(i, prompt, output, block_ids=block_ids)
            ready = self._ready(i, target, now)
            self._ready_ps[target] = ready
            i += 1
            self._next = i
            self.replicas[target].submit(request, ready)
            if self._progress is not None and i % 256 == 1:
                self._progress((i - 1) / n)
        self._schedule_arrival()

    def _plan_refresh(self) -> None:
        """Let the router see the queues at the next multiple of its period."""
        period: int = self._router.period_ps  # type: ignore[attr-defined]
        now = int(self.env.now)
        self._refresh_ps = now - now % period + period
        timer = At(self.env, self._refresh_ps - now, REFRESH)
        timer.callbacks.append(self._on_refresh)
        self.horizon_ps = min(self.horizon_ps, self._refresh_ps)

    def _on_refresh(self, _event: simpy.Event) -> None:
        assert self._refresh is not None
        self._refresh_ps = _NEVER
        self.horizon_ps = self.arrival_ps[self._next] if self._next < len(self._prompt) else _NEVER
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
        ready = now + self._receive_ps[i]
        serial = self._ready_ps[target] + self._serial_ps
        return ready if ready > serial else serial

    def _block_ids(self, i: int, prompt: int) -> Sequence[int]:
        assert self._hash_ids is not None
        ids: list[int] = self._hash_ids[i].tolist()
        return prompt_block_ids(ids, self._hash_ids.block_tokens, self._block_size, prompt)

    # ------------------------------------------------------------------ what replicas report

    def first_token(self, time_ps: int, request: Request, rows: int) -> None:
        i = request.index
        self._first_ps[i] = time_ps
        self._first_rows[i] = rows

    def finished(self, time_ps: int, request: Request, rows: int) -> None:
        i = request.index
        self._last_ps[i] = time_ps
        self._last_rows[i] = rows
        self.cached_tokens[i] = request.cached_tokens
        self.preemptions[i] = request.preemptions
        target = self.replica[i]
        self.outstanding_requests[target] -= 1
        self.outstanding_tokens[target] -= self._prompt[i] + self._output[i]


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the cycle collector run less often: nearly all objects here go without it."""
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(max(before[0], 100_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _column(n: int) -> array[int]:
    return array("q", bytes(8 * n))


def _integers(values: npt.NDArray[Any]) -> array[int]:
    return array("q", values.astype(np.int64).tobytes())
