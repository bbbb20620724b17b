"""Requests at servers: where each is sent, what the servers report, and who goes without an answer.

The events of :class:`qsim.sim.fleet.fleet.Fleet` call it; it calls the engines
(:mod:`qsim.sim.engine.replica`), which report to it, the router, the clients and the lives.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from heapq import heappop
from typing import TYPE_CHECKING

import numpy as np

from qsim.sim.engine.api_process import ApiProcess
from qsim.sim.engine.energy import PowerMeter
from qsim.sim.engine.frontend import client_last_ps
from qsim.sim.engine.replica import Replica
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_MS, PS_PER_S, Timing
from qsim.sim.engine.wakeups import WakeUps
from qsim.sim.fleet.admission import Setup
from qsim.sim.fleet.clients import Clients
from qsim.sim.fleet.columns import Columns
from qsim.sim.fleet.queue_limits import QueueLimits
from qsim.sim.fleet.routers.base import Router
from qsim.sim.fleet.routers.mixed import Packing
from qsim.sim.fleet.routers.router import make_router
from qsim.sim.fleet.routers.view import View
from qsim.sim.results.finished import FAILED, REJECTED, TIMED_OUT
from qsim.sim.results.timeline import Timeline
from qsim.sim.scheduler.request import Request

if TYPE_CHECKING:
    from qsim.sim.fleet.lives import Lives

#: later than every event
NEVER = 1 << 100


class Dispatcher:
    """Servers behind a router, and the requests that are at them.

    Parameters
    ----------
    setup : Setup
        Pools, router, clients and failures.
    columns : Columns
    clients : Clients
    timeline : Timeline
    jump : bool
        Plan decode runs in one go.
    step_log : list, optional
        Takes every launched step of every replica.

    Attributes
    ----------
    lives : Lives
        Who is on and when; set by the fleet, as are the next two.
    gaps : array of int64
        Inter-token gaps as the engine emits them: entries of :class:`qsim.sim.results.itl.Gaps`.
    lost, retried : int
        Requests that were under way at a server that failed, each time; and how often one was sent
        again.
    held, held_ps, longest_held_ps : int
        Requests that waited for a server that is on; for how long, all together and at most.
    first_tokens, ttft_ps : list of int
        By pool, where a policy asks: how many requests have had their first token, and how long
        after they were sent to a server, all together.
    """

    lives: Lives
    _times_first: bool
    _rare: bool

    def __init__(
        self,
        setup: Setup,
        columns: Columns,
        clients: Clients,
        timeline: Timeline,
        jump: bool,
        step_log: list[Step] | None,
    ) -> None:
        pools, n = setup.pools, setup.replicas
        self._pools = pools
        self._configs = [p.config for p in pools]
        self._pool_of = setup.pool_of
        self._frontends = setup.frontends
        self._serial_ps = [round(f.receive_serial_ms * PS_PER_MS) for f in self._frontends]
        self._ready_ps = [-(1 << 62)] * n  # when each front end handed on its last request
        self._columns = columns
        self._arrival_ps, self._prompt, self._output = (
            columns.arrival_ps, columns.prompt, columns.output,
        )  # fmt: skip
        self._receive_ps = columns.receive_ps
        self._server = columns.server
        self._first_ps, self._first_rows = columns.first_ps, columns.first_rows
        self._last_ps, self._last_rows = columns.last_ps, columns.last_rows
        self._late_ps = columns.late_ps
        self.emitted_ps = columns.emitted_ps
        self.gaps = array("q")
        self.timeline = timeline
        self._timings = [Timing(p.profile, p.config) for p in pools]

        self._clients = clients
        self._coming, self._deadlines = clients.coming, clients.deadlines
        self._answers, self._times_out = clients.waits, clients.times_out
        self._failures = setup.failures
        # requests by server, and those that the engine does not know yet to have gone
        self._tracks = self._times_out or self._failures is not None
        self._under_way: list[dict[int, Request]] = [{} for _ in range(n)]
        self._gone: dict[int, Request] = {}
        self._held: deque[tuple[int, int]] = deque()  # places and arrivals, while no server is on
        self._open = True
        self.lost = self.retried = 0
        self.held = self.held_ps = self.longest_held_ps = 0
        self.first_tokens, self.ttft_ps = [0] * len(pools), [0] * len(pools)
        self._sent_ps: dict[int, int] = {}  # requests that have no token yet

        self._jump, self._step_log = jump, step_log
        self._text_prompts = setup.text_prompts
        self.replicas = [self._engine(i) for i in range(n)]
        self._used = [False] * n  # engines that have begun
        self._view = View(pools, self._timings, self._pool_of, columns, self.replicas)
        self.outstanding_requests = self._view.outstanding_requests
        self.outstanding_tokens = self._view.outstanding_tokens
        self.limits: QueueLimits | None = None
        if any(c.limits_queue for c in self._configs):
            by_server = [self._configs[k] for k in self._pool_of]
            self.limits = QueueLimits(by_server, setup.router == "vllm")
        self.packs = setup.pack > 0
        self._router = self._make_router(setup)
        self._runs_ahead = not (
            self._tracks
            or self._answers
            or self.limits is not None
            or getattr(self._router, "reads_kv_usage", False)
        )
        for replica in self.replicas:
            replica.runs_ahead = self._runs_ahead
        self._freed: Callable[[int], None] | None = getattr(self._router, "finished", None)
        self._learns: Callable[[int], None] | None = getattr(self._router, "finished_tokens", None)
        self._begun: Callable[[int, int], None] | None = getattr(self._router, "first_token", None)
        self._ended: Callable[[int, int], None] | None = getattr(self._router, "ended", None)
        self._refresh: Callable[[], None] | None = None
        if n > 1:
            self._refresh = getattr(self._router, "refresh", None)
        self._refresh_ps = NEVER
        self._wakeups = WakeUps(n)
        # of a single server nobody need know who has finished
        self._lags = False

    def _make_router(self, setup: Setup) -> Router:
        weights = [self._pools[k].weight for k in self._pool_of]
        if setup.pack:
            return Packing(self._view, weights, setup.pack)
        return make_router(
            setup.router,
            self._view,
            lambda: np.random.default_rng(setup.seed),
            setup.vllm_version,
            weights,
        )

    # ------------------------------------------------------------------ to servers

    def _send(self, i: int, now: int) -> None:
        """Hand a request to the replica that the router chooses."""
        if self._refresh is not None and self._refresh_ps == NEVER:
            self._plan_refresh(now)
        if not self._open:
            self._held.append((i, self._arrival_ps[i]))
            self.held += 1
            return
        limits = self.limits
        if limits is not None and limits.shared and limits.rejects(self, -1, now):
            self._end_without_answer(i, REJECTED, now)
            return
        target = self._router.choose(i, now)
        prompt, output = self._prompt[i], self._output[i]
        if limits is not None:
            if not limits.shared and limits.rejects(self, target, now):
                if self._freed is not None:
                    self._freed(target)  # it counts what it sends
                if self._ended is not None:
                    self._ended(target, i)
                self._end_without_answer(i, REJECTED, now)
                return
            limits.queued_tokens[target] += prompt
        self._server[i] = target
        self.outstanding_requests[target] += 1
        self.outstanding_tokens[target] += prompt + output
        pool, columns = self._pool_of[target], self._columns
        request = Request(
            i,
            prompt,
            output,
            priority=columns.priority[i],
            block_ids=columns.block_ids(i, self._configs[pool]) if columns.has_ids else (),
        )
        replica = self.replicas[target]
        if self._tracks:
            self._under_way[target][i] = request
        if self._times_first:
            self._sent_ps[i] = now
        ready = now + self._receive_ps[pool][i]
        if replica.api is not None:
            replica.enter(request, now, ready - now)
        else:
            serial = self._ready_ps[target] + self._serial_ps[pool]
            if ready < serial:
                ready = serial
            self._ready_ps[target] = ready
            replica.hand_in(request, ready, now)
        if not self._lags:
            self._wakeups.set(target, replica.call_ps())

    # ------------------------------------------------------------------ what routers see

    def _plan_refresh(self, now: int) -> None:
        """Let the router see the queues at the next multiple of its period."""
        period: int = self._router.period_ps  # type: ignore[attr-defined]
        self._refresh_ps = now - now % period + period

    def _on_refresh(self) -> None:
        assert self._refresh is not None
        now = self._view.now_ps = self._refresh_ps
        self._refresh_ps = NEVER
        self._refresh()
        if any(self.outstanding_requests):
            self._plan_refresh(now)

    # ------------------------------------------------------------------ what replicas report

    def first_token(self, time_ps: int, request: Request, rows: int) -> None:
        i = request.index
        if self._gone and i in self._gone:
            return
        self._first_ps[i] = time_ps or 1  # 0: not yet
        self._first_rows[i] = rows
        if self._begun is not None:
            self._begun(self._server[i], i)
        if self._times_first:
            pool = self._pool_of[self._server[i]]
            self.first_tokens[pool] += 1
            self.ttft_ps[pool] += time_ps - self._sent_ps.pop(i, time_ps)
        if self.limits is not None:
            self.limits.queued_tokens[self._server[i]] -= self._prompt[i]

    def finished(self, time_ps: int, request: Request, rows: int, late_ps: int) -> None:
        i = request.index
        if self._gone and i in self._gone:
            return
        self._last_ps[i] = time_ps or 1  # 0: not yet
        self._last_rows[i] = rows
        self._late_ps[i] = late_ps
        self._columns.cached_tokens[i] = request.cached_tokens
        self._columns.preemptions[i] = request.preemptions
        target = self._server[i]
        if self._tracks:
            del self._under_way[target][i]
            self._clients.ended(i)
        self._free(target, i)
        if self._learns is not None:
            self._learns(self._output[i])
        if self._answers or self._times_out:
            # the client has what the engine has a little later
            client_ps = client_last_ps(
                self._frontends[self._pool_of[target]],
                self._prompt[i],
                self._output[i],
                self._first_ps[i],
                self._first_rows[i],
                time_ps,
                rows,
                late_ps,
            )
            timeout = self._columns.timeout_ps[i] if self._times_out else 0
            if timeout and client_ps > self._arrival_ps[i] + timeout:
                self._end_without_answer(i, TIMED_OUT, self._arrival_ps[i] + timeout)
            elif self._answers:
                self._answered(i, client_ps)
        if self._rare and not self.outstanding_requests[target]:
            self.lives.finished(target, time_ps)

    def _free(self, target: int, i: int) -> None:
        """The replica has a request less."""
        self.outstanding_requests[target] -= 1
        self.outstanding_tokens[target] -= self._prompt[i] + self._output[i]
        if self._freed is not None:
            self._freed(target)
        if self._ended is not None:
            self._ended(target, i)

    # ------------------------------------------------------------------ clients

    def _answered(self, i: int, time: int) -> None:
        """A client has its answer, or none; what it sends next comes now at the earliest."""
        self._clients.answered(i, max(time, self._view.now_ps))

    def _end_without_answer(self, i: int, how: int, now: int) -> None:
        """A request was rejected, its client has gone, or it failed."""
        self._server[i] = how
        self._first_ps[i] = self._last_ps[i] = max(now, 1)
        self._columns.cached_tokens[i] = self._columns.preemptions[i] = 0
        self._clients.ended(i)
        if self._answers:
            self._answered(i, now)

    def _give_up(self, now: int) -> None:
        """A client has waited for long enough, unless it has its answer."""
        _, i, arrived = heappop(self._deadlines)
        if not self._clients.waits_until(i, now):
            return
        self._view.now_ps = now
        target = self._server[i]
        if target >= 0 and i in self._under_way[target]:
            replica = self.replicas[target]
            replica.catch_up(now)
            if self._last_ps[i]:
                return
            self._take_back(target, i, self._under_way[target].pop(i), now)
            self._wakeups.set(target, replica.call_ps())
            if self._rare and not self.outstanding_requests[target]:
                self.lives.finished(target, now)
        elif (i, arrived) in self._held:
            self._held.remove((i, arrived))
        self._end_without_answer(i, TIMED_OUT, now)

    def _take_back(self, target: int, i: int, request: Request, now: int) -> None:
        self._gone[i] = request
        self.replicas[target].abort(request, now)
        self._free(target, i)
        if self.limits is not None and not self._first_ps[i]:
            self.limits.queued_tokens[target] -= self._prompt[i]

    # ------------------------------------------------------------------ servers come and go

    def _engine(self, i: int) -> Replica:
        k = self._pool_of[i]
        meter = PowerMeter(self._pools[k].profile.power, self._timings[k])
        times = self._frontends[k].api
        api = None
        if times is not None:
            api = ApiProcess(times, self._serial_ps[k], self._text_prompts)
        return Replica(
            i,
            self._configs[k],
            self._timings[k],
            meter,
            self,
            api=api,
            jump=self._jump,
            step_log=self._step_log,
        )

    def _renew(self, i: int) -> None:
        """A new engine in the place of one that is off."""
        self.replicas[i] = self._engine(i)
        self.replicas[i].runs_ahead = self._runs_ahead

    def start_engine(self, i: int, now: int) -> Replica:
        """The engine of a server that is on from now: a new one, with an empty KV cache."""
        if self._used[i]:
            self._forget(i)
            self._renew(i)
        self._used[i] = True
        self.replicas[i].meter.start(now)
        return self.replicas[i]

    def set_open(self, servers: list[int], now: int) -> None:
        """These servers take requests from now on."""
        self._open = bool(servers)
        if not servers:
            return
        self._router.only(servers)
        while self._held:
            i, arrival = self._held.popleft()
            self.held_ps += now - arrival
            self.longest_held_ps = max(self.longest_held_ps, now - arrival)
            self._send(i, now)

    def _forget(self, i: int) -> None:
        """The server's KV cache is gone."""
        forget = getattr(self._router, "forget", None)
        if forget is not None:
            forget(i)

    def lose(self, target: int, now: int) -> None:
        """The server fails: the requests under way are lost; clients send them again, or fail."""
        failures = self._failures
        assert failures is not None
        self._view.now_ps = now
        replica = self.replicas[target]
        replica.catch_up(now)
        replica.settle()
        for request in replica.aborts:
            request.finished = True
        lost, self._under_way[target] = self._under_way[target], {}
        self._wakeups.set(target, -1)
        self._renew(target)
        self._used[target] = False
        self._forget(target)
        again = now + round(failures.retry_after_s * PS_PER_S)
        for i in lost:
            self.lost += 1
            self._free(target, i)
            if self.limits is not None and not self._first_ps[i]:
                self.limits.queued_tokens[target] -= self._prompt[i]
            self._first_ps[i] = 0
            self.emitted_ps[i] = -1
            if self._clients.lost(i) > failures.retries:
                self._end_without_answer(i, FAILED, now)
            else:
                self._clients.plan_again(again, i, self._arrival_ps[i])
