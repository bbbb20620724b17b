"""What a scenario asks of ``qsim.capacity`` and ``qsim.curve``, as their arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qsim.errors import ScenarioError
from qsim.optimize.capacity.layout import DEFAULT_TRAFFIC
from qsim.optimize.economics.prices import prices_of
from qsim.scenario import Scenario
from qsim.scenario.names import refuse_clients
from qsim.scenario.resolve import candidates_of, load_traffic, searched_engine
from qsim.scenario.searches import SearchSection
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.load import preset_names
from qsim.traces.trace import Trace

__all__ = ["capacity_arguments", "curve_arguments"]

Tell = Callable[[str, Mapping[str, Any]], None]


def capacity_arguments(scenario: Scenario, tell: Tell | None = None) -> dict[str, Any]:
    """Of :func:`qsim.capacity`, without those of how the work is done.

    Parameters
    ----------
    tell : callable, optional
        Takes the name of each trace and what is known of how it was read.

    Raises
    ------
    ScenarioError, ProfileError, TraceError
        As :func:`qsim.capacity`.
    """
    asked, accounts = scenario.capacity, scenario.accounts
    refuse_clients("capacity", scenario, but=("traffic.think_time_s",))
    among = candidates_of(scenario, asked)
    options = searched_engine(scenario, asked, "capacity")
    trace, words = _traffic(scenario, tell)
    return {
        "model": among.model,
        "gpus": asked.gpus,
        "trace": trace,
        "slos": scenario.slos,
        "goodput": scenario.goodput,
        "min_goodput": asked.min_goodput,
        "methods": among.methods,
        "profiles": among.profiles,
        "objective": asked.objective,
        "prices": prices_of(accounts),
        "provider": accounts.provider,
        "tasks": accounts.tasks,
        "min_quality": asked.min_quality,
        "router": scenario.fleet.router,
        "options": options,
        "beyond_measured": asked.beyond_measured,
        "users": asked.users,
        "think_time_s": scenario.traffic.think_time_s,
        "precision": asked.precision,
        "seed": scenario.seed,
        "too_long": scenario.traffic.too_long,
        "words": words,
    }


def curve_arguments(scenario: Scenario, tell: Tell | None = None) -> dict[str, Any]:
    """Of :func:`qsim.curve`; without profiles its fleets are the scenario's pools.

    Raises
    ------
    ScenarioError, ProfileError, TraceError
        As :func:`qsim.curve`.
    """
    asked, accounts = scenario.curve, scenario.accounts
    refuse_clients("curve", scenario)
    if scenario.goodput:
        raise ScenarioError("goodput is given; qsim curve judges SLOs only: leave it out")
    named = SearchSection(profiles=asked.profiles)
    profiles = candidates_of(scenario, named).profiles
    if not profiles:
        raise ScenarioError("no fleet is given; name a profile (--profile ID; qsim profiles)")
    replicas, pools = asked.replicas, scenario.fleet.pools
    if replicas is None and asked.gpus is None and not asked.profiles:
        sizes = {p.replicas for p in pools}
        if len(sizes) > 1:
            raise ScenarioError(
                f"fleet.pools have {' and '.join(map(str, sorted(sizes)))} replicas; the fleets of "
                "a curve have one number: give curve.replicas or curve.gpus"
            )
        replicas = sizes.pop()
    options = replace(
        searched_engine(scenario, named, "curve"), within_measured=EngineOptions().within_measured
    )
    trace, words = _traffic(scenario, tell)
    return {
        "profiles": profiles,
        "trace": trace,
        "replicas": replicas,
        "gpus": asked.gpus,
        "rates": asked.rates,
        "slos": scenario.slos,
        "prices": prices_of(accounts),
        "provider": accounts.provider,
        "router": scenario.fleet.router,
        "options": options,
        "seed": scenario.seed,
        "too_long": scenario.traffic.too_long,
        "words": words,
    }


def _traffic(scenario: Scenario, tell: Tell | None) -> tuple[Trace | str, tuple[str, ...]]:
    """The trace, or a preset that is yet to be drawn; and its words on the command line."""
    traffic = scenario.traffic
    for name, value in (("speed", traffic.speed), ("growth", traffic.growth)):
        if value not in (None, 1.0):
            raise ScenarioError(f"--{name} is what is searched here; leave it out")
    named = DEFAULT_TRAFFIC if traffic.trace is None else traffic.trace
    shaped: dict[str, Any] = {
        k: v
        for k, v in traffic.given().items()
        if k not in _NO_SHAPE and v not in (None, False, [], "")
    }
    if isinstance(named, str) and named in preset_names() and not shaped:
        return named, ()
    section = traffic.model_copy(update={"trace": named})
    trace = load_traffic(section, scenario.seed, tell)
    if not isinstance(named, str):
        return trace, ()
    words = [named]
    for name, value in shaped.items():
        if name == "peak_hour":
            words += ["--set", "traffic.peak_hour=true"]
            continue
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        words += [flag] if value is True else [w for v in values for w in (flag, str(v))]
    return trace, tuple(words)


#: what does not shape the trace, or is said otherwise
_NO_SHAPE = {"trace", "speed", "growth", "too_long", "stream", "think_time_s"}
