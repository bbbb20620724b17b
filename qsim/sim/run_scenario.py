"""``qsim.simulate``: a scenario, or a trace and keyword arguments that make one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qsim.bounds import shown
from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.scenario.names import build
from qsim.scenario.resolve import check_lone_weight, load_traffic, profile_name
from qsim.sim.engine.steplog import Step
from qsim.sim.fleet.admission import check_pools
from qsim.sim.fleet.autoscaling import Autoscaler
from qsim.sim.fleet.failures import Failures
from qsim.sim.fleet.pool import Pool
from qsim.sim.results.result import SimulationResult
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate as run
from qsim.traces.trace import Trace

__all__ = ["fleet_of", "pools_of", "simulate"]


def pools_of(scenario: Scenario) -> list[Pool]:
    """The fleet's pools as the simulator takes them.

    Raises
    ------
    ScenarioError, ProfileError
        If there is none, or one names no profile.
    """
    pools = scenario.fleet.pools
    if not pools:
        raise ScenarioError(
            "no pool is given; a fleet needs at least one, with a profile (fleet.pools)"
        )
    check_lone_weight(scenario)
    return [
        Pool(
            profile_name(p, f"fleet.pools[{i}]"),
            p.replicas,
            p.engine.options(),
            p.weight,
            p.name,
            p.lifecycle.lifecycle(),
            p.sleeps,
        )
        for i, p in enumerate(pools)
    ]


def fleet_of(scenario: Scenario) -> dict[str, Any]:
    """Arguments of a simulation beside the trace."""
    failures, autoscaler = scenario.fleet.failures, scenario.fleet.autoscaler
    return {
        "pools": pools_of(scenario),
        "router": scenario.fleet.router,
        "seed": scenario.seed,
        "too_long": scenario.traffic.too_long,
        "concurrency": scenario.traffic.concurrency,
        "think_time_s": scenario.traffic.think_time_s,
        "client_timeout_s": scenario.traffic.client_timeout_s,
        "failures": None if failures is None else failures.failures(),
        "autoscaler": None if autoscaler is None else autoscaler.autoscaler(),
    }


def simulate(
    trace: Scenario | Trace,
    profile: Profile | str | None = None,
    *,
    replicas: int | None = None,
    pools: Sequence[Pool] | None = None,
    router: str = "least-requests",
    options: EngineOptions | None = None,
    seed: int = 0,
    too_long: str = "error",
    concurrency: int | None = None,
    think_time_s: float | None = None,
    client_timeout_s: float | None = None,
    failures: Failures | None = None,
    autoscaler: Autoscaler | None = None,
    frontend: bool = True,
    progress: Callable[[float], None] | None = None,
    jump: bool = True,
    step_log: list[Step] | None = None,
) -> SimulationResult:
    """Replay traffic against a fleet of servers.

    Parameters
    ----------
    trace : Scenario or Trace
        All of what is asked; or the traffic, and the next arguments say the rest.
    profile, replicas, pools, router, options, seed, too_long
        Of the fleet beside a trace: see :func:`qsim.sim.simulate.simulate`.
    concurrency, think_time_s, client_timeout_s, failures, autoscaler
        Of clients, of servers that fail, and of how many are on, beside a trace: see there.
    frontend, progress, jump, step_log
        How it is simulated: see there.

    Raises
    ------
    ScenarioError
        If a value is not allowed.
    ProfileError
        If the profile is unknown or malformed.
    TraceError
        If the trace cannot be read, or a prompt is too long and ``too_long`` is "error".
    """
    beside = {"profile": profile, "replicas": replicas, "options": options}
    clients = {
        "concurrency": concurrency, "think_time_s": think_time_s,
        "client_timeout_s": client_timeout_s, "failures": failures,
        "autoscale": autoscaler,
    }  # fmt: skip
    if isinstance(trace, Scenario):
        if any(v is not None for v in (*beside.values(), pools, *clients.values())):
            raise TypeError("simulate() got a scenario and servers beside it; change the scenario")
        asked = trace
    else:
        check_pools(pools, **beside)
        for pool in pools or ():
            if not isinstance(pool, Pool):
                raise ScenarioError(f"a pool is {shown(pool)}; must be a qsim.Pool")
        if failures is not None and not isinstance(failures, Failures):
            raise ScenarioError(f"failures is {shown(failures)}; must be a qsim.Failures")
        if autoscaler is not None and not isinstance(autoscaler, Autoscaler):
            raise ScenarioError(f"autoscaler is {shown(autoscaler)}; must be a qsim.Autoscaler")
        named = {"trace": trace, "router": router, "seed": seed, "too_long": too_long}
        asked = build("simulate", {**named, **clients, **beside, "pools": pools})
    return run(
        load_traffic(asked.traffic, asked.seed),
        **fleet_of(asked),
        frontend=frontend,
        progress=progress,
        jump=jump,
        step_log=step_log,
    )
