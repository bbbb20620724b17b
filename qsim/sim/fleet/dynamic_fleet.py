"""A fleet whose servers differ and come and go, fed by a trace and steered by a policy.

It drives the same :class:`qsim.sim.engine.replica.Replica` as :class:`qsim.sim.fleet.fleet.Fleet`
does. Every life of a server, from on to off or asleep, is an engine of its own: with an empty KV
cache.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import simpy

from qsim.errors import ScenarioError
from qsim.sim.engine.clock import MOST_S, arrivals_ps, within_clock
from qsim.sim.engine.energy import PowerMeter
from qsim.sim.engine.events import ARRIVAL, REFRESH, At, Timers
from qsim.sim.engine.frontend import FREE, client_times, receive_ps
from qsim.sim.engine.replica import Replica
from qsim.sim.engine.timing import PS_PER_MS, PS_PER_S, Timing
from qsim.sim.fleet.autoscaler import Observation, Policy
from qsim.sim.fleet.fleet import _integers, _rare_collections
from qsim.sim.fleet.lifecycle import ASLEEP, DRAINING, OFF, ON, STARTING, WAKING, ServerPool
from qsim.sim.fleet.server import Life, Server
from qsim.sim.results.finished import Finished
from qsim.sim.results.timeline import Timeline
from qsim.sim.scheduler.config import refuse_queue_limits
from qsim.sim.scheduler.kv_cache import prompt_block_ids
from qsim.sim.scheduler.scheduler import Request
from qsim.traces.trace import Trace

__all__ = ["DynamicFleet"]

_NEVER = 1 << 100
#: how long after the trace's end a policy may leave requests waiting
_PATIENCE_PS = 3600 * PS_PER_S


class _NoGaps:
    """In the place of the gaps between tokens where nobody asks for them."""

    def extend(self, entries: object) -> None:
        """Forget them."""

    append = frombytes = extend


class DynamicFleet:
    """Runs a trace through pools of servers; one instance, one run.

    Parameters
    ----------
    trace : Trace
        Its requests must be admissible for every pool.
    output_tokens : sequence of int
        Tokens that each request will generate.
    pools : sequence of ServerPool
    policy : Policy
    end_s : float
        Energy and rent are counted from 0 to this time of the trace, or to the last token if that
        is later.
    bin_s : float
        Width of the bins in which power is kept, s.
    pack : int
        With 0 a request goes to the server with the fewest requests outstanding per weight; else
        to the first one, in a fixed order, that has fewer than ``pack`` times its weight, and to
        the one with the fewest if all are full.
    jump : bool
        As for :class:`qsim.sim.fleet.fleet.Fleet`.

    Attributes
    ----------
    answered : Finished
        All requests; ``replica`` is the server that answered each.
    changes : list of (time_s, pool, on, starting, draining, asleep)
        How many servers there were, after every change.
    decisions : list of (time_s, counts)
        What the policy wanted, whenever it wanted something else.
    """

    def __init__(
        self,
        trace: Trace,
        output_tokens: Sequence[int],
        pools: Sequence[ServerPool],
        policy: Policy,
        *,
        end_s: float,
        bin_s: float = 60.0,
        pack: int = 0,
        frontend: bool = True,
        jump: bool = True,
        keep_gaps: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        n = len(trace)
        self.env = simpy.Environment(initial_time=0)
        self._timers = Timers(self.env, self._call)
        self._horizon_ps = 0
        self._name = trace.name
        self.arrival_ps = arrivals_ps(trace.name, trace.arrival_s)
        self._prompt = _integers(trace.prompt_tokens)
        self._output = array("q", output_tokens)
        self._hash_ids = trace.hash_ids
        self._progress = progress
        self._next = 0
        self.emitted_ps = array("q", [-1]) * n
        self.gaps: array[int] = array("q") if keep_gaps else cast("array[int]", _NoGaps())
        self._jump = jump

        self.pools = tuple(pools)
        for p in pools:
            refuse_queue_limits(p.options.to_dict(), "a schedule")
        self.configs = [p.options.resolve(p.profile) for p in pools]
        self._timings = [Timing(p.profile, c) for p, c in zip(pools, self.configs, strict=True)]
        self.servers = [
            Server(index, number)
            for index, number in enumerate(k for k, p in enumerate(pools) for _ in range(p.limit))
        ]
        self._blocks = [self.configs[s.pool].num_gpu_blocks - 1 for s in self.servers]
        self.timeline = Timeline(
            0,
            self.arrival_ps[-1],
            len(self.servers),
            self._blocks,
            width_ps=round(bin_s * PS_PER_S),
        )
        self.outstanding = [0] * len(self.servers)
        self._inverse = [1.0 / pools[s.pool].weight for s in self.servers]
        self._full = [math.ceil(pack * pools[s.pool].weight) for s in self.servers]
        self._pack = pack
        self._open: list[int] = []  # servers that are on, in order
        self._turn = -1  # the server that had the last request
        self._held: deque[int] = deque()

        self._policy = policy
        self._period_ps = round(policy.period_s * PS_PER_S)
        if self._period_ps < 1:
            raise ScenarioError(f"period_s is {policy.period_s!r}; must be > 0")
        if not end_s <= MOST_S:
            raise ScenarioError(f"end_s is {end_s!r}; must be at most {MOST_S:,.0f} s (104 days)")
        self._end_ps = round(end_s * PS_PER_S)
        ticks = max(self._end_ps, self.arrival_ps[-1]) // self._period_ps + 2
        self._history = np.zeros(ticks, np.int64)
        self._ticks = 0
        self._counted = 0
        self._tick_ps = _NEVER
        self._wanted: tuple[int, ...] = ()
        self.changes: list[tuple[float, int, int, int, int, int]] = []
        self.decisions: list[tuple[float, tuple[int, ...]]] = []

        self._frontends = [p.profile.frontend if frontend else FREE for p in pools]
        self._receive_ps = [_integers(receive_ps(f, trace.prompt_tokens)) for f in self._frontends]
        self._serial_ps = [round(f.receive_serial_ms * PS_PER_MS) for f in self._frontends]
        self._ready_ps = [-(1 << 62)] * len(self.servers)
        self._server_of = _column(n)
        self._cached_tokens = _column(n)
        self._preemptions = _column(n)
        self._first_ps, self._first_rows = _column(n), _column(n)
        self._last_ps, self._last_rows = _column(n), _column(n)

    def run(self) -> None:
        """Run to the last token, and to the end that was asked for."""
        self._want(self._policy.initial())
        for server in self.servers:
            server.since_ps = 0
        for number, count in enumerate(self._wanted):
            for server in [s for s in self.servers if s.pool == number][:count]:
                self._turn_on(server, 0)
        self._plan_tick()
        self._schedule_arrival()
        with _rare_collections(), within_clock(self._name):
            self.env.run()
        self.answered = self._collected()
        self.end_ps = max(self._end_ps, int(self.answered.last_token_ps.max()))
        for server in self.servers:
            self._leave(server, max(self.end_ps, server.since_ps))

    # ------------------------------------------------------------------ the policy

    def _want(self, counts: tuple[int, ...]) -> None:
        limits = tuple(p.limit for p in self.pools)
        if len(counts) != len(limits) or not all(isinstance(c, int) and c >= 0 for c in counts):
            raise ScenarioError(
                f"the policy wants {counts!r}; must be a whole number >= 0 for each of "
                f"{len(limits)} pools"
            )
        counts = tuple(min(c, most) for c, most in zip(counts, limits, strict=True))
        if counts != self._wanted:
            self._wanted = counts
            self.decisions.append((int(self.env.now) / PS_PER_S, counts))

    def _plan_tick(self) -> None:
        now = int(self.env.now)
        at = now - now % self._period_ps + self._period_ps
        last = max(self._end_ps, self.arrival_ps[-1])
        if now >= last and not self._held:
            self._tick_ps = _NEVER
            return
        if now > last + _PATIENCE_PS:
            raise ScenarioError(
                f"{len(self._held)} requests wait for a server at the end of the trace, and the "
                f"policy wants {self._wanted}: it must keep one on"
            )
        self._tick_ps = at
        event = At(self.env, at - now, REFRESH)
        event.callbacks.append(self._on_tick)

    def _on_tick(self, _event: simpy.Event) -> None:
        now = int(self.env.now)
        if self._ticks < len(self._history):
            self._history[self._ticks] = self._next - self._counted
        self._counted = self._next
        self._ticks += 1
        self._want(tuple(self._policy.decide(self._observe(now))))
        self._steer(now)
        self._plan_tick()
        self._set_horizon()

    def _observe(self, now: int) -> Observation:
        pools = range(len(self.pools))
        counts = [self._counts(k) for k in pools]
        waiting, outstanding = [0] * len(self.pools), [0] * len(self.pools)
        for server in self.servers:
            if server.life is not None:
                waiting[server.pool] += server.life.replica.num_unscheduled(now)
                outstanding[server.pool] += self.outstanding[server.index]
        history = self._history[: self._ticks]
        history.flags.writeable = False
        return Observation(
            now / PS_PER_S,
            tuple(c[0] for c in counts),
            tuple(c[1] for c in counts),
            tuple(c[2] for c in counts),
            tuple(c[3] for c in counts),
            tuple(waiting),
            tuple(outstanding),
            len(self._held),
            history,
        )

    def _counts(self, pool: int) -> tuple[int, int, int, int]:
        states = [s.state for s in self.servers if s.pool == pool]
        return (
            states.count(ON),
            states.count(STARTING) + states.count(WAKING),
            states.count(DRAINING),
            states.count(ASLEEP),
        )

    def _steer(self, now: int) -> None:
        """Start or drain servers, so that as many as wanted are on or on their way."""
        for number, wanted in enumerate(self._wanted):
            own = [s for s in self.servers if s.pool == number]
            coming = [s for s in own if s.state in (STARTING, WAKING)]
            present = [s for s in own if s.state == ON]
            missing = wanted - len(present) - len(coming)
            for server in [s for s in own if s.state == ASLEEP] + [
                s for s in own if s.state == OFF
            ]:
                if missing <= 0:
                    break
                self._start(server, now)
                missing -= 1
            # those that are still coming are never called off: they would have cost for nothing
            spare = min(len(present), len(present) + len(coming) - wanted)
            if spare > 0:
                if self._pack:
                    present.sort(key=lambda s: -s.index)
                else:
                    present.sort(key=lambda s: (self.outstanding[s.index], -s.index))
                for server in present[:spare]:
                    self._drain(server, now)

    # ------------------------------------------------------------------ lives of servers

    def _start(self, server: Server, now: int) -> None:
        cycle = self.pools[server.pool].lifecycle
        asleep = server.state == ASLEEP
        self._enter(server, WAKING if asleep else STARTING, now)
        server.wakes += asleep
        server.starts += not asleep
        delay = round((cycle.wake_s if asleep else cycle.start_s) * PS_PER_S)
        event = At(self.env, delay, REFRESH)
        event.callbacks.append(lambda _: self._turn_on(server, int(self.env.now)))

    def _turn_on(self, server: Server, now: int) -> None:
        self._enter(server, ON, now)
        pool, timing = self.pools[server.pool], self._timings[server.pool]
        meter = PowerMeter(pool.profile.power, timing)
        meter.start(now)
        replica = Replica(
            server.index, self.configs[server.pool], timing, meter, self, jump=self._jump
        )
        server.life = Life(replica)
        self._open = [s.index for s in self.servers if s.state == ON]
        while self._held:
            self._send(self._held.popleft(), self._choose(), now)

    def _drain(self, server: Server, now: int) -> None:
        self._enter(server, DRAINING, now)
        self._open.remove(server.index)
        if not self.outstanding[server.index]:
            self._stop(server, now)

    def _stop(self, server: Server, now: int) -> None:
        """The last token was at ``now``, which may lie ahead of the clock, but not of the horizon.

        The engine is done with its books before ``stop_s`` have passed.
        """
        pool = self.pools[server.pool]
        at = now + round(max(pool.lifecycle.stop_s, 1.0) * PS_PER_S)
        event = At(self.env, at - int(self.env.now), REFRESH)
        event.callbacks.append(lambda _: self._enter(server, ASLEEP if pool.sleeps else OFF, at))

    def _enter(self, server: Server, state: int, now: int) -> None:
        if state != DRAINING:
            self._leave(server, now)
        else:  # on to draining: the engine goes on
            server.spend(now, 0.0)
        server.state = state
        self.changes.append((now / PS_PER_S, server.pool, *self._counts(server.pool)))

    def _leave(self, server: Server, now: int) -> None:
        """Account for the state that ends, or for the engine's life."""
        if server.life is not None:
            server.end_life(now)
        elif now > server.since_ps:
            pool = self.pools[server.pool]
            watts = pool.lifecycle.power_w(server.state, pool.profile.power.idle_w)
            energy = watts * ((now - server.since_ps) / PS_PER_S)
            self.timeline.add(server.index, now, energy, 0, 0, self._blocks[server.index])
            server.spend(now, energy)

    # ------------------------------------------------------------------ arrivals

    def _set_horizon(self) -> None:
        following = self.arrival_ps[self._next] if self._next < len(self.arrival_ps) else _NEVER
        self._horizon_ps = min(following, self._tick_ps)

    def _schedule_arrival(self) -> None:
        if self._next < len(self.arrival_ps):
            event = At(self.env, self.arrival_ps[self._next] - int(self.env.now), ARRIVAL)
            event.callbacks.append(self._arrive)
        self._set_horizon()

    def _arrive(self, _event: simpy.Event) -> None:
        arrival = self.arrival_ps
        i = self._next
        now = arrival[i]
        n = len(arrival)
        while i < n and arrival[i] == now:
            if self._open:
                self._send(i, self._choose(), now)
            else:
                self._held.append(i)
            i += 1
            self._next = i
            if self._progress is not None and i % 4096 == 1:
                self._progress((i - 1) / n)
        self._schedule_arrival()

    def _choose(self) -> int:
        load, candidates = self.outstanding, self._open
        if self._pack:
            for index in candidates:
                if load[index] < self._full[index]:
                    return index
        least, chosen, after = math.inf, -1, False
        for index in candidates:
            value = (load[index] + 1) * self._inverse[index]
            # of equals the next one in turn
            if value < least or (value == least and not after and index > self._turn):
                least, chosen, after = value, index, index > self._turn
        self._turn = chosen
        return chosen

    def _send(self, i: int, target: int, now: int) -> None:
        server = self.servers[target]
        assert server.life is not None
        prompt = self._prompt[i]
        self._server_of[i] = target
        self.outstanding[target] += 1
        ready = now + self._receive_ps[server.pool][i]
        serial = self._ready_ps[target] + self._serial_ps[server.pool]
        ready = max(ready, serial)
        self._ready_ps[target] = ready
        request = Request(i, prompt, self._output[i], block_ids=self._block_ids(i, server.pool))
        server.requests += 1
        server.life.replica.hand_in(request, ready, now)
        self._timers.set(target, server.life.replica.call_ps())

    def _call(self, index: int) -> int:
        """Let an engine go on; when it wants to be called next."""
        life = self.servers[index].life
        assert life is not None
        life.replica.proceed(self._horizon_ps)
        return life.replica.call_ps()

    def _block_ids(self, i: int, pool: int) -> Sequence[int]:
        config = self.configs[pool]
        if self._hash_ids is None or not config.enable_prefix_caching:
            return ()
        ids: list[int] = self._hash_ids[i].tolist()
        return prompt_block_ids(
            ids, self._hash_ids.block_tokens, config.block_size, self._prompt[i]
        )

    # ------------------------------------------------------------------ what replicas report

    def first_token(self, time_ps: int, request: Request, rows: int) -> None:
        i = request.index
        self._first_ps[i] = time_ps
        self._first_rows[i] = rows

    def finished(self, time_ps: int, request: Request, rows: int) -> None:
        i = request.index
        self._last_ps[i] = time_ps
        self._last_rows[i] = rows
        self._cached_tokens[i] = request.cached_tokens
        self._preemptions[i] = request.preemptions
        target = self._server_of[i]
        self.outstanding[target] -= 1
        server = self.servers[target]
        if server.state == DRAINING and not self.outstanding[target]:
            self._stop(server, time_ps)

    def _collected(self) -> Finished:
        """All requests, with when the client has the first and the last token."""

        def column(values: array[int]) -> npt.NDArray[np.int64]:
            return np.frombuffer(values, np.int64)

        servers = column(self._server_of)
        pools = np.array([s.pool for s in self.servers])[servers]
        engine = (self._prompt, self._output, self._first_ps, self._first_rows, self._last_ps,
                  self._last_rows)  # fmt: skip
        first_token_ps, last_token_ps = np.empty((2, len(servers)), np.int64)
        for number, frontend in enumerate(self._frontends):
            own = pools == number
            first_token_ps[own], last_token_ps[own] = client_times(
                frontend, *(column(c)[own] for c in engine)
            )
        return Finished(
            column(self.arrival_ps),
            first_token_ps,
            last_token_ps,
            servers,
            column(self._cached_tokens),
            column(self._preemptions),
        )


def _column(n: int) -> array[int]:
    return array("q", bytes(8 * n))
