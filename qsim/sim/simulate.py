"""``simulate``: a trace through a fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import asked_pools, resolve_fleet
from qsim.sim.fleet.autoscaling import Autoscaler
from qsim.sim.fleet.failures import Failures
from qsim.sim.fleet.parts import run_whole
from qsim.sim.fleet.pool import Pool
from qsim.sim.fleet.sessions import in_order_of_arrival
from qsim.sim.results.finished import (
    as_sent,
    outcome_notes,
    outcomes,
    request_columns,
    without_rejected,
)
from qsim.sim.results.pools import pool_rows_of_columns
from qsim.sim.results.recovery import TimeCounts
from qsim.sim.results.result import SimulationResult
from qsim.sim.results.servers import Served
from qsim.sim.run_facts import (
    beyond_measured,
    outages_of,
    pool_uses,
    replica_stats,
    scaling_of,
    tells_outcomes,
)
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.trace import Trace

__all__ = ["simulate"]


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
    think_time_s: float | None = None,
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
        How requests are spread: see :data:`qsim.sim.fleet.routers.router.ROUTERS`.
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
    think_time_s : float, optional
        How long each of them waits after an answer, on average: exponentially distributed.
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
        think_time_s=think_time_s,
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
    notes = admission.notes() + setup.router_notes(trace) + run.notes + told
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
