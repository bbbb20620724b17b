"""What a run tells beside its requests: servers, pools, outages, scaling, what was not measured.

The same for a whole run (``simulate.py``) and for one whose requests are let go
(``simulate_stream.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qsim.catalog.versions import DEFAULT_VERSION, version_notes
from qsim.profiles.measured_range import BeyondMeasured, MeasuredRange
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import TEXTS_UNTOLD, Admission, Setup
from qsim.sim.fleet.fleet import Fleet
from qsim.sim.fleet.lifecycle import ASLEEP, DRAINING, OFF, ON, STARTING, STATES
from qsim.sim.fleet.pool import ResolvedPool
from qsim.sim.fleet.server import Server
from qsim.sim.results.finished import outcome_notes
from qsim.sim.results.pools import PoolUse, pool_rows
from qsim.sim.results.servers import Served
from qsim.sim.scheduler.server_memory import memory_notes
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.sim.results.outages import Outages, TimeCounts
    from qsim.sim.results.scaling import Scaling


def run_facts(
    setup: Setup,
    fleet: Fleet,
    admission: Admission,
    trace: Trace,
    *,
    requests: int,
    begin_ps: int,
    served: Served,
    outcomes: dict[str, int],
    latencies: Sequence[Mapping[str, Sequence[float]]],
    in_fleet: TimeCounts | None,
    notes: Sequence[str] = (),
    more_notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The fields of :class:`qsim.sim.results.summary.Run`.

    Parameters
    ----------
    trace : Trace
        As it was given, or its first part.
    requests : int
        Of the trace, those that no server took among them.
    begin_ps : int
        The first arrival, on the run's clock.
    served : Served
        Answered requests by server.
    outcomes : dict
        Requests without an answer, by why.
    latencies : sequence of mappings
        By pool, as :func:`qsim.sim.results.pools.pool_rows` takes them.
    in_fleet : TimeCounts, optional
        When requests came and ended, on the run's clock; not needed where nothing can fail.
    notes, more_notes : sequence of str
        What else a reader should know, before and after what was not measured.
    """
    duration_s = (fleet.end_ps - begin_ps) / PS_PER_S
    stats = _replica_stats(setup, fleet, served)
    beyond, told = _beyond_measured(setup, fleet, requests - admission.rejected, admission.longer)
    told += _api_notes(setup, stats, duration_s)
    waits = setup.client_timeout_s is not None or trace.timeout_s is not None
    return {
        "duration_s": duration_s,
        "replica_stats": stats,
        "timeline": fleet.timeline.columns(fleet.end_ps, setup.replicas, fleet.origin_s),
        "gpus": setup.gpus,
        "scenario": setup.scenario(trace.name, requests),
        "notes": [
            *admission.notes(),
            *setup.router_notes(trace),
            *notes,
            *told,
            *more_notes,
            *(() if fleet.limits is None else fleet.limits.notes()),
            *outcome_notes(outcomes),
        ],
        "beyond": beyond,
        "pools": pool_rows(pool_uses(setup), latencies, stats, duration_s) if latencies else [],
        "outcomes": outcomes if waits or setup.failures is not None else {},
        "outages": _outages(setup, fleet, in_fleet),
        "scaling": _scaling(setup, fleet, begin_ps),
    }


#: of its time an API server's process is busy that is told of
_API_BUSY = 0.6
#: a run of so few seconds tells nothing of it
_API_SECONDS = 1.0


def _api_notes(setup: Setup, stats: Sequence[Mapping[str, Any]], duration_s: float) -> list[str]:
    """A sentence on the API server's process that is busiest, if it is nearly full."""
    shares = {}
    for row, k in zip(stats, setup.pool_of, strict=True):
        api = setup.pools[k].profile.frontend.api if setup.frontend else None
        seconds = row.get("on_s", duration_s)
        if api is not None and seconds > _API_SECONDS:
            work = (row["requests"], row["input_tokens"], row["output_tokens"])
            shares[row["replica"]] = api.busy_s(*work) / seconds
    server = max(shares, key=lambda i: shares[i], default=None)
    if server is None or shares[server] < _API_BUSY:
        return []
    busy = "all the time" if shares[server] >= 1 else f"{shares[server]:.0%} of the time"
    return [
        f"the API server's process of server {server} is busy {busy}: how long first "
        "tokens wait hangs on its speed, so TTFT is not sure; 'qsim calibrate adapt' measures the "
        "machine's own"
    ]


def _beyond_measured(
    setup: Setup, fleet: Fleet, requests: int, longer: int
) -> tuple[BeyondMeasured | None, list[str]]:
    """How much of a run lay beyond the profile's measurements, and what a reader should know.

    Of several pools each is told of by name, and there is no one figure for all. ``longer`` of the
    ``requests`` that were served are longer than any that was measured.
    """
    found = [
        _beyond(pool, [fleet.lives.servers[i] for i in use.servers], requests, longer)
        for pool, use in zip(setup.pools, pool_uses(setup), strict=True)
    ]
    if len(found) == 1:
        return found[0], _notes(setup, setup.pools[0], found[0])
    notes = [
        f"{pool.name}: {text}"
        for pool, beyond in zip(setup.pools, found, strict=True)
        for text in _notes(setup, pool, beyond)
    ]
    return None, [*setup.notes(), *notes]


def _beyond(
    pool: ResolvedPool, servers: Sequence[Server], requests: int, longer: int
) -> BeyondMeasured | None:
    measured = MeasuredRange.of(pool.profile)
    if not measured.known:
        return None
    return BeyondMeasured(
        measured,
        steps=sum(r.steps for r in servers),
        by_requests=sum(r.beyond_requests for r in servers),
        by_tokens=sum(r.beyond_tokens for r in servers),
        by_context=sum(r.beyond_context for r in servers),
        requests=requests,
        long_requests=longer,
        peak_requests=max(r.peak_running for r in servers),
        max_num_batched_tokens=pool.config.max_num_batched_tokens,
    )


def _notes(setup: Setup, pool: ResolvedPool, beyond: BeyondMeasured | None) -> list[str]:
    """What a reader should know of a run: version, texts, memory, and what was not measured."""
    from qsim.profiles.lookup import carry_note

    measured_with = pool.profile.identity.vllm_version or DEFAULT_VERSION
    notes = version_notes(measured_with, pool.config.vllm_version)
    if (note := carry_note(pool.profile)) is not None:
        notes.append(note)
    if setup.text_prompts and setup.frontend and pool.profile.frontend.api is None:
        notes.append(TEXTS_UNTOLD)
    notes += memory_notes(pool.profile, pool.config)
    return notes if beyond is None else [*notes, *beyond.notes()]


def _outages(setup: Setup, fleet: Fleet, flow: TimeCounts | None) -> Outages | None:
    """What failed in a run; None where nothing can."""
    if setup.failures is None or flow is None:
        return None
    from qsim.sim.results.outages import Outages

    lives = fleet.lives
    on_ps = sum(s.state_ps[ON] + s.state_ps[DRAINING] for s in lives.servers)
    all_ps = sum(sum(s.state_ps) for s in lives.servers)
    if setup.autoscaler is not None:  # of the servers that are in use
        all_ps -= sum(s.state_ps[OFF] + s.state_ps[ASLEEP] for s in lives.servers)
    return Outages(
        lives.failed,
        fleet.lost,
        fleet.retried,
        on_ps / all_ps if all_ps else 1.0,
        outages_s(fleet),
        _recovery_s(setup, fleet, flow),
    )


def _recovery_s(setup: Setup, fleet: Fleet, flow: TimeCounts) -> tuple[float | None, ...]:
    outages = [(b - fleet.origin_s, e - fleet.origin_s) for _, b, e in outages_s(fleet)]
    if setup.concurrency is not None:  # there are never more requests in the fleet than clients
        return (None,) * len(outages)
    from qsim.sim.results.outages import backlog_recovery_s

    return tuple(backlog_recovery_s(flow, outages))


def outages_s(fleet: Fleet) -> tuple[tuple[int, float, float], ...]:
    """When servers were down so far, on the trace's clock; who is down now is so for ever."""

    def at_s(time_ps: int) -> float:
        return fleet.origin_s + time_ps / PS_PER_S

    lives = fleet.lives
    over = [(server, at_s(begin), at_s(end)) for server, begin, end in lives.outages]
    now = [(server, at_s(begin), math.inf) for server, begin in lives.down.items()]
    return tuple(over + now)


def _scaling(setup: Setup, fleet: Fleet, begin_ps: int) -> Scaling | None:
    """What became of the servers of a run that began at ``begin_ps``; None without autoscaler."""
    if setup.autoscaler is None:
        return None
    from qsim.sim.results.scaling import (
        PoolScaling,
        Scaling,
        decisions_of,
        last_of_each_time,
        none_on_s,
        servers_over_time,
    )

    lives, origin_s = fleet.lives, fleet.origin_s
    begin_s, end_s = begin_ps / PS_PER_S, fleet.end_ps / PS_PER_S
    changes = [
        (t, pool, on, starting, draining)
        for t, pool, on, starting, draining, _ in lives.changes
        if t <= end_s
    ]
    pools = []
    for k, pool in enumerate(setup.pools):
        servers = [s for s in lives.servers if s.pool == k]
        gpus = pool.profile.identity.tensor_parallel_size
        state_s = [sum(s.state_ps[i] for s in servers) / PS_PER_S for i in range(len(STATES))]
        billed_s = sum(t for i, t in enumerate(state_s) if pool.lifecycle.billed(i))
        least, mean, most = servers_over_time(changes, k, begin_s, end_s)
        pools.append(
            PoolScaling(
                pool.name,
                least,
                mean,
                most,
                *decisions_of(lives.decisions, k),
                starts=sum(s.starts for s in servers),
                server_hours=(sum(state_s) - state_s[OFF]) / 3600,
                starting_hours=state_s[STARTING] / 3600,
                gpu_hours=billed_s * gpus / 3600,
                energy_j=float(sum(s.energy_j for s in servers)),
                starting_energy_j=float(sum(s.state_j[STARTING] for s in servers)),
            )
        )
    return Scaling(
        tuple(pools),
        fleet.held,
        fleet.held_ps / PS_PER_S / fleet.held if fleet.held else 0.0,
        fleet.longest_held_ps / PS_PER_S,
        none_on_s(changes, begin_s, end_s),
        tuple((origin_s + c[0], *c[1:]) for c in last_of_each_time(changes)),
    )


def pool_uses(setup: Setup) -> list[PoolUse]:
    """The pools with the numbers of their servers."""
    uses, first = [], 0
    for pool in setup.pools:
        servers = range(first, first + pool.replicas)
        uses.append(PoolUse(pool.name, pool.profile.id, pool.gpus, servers))
        first += pool.replicas
    return uses


def _replica_stats(setup: Setup, fleet: Fleet, served: Served) -> list[dict[str, Any]]:
    """One dict a replica."""
    names = [setup.pools[k].name for k in setup.pool_of] if len(setup.pools) > 1 else []
    return [
        {
            "replica": r.index,
            **({"pool": names[r.index]} if names else {}),
            **served.row(r.index),
            **r.row(),
        }
        for r in fleet.lives.servers
    ]
