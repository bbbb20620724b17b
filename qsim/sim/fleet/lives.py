"""The lives of a fleet's servers: who starts, drains, stops, sleeps, fails and is repaired, when.

All of it is rare, and an event of SimPy each; between two of them the fleet feeds arrivals. Every
life of a server, from on to off, asleep or failed, is an engine of its own: with an empty KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from qsim.errors import ScenarioError
from qsim.sim.engine.clock import MOST_S
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.failures import Failures
from qsim.sim.fleet.lifecycle import ASLEEP, DRAINING, FAILED, OFF, ON, STARTING, WAKING
from qsim.sim.fleet.pool import ResolvedPool
from qsim.sim.fleet.server import Server

if TYPE_CHECKING:
    import simpy

    from qsim.sim.fleet.fleet import Fleet
    from qsim.sim.fleet.policy import Observation, Policy, PoolSignals

#: how long a policy may leave requests waiting after the trace's end, or after everything else
_PATIENCE_PS = 3600 * PS_PER_S


@dataclass(eq=False)
class Lives:
    """Steers the servers of a fleet; without a policy and failures all are on for ever."""

    #: its engines are started and ended here
    _fleet: Fleet
    _pools: tuple[ResolvedPool, ...]
    #: by server, the number of its pool
    _pool_of: list[int]
    #: says how many servers of each pool are to be on
    _policy: Policy | None
    _failures: Failures | None
    #: of the failures that are drawn
    _seed: int
    #: with a policy: energy and rent are counted to this time, or to a later last token
    _end_s: float
    #: with a policy: it is asked until the last request has ended, whenever that is, instead of to
    #: the trace's end
    _until_answered: bool

    def __post_init__(self) -> None:
        policy, pools, end_s = self._policy, self._pools, self._end_s
        self.rare = policy is not None or self._failures is not None
        self.servers = [
            Server(i, k, pools[k].config.num_gpu_blocks - 1) for i, k in enumerate(self._pool_of)
        ]
        #: list of (time_s, pool, on, starting, draining, asleep): how many servers there were,
        #: after every change
        self.changes: list[tuple[float, int, int, int, int, int]] = []
        #: list of (time_s, counts): what the policy wanted, whenever it wanted something else
        self.decisions: list[tuple[float, tuple[int, ...]]] = []
        #: list of (server, begin_ps, end_ps): when failed servers were down, start-up included; in
        #: the order of their ends
        self.outages: list[tuple[int, int, int]] = []
        self.down: dict[int, int] = {}  # servers that are failed or start after it, and since when
        self.failed = 0  # how often a server failed
        self._wanted: tuple[int, ...] = ()
        self._ticks = self._counted = 0
        self._period_ps = self.end_ps = self._start_ps = 0
        self._periods_ps: list[int] = []
        self._stuck_ps = -1  # since when nothing happens but that requests wait
        self._reads_signals = bool(getattr(policy, "reads_signals", False))
        self._provision_ps = round(getattr(policy, "provision_s", 0.0) * PS_PER_S)
        if policy is not None:
            self._period_ps = round(policy.period_s * PS_PER_S)
            if self._period_ps < 1:
                raise ScenarioError(f"period_s is {policy.period_s!r}; must be > 0")
            periods_s = getattr(policy, "periods_s", (policy.period_s,))
            self._periods_ps = [round(s * PS_PER_S) for s in periods_s]
            if not end_s <= MOST_S:
                raise ScenarioError(
                    f"end_s is {end_s!r}; must be at most {MOST_S:,.0f} s (104 days)"
                )
            self.end_ps = round(end_s * PS_PER_S)
        self._last_ps = 0
        self._history = np.zeros(1, np.int64)

    def begin(self, start_ps: int, last_arrival_ps: int) -> None:
        """Turn on who is on from the beginning.

        Parameters
        ----------
        last_arrival_ps : int
            With a policy, which is asked until then: of the whole trace.
        """
        self._start_ps = start_ps
        for server in self.servers:
            server.since_ps = start_ps
        if self._policy is None:
            for server in self.servers:
                self._switch_on(server, start_ps)
        else:
            if not self._until_answered:
                self._last_ps = max(self.end_ps, last_arrival_ps)
                self._history = np.zeros(self._last_ps // self._period_ps + 2, np.int64)
            self._want(self._policy.initial())
            for number, count in enumerate(self._wanted):
                for server in [s for s in self.servers if s.pool == number][:count]:
                    self._switch_on(server, start_ps)
            self._plan_tick(start_ps)
        self._tell(start_ps)
        if self._failures is not None:
            for number, at_s, for_s in self._failures.listed(self._pools):
                at_ps = round((at_s - self._fleet.origin_s) * PS_PER_S)
                if at_ps >= start_ps:
                    self._plan_failure(self.servers[number], at_ps, for_s)

    def end(self, end_ps: int) -> None:
        """Close the books."""
        for number, since_ps in self.down.items():
            self.outages.append((number, since_ps, max(end_ps, since_ps)))
        self.down = {}
        for server in self.servers:
            self._leave(server, max(end_ps, server.since_ps))

    def finished(self, index: int, time_ps: int) -> None:
        """The server has no request left."""
        server = self.servers[index]
        if server.state == DRAINING:
            self._stop(server, time_ps)

    @property
    def goes_on(self) -> bool:
        """Whether events are to happen also after the last request has ended."""
        return self._policy is not None and not self._until_answered

    # ------------------------------------------------------------------ the policy

    def _want(self, counts: tuple[int, ...]) -> None:
        limits = tuple(p.replicas for p in self._pools)
        if len(counts) != len(limits) or not all(isinstance(c, int) and c >= 0 for c in counts):
            raise ScenarioError(
                f"the policy wants {counts!r}; must be a whole number >= 0 for each of "
                f"{len(limits)} pools"
            )
        counts = tuple(min(c, most) for c, most in zip(counts, limits, strict=True))
        if counts != self._wanted:
            self._wanted = counts
            self.decisions.append((int(self.env.now) / PS_PER_S, counts))

    def _plan_tick(self, now: int) -> None:
        """Ask the policy at the next multiple of one of its periods since the beginning."""
        since = now - self._start_ps
        at = now + min(p - since % p for p in self._periods_ps)
        held = self._fleet.held_requests
        if self._until_answered:
            self._check_stuck(now, held)
        elif now >= self._last_ps and not held:
            return
        elif now > self._last_ps + _PATIENCE_PS:
            raise ScenarioError(
                f"{held} requests wait for a server at the end of the trace, and the "
                f"policy wants {self._wanted}: it must keep one on"
            )
        self._at(at, self._tick)

    def _check_stuck(self, now: int, held: int) -> None:
        """Refuse to wait for ever for a policy that sees nothing new and starts no server."""
        stuck = held and not any(self._wanted) and not self._fleet.more_to_come
        if not stuck:
            self._stuck_ps = -1
        elif self._stuck_ps < 0:
            self._stuck_ps = now
        elif now > self._stuck_ps + _PATIENCE_PS:
            raise ScenarioError(
                f"{held} requests wait at the gateway and no more come, and the autoscaler starts "
                "no server for them: take a lower activation, a signal that counts requests which "
                "wait, or min_replicas 1"
            )

    def _tick(self) -> None:
        assert self._policy is not None
        now = int(self.env.now)
        self._fleet.look(now)
        arrived = self._fleet.arrived
        if self._ticks < len(self._history):
            self._history[self._ticks] = arrived - self._counted
        self._counted = arrived
        self._ticks += 1
        self._want(tuple(self._policy.decide(self._observe(now))))
        self._steer(now)
        self._plan_tick(now)

    def _observe(self, now: int) -> Observation:
        from qsim.sim.fleet.policy import Observation

        pools = range(len(self._pools))
        on, starting, draining, asleep = zip(*map(self._counts, pools), strict=True)
        signals: tuple[PoolSignals, ...] = ()
        waiting, outstanding = [0] * len(self._pools), [0] * len(self._pools)
        if self._reads_signals:
            signals = tuple(self._signals(k, now) for k in pools)
        for server in () if self._reads_signals else self.servers:
            if server.replica is not None:
                waiting[server.pool] += server.replica.num_unscheduled(now)
                outstanding[server.pool] += self._fleet.outstanding_requests[server.index]
        history = self._history[: 0 if self._until_answered else self._ticks]
        history.flags.writeable = False
        return Observation(
            now / PS_PER_S,
            on,
            starting,
            draining,
            asleep,
            tuple(waiting),
            tuple(outstanding),
            self._fleet.held_requests,
            history,
            (now - self._start_ps) / PS_PER_S,
            self._fleet.arrived,
            signals,
        )

    def _signals(self, pool: int, now: int) -> PoolSignals:
        """What the metrics of a pool's servers say."""
        from qsim.sim.fleet.policy import PoolSignals

        running, waiting, kv_usage = [0, 0], [0, 0], [0.0, 0.0]  # on, draining
        for server in self.servers:
            replica = server.replica
            if replica is None or server.pool != pool:
                continue
            k = int(server.state == DRAINING)
            unscheduled = replica.num_unscheduled(now)
            waiting[k] += unscheduled
            running[k] += self._fleet.outstanding_requests[server.index] - unscheduled
            kv_usage[k] += replica.kv_usage(now)
        return PoolSignals(
            sum(running), sum(waiting), sum(kv_usage), running[0], waiting[0], kv_usage[0],
            self._fleet.first_tokens[pool], self._fleet.ttft_ps[pool] / PS_PER_S,
        )  # fmt: skip

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
            if self._until_answered:
                self._remove_newest(len(present) + len(coming) - wanted, coming, present, now)
                continue
            # those that are still coming are never called off: they would have cost for nothing
            spare = min(len(present), len(present) + len(coming) - wanted)
            if spare > 0:
                load = self._fleet.outstanding_requests
                if self._fleet.packs:
                    present.sort(key=lambda s: -s.index)
                else:
                    present.sort(key=lambda s: (load[s.index], -s.index))
                for server in present[:spare]:
                    self._drain(server, now)

    def _remove_newest(
        self, spare: int, coming: list[Server], present: list[Server], now: int
    ) -> None:
        """Take servers out of use as a ReplicaSet does.

        First those that do not answer yet, then those that began to last
        (pkg/controller/controller_utils.go, ``ActivePodsWithRanks``).
        """
        for servers in (coming, present):
            for server in sorted(servers, key=lambda s: (-s.since_ps, -s.index)):
                if spare <= 0:
                    return
                spare -= 1
                if server.state == ON:
                    self._drain(server, now)
                else:
                    self._enter(server, OFF if server.state == STARTING else ASLEEP, now)

    # ------------------------------------------------------------------ from state to state

    def _start(self, server: Server, now: int) -> None:
        cycle = self._pools[server.pool].lifecycle
        asleep = server.state == ASLEEP
        self._enter(server, WAKING if asleep else STARTING, now)
        server.wakes += asleep
        server.starts += not asleep
        delay = round((cycle.wake_s if asleep else cycle.start_s) * PS_PER_S)
        delay += 0 if asleep else self._provision_ps
        self._later(server, now + delay, lambda at: self._turn_on(server, at))

    def _turn_on(self, server: Server, now: int) -> None:
        self._switch_on(server, now)
        self._tell(now)

    def _switch_on(self, server: Server, now: int) -> None:
        self._enter(server, ON, now)
        server.replica = self._fleet.start_engine(server.index, now)
        if server.index in self.down:
            self.outages.append((server.index, self.down.pop(server.index), now))
        failures = self._failures
        if failures is not None and failures.mtbf_s is not None:
            up_s, repair_s = failures.draw(self._seed, server.index, server.changes)
            at = now + round(up_s * PS_PER_S)
            if at < _END_PS:
                self._later(server, at, lambda at: self._fail(server, at, repair_s))

    def _drain(self, server: Server, now: int) -> None:
        self._enter(server, DRAINING, now)
        self._tell(now)
        if not self._fleet.outstanding_requests[server.index]:
            self._stop(server, now)

    def _stop(self, server: Server, now: int) -> None:
        """The last token was at ``now``, which may lie before the present.

        The engine is done with its books before ``stop_s`` have passed.
        """
        pool = self._pools[server.pool]
        at = now + round(max(pool.lifecycle.stop_s, 1.0) * PS_PER_S)
        self._later(server, at, lambda at: self._stopped(server, at))

    def _stopped(self, server: Server, now: int) -> None:
        self._enter(server, ASLEEP if self._pools[server.pool].sleeps else OFF, now)
        if self._until_answered:
            self._steer(now)  # another one may have had to wait for its place

    def _plan_failure(self, server: Server, at_ps: int, for_s: float) -> None:
        def fail() -> None:
            if server.state in (ON, DRAINING):  # else there is nothing that could fail
                self._fail(server, int(self.env.now), for_s)

        self._at(at_ps, fail)

    def _fail(self, server: Server, now: int, for_s: float) -> None:
        """Requests under way and the KV cache are lost; it starts again when it is repaired."""
        self.failed += 1
        self.down[server.index] = now
        self._fleet.lose(server.index, now)
        self._enter(server, FAILED, now)
        self._tell(now)
        self._later(server, now + round(for_s * PS_PER_S), lambda at: self._repaired(server, at))
        if self._policy is not None:
            self._steer(now)  # who replaces it does not wait for the policy's next look

    def _repaired(self, server: Server, now: int) -> None:
        if self._policy is None:
            self._start(server, now)
        else:  # which starts it, or has started another
            self._enter(server, OFF, now)
            self.outages.append((server.index, self.down.pop(server.index), now))
            self._steer(now)

    def _tell(self, now: int) -> None:
        """Let the router know who takes requests."""
        self._fleet.set_open([s.index for s in self.servers if s.state == ON], now)

    def _enter(self, server: Server, state: int, now: int) -> None:
        if state != DRAINING:
            self._leave(server, now)
        else:  # on to draining: the engine goes on
            server.spend(now, 0.0)
        server.state = state
        server.changes += 1
        if self.rare:
            self.changes.append((now / PS_PER_S, server.pool, *self._counts(server.pool)))

    def _leave(self, server: Server, now: int) -> None:
        """Account for the state that ends, or for the engine's life."""
        if server.replica is not None:
            server.end_life(now)
        elif now > server.since_ps:
            pool = self._pools[server.pool]
            watts = pool.lifecycle.power_w(server.state, pool.profile.power.idle_w)
            energy = watts * ((now - server.since_ps) / PS_PER_S)
            timeline = self._fleet.timeline
            timeline.add(server.index, now, energy, 0, 0, server.usable_blocks)
            server.spend(now, energy)

    # ------------------------------------------------------------------ events

    @cached_property
    def env(self) -> simpy.Environment:
        """What happens when."""
        import simpy

        return simpy.Environment(initial_time=0)

    def _at(self, time_ps: int, call: Callable[[], None]) -> None:
        event = self.env.event()
        event._ok, event._value = True, None
        event.callbacks.append(lambda _: call())
        self.env.schedule(event, delay=time_ps - int(self.env.now))
        self._fleet.event_planned()

    def _later(self, server: Server, time_ps: int, call: Callable[[int], None]) -> None:
        """Unless the server is in another state by then."""
        changes = server.changes

        def happen() -> None:
            if server.changes == changes:
                call(time_ps)

        self._at(time_ps, happen)


_END_PS = round(MOST_S * PS_PER_S)
