"""What a scenario's names stand for: its trace, its profiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qsim.bounds import shown
from qsim.errors import ScenarioError
from qsim.profiles.lookup import find_profiles, load_profile, version_of
from qsim.profiles.schema import Profile
from qsim.scenario.scenario import Scenario
from qsim.scenario.searches import SearchSection
from qsim.scenario.sections import PoolSection, Traffic
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.scheduler.config import EngineOptions, refuse_queue_limits
from qsim.traces.load import load_reshaped
from qsim.traces.reshape import forecast
from qsim.traces.trace import Trace


def load_traffic(
    traffic: Traffic,
    seed: int = 0,
    tell: Callable[[str, Mapping[str, Any]], None] | None = None,
    *,
    grown: bool = True,
) -> Trace:
    """Read, cut, scale and merge the traces; ``grown`` also to the busiest hour, and with growth.

    ``tell`` takes the name of each trace and what is known of how it was read.

    Raises
    ------
    TraceError, ScenarioError
        If one is missing, cannot be read, or nothing is left of it.
    """
    if traffic.trace is None:
        raise ScenarioError("trace is missing; give a file or a preset (traffic.trace)")
    trace = load_reshaped(
        traffic.trace,
        traffic.reshaping(),
        traffic.merge,
        format=traffic.format,
        columns=traffic.columns,
        sort=traffic.sort,
        seed=seed,
        tell=tell,
    )
    if not grown or (traffic.growth == 1 and not traffic.peak_hour):
        return trace
    return forecast(trace, traffic.growth, traffic.peak_hour)[0]


def profile_name(pool: PoolSection, where: str = "fleet.pools[0]") -> Profile | str:
    """The profile, or the id or file of one, that a pool names or is chosen by.

    Raises
    ------
    ScenarioError
        If it names none, or what it names leaves several.
    ProfileError
        If there is none.
    """
    if pool.profile is not None:
        given: Profile | str = pool.profile
        return given
    if pool.model is None:
        raise ScenarioError(
            f"profile is missing; give {where} a profile (--profile), or a model and a method"
        )
    found = find_profiles(
        pool.model,
        () if pool.gpu is None else (pool.gpu,),
        () if pool.method is None else (pool.method,),
    )
    size = pool.tensor_parallel_size
    if size is not None:
        end = "" if size == 1 else f"/tp{size}"
        found = [e for e in found if e.id.partition(e.method)[2] == end]
    ids = sorted({e.id for e in found})
    if len(ids) == 1:
        return ids[0]
    said = ", ".join(
        f"{k} {shown(v)}"
        for k, v in (("model", pool.model), ("method", pool.method), ("gpu", pool.gpu),
                     ("tensor_parallel_size", size))
        if v is not None
    )  # fmt: skip
    which = f"leaves {len(ids)} profiles ({', '.join(ids[:8])}); say more" if ids else "has none"
    raise ScenarioError(f"{where}: {said} {which}, or give the profile")


def load_profile_of(pool: PoolSection, where: str = "fleet.pools[0]") -> Profile:
    """The profile of a pool, as measured under the pool's version of vLLM.

    Raises
    ------
    ScenarioError, ProfileError
        As :func:`profile_name`; or if it is malformed.
    """
    given = profile_name(pool, where)
    version = pool.engine.vllm_version
    return load_profile(given, version) if isinstance(given, str) else version_of(given, version)


def check_lone_weight(scenario: Scenario) -> None:
    """Refuse the weight of servers that are beside no others.

    Raises
    ------
    ScenarioError
    """
    pools = scenario.fleet.pools
    if len(pools) == 1 and pools[0].weight != 1.0:
        raise ScenarioError(
            f"weight is {pools[0].weight:g}, and the fleet has one pool: it is what a server gets "
            "beside those of other pools; leave it out, or give another pool"
        )


def one_pool(scenario: Scenario) -> PoolSection:
    """The pool of a fleet that has one.

    Raises
    ------
    ScenarioError
        If it has none, or several.
    """
    pools = scenario.fleet.pools
    if not pools:
        raise ScenarioError(
            "profile is missing; give an id or a file (--profile, or fleet.pools of a scenario)"
        )
    if len(pools) > 1:
        raise ScenarioError(f"fleet.pools has {len(pools)} pools; must be one here")
    return pools[0]


@dataclass(frozen=True)
class Candidates:
    """What a search chooses its servers among."""

    #: its shipped profiles, on ``gpus`` and by ``methods`` if given
    model: str | None
    gpus: tuple[str, ...]
    methods: tuple[str, ...]
    #: further ones
    profiles: tuple[Profile | str, ...]


def candidates_of(scenario: Scenario, section: SearchSection) -> Candidates:
    """Those that the section names, or else those of the fleet's pools.

    Raises
    ------
    ScenarioError, ProfileError
        As :func:`profile_name`.
    """
    model, pools = section.model, scenario.fleet.pools
    gpus, methods = tuple(section.gpus), tuple(section.methods)
    profiles: tuple[Profile | str, ...] = tuple(section.profiles)
    if model is not None or profiles:
        return Candidates(model, gpus, methods, profiles)
    if len(pools) == 1 and pools[0].model is not None and pools[0].tensor_parallel_size is None:
        pool = pools[0]
        gpus = gpus or (() if pool.gpu is None else (pool.gpu,))
        methods = methods or (() if pool.method is None else (pool.method,))
        return Candidates(pool.model, gpus, methods, ())
    named = [
        profile_name(p, f"fleet.pools[{i}]")
        for i, p in enumerate(pools)
        if p.profile is not None or p.model is not None
    ]
    return Candidates(None, gpus, methods, tuple(named))


def searched_engine(scenario: Scenario, section: SearchSection, command: str) -> EngineOptions:
    """vLLM's settings of the servers that a search looks for.

    Raises
    ------
    ScenarioError
        If the pools have different ones, or limits of the queue, with which servers reject.
    """
    engines = [p.engine.options() for p in scenario.fleet.pools] or [EngineOptions()]
    what = f"qsim {command} looks for servers with one engine"
    _check_same(engines, "engine", f"{what}: give the same to all, or search a setting")
    refuse_queue_limits(engines[0].to_dict(), f"qsim {command}")
    return replace(engines[0], within_measured=not section.beyond_measured)


def common_lifecycle(scenario: Scenario, command: str) -> Lifecycle:
    """Times and powers of the servers that a search looks for.

    Raises
    ------
    ScenarioError
        If the pools have different ones.
    """
    found = [p.lifecycle.lifecycle() for p in scenario.fleet.pools] or [Lifecycle()]
    _check_same(found, "lifecycle", f"qsim {command} takes one for all servers")
    return found[0]


def _check_same(found: Sequence[object], name: str, rule: str) -> None:
    other = next((i for i, one in enumerate(found) if one != found[0]), None)
    if other is not None:
        raise ScenarioError(f"fleet.pools[{other}].{name} is not that of fleet.pools[0]; {rule}")
