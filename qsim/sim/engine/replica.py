"""One replica: vLLM's engine core as a host thread, a GPU stream and a queue of depth two.

A turn of the host thread is: take in what has arrived, schedule a step, launch it, and then apply
the result of the step before it, which must wait both for the GPU and for the launch just made
(``update(k-1)`` comes at ``max(gpu_end(k-1), launch_end(k))``). With ``async_scheduling`` off the
result of the same step is awaited instead. The engine takes every decision from
:class:`qsim.sim.scheduler.scheduler.Scheduler` and every duration from
:class:`qsim.sim.engine.timing.Timing`.

Nothing can reach a replica before the fleet's horizon (the next arrival): until then it goes from
turn to turn, and whatever turns can be foretold it carries out in one loop
(:mod:`qsim.sim.engine.fast_forward`). And nobody looks at a replica before one of its requests
finishes, or one is submitted: until then it may lag behind (:mod:`qsim.sim.engine.next_finish`). A
replica does not sleep by itself: it says when it wants to be called next. With ``jump=False`` it
goes through this module alone, one turn a call, and ends at the same picosecond; a test proves it.
"""

from __future__ import annotations

from collections import deque

from qsim.sim.engine.api_process import ApiProcess
from qsim.sim.engine.energy import PowerMeter
from qsim.sim.engine.events import Sink
from qsim.sim.engine.fast_forward import RUN_LIMIT, FastForward
from qsim.sim.engine.next_finish import earliest_finish_ps
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import EAGER, Timing
from qsim.sim.engine.token_times import TokenTimes
from qsim.sim.scheduler.batch import Batch
from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.request import Request
from qsim.sim.scheduler.scheduler import Scheduler

_NEVER = 1 << 100
#: requests that wait to be looked at together
_TOGETHER = 256


class _Inflight:
    """A step that was scheduled (and launched, unless empty) and has not been applied."""

    __slots__ = ("batch", "gpu_end_ps", "grouped", "rows", "step")

    def __init__(
        self, batch: Batch, rows: int, gpu_end_ps: int, grouped: bool, step: Step | None = None
    ) -> None:
        self.batch = batch
        self.rows = rows  # requests in the batch
        self.gpu_end_ps = gpu_end_ps
        self.grouped = grouped
        self.step = step


class Replica:
    """One engine of the fleet, driven by its calls.

    Attributes
    ----------
    scheduler : Scheduler
    meter : PowerMeter
    api : ApiProcess, optional
        The API server's, where its times are known.
    beyond_requests, beyond_tokens, beyond_context : int
        Steps beyond the measured range, each counted once: by its requests, else by its tokens,
        else by its context.
    step_log : list of Step, optional
        Takes every launched step; needs ``jump=False``.
    runs_ahead : bool
        Whether a run of decodes may go on beyond the present, to when the next request is ready.
        Its KV blocks are then ahead, too.
    unwatched : bool
        Whether nobody looks at it when a request is handed in, so that it may lag behind for some
        hundred of them: a run's variables are taken up and put down once for all.
    """

    def __init__(
        self,
        index: int,
        config: EngineConfig,
        timing: Timing,
        meter: PowerMeter,
        sink: Sink,
        *,
        api: ApiProcess | None = None,
        jump: bool = True,
        step_log: list[Step] | None = None,
    ) -> None:
        self.index = index
        self.api = api
        self.scheduler = Scheduler(config)
        self.meter = meter
        self.steps = 0
        self.preemptions = 0
        self.beyond_requests = 0
        self.beyond_tokens = 0
        self.beyond_context = 0
        self.peak_running = 0
        self.peak_waiting = 0
        self.runs_ahead = True
        self.unwatched = False
        self.usable_blocks = config.num_gpu_blocks - 1
        self.least_free_blocks = self.usable_blocks
        self._timing = timing
        self._first_knot = timing.knots[1] if len(timing.knots) > 1 else _NEVER
        self._sink = sink
        self._timeline = sink.timeline
        self._async = config.async_scheduling
        self._jump = jump
        self._step_log = step_log
        self._inbox: deque[tuple[int, Request]] = deque()
        self._arrivals: deque[int] = deque()  # of those in the inbox that may not be here yet
        self._turn_ps = 0  # when the present turn began
        self.aborts: list[Request] = []  # to be ended with the next turn
        self._queue: deque[_Inflight] = deque()
        self._gpu_free_ps = 0
        self._launched = True
        # a result that is due: the turn that begins next applies it
        self._due: _Inflight | None = None
        self._due_ps = 0
        # the decode steps at the end of the schedule so far: rows, context, steps since a look at
        # the clock and after how many to look again, and their span at the present clock
        self._rows = -1
        self._context_tokens = 0
        self._since_look = 0
        self._look_after = RUN_LIMIT
        self._base_ps = 0
        self._slopes_ps: list[int] = []
        self._next_ps = -1  # when the next turn begins; -1: idle
        # idle, and nothing is in the inbox: what is in the API server's process decides
        self._asleep = True
        self._fast_forward = FastForward(self)
        self._token_times = TokenTimes(sink.emitted_ps, sink.gaps)

    # ------------------------------------------------------------------ from the fleet

    def hand_in(self, request: Request, ready_ps: int, now_ps: int) -> None:
        """Give the engine a request that its front end will have ready at ``ready_ps``.

        Parameters
        ----------
        ready_ps
            Must not decrease from call to call, nor lie before ``now_ps``.
        """
        # a run of decodes may go on until somebody may join it
        if not self.unwatched:
            self._catch_up(now_ps, ready_ps if self.runs_ahead else now_ps)
        self._inbox.append((ready_ps, request))
        if self._next_ps < 0:
            self._next_ps = self._wake_ps()
        if self.unwatched:
            self._arrivals.append(now_ps)
            if len(self._inbox) >= _TOGETHER:
                self._catch_up(now_ps, ready_ps)

    def num_coming(self, now_ps: int) -> int:
        """Requests that are in the front end in the turn that begins now."""
        arrivals = self._arrivals
        handed_in = len(self._inbox)
        if self.api is not None:
            return handed_in + self.api.num_waiting(now_ps)
        if arrivals:
            while len(arrivals) > handed_in:
                arrivals.popleft()
            while arrivals and arrivals[0] <= now_ps:
                arrivals.popleft()
        return handed_in - len(arrivals)

    def enter(self, request: Request, now_ps: int, receive_ps: int) -> None:
        """Give the API server's process a request, which alone takes ``receive_ps`` to the engine.

        In the place of ``hand_in``, for replicas with such a process. When the engine has it is
        seen when its turn comes: what comes meanwhile makes it wait.
        """
        api = self.api
        assert api is not None
        if not self.unwatched:
            self._catch_up(now_ps, now_ps + receive_ps if self.runs_ahead else now_ps)
        api.enter(request, now_ps, receive_ps)
        if not self.unwatched:
            if self._next_ps < 0:  # no sooner, whatever comes meanwhile
                self._next_ps = api.soonest_ps() + self._timing.wake_ps
        elif len(api.arriving) >= _TOGETHER:
            self._go(now_ps, now_ps + receive_ps)

    def take_in(self, now: int, due_ps: int, rows: int) -> None:
        """What has come from the API server's process until now, when a turn begins.

        Parameters
        ----------
        due_ps, rows
            Time and requests of the result that this turn applies; 0 rows: there is none.
        """
        api = self.api
        assert api is not None
        if rows and due_ps != api.told_ps:
            self._inbox += api.advance(due_ps - 1)
            api.result(due_ps, rows)
        self._inbox += api.advance(now)

    def _wake_ps(self) -> int:
        """When an idle engine begins its next turn if nothing else comes; -1: never."""
        if self._inbox:
            self._asleep = False
            return self._inbox[0][0] + self._timing.wake_ps
        self._asleep = True
        ready_ps = -1 if self.api is None else self.api.first_ready_ps()
        return ready_ps + self._timing.wake_ps if ready_ps >= 0 else -1

    def proceed(self, horizon_ps: int) -> None:
        """Make the turns before the horizon, or one if ``jump`` is off.

        Parameters
        ----------
        horizon_ps
            No request is handed in before this time.
        """
        if self._jump:
            self._go(horizon_ps, horizon_ps)
        else:
            self._next_ps = self._turn(self._next_ps)

    def call_ps(self) -> int:
        """When to call ``proceed``: no request finishes before; -1: not before the next request."""
        if self._fast_forward.active and not self.aborts:
            return earliest_finish_ps(self, self._fast_forward, self._next_ps)
        return self._next_ps

    def abort(self, request: Request, now_ps: int) -> None:
        """End a request that has not finished: its client has gone.

        The engine hears of it at its next turn, whose result it still applies, as vLLM's does
        (vllm/v1/engine/core.py, ``_process_input_queue``): seat and KV blocks are free then. One
        that is still in the front end never comes.
        """
        if self.api is not None and self.api.waiting(now_ps):
            # what the request has had of the process's time until now it has had
            fast_forward = self._fast_forward
            rows, due_ps = 0, 0
            if fast_forward.active:
                rows, due_ps = fast_forward.due
            elif self._due is not None:
                rows, due_ps = self._due.rows, self._due_ps
            self.take_in(now_ps, due_ps, rows if due_ps <= now_ps else 0)
        coming = next((entry for entry in self._inbox if entry[1] is request), None)
        if coming is not None:
            self._inbox.remove(coming)
        elif self.api is None or not self.api.remove(request):
            self.aborts.append(request)
            return
        request.finished = True
        if self.api is not None and self._is_idle():
            self._next_ps = self._wake_ps()

    def _is_idle(self) -> bool:
        """Whether the next turn, if any, is to wake up for a request that is on its way."""
        if self._fast_forward.active or self._due is not None or self.aborts:
            return False
        return not (self._queue or self.scheduler.has_work())

    def settle(self) -> None:
        """Write what is kept about finished requests: their indices may be used again."""
        self._token_times.settle()

    def catch_up(self, now_ps: int) -> None:
        """Make the turns that lie before now, and report what came of them."""
        self._catch_up(now_ps, now_ps)

    def num_unscheduled(self, now_ps: int) -> int:
        """Requests that are not running: in the front end or in the waiting queue."""
        self._catch_up(now_ps, now_ps)
        coming = len(self._inbox)
        if self.api is not None:
            coming += self.api.num_waiting(now_ps)
        return coming + self.scheduler.num_waiting

    def kv_usage(self, now_ps: int) -> float:
        """The share of the KV blocks that requests hold."""
        self._catch_up(now_ps, now_ps)
        return 1.0 - self.scheduler.free_blocks / self.usable_blocks

    def cached_tokens(self, request: Request, now_ps: int) -> int:
        """Tokens of a request's prompt that the prefix cache holds."""
        self._catch_up(now_ps, now_ps)
        return self.scheduler.cached_tokens(request)

    # ------------------------------------------------------------------ the host thread

    def _catch_up(self, now: int, stop: int) -> None:
        """Make the turns that lie before now; nothing new is ready before ``stop``."""
        if self._jump and (0 <= self._next_ps < now or (self.unwatched and self._asleep)):
            self._go(now, stop)

    def _go(self, horizon: int, stop: int) -> None:
        """Make the turns that begin before ``horizon``."""
        fast_forward, api = self._fast_forward, self.api
        time = self._next_ps
        while True:
            if self._asleep and api is not None:
                self._inbox += api.advance(horizon - 1, 1)
                if self._inbox:
                    time = self._wake_ps()
                elif api.waiting(_NEVER):
                    time = api.soonest_ps() + self._timing.wake_ps
                    if time < horizon:  # what else there is makes it wait beyond
                        time = self._wake_ps()
                else:
                    time = -1
            if not 0 <= time < horizon:
                break
            if fast_forward.active:
                time = fast_forward.run(time, horizon, stop)
                if not fast_forward.active:
                    time = self._step(time)
            else:
                time = self._turn(time)
        self._next_ps = time

    def _turn(self, now: int) -> int:
        """A turn of the host thread; when the next begins, -1 for never."""
        scheduler = self.scheduler
        self._turn_ps = now
        if self.api is not None:
            due = self._due
            self.take_in(now, self._due_ps, 0 if due is None else due.rows)
            if self._asleep:
                time = self._wake_ps()
                if time != now:
                    return time
        if self._due is not None:
            self._apply(self._due)
            if not self._launched and scheduler.has_unfinished():
                self._launched = True  # vLLM's loop sleeps once, then goes on
                return now + self._timing.idle_sleep_ps
        if self._jump and not self.aborts and self._fast_forward.enter():
            return now
        inbox = self._inbox
        while inbox and inbox[0][0] <= now:
            scheduler.add(inbox.popleft()[1])
        return self._step(now)

    def _step(self, now: int) -> int:
        scheduler, queue, timing = self.scheduler, self._queue, self._timing
        self._turn_ps = now
        if self.aborts:
            for request in self.aborts:
                scheduler.abort(request)
            self.aborts = []
        time = now
        self._launched = False
        if scheduler.has_work():
            batch = scheduler.schedule()
            running = scheduler.num_running
            time += timing.schedule_ps[running]
            gpu_end = time
            rows = 0
            step: Step | None = None
            if batch.num_tokens:
                self._launched = True
                launch_start = time
                gpu_start = self._gpu_free_ps + timing.gpu_gap_ps
                if launch_start > gpu_start:
                    gpu_start = launch_start
                mode, span = self._span(batch, gpu_start)
                rows = batch.num_decodes + len(batch.prefill)
                if rows > timing.measured_requests:
                    self.beyond_requests += 1
                elif batch.num_tokens > timing.measured_tokens:
                    self.beyond_tokens += 1
                elif batch.decode_context_tokens > timing.measured_context_tokens:
                    self.beyond_context += 1
                time += timing.launch_ps[mode][rows]
                gpu_end = gpu_start + span
                if gpu_end < time:
                    gpu_end = time  # the GPU waits for the launch
                elif mode == EAGER and timing.held_ppm:
                    held = gpu_start + span * timing.held_ppm[batch.num_tokens] // 1_000_000
                    if held > time:
                        time = held  # the launch waits for the GPU
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
            queue.append(_Inflight(batch, rows, gpu_end, scheduler.decodes_as_group, step))
            self._note_state(batch, running)
            if self._async and len(queue) == 1 and (self._launched or scheduler.has_work()):
                # the queue has room: schedule the next step before waiting for this one
                if not self._launched and scheduler.has_unfinished():
                    time += timing.idle_sleep_ps
                return time + timing.turn_ps
        elif not queue:
            return self._idle(now)
        due = queue.popleft()
        self._due = due
        rows = due.rows
        if rows:
            if due.gpu_end_ps > time:
                time = due.gpu_end_ps
            time += timing.result_ps
        self._due_ps = time
        return time + timing.update_ps[rows] + timing.turn_ps

    def _apply(self, due: _Inflight) -> None:
        self._due = None
        batch = due.batch
        late = 0
        if self.api is not None and due.rows:
            late = self.api.late_ps
        update = self.scheduler.update(batch)
        if due.step is not None:
            self._log(due.step)
        if update.tokens:
            time = self._due_ps
            rows = due.rows
            as_group = due.grouped and self.scheduler.decodes_as_group
            self._token_times.step(time, batch, update, as_group)
            sink = self._sink
            for request in update.first:
                sink.first_token(time, request, rows)
            for request in update.finished:
                sink.finished(time, request, rows, late)
        self._token_times.grouped = due.grouped

    def _log(self, step: Step) -> None:
        assert self._step_log is not None
        scheduler = self.scheduler
        step.update_ps = self._due_ps
        step.running = scheduler.num_running
        step.waiting = scheduler.num_waiting
        step.kv_usage = 1.0 - scheduler.free_blocks / self.usable_blocks
        self._step_log.append(step)

    def _idle(self, now: int) -> int:
        self.look(now)
        self._rows = -1
        self._launched = True
        return self._wake_ps()

    def _hold(self, batch: Batch, rows: int, gpu_end_ps: int) -> None:
        """Take over a step of the group that is in flight."""
        self._queue.append(_Inflight(batch, rows, gpu_end_ps, True))

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
        scheduler = self.scheduler
        waiting = self.num_coming(self._turn_ps) + scheduler.num_waiting
        self.account(now, scheduler.num_running, waiting, scheduler.free_blocks)

    def account(self, now: int, running: int, waiting: int, free_blocks: int) -> None:
        """Account for energy up to now, and for what the queues were."""
        energy = self.meter.evaluate(now)
        if energy:
            self._timeline.add(self.index, now, energy, running, waiting, free_blocks)

    def _read_clock(self, rows: int, context: int) -> None:
        """Take over the span of ``rows`` decodes at the present clock, and when to look again."""
        timing, meter = self._timing, self.meter
        factor = meter.factors[timing.decode_mode[rows]]
        if factor == 1.0:
            self._base_ps = timing.decode_base_ps[rows]
            self._slopes_ps = timing.slopes_ps[rows]
        else:
            self._base_ps = round(timing.decode_base_ps[rows] * factor)
            self._slopes_ps = [round(slope * factor) for slope in timing.slopes_ps[rows]]
        self._rows = rows
        self._look_after = RUN_LIMIT
        if meter.settles_ps:
            if context <= self._first_knot:
                span = self._base_ps + self._slopes_ps[0] * context
            else:
                span = self._decode_span(context)
            if not meter.at_rest(rows, context, span):
                after = meter.settles_ps // span
                if after < RUN_LIMIT:
                    self._look_after = after or 1

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
            if same and self._since_look < self._look_after:
                self._since_look += 1
            else:
                self.look(gpu_start)
                self._since_look = 1
                self._read_clock(rows, context)
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
        if context <= self._first_knot:
            return span + self._slopes_ps[0] * context
        last = len(knots) - 1
        for j, slope in enumerate(self._slopes_ps):
            if j == last or context <= knots[j + 1]:
                return span + slope * (context - knots[j])
            span += slope * (knots[j + 1] - knots[j])
        return span
