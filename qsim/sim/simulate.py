"""``simulate``: a trace through a fleet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from qsim.catalog.versions import DEFAULT_VERSION, version_notes
from qsim.errors import ScenarioError
from qsim.profiles.measured_range import BeyondMeasured, MeasuredRange
from qsim.profiles.schema import Profile
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import Setup, asked_pools, resolve_fleet
from qsim.sim.fleet.autoscaling import Autoscaler
from qsim.sim.fleet.failures import Failures
from qsim.sim.fleet.fleet import Fleet
from qsim.sim.fleet.lifecycle import ASLEEP, DRAINING, OFF, ON
from qsim.sim.fleet.parts import run_whole
from qsim.sim.fleet.pool import Pool, ResolvedPool
from qsim.sim.fleet.scaled import scaling_of
from qsim.sim.fleet.server import Server
from qsim.sim.fleet.sessions import in_order_of_arrival
from qsim.sim.results.finished import (
    as_sent,
    outcome_notes,
    outcomes,
    request_columns,
    without_rejected,
)
from qsim.sim.results.outages import Outages
from qsim.sim.results.pools import PoolUse, pool_rows_of_columns
from qsim.sim.results.recovery import TimeCounts, backlog_recovery_s
from qsim.sim.results.result import SimulationResult
from qsim.sim.results.servers import Served
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.scheduler.server_memory import memory_notes
from qsim.traces.trace import Trace

__all__ = [
    "beyond_measured",
    "outages_of",
    "outages_s",
    "pool_uses",
    "replica_stats",
    "simulate",
    "tells_outcomes",
]


def simulate(
    trace: Trace,
    profile: Profile | str | None = None,
    *,
    replicas: int | None = None,
    pools: Sequence[Pool] | None = None,
    router: str = "least-requests",
    options: EngineOptions | None = None,
    seed: int = 0,
    too_long: str = "error",
    frontend: bool = True,
    concurrency: int | None = None,
    client_timeout_s: float | None = None,
    failures: Failures | None = None,
    autoscaler: Autoscaler | None = None,
    progress: Callable[[float], None] | None = None,
    jump: bool = True,
    step_log: list[Step] | None = None,
) -> SimulationResult:
    """Replay ``trace`` against ``replicas`` servers described by ``profile``, or against ``pools``.

    Parameters
    ----------
    trace : Trace
    profile : Profile or str, optional
        A profile, the id of a shipped one, or a path.
    replicas : int, optional
        Servers, each on ``tensor_parallel_size`` GPUs; >= 1, the default.
    pools : sequence of Pool, optional
        In the place of ``profile``, ``replicas`` and ``options``: pools of equal servers that
        differ from each other, behind one router.
    router : str
        How requests are spread: see :data:`qsim.sim.fleet.router.ROUTERS`.
    options : EngineOptions, optional
        vLLM settings that differ from the profile's.
    seed : int
        Of the router's random draws.
    too_long : {"error", "reject"}
        What to do with a prompt that leaves no room for a token within ``max_model_len``: raise,
        or count it as failed as the server would (HTTP 400).
    frontend : bool
        Include the times of the API server before and after the engine.
    concurrency : int, optional
        So many clients, each of which sends the trace's next request when its last one has ended,
        as ``vllm bench serve --max-concurrency`` does; the trace's arrivals mean nothing then.
    client_timeout_s : float, optional
        How long a client waits for its whole answer, where the trace does not say it. Then it gives
        up, and the server aborts the request.
    failures : Failures, optional
        Servers that fail.
    autoscaler : Autoscaler, optional
        Says how many servers are on; ``replicas`` are those at the beginning.
    progress : callable, optional
        Called now and then with the share of requests that have arrived.
    jump : bool
        Plan decode runs in one go (the default); False steps one by one to the same result.
    step_log : list of Step, optional
        Takes every engine step, for :mod:`qsim.sim.engine.steplog`.

    Raises
    ------
    ScenarioError
        If an option is not allowed, or ``concurrency`` is given for sessions.
    ProfileError
        If the profile is unknown or malformed.
    TraceError
        If a prompt is too long and ``too_long`` is "error".
    """
    asked = asked_pools(profile, replicas, options, pools)
    setup = resolve_fleet(
        asked,
        router,
        seed,
        too_long,
        frontend,
        concurrency=concurrency,
        client_timeout_s=client_timeout_s,
        failures=failures,
        autoscaler=autoscaler,
    )
    if concurrency is not None and trace.turns is not None:
        raise ScenarioError(
            f"{trace.name}: its sessions wait for answers by themselves, and concurrency is "
            f"{concurrency}: leave it out, or give :turns=open after the path"
        )
    run = run_whole(trace, setup, jump=jump, step_log=step_log, progress=progress)
    fleet, admission, finished = run.fleet, run.admission, run.finished
    output, admissible = run.output_tokens, run.admissible
    beyond, told = beyond_measured(setup, fleet, len(output), admission.longer)
    notes = admission.notes() + setup.router_notes(trace) + told
    if step_log and fleet.origin_s:
        notes.append(f"times of steps count from {fleet.origin_s:,.0f} s of the trace on")
    if progress is not None:
        progress(1.0)
    if trace.turns is not None:
        trace, output, admissible, finished = in_order_of_arrival(
            trace, output, admissible, finished, fleet.origin_s
        )
    if concurrency is not None:
        trace = as_sent(trace, admissible, finished, fleet.origin_s)
    begin_ps = int(finished.arrival_ps[0])
    if fleet.limits is not None:
        notes += fleet.limits.notes()
    flow = TimeCounts()
    if failures is not None:
        flow.add(finished.arrival_ps / PS_PER_S, finished.last_token_ps / PS_PER_S)
    ended = outcomes(finished)
    notes += outcome_notes(ended)
    output, admissible, finished = without_rejected(output, admissible, finished)
    columns = request_columns(trace, output, admissible, finished)
    served = Served(setup.replicas)
    served.add(finished.replica, columns["prompt_tokens"][admissible], output,
               finished.cached_tokens)  # fmt: skip
    duration_s = (fleet.end_ps - begin_ps) / PS_PER_S
    stats = replica_stats(setup, fleet, served)
    return SimulationResult(
        **columns,
        completed=admissible,
        itl=run.gaps,
        duration_s=duration_s,
        replica_stats=stats,
        timeline=fleet.timeline.columns(fleet.end_ps, setup.replicas, fleet.origin_s),
        gpus=setup.gpus,
        scenario=setup.scenario(trace.name, len(trace)),
        truncated=admission.truncated,
        notes=notes,
        beyond=beyond,
        pools=pool_rows_of_columns(pool_uses(setup), columns, stats, duration_s)
        if len(setup.pools) > 1
        else [],
        outcomes=ended if tells_outcomes(setup, trace) else {},
        outages=outages_of(setup, fleet, flow),
        scaling=scaling_of(setup, fleet, begin_ps),
    )


def beyond_measured(
    setup: Setup, fleet: Fleet, requests: int, longer: int
) -> tuple[BeyondMeasured | None, list[str]]:
    """How much of a run lay beyond the profile's measurements, and what a reader should know.

    Of several pools each is told of by name, and there is no one figure for all.

    Parameters
    ----------
    requests, longer : int
        Requests that were served, and those longer than any that was measured.
    """
    found = [
        _beyond(pool, [fleet.lives.servers[i] for i in use.servers], requests, longer)
        for pool, use in zip(setup.pools, pool_uses(setup), strict=True)
    ]
    if len(found) == 1:
        return found[0], run_notes(setup.pools[0], found[0])
    notes = [
        f"{pool.name}: {text}"
        for pool, beyond in zip(setup.pools, found, strict=True)
        for text in run_notes(pool, beyond)
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


def run_notes(pool: ResolvedPool, beyond: BeyondMeasured | None) -> list[str]:
    """What a reader should know of a run: vLLM's version, memory, and what was not measured."""
    from qsim.profiles.lookup import carry_note

    measured_with = pool.profile.identity.vllm_version or DEFAULT_VERSION
    notes = version_notes(measured_with, pool.config.vllm_version)
    if (note := carry_note(pool.profile)) is not None:
        notes.append(note)
    notes += memory_notes(pool.profile, pool.config)
    return notes if beyond is None else [*notes, *beyond.notes()]


def tells_outcomes(setup: Setup, trace: Trace) -> bool:
    """Whether requests may end without an answer, but for those that a server rejects."""
    waits = setup.client_timeout_s is not None or trace.timeout_s is not None
    return waits or setup.failures is not None


def outages_of(setup: Setup, fleet: Fleet, flow: TimeCounts) -> Outages | None:
    """What failed in a run; None where nothing can.

    Parameters
    ----------
    flow : TimeCounts
        When its requests came and ended, on the run's clock.
    """
    if setup.failures is None:
        return None
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
    return tuple(backlog_recovery_s(flow, outages))


def outages_s(fleet: Fleet) -> tuple[tuple[int, float, float], ...]:
    """When servers were down so far, on the trace's clock; who is down now is so for ever."""

    def at_s(time_ps: int) -> float:
        return fleet.origin_s + time_ps / PS_PER_S

    lives = fleet.lives
    over = [(server, at_s(begin), at_s(end)) for server, begin, end in lives.outages]
    now = [(server, at_s(begin), math.inf) for server, begin in lives.down.items()]
    return tuple(over + now)


def pool_uses(setup: Setup) -> list[PoolUse]:
    """The pools with the numbers of their servers."""
    uses, first = [], 0
    for pool in setup.pools:
        servers = range(first, first + pool.replicas)
        uses.append(PoolUse(pool.name, pool.profile.id, pool.gpus, servers))
        first += pool.replicas
    return uses


def replica_stats(setup: Setup, fleet: Fleet, served: Served) -> list[dict[str, Any]]:
    """One dict a replica; ``utilisation`` is the share of the time it was on that it computed."""
    names = [setup.pools[k].name for k in setup.pool_of] if len(setup.pools) > 1 else []
    return [
        {
            "replica": r.index,
            **({"pool": names[r.index]} if names else {}),
            **served.row(r.index),
            "steps": r.steps,
            "busy_s": r.total_busy_ps / PS_PER_S,
            "on_s": (on_ps := r.state_ps[ON] + r.state_ps[DRAINING]) / PS_PER_S,
            "utilisation": r.total_busy_ps / on_ps if on_ps else math.nan,
            "energy_j": r.energy_j,
            "preemptions": r.preemptions,
            "peak_running": r.peak_running,
            "peak_waiting": r.peak_waiting,
            "peak_kv_usage": 1.0 - r.least_free_blocks / r.usable_blocks,
        }
        for r in fleet.lives.servers
    ]
