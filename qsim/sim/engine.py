"""One replica: vLLM's engine core as a host thread, a GPU stream and a queue of depth two.

A turn of the host thread is: take in what has arrived, schedule a step, launch it, and then apply
the result of the step before it, which must wait both for the GPU and for the launch just made
(``update(k-1)`` comes at ``max(gpu_end(k-1), launch_end(k))``). With ``async_scheduling`` off the
result of the same step is awaited instead. The engine takes every decision from
:class:`qsim.sim.scheduler.Scheduler` and every duration from :class:`qsim.sim.timing.Timing`.

Between two changes of the batch, decode steps differ only in context length. The engine plans
such a run in one go and sleeps once (:meth:`Replica._plan_run`); an arrival cuts the run at the
first turn that would have taken it in. Running with ``jump=False`` steps one by one through the
same code and ends at the same picosecond; a test proves it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from typing import Protocol

import simpy

from qsim.sim.config import EngineConfig
from qsim.sim.energy import PowerMeter
from qsim.sim.scheduler import Batch, Request, Scheduler
from qsim.sim.steplog import Step
from qsim.sim.timing import Timing

__all__ = ["RUN_LIMIT", "Replica", "Sink"]

#: the clock (power state) is looked at when the batch changes, and at least every so many steps
RUN_LIMIT = 64
_NEVER = 1 << 100


class Sink(Protocol):
    """Where a replica reports what happened; all times are in ps."""

    def tokens(self, time_ps: int, batch: list[Request], rows: int) -> None:
        """Every request in ``batch`` has its next token at ``time_ps``; ``rows`` ran with it."""

    def decode_run(self, times_ps: list[int], batch: list[Request]) -> None:
        """Every request in ``batch`` got a token at each of ``times_ps``."""

    def finished(self, time_ps: int, request: Request, rows: int) -> None:
        """``request`` has its last token; ``rows`` requests ran in that step."""

    def power(self, replica: Replica, now_ps: int, energy_j: float) -> None:
        """``replica`` used ``energy_j`` since it was last asked."""


class _Inflight:
    """A step that was scheduled (and launched, unless empty) and has not been applied."""

    __slots__ = ("batch", "gpu_end_ps", "step")

    def __init__(self, batch: Batch, gpu_end_ps: int, step: Step | None = None) -> None:
        self.batch = batch
        self.gpu_end_ps = gpu_end_ps
        self.step = step


class Replica:
    """One engine of the fleet, driven by SimPy timeouts.

    Attributes
    ----------
    scheduler : Scheduler
    meter : PowerMeter
    step_log : list of Step, optional
        Takes every launched step; needs ``jump=False``.
    next_arrival_ps : callable, optional
        A lower bound on when this replica can next be given a request, if the fleet knows one;
        it only saves planning work that an arrival would throw away.
    """

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        config: EngineConfig,
        timing: Timing,
        meter: PowerMeter,
        sink: Sink,
        *,
        jump: bool = True,
        next_arrival_ps: Callable[[], int] | None = None,
        step_log: list[Step] | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.scheduler = Scheduler(config)
        self.meter = meter
        self.events = 0
        self.steps = 0
        self.preemptions = 0
        self.peak_running = 0
        self.peak_waiting = 0
        self._usable_blocks = config.num_gpu_blocks - 1
        self.least_free_blocks = self._usable_blocks
        self._timing = timing
        self._sink = sink
        self._async = config.async_scheduling
        self._jump = jump
        self._next_arrival_ps = next_arrival_ps
        self._step_log = step_log
        self._inbox: deque[tuple[int, Request]] = deque()
        self._queue: deque[_Inflight] = deque()
        self._timer: simpy.Event | None = None  # None: idle
        self._gpu_free_ps = 0
        self._launched = True
        # a result that is due: the turn that begins next applies it
        self._due: _Inflight | None = None
        self._due_ps = 0
        self._last_batch: Batch | None = None
        # the decode steps at the end of the schedule so far: rows, context, steps since a look at
        # the clock, and their span at the present clock
        self._rows = -1
        self._context_tokens = 0
        self._since_look = 0
        self._base_ps = 0
        self._slopes_ps: list[int] = []
        # the planned run: where each turn starts, its update, the GPU's end and busy time by then
        self._run_turns = 0
        self._run_start_ps: list[int] = []
        self._run_update_ps: list[int] = []
        self._run_gpu_end_ps: list[int] = []
        self._run_busy_ps: list[int] = []

    # ------------------------------------------------------------------ from the fleet

    def submit(self, request: Request, ready_ps: int) -> None:
        """Give the engine a request that its front end will have ready at ``ready_ps``.

        ``ready_ps`` must not decrease from call to call and not lie in the past.
        """
        self._inbox.append((ready_ps, request))
        if self._timer is None:
            self._sleep_until(ready_ps + self._timing.wake_ps)
        elif self._run_turns:
            # the first turn at or after ready_ps must take the request in
            turn = bisect_left(self._run_start_ps, ready_ps)
            if turn < self._run_turns:
                self._run_turns = turn
                self._sleep_until(self._run_start_ps[turn])

    @property
    def num_requests(self) -> int:
        """Requests given to this replica and not finished."""
        scheduler = self.scheduler
        return len(self._inbox) + scheduler.num_running + scheduler.num_waiting

    @property
    def num_unscheduled(self) -> int:
        """Requests that are not running: in the front end or in the waiting queue."""
        return len(self._inbox) + self.scheduler.num_waiting

    # ------------------------------------------------------------------ the host thread

    def _sleep_until(self, time_ps: int) -> None:
        timer = self.env.timeout(time_ps - int(self.env.now))
        timer.callbacks.append(self._turn)
        self._timer = timer

    def _turn(self, event: simpy.Event) -> None:
        if event is not self._timer:
            return  # a run was cut short: another timer has taken over
        self.events += 1
        now = int(self.env.now)
        scheduler = self.scheduler
        if self._run_turns:
            self._finish_run()
        elif self._due is not None:
            self._apply()
            if not self._launched and scheduler.has_unfinished():
                self._launched = True  # vLLM's loop sleeps once, then goes on
                self._sleep_until(now + self._timing.idle_sleep_ps)
                return
        inbox = self._inbox
        while inbox and inbox[0][0] <= now:
            scheduler.add(inbox.popleft()[1])
        if self._jump and self._plan_run(now):
            return
        self._step(now)

    def _step(self, now: int) -> None:
        scheduler, queue, timing = self.scheduler, self._queue, self._timing
        time = now
        self._launched = False
        if scheduler.has_work():
            batch = scheduler.schedule()
            running = scheduler.num_running
            time += timing.schedule_ps[running]
            gpu_end = time
            step: Step | None = None
            if batch.num_tokens:
                self._launched = True
                launch_start = time
                gpu_start = self._gpu_free_ps + timing.gpu_gap_ps
                if launch_start > gpu_start:
                    gpu_start = launch_start
                mode, span = self._span(batch, gpu_start)
                time += timing.launch_ps[mode][batch.num_decodes + len(batch.prefill)]
                gpu_end = gpu_start + span
                if gpu_end < time:
                    gpu_end = time  # the GPU waits for the launch
                self._gpu_free_ps = gpu_end
                self.meter.busy_ps += gpu_end - gpu_start
                self.steps += 1
                if self._step_log is not None:
                    step = Step(
                        self.index,
                        mode,
                        now,
                        launch_start,
                        time,
                        gpu_start,
                        gpu_end,
                        batch.prefill,
                        batch.num_decodes,
                        batch.decode_context_tokens,
                    )
            else:
                self._rows = -1
            queue.append(_Inflight(batch, gpu_end, step))
            self._note_state(batch, running)
            if self._async and len(queue) == 1 and (self._launched or scheduler.has_work()):
                # the queue has room: schedule the next step before waiting for this one
                if not self._launched and scheduler.has_unfinished():
                    time += timing.idle_sleep_ps
                self._sleep_until(time + timing.turn_ps)
                return
        elif not queue:
            self._idle(now)
            return
        due = queue.popleft()
        self._due = due
        rows = due.batch.num_decodes + len(due.batch.prefill)
        if rows:
            if due.gpu_end_ps > time:
                time = due.gpu_end_ps
            time += timing.result_ps
        self._due_ps = time
        self._sleep_until(time + timing.update_ps[rows] + timing.turn_ps)

    def _apply(self) -> None:
        due = self._due
        assert due is not None
        self._due = None
        self._last_batch = due.batch
        update = self.scheduler.update(due.batch)
        if due.step is not None:
            self._log(due.step)
        if update.tokens:
            rows = due.batch.num_decodes + len(due.batch.prefill)
            self._sink.tokens(self._due_ps, update.tokens, rows)
            for request in update.finished:
                self._sink.finished(self._due_ps, request, rows)

    def _log(self, step: Step) -> None:
        assert self._step_log is not None
        scheduler = self.scheduler
        step.update_ps = self._due_ps
        step.running = scheduler.num_running
        step.waiting = scheduler.num_waiting
        step.kv_usage = 1.0 - scheduler.free_blocks / self._usable_blocks
        self._step_log.append(step)

    def _idle(self, now: int) -> None:
        self.look(now)
        self._rows = -1
        self._launched = True
        if self._inbox:
            self._sleep_until(self._inbox[0][0] + self._timing.wake_ps)
        else:
            self._timer = None

    def _note_state(self, batch: Batch, running: int) -> None:
        scheduler = self.scheduler
        if running > self.peak_running:
            self.peak_running = running
        waiting = scheduler.num_waiting
        if waiting > self.peak_waiting:
            self.peak_waiting = waiting
        free = scheduler.free_blocks
        if free < self.least_free_blocks:
            self.least_free_blocks = free
        if batch.preempted:
            self.preemptions += len(batch.preempted)

    # ------------------------------------------------------------------ spans and the clock

    def look(self, now: int) -> None:
        """Account for energy and read the clock's state."""
        energy = self.meter.evaluate(now)
        if energy:
            self._sink.power(self, now, energy)

    def _span(self, batch: Batch, gpu_start: int) -> tuple[int, int]:
        """Execution mode and GPU span of a step that starts at ``gpu_start``; counts its work.

        All work counted before lies before ``gpu_start``: the meter runs on the GPU's time, so
        that the energy of a long step is spread over that step and not over the one before it.
        """
        meter, timing = self.meter, self._timing
        rows = batch.num_decodes
        context = batch.decode_context_tokens
        if rows == batch.num_tokens:
            same = rows == self._rows and context == self._context_tokens + rows
            if same and self._since_look < RUN_LIMIT:
                self._since_look += 1
            else:
                self.look(gpu_start)
                self._since_look = 1
                factor = meter.factors[timing.decode_mode[rows]]
                self._base_ps = round(timing.decode_base_ps[rows] * factor)
                self._slopes_ps = [round(s[rows] * factor) for s in timing.decode_slope_ps]
                self._rows = rows
            self._context_tokens = context
            meter.decode_tokens += rows
            meter.context_tokens += context
            return timing.decode_mode[rows], self._decode_span(context)
        self.look(gpu_start)
        self._rows = -1
        mode, span = timing.mixed_span_ps(
            batch.num_tokens, rows, context, batch.prefill, meter.factors
        )
        meter.decode_tokens += rows
        meter.context_tokens += context
        for n, computed in batch.prefill:
            meter.prefill_tokens += n
            meter.pairs_doubled += n * (2 * computed + n + 1)
        return mode, span

    def _decode_span(self, context: int) -> int:
        span = self._base_ps
        knots = self._timing.knots
        last = len(knots) - 1
        for j, slope in enumerate(self._slopes_ps):
            if j == last or context <= knots[j + 1]:
                return span + slope * (context - knots[j])
            span += slope * (knots[j + 1] - knots[j])
        return span

    # ------------------------------------------------------------------ decode runs

    def _plan_run(self, now: int) -> bool:
        """Plan the turns until the batch changes; False if the next turn is not of that kind."""
        queue = self._queue
        if self._rows < 1 or self._since_look >= RUN_LIMIT:
            return False
        inflight: _Inflight | None = None
        if self._async:
            if len(queue) != 1:
                return False
            inflight = queue[0]
        elif self._rows != self.scheduler.num_running:
            return False  # somebody finished with the last step
        turns = self.scheduler.decode_horizon(None if inflight is None else inflight.batch)
        if turns < 2:
            return False
        if turns > RUN_LIMIT - self._since_look:
            turns = RUN_LIMIT - self._since_look
        stop = self._inbox[0][0] if self._inbox else _NEVER
        if self._next_arrival_ps is not None:
            arrival = self._next_arrival_ps()
            if arrival < stop:
                stop = arrival

        timing = self._timing
        rows = self._rows
        context = self._context_tokens
        mode = timing.decode_mode[rows]
        schedule = timing.schedule_ps[rows]
        launch = timing.launch_ps[mode][rows]
        result = timing.result_ps
        after = timing.update_ps[rows] + timing.turn_ps
        gap = timing.gpu_gap_ps
        gpu_free = self._gpu_free_ps
        previous_end = inflight.gpu_end_ps if inflight is not None else 0
        wait_for_own = inflight is None
        # context only grows: the span is affine until it passes the segment's end
        span = self._decode_span(context)
        knots, slopes = timing.knots, self._slopes_ps
        segment = bisect_right(knots, context) - 1
        segment_end = knots[segment + 1] if segment + 1 < len(knots) else _NEVER
        growth = slopes[segment] * rows
        starts: list[int] = []
        updates: list[int] = []
        ends: list[int] = []
        busy: list[int] = []
        busy_sum = 0
        time = now
        for _ in range(turns):
            if time >= stop:
                break
            starts.append(time)
            launch_start = time + schedule
            time = launch_start + launch
            context += rows
            if context <= segment_end:
                span += growth
            else:
                span = self._decode_span(context)
                segment = bisect_right(knots, context) - 1
                segment_end = knots[segment + 1] if segment + 1 < len(knots) else _NEVER
                growth = slopes[segment] * rows
            gpu_start = gpu_free + gap
            if launch_start > gpu_start:
                gpu_start = launch_start
            gpu_free = gpu_start + span
            if gpu_free < time:
                gpu_free = time
            busy_sum += gpu_free - gpu_start
            busy.append(busy_sum)
            ends.append(gpu_free)
            awaited = gpu_free if wait_for_own else previous_end
            if awaited > time:
                time = awaited
            time += result
            previous_end = gpu_free
            updates.append(time)
            time += after
        if not starts:
            return False
        self._run_turns = len(starts)
        self._run_start_ps = starts
        self._run_update_ps = updates
        self._run_gpu_end_ps = ends
        self._run_busy_ps = busy
        self._sleep_until(time)
        return True

    def _finish_run(self) -> None:
        """Carry out the planned turns, as many as an arrival left of them."""
        turns = self._run_turns
        self._run_turns = 0
        rows = self._rows
        queue = self._queue
        batch = queue.popleft().batch if self._async else self._last_batch
        assert batch is not None
        updates = self._run_update_ps
        if turns < len(updates):
            del updates[turns:]
        requests = [item[0] for item in batch.items]
        after = self.scheduler.advance(batch if self._async else None, turns)
        self._sink.decode_run(updates, requests)
        gpu_end = self._run_gpu_end_ps[turns - 1]
        if self._async:
            assert after is not None
            queue.append(_Inflight(after, gpu_end))
        self._gpu_free_ps = gpu_end
        meter = self.meter
        meter.busy_ps += self._run_busy_ps[turns - 1]
        meter.decode_tokens += rows * turns
        meter.context_tokens += turns * self._context_tokens + rows * turns * (turns + 1) // 2
        self._context_tokens += rows * turns
        self._since_look += turns
        self.steps += turns
        self._launched = True
        free = self.scheduler.free_blocks
        if free < self.least_free_blocks:
            self.least_free_blocks = free
