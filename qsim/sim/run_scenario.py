"""``qsim.simulate``: a scenario, or a trace and keyword arguments that make one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from qsim.bounds import shown
from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.scenario.names import build
from qsim.scenario.resolve import check_lone_weight, load_traffic, profile_name
from qsim.sim.engine.steplog import Step
from qsim.sim.fleet.admission import FleetArguments, check_pools
from qsim.sim.fleet.autoscaling import Autoscaler
from qsim.sim.fleet.failures import Failures
from qsim.sim.fleet.pool import Pool
from qsim.sim.results.result import SimulationResult
from qsim.sim.simulate import simulate as run
from qsim.traces.trace import Trace


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
        p.as_a(
            Pool,
            profile=profile_name(p, f"fleet.pools[{i}]"),
            options=p.engine.options(),
            lifecycle=p.lifecycle.lifecycle(),
        )
        for i, p in enumerate(pools)
    ]


def fleet_of(scenario: Scenario) -> dict[str, Any]:
    """The fleet and its clients, as the arguments of a simulation beside the trace."""
    traffic, fleet = scenario.traffic, scenario.fleet
    names = ("too_long", "text_prompts", "concurrency", "think_time_s", "client_timeout_s")
    return {
        "pools": pools_of(scenario),
        "router": fleet.router,
        "seed": scenario.seed,
        **{name: getattr(traffic, name) for name in names},
        "failures": None if fleet.failures is None else fleet.failures.failures(),
        "autoscaler": None if fleet.autoscaler is None else fleet.autoscaler.autoscaler(),
    }


def simulate(
    trace: Scenario | Trace,
    profile: Profile | str | None = None,
    *,
    progress: Callable[[float], None] | None = None,
    jump: bool = True,
    step_log: list[Step] | None = None,
    **asked: Unpack[FleetArguments],
) -> SimulationResult:
    """Replay traffic against a fleet of servers.

    Parameters
    ----------
    trace : Scenario or Trace
        All of what is asked; or the traffic, and ``profile`` and ``asked`` say the rest.
    profile : Profile or str, optional
        A profile, the id of a shipped one, or a path.
    progress, jump, step_log
        How it is simulated: see :func:`qsim.sim.simulate.simulate`.
    **asked
        The fleet and its clients: see :class:`qsim.sim.fleet.admission.FleetArguments`. Beside a
        scenario only ``frontend``.

    Raises
    ------
    ScenarioError
        If a value is not allowed.
    ProfileError
        If the profile is unknown or malformed.
    TraceError
        If the trace cannot be read, or a prompt is too long and ``too_long`` is "error".
    """
    frontend = asked.pop("frontend", True)
    given: dict[str, Any] = {"profile": profile, **asked}
    if isinstance(trace, Scenario):
        if any(v is not None for v in given.values()):
            raise TypeError("simulate() got a scenario and servers beside it; change the scenario")
        scenario = trace
    else:
        scenario = build("simulate", {"trace": trace, **_checked(given)})
    return run(
        load_traffic(scenario.traffic, scenario.seed),
        **{**fleet_of(scenario), "frontend": frontend},
        progress=progress,
        jump=jump,
        step_log=step_log,
    )


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments by the names of the options."""
    pools = given.get("pools")
    check_pools(pools, **{name: given.get(name) for name in ("profile", "replicas", "options")})
    for pool in pools or ():
        if not isinstance(pool, Pool):
            raise ScenarioError(f"a pool is {shown(pool)}; must be a qsim.Pool")
    for name, kind in (("failures", Failures), ("autoscaler", Autoscaler)):
        value = given.get(name)
        if value is not None and not isinstance(value, kind):
            raise ScenarioError(f"{name} is {shown(value)}; must be a qsim.{kind.__name__}")
    return {"autoscale" if name == "autoscaler" else name: v for name, v in given.items()}
