"""A fleet: pools of servers behind a router, fed by a trace or by clients that wait for answers.

The whole simulation in one place: arrivals are fed in a tight loop; whatever is rare (servers that
start, stop and fail, the autoscaler's looks) is an event of SimPy in between
(:mod:`qsim.sim.fleet.lives`). Before each of them the engines go on to its time
(:mod:`qsim.sim.engine.replica`), and the router says where a request goes
(:mod:`qsim.sim.fleet.routers.router`); what goes to servers and comes back is in
:mod:`qsim.sim.fleet.dispatcher`. What clients send after answers, and until when they wait, is in
:mod:`qsim.sim.fleet.clients`; the requests' columns are in :mod:`qsim.sim.fleet.columns`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heappop
from typing import TYPE_CHECKING

import numpy as np

from qsim.sim.engine.clock import clock_origin_s, within_clock
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import Setup
from qsim.sim.fleet.clients import NEXT, Clients
from qsim.sim.fleet.columns import Columns
from qsim.sim.fleet.dispatcher import NEVER, Dispatcher
from qsim.sim.fleet.lives import Lives
from qsim.sim.results.finished import Finished
from qsim.sim.results.timeline import Timeline
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.sim.fleet.policy import Policy


class Fleet(Dispatcher):
    """Runs a trace through the engines of its pools; one instance, one run.

    What it knows of requests at servers are the attributes of :class:`Dispatcher`.

    Parameters
    ----------
    trace : Trace
        Its requests must be admissible for every pool; ``output_tokens`` says what each generates.
    release : callable
        Takes the requests of a part when all of them, and of the parts before, have finished.
        Inter-token gaps up to then are in ``gaps``, which it may empty.
    jump, step_log
        As of :func:`qsim.sim.simulate.simulate`.
    progress : callable, optional
        Called now and then with the number of requests that have arrived.
    more : iterator of (Trace, sequence of int), optional
        What follows ``trace`` on the same clock, with its output tokens. A part is taken when the
        last request before it has arrived.
    span_s : (float, float), optional
        First and last arrival of all parts, where they are known, for the timeline's bins.
    policy : Policy, optional
        Says how many servers of each pool are on; all are unless given, or what the setup's
        autoscaler says. Time and energy then count from 0, to ``end_s`` at least.
    bin_s : float, optional
        Width of the timeline's bins, s.
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
        policy: Policy | None = None,
        end_s: float = 0.0,
        bin_s: float | None = None,
    ) -> None:
        pools, n = setup.pools, setup.replicas
        self._progress, self._more, self._release = progress, more, release
        self._name = trace.name
        #: the trace's time at which the clock of the run is 0
        self.origin_s = 0.0 if policy else clock_origin_s(float(trace.arrival_s[0]))
        columns = Columns(setup.frontends, setup.pool_of, self.origin_s, setup.client_timeout_s)
        # the next request, where its part begins and ends, and how many requests were before it
        places = columns.take(trace, output_tokens)
        self._begin = self._next = places.start
        self._end = places.stop
        self._before = 0
        first_ps, last_ps = (
            (columns.arrival_ps[0], columns.arrival_ps[-1])
            if span_s is None
            else (int(np.rint((s - self.origin_s) * PS_PER_S)) for s in span_s)
        )
        self._start_ps = 0 if policy else columns.arrival_ps[0]
        self._span_end_ps = last_ps
        timeline = Timeline(
            0 if policy else first_ps,
            last_ps,
            n,
            [pools[k].config.num_gpu_blocks - 1 for k in setup.pool_of],
            None if bin_s is None else round(bin_s * PS_PER_S),
        )
        clients = Clients(setup, trace, self.event_planned)
        jump = jump and step_log is None
        super().__init__(setup, columns, clients, timeline, jump, step_log)
        scaler = setup.scaler() if policy is None else None
        self.lives = Lives(
            self,
            pools,
            self._pool_of,
            policy or scaler,
            setup.failures,
            setup.seed,
            end_s,
            scaler is not None,
        )
        self._times_first = scaler is not None and scaler.reads_ttft
        self._rare = self.lives.rare
        # nobody need know who has finished
        self._lags = n == 1 and jump and not (self._rare or self._tracks or self._answers)
        self._view.lags = self._lags
        if self._lags:
            self.replicas[0].unwatched = self._runs_ahead
        self._sooner = False  # something was planned while the engines went on
        #: when the last client has the last token
        self.end_ps = 0

    def run(self) -> None:
        """Run to the last token, and to the end that was asked for."""
        with _rare_collections(), within_clock(self._name):
            self.lives.begin(self._start_ps, self._span_end_ps)
            self._clients.begin(self._start_ps, range(self._next, self._end), self._arrival_ps)
            self._drive()
            while not self._columns.empty:
                self._let_go()
            self.end_ps = max(self.end_ps, self.lives.end_ps)
            self.lives.end(self.end_ps)

    # ------------------------------------------------------------------ from event to event

    def _drive(self) -> None:
        """Take what comes first: an arrival, or something rare; the engines go on until then."""
        lags = self._lags
        while True:
            arrival, rare = self._next_arrival_ps(), self._next_rare_ps()
            at = arrival if arrival <= rare else rare
            if not lags:
                self._go_on(at)
                if self._sooner:
                    self._sooner = False
                    continue
            if at == NEVER:
                break
            if arrival <= rare:
                self._receive(at)
            elif not self._happen(at):
                break
        if lags:
            self.replicas[0].proceed(NEVER)

    def _next_arrival_ps(self) -> int:
        at = self._coming[0][0] if self._coming else NEVER
        if self._next < self._end and not self._answers and self._arrival_ps[self._next] < at:
            return self._arrival_ps[self._next]
        return at

    def _next_rare_ps(self) -> int:
        at = self._refresh_ps
        if self._deadlines and self._deadlines[0][0] < at:
            at = self._deadlines[0][0]
        if self._rare:
            event = self.lives.env.peek()
            if event < at:
                at = int(event)
        return at

    def _go_on(self, horizon: int) -> None:
        """Call the replicas that want to be called before the horizon."""
        wakeups, replicas, view = self._wakeups, self.replicas, self._view
        if not self._answers:
            while (i := wakeups.next_before(horizon)) >= 0:
                replicas[i].proceed(horizon)
                wakeups.set(i, replicas[i].call_ps())
            return
        while (i := wakeups.next_before(horizon)) >= 0:
            # an answer may bring the next request, so nobody goes beyond the next answer
            view.now_ps = wakeups.time_ps
            replicas[i].proceed(wakeups.time_ps + 1)
            wakeups.set(i, replicas[i].call_ps())
            if self._sooner:
                return

    def _happen(self, now: int) -> bool:
        """What is rare and comes first; False if nothing is left to wait for."""
        if self._refresh_ps == now:
            self._on_refresh()
        elif self._deadlines and self._deadlines[0][0] == now:
            self._give_up(now)
        elif self.lives.goes_on or self._unfinished():
            self.lives.env.step()
        else:
            return False
        return True

    def _unfinished(self) -> bool:
        return (
            any(self.outstanding_requests)
            or bool(self._coming)
            or bool(self._held)
            or (self._next < self._end and not self._clients.sessions)
        )

    def event_planned(self) -> None:
        """An event of SimPy was planned, perhaps for earlier than what is being waited for."""
        self._sooner = True

    # ------------------------------------------------------------------ parts of the trace

    def _take(self, trace: Trace, output_tokens: Sequence[int]) -> None:
        places = self._columns.take(trace, output_tokens)
        self._before += self._end - self._begin
        self._begin = self._next = places.start
        self._end = places.stop

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
        if self._gone:
            self._gone = {i: r for i, r in self._gone.items() if not r.finished}
        while self._columns.has_finished(set(self._gone)):
            self._let_go()
        self._take(*following)
        return True

    def _let_go(self) -> None:
        """Hand out the requests of the first part."""
        finished = self._columns.let_go()
        self.end_ps = max(self.end_ps, int(finished.last_token_ps.max()))
        self._release(finished)

    # ------------------------------------------------------------------ requests that come

    def _receive(self, now: int) -> None:
        """Send out the requests that arrive now."""
        while self._coming and self._coming[0][0] == now:
            _, entry, i, arrived = heappop(self._coming)
            self._come(i, arrived, entry, now)
        if self._answers:
            return
        arrival = self._arrival_ps
        i, end = self._next, self._end
        while i < end and arrival[i] == now:
            self._next = i + 1
            self._arrive(i, now)
            i += 1
            if self._progress is not None and i % 256 == 1:
                self._progress(self.arrived)
            if i == end and self._take_more():
                i, end = self._next, self._end

    def _come(self, i: int, arrived: int, entry: int, now: int) -> None:
        """A request of a client that waited, for an answer or after it was lost."""
        if arrived >= 0:  # lost; the client may have given up meanwhile
            if self._clients.sends_again(i, entry):
                self.retried += 1
                self._send(i, now)
            return
        if i == NEXT:
            if self._next == self._end and not self._take_more():
                return
            i = self._next
            self._next = i + 1
            if self._progress is not None and self._next % 256 == 1:
                self._progress(self.arrived)
            if self._clients.thinks:
                self._clients.taken(i)
        self._arrival_ps[i] = now
        self._arrive(i, now)

    @property
    def arrived(self) -> int:
        """Requests of the trace that have come."""
        return self._before + self._next - self._begin

    @property
    def held_requests(self) -> int:
        """Requests that wait for a server that is on."""
        return len(self._held)

    @property
    def more_to_come(self) -> bool:
        """Whether anything happens beside requests that wait for a server."""
        return (
            any(self.outstanding_requests)
            or bool(self._coming)
            or bool(self._deadlines)
            # of clients that wait for answers nobody sends a further request by himself
            or (not self._answers and (self._more is not None or self._next < self._end))
        )

    def look(self, now: int) -> None:
        """A policy looks at the servers: what comes of that comes now at the earliest."""
        if now > self._view.now_ps:
            self._view.now_ps = now

    def _arrive(self, i: int, now: int) -> None:
        if self._times_out and self._columns.timeout_ps[i]:
            self._clients.sent(i, now, self._columns.timeout_ps[i])
        self._send(i, now)


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
