"""A fleet: pools of servers behind a router, fed by a trace."""

from __future__ import annotations

import gc
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from qsim.sim.engine.clock import arrivals_ps, clock_origin_s, within_clock
from qsim.sim.engine.energy import PowerMeter
from qsim.sim.engine.events import ARRIVAL, REFRESH, At, Timers
from qsim.sim.engine.frontend import FREE, client_times, receive_ps
from qsim.sim.engine.replica import Replica
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_MS, PS_PER_S, Timing
from qsim.sim.engine.wakeups import WakeUps
from qsim.sim.fleet.admission import Setup
from qsim.sim.fleet.queue_limits import QueueLimits
from qsim.sim.fleet.router import make_router
from qsim.sim.fleet.server_speed import ServerSpeed
from qsim.sim.fleet.sessions import followers
from qsim.sim.results.finished import Finished
from qsim.sim.results.timeline import Timeline
from qsim.sim.scheduler.kv_cache import prompt_block_ids
from qsim.sim.scheduler.scheduler import Request
from qsim.traces.trace import Trace

__all__ = ["Fleet"]

IntArray = npt.NDArray[np.int64]

_NEVER = 1 << 100


class Fleet:
    """Runs a trace through the engines of its pools; one instance, one run.

    Parameters
    ----------
    trace : Trace
        Its requests must be admissible for every pool.
    output_tokens : sequence of int
        Tokens that each request will generate.
    setup : Setup
        Pools and router.
    release : callable
        Takes the requests of a part when all of them, and of the parts before, have finished.
        Inter-token gaps up to then are in ``gaps``, which it may empty.
    jump : bool
        Plan decode runs in one go (the default) or step one by one; the results are equal.
    step_log : list, optional
        Takes every launched step of every replica (and makes the engines step one by one).
    progress : callable, optional
        Called now and then with the number of requests that have arrived.
    more : iterator of (Trace, sequence of int), optional
        What follows ``trace`` on the same clock, with its output tokens. A part is taken when the
        last request before it has arrived. The columns then hold the parts that have unfinished
        requests, so that memory does not grow with the trace.
    span_s : (float, float), optional
        First and last arrival of all parts, where they are known, for the timeline's bins.

    Attributes
    ----------
    origin_s : float
        The trace's time at which the clock of the run is 0.
    end_ps : int
        When the last client has the last token.
    gaps : array of int64
        Inter-token gaps as the engine emits them: entries of :class:`qsim.sim.results.itl.Gaps`.
    """

    def __init__(
        self,
        trace: Trace,
        output_tokens: Sequence[int],
        setup: Setup,
        *,
        release: Callable[[Finished], None],
        jump: bool = True,
        step_log: list[Step] | None = None,
        progress: Callable[[int], None] | None = None,
        more: Iterator[tuple[Trace, Sequence[int]]] | None = None,
        span_s: tuple[float, float] | None = None,
    ) -> None:
        pools, replicas = setup.pools, setup.replicas
        self._pools = pools
        self._configs = [p.config for p in pools]
        self._pool_of = setup.pool_of
        self._frontends = [p.profile.frontend if setup.frontend else FREE for p in pools]
        self._serial_ps = [round(f.receive_serial_ms * PS_PER_MS) for f in self._frontends]
        self._ready_ps = [-(1 << 62)] * replicas  # when each front end handed on its last request
        self._progress = progress
        self._more = more
        self._release = release

        # one place a request; the trace's parts lie in stretches of places, in order of arrival
        self.arrival_ps = array("q")
        self._prompt, self._output = array("q"), array("q")
        # how long each front end takes to hand on each request, by pool
        self._receive_ps = [array("q") for _ in pools]
        self._replica, self._cached_tokens = array("q"), array("q")
        self._preemptions = array("q")
        # the engine's time of the first, the latest and the last token (0: not yet), and the rows
        # of their steps
        self._first_ps, self._first_rows = array("q"), array("q")
        self._last_ps, self._last_rows = array("q"), array("q")
        # the engine's time of each request's latest token, and entries of qsim.sim.results.itl.Gaps
        self.emitted_ps = array("q")
        self.gaps = array("q")
        # parts that may have unfinished requests: their places, and how many there is room for
        self._parts: deque[tuple[range, int]] = deque()
        self._free: list[tuple[int, int]] = []  # beginning and size of what may be used again
        # the next request, where its part begins and ends, and how many requests were before it
        self._begin = self._next = self._end = self._before = 0
        self._name = trace.name
        self.origin_s = clock_origin_s(float(trace.arrival_s[0]))
        self._take(trace, output_tokens)

        timings = [Timing(p.profile, p.config) for p in pools]
        self._timings = timings
        first_ps, last_ps = (
            (self.arrival_ps[0], self.arrival_ps[-1])
            if span_s is None
            else (int(np.rint((s - self.origin_s) * PS_PER_S)) for s in span_s)
        )
        blocks = [self._configs[k].num_gpu_blocks - 1 for k in self._pool_of]
        self.timeline = Timeline(first_ps, last_ps, replicas, blocks)
        # later turns of sessions need every answer at its time, so the engines step one by one
        self._followers = {} if trace.turns is None else followers(trace.turns)
        self._follow_at: Callable[[int, int], None] | None = None
        self._jump = jump and step_log is None and not self._followers
        self.replicas = [
            Replica(
                i,
                pools[k].config,
                timings[k],
                PowerMeter(pools[k].profile.power, timings[k]),
                self,
                jump=self._jump,
                step_log=step_log,
            )
            for i, k in enumerate(self._pool_of)
        ]
        self.outstanding_requests = [0] * replicas
        self.outstanding_tokens = [0] * replicas
        self._router = make_router(
            setup.router,
            self,
            lambda: np.random.default_rng(setup.seed),
            setup.vllm_version,
            [pools[k].weight for k in self._pool_of],
        )
        self.limits: QueueLimits | None = None
        if any(c.limits_queue for c in self._configs):
            self.limits = QueueLimits(
                [self._configs[k] for k in self._pool_of], setup.router == "vllm"
            )
        if self.limits is not None or getattr(self._router, "reads_kv_usage", False):
            for replica in self.replicas:
                replica.runs_ahead = False
        self._freed: Callable[[int], None] | None = getattr(self._router, "finished", None)
        self._learns: Callable[[int], None] | None = getattr(self._router, "finished_tokens", None)
        self._refresh: Callable[[], None] | None = None
        if replicas > 1:
            self._refresh = getattr(self._router, "refresh", None)
        self._refresh_ps = _NEVER
        self._now_ps = 0  # when the router looks
        self._wakeups = WakeUps(replicas)
        self._timers: Timers | None = None
        self.end_ps = 0

    def run(self) -> None:
        """Run to the last token."""
        start = self.arrival_ps[0]
        for replica in self.replicas:
            replica.meter.start(start)
        with _rare_collections(), within_clock(self._name):
            if self._jump:
                self._drive()
            else:
                self._drive_by_events()
            self._settle()
            for replica in self.replicas:
                replica.look(self.end_ps)

    # ------------------------------------------------------------------ parts of the trace

    def _take(self, trace: Trace, output_tokens: Sequence[int]) -> None:
        """Give the requests of a part their places."""
        n = len(trace)
        self._hash_ids = trace.hash_ids
        room = next((r for r in self._free if r[1] >= n), None)
        if room is None:
            room = len(self.arrival_ps), n
            for column in self._columns():
                column.frombytes(bytes(8 * n))
        else:
            self._free.remove(room)
        begin, size = room
        part = slice(begin, begin + n)
        self.arrival_ps[part] = arrivals_ps(trace.name, trace.arrival_s, self.origin_s)
        self._prompt[part] = _integers(trace.prompt_tokens)
        self._output[part] = array("q", output_tokens)
        for column, frontend in zip(self._receive_ps, self._frontends, strict=True):
            column[part] = _integers(receive_ps(frontend, trace.prompt_tokens))
        self._last_ps[part] = array("q", bytes(8 * n))
        self.emitted_ps[part] = array("q", [-1]) * n
        self._parts.append((range(begin, begin + n), size))
        self._before += self._end - self._begin
        self._begin = self._next = begin
        self._end = begin + n

    def _columns(self) -> tuple[array[int], ...]:
        return (
            self.arrival_ps, self._prompt, self._output, self._replica, self._cached_tokens,
            self._preemptions, self._first_ps, self._first_rows, self._last_ps, self._last_rows,
            self.emitted_ps, *self._receive_ps,
        )  # fmt: skip

    def _take_more(self) -> bool:
        """Let go what has finished, and take the next part; whether there is one."""
        if self._more is None:
            return False
        following = next(self._more, None)
        if following is None:
            self._more = None
            return False
        for replica in self.replicas:
            replica.settle()  # nothing may refer to a place that is used again
        while self._parts and self._has_finished(self._parts[0][0]):
            self._let_go()
        self._take(*following)
        return True

    def _has_finished(self, places: range) -> bool:
        return 0 not in self._last_ps[places.start : places.stop]

    def _let_go(self) -> None:
        """Hand out the requests of the first part, and free their places."""
        places, size = self._parts.popleft()
        finished = self._collected(places)
        self.end_ps = max(self.end_ps, int(finished.last_token_ps.max()))
        self._release(finished)
        self._free.append((places.start, size))

    def _settle(self) -> None:
        while self._parts:
            self._let_go()

    def _collected(self, places: range) -> Finished:
        """The columns of a part, with when the client has the first and the last token."""

        def column(values: array[int]) -> IntArray:
            return np.frombuffer(values, np.int64)[places.start : places.stop].copy()

        arrival_ps, replica = column(self.arrival_ps), column(self._replica)
        engine = (
            column(self._prompt), column(self._output), column(self._first_ps),
            column(self._first_rows), column(self._last_ps), column(self._last_rows),
        )  # fmt: skip
        first_token_ps, last_token_ps = client_times(self._frontends[0], *engine)
        if len(self._frontends) > 1:
            pool = np.array(self._pool_of)[replica]
            for k in range(1, len(self._frontends)):
                own = pool == k
                first_token_ps[own], last_token_ps[own] = client_times(
                    self._frontends[k], *(c[own] for c in engine)
                )
        if self.limits is not None:
            rejected = replica < 0
            first_token_ps[rejected] = last_token_ps[rejected] = arrival_ps[rejected]
        return Finished(
            arrival_ps,
            first_token_ps,
            last_token_ps,
            replica,
            column(self._cached_tokens),
            column(self._preemptions),
        )

    # ------------------------------------------------------------------ arrivals

    def _drive(self) -> None:
        """Go from arrival to arrival; no replica is called before somebody has to know."""
        while self._next < self._end:
            arrival = self.arrival_ps[self._next]
            while self._refresh_ps < arrival:
                self._go_on(self._refresh_ps)
                self._on_refresh()
            self._go_on(arrival)
            self._receive()
        while self._refresh_ps < _NEVER:
            self._go_on(self._refresh_ps)
            self._on_refresh()
        for replica in self.replicas:
            replica.proceed(_NEVER)

    def _go_on(self, horizon: int) -> None:
        """Call the replicas that want to be called before the horizon."""
        wakeups, replicas = self._wakeups, self.replicas
        while (i := wakeups.next_before(horizon)) >= 0:
            replicas[i].proceed(horizon)
            wakeups.set(i, replicas[i].call_ps())

    def _drive_by_events(self) -> None:
        """The same by events of SimPy: an arrival, a look of the router or a turn each."""
        env = simpy.Environment(initial_time=0)
        self._timers = Timers(env, self._one_turn)

        def arrive(_event: simpy.Event) -> None:
            planned = self._refresh_ps
            self._receive()
            if self._next < self._end:
                plan(self.arrival_ps[self._next], ARRIVAL, arrive)
            if self._refresh_ps != planned:
                plan(self._refresh_ps, REFRESH, refresh)

        def follow(i: int) -> None:
            planned = self._refresh_ps
            self._send(i, self.arrival_ps[i])
            if self._refresh_ps != planned:
                plan(self._refresh_ps, REFRESH, refresh)

        def follow_at(i: int, time: int) -> None:
            self.arrival_ps[i] = time
            plan(time, ARRIVAL, lambda _event: follow(i))

        def refresh(_event: simpy.Event) -> None:
            self._on_refresh()
            if self._refresh_ps < _NEVER:
                plan(self._refresh_ps, REFRESH, refresh)

        def plan(time: int, priority: int, call: Callable[[simpy.Event], None]) -> None:
            At(env, time - int(env.now), priority).callbacks.append(call)

        if self._followers:
            self._follow_at = follow_at
            waiting = {i for found in self._followers.values() for i, _ in found}
            for i in range(self._next, self._end):
                if i not in waiting:
                    follow_at(i, self.arrival_ps[i])
        else:
            plan(self.arrival_ps[self._next], ARRIVAL, arrive)
        env.run()

    def _one_turn(self, i: int) -> int:
        self.replicas[i].proceed(0)
        return self.replicas[i].call_ps()

    def _receive(self) -> None:
        """Send out the requests that arrive at the next time of an arrival."""
        arrival = self.arrival_ps
        i, end = self._next, self._end
        now = arrival[i]
        while i < end and arrival[i] == now:
            self._next = i + 1
            self._send(i, now)
            i += 1
            if self._progress is not None and i % 256 == 1:
                self._progress(self._before + i - self._begin)
            if i == end and self._take_more():
                i, end = self._next, self._end

    def _send(self, i: int, now: int) -> None:
        """Hand a request to the replica that the router chooses."""
        if self._refresh is not None and self._refresh_ps == _NEVER:
            self._plan_refresh(now)
        limits = self.limits
        if limits is not None and limits.shared and limits.rejects(self, -1, now):
            self._reject(i, now)
            return
        target = self._router.choose(i, now)
        prompt, output = self._prompt[i], self._output[i]
        if limits is not None:
            if not limits.shared and limits.rejects(self, target, now):
                if self._freed is not None:
                    self._freed(target)  # it counts what it sends
                self._reject(i, now)
                return
            limits.queued_tokens[target] += prompt
        self._replica[i] = target
        self.outstanding_requests[target] += 1
        self.outstanding_tokens[target] += prompt + output
        pool = self._pool_of[target]
        request = Request(i, prompt, output, block_ids=self._block_ids(i, prompt, pool))
        ready = now + self._receive_ps[pool][i]
        serial = self._ready_ps[target] + self._serial_ps[pool]
        if ready < serial:
            ready = serial
        self._ready_ps[target] = ready
        replica = self.replicas[target]
        replica.hand_in(request, ready, now)
        if self._timers is not None:
            self._timers.set(target, replica.call_ps())
        elif len(self.replicas) > 1:  # else the router need not know who has finished
            self._wakeups.set(target, replica.call_ps())

    def _reject(self, i: int, now: int) -> None:
        """The server answers at once that it has too much to do."""
        self._replica[i] = -1
        self._first_ps[i] = self._last_ps[i] = max(now, 1)
        self._cached_tokens[i] = self._preemptions[i] = 0
        if self._follow_at is not None:
            for follower, delay_ps in self._followers.get(i, ()):
                self._follow_at(follower, now + delay_ps)

    def _plan_refresh(self, now: int) -> None:
        """Let the router see the queues at the next multiple of its period."""
        period: int = self._router.period_ps  # type: ignore[attr-defined]
        self._refresh_ps = now - now % period + period

    def _on_refresh(self) -> None:
        assert self._refresh is not None
        now = self._now_ps = self._refresh_ps
        self._refresh_ps = _NEVER
        self._refresh()
        if any(self.outstanding_requests):
            self._plan_refresh(now)

    def queue_lengths(self) -> list[tuple[int, int]]:
        now = self._now_ps
        return [(r.num_unscheduled(now), r.scheduler.num_running) for r in self.replicas]

    def kv_usage(self) -> list[float]:
        now = self._now_ps
        return [r.kv_usage(now) for r in self.replicas]

    def prefix_ids(self, request: int) -> list[int]:
        if self._hash_ids is None:
            return []
        ids: list[int] = self._hash_ids[request - self._begin].tolist()
        return ids

    def length_of(self, request: int) -> tuple[int, int]:
        return self._prompt[request], self._output[request]

    def estimate(self) -> list[ServerSpeed]:
        """By server; equal ones, of whatever pool, have the same one."""
        speeds: list[ServerSpeed] = []
        for k, pool in enumerate(self._pools):
            same = [
                j
                for j, other in enumerate(self._pools[:k])
                if other.config == pool.config and other.profile == pool.profile
            ]
            if same:
                speeds.append(speeds[same[0]])
            else:
                speeds.append(ServerSpeed(pool.config, self._timings[k]))
        return [speeds[k] for k in self._pool_of]

    def _block_ids(self, i: int, prompt: int, pool: int) -> Sequence[int]:
        if self._hash_ids is None or not self._configs[pool].enable_prefix_caching:
            return ()
        ids: list[int] = self._hash_ids[i - self._begin].tolist()
        size = self._configs[pool].block_size
        return prompt_block_ids(ids, self._hash_ids.block_tokens, size, prompt)

    # ------------------------------------------------------------------ what replicas report

    def first_token(self, time_ps: int, request: Request, rows: int) -> None:
        i = request.index
        self._first_ps[i] = time_ps
        self._first_rows[i] = rows
        if self.limits is not None:
            self.limits.queued_tokens[self._replica[i]] -= self._prompt[i]

    def finished(self, time_ps: int, request: Request, rows: int) -> None:
        i = request.index
        self._last_ps[i] = time_ps
        self._last_rows[i] = rows
        self._cached_tokens[i] = request.cached_tokens
        self._preemptions[i] = request.preemptions
        target = self._replica[i]
        self.outstanding_requests[target] -= 1
        self.outstanding_tokens[target] -= self._prompt[i] + self._output[i]
        if self._freed is not None:
            self._freed(target)
        if self._learns is not None:
            self._learns(self._output[i])
        if self._follow_at is not None and i in self._followers:
            # the client answers what it has, which is a little later than the engine's token
            _, last_token_ps = client_times(
                self._frontends[self._pool_of[target]],
                *(np.array([v], np.int64) for v in (
                    self._prompt[i], self._output[i], self._first_ps[i], self._first_rows[i],
                    time_ps, rows,
                )),
            )  # fmt: skip
            for follower, delay_ps in self._followers[i]:
                self._follow_at(follower, int(last_token_ps[0]) + delay_ps)


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


def _integers(values: npt.NDArray[Any]) -> array[int]:
    return array("q", values.astype(np.int64).tobytes())
