"""``simulate``: a trace through a fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import FleetArguments, resolve_fleet
from qsim.sim.fleet.parts import run_whole
from qsim.sim.results.finished import (
    as_sent,
    in_order_of_arrival,
    outcomes,
    request_columns,
    without_rejected,
)
from qsim.sim.results.pools import exact_latencies
from qsim.sim.results.result import SimulationResult
from qsim.sim.results.servers import Served
from qsim.sim.run_facts import pool_uses, run_facts
from qsim.traces.trace import Trace


def simulate(
    trace: Trace,
    profile: Profile | str | None = None,
    *,
    progress: Callable[[float], None] | None = None,
    jump: bool = True,
    step_log: list[Step] | None = None,
    **asked: Unpack[FleetArguments],
) -> SimulationResult:
    """Replay ``trace`` against ``replicas`` servers described by ``profile``, or against ``pools``.

    Parameters
    ----------
    profile : Profile or str, optional
        A profile, the id of a shipped one, or a path.
    progress : callable, optional
        Called now and then with the share of requests that have arrived.
    jump : bool
        Plan decode runs in one go (the default); False steps one by one to the same result.
    step_log : list of Step, optional
        Takes every engine step, for :mod:`qsim.sim.engine.steplog`.
    **asked
        The fleet and its clients: see :class:`qsim.sim.fleet.admission.FleetArguments`.

    Raises
    ------
    ScenarioError
        If an option is not allowed, or ``concurrency`` is given for sessions.
    ProfileError
        If the profile is unknown or malformed.
    TraceError
        If a prompt is too long and ``too_long`` is "error".
    """
    setup = resolve_fleet(profile, **asked)
    concurrency = setup.concurrency
    if concurrency is not None and trace.turns is not None:
        raise ScenarioError(
            f"{trace.name}: its sessions wait for answers by themselves, and concurrency is "
            f"{concurrency}: leave it out, or give :turns=open after the path"
        )
    run = run_whole(trace, setup, jump=jump, step_log=step_log, progress=progress)
    fleet, finished = run.fleet, run.finished
    output, admissible = run.output_tokens, run.admissible
    if progress is not None:
        progress(1.0)
    step_notes = []
    if step_log and fleet.origin_s:
        step_notes = [f"times of steps count from {fleet.origin_s:,.0f} s of the trace on"]
    given = trace
    if trace.turns is not None:
        trace, output, admissible, finished = in_order_of_arrival(
            trace, output, admissible, finished, fleet.origin_s
        )
    if concurrency is not None:
        trace = as_sent(trace, admissible, finished, fleet.origin_s)
    begin_ps = int(finished.arrival_ps[0])
    in_fleet = None
    if setup.failures is not None:
        from qsim.sim.results.outages import TimeCounts

        in_fleet = TimeCounts()
        in_fleet.add(finished.arrival_ps / PS_PER_S, finished.last_token_ps / PS_PER_S)
    ended = outcomes(finished)
    output, admissible, finished = without_rejected(output, admissible, finished)
    columns = request_columns(trace, output, admissible, finished)
    served = Served(setup.replicas)
    served.add(finished.replica, columns["prompt_tokens"][admissible], output,
               finished.cached_tokens)  # fmt: skip
    facts = run_facts(
        setup,
        fleet,
        run.admission,
        given,
        requests=len(trace),
        begin_ps=begin_ps,
        served=served,
        outcomes=ended,
        latencies=exact_latencies(pool_uses(setup), columns) if len(setup.pools) > 1 else (),
        in_fleet=in_fleet,
        notes=run.notes,
        more_notes=step_notes,
    )
    return SimulationResult(
        **columns,
        **facts,
        completed=admissible,
        itl=run.gaps,
        truncated=run.admission.truncated,
    )
