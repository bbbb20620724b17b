"""Where options and keyword arguments go in a scenario.

The names of ``qsim``'s options (with underscores) and of its functions' arguments are one table:
an option given on the command line, a key of a flat file of options and a keyword in Python put
their value at the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qsim.checks import near_names
from qsim.errors import ScenarioError
from qsim.scenario.scenario import COMMANDS, Scenario
from qsim.scenario.section import Section
from qsim.scenario.sections import PARTS, Accounts, Traffic
from qsim.sim.fleet.autoscaling import Autoscaler
from qsim.sim.fleet.failures import Failures
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.fleet.pool import Pool
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import ENGINE, EngineOptions
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.edge import Place


_LIFETIMES = ("start_s", "start_w", "stop_s", "wake_s", "sleep_w")
#: of every pool
_EVERY = -1
_POOLS: Place = ("fleet", "pools")

_PLACES: dict[str, Place] = {
    **{name: ("traffic", name) for name in Traffic.model_fields},
    **{name: (*_POOLS, 0, name) for name in ("profile", "replicas")},
    **{name: (*_POOLS, _EVERY, "engine", name) for name in ENGINE},
    **{name: (*_POOLS, _EVERY, "lifecycle", name) for name in _LIFETIMES},
    "router": ("fleet", "router"),
    "pools": _POOLS,
    "failures": ("fleet", "failures"),
    "autoscale": ("fleet", "autoscaler"),
    **{name: (name,) for name in ("slos", "goodput", "allow_backlog", "seed")},
    **{name: ("accounts", name) for name in Accounts.model_fields},
}  # fmt: skip


def place_of(command: str, name: str) -> Place | None:
    """Where a command's option or argument goes; None if there is none of that name."""
    if command in COMMANDS and name in type(getattr(_DEFAULT, command)).model_fields:
        return command, name
    return _PLACES.get(name)


def fill(data: dict[str, Any], command: str, values: Mapping[str, Any]) -> dict[Place, str]:
    """Put options or arguments into plain, checked data of a scenario.

    Returns
    -------
    dict
        Name by place, for errors.

    Raises
    ------
    ScenarioError
        For something that is said of one pool where the scenario has several.
    """
    names: dict[Place, str] = {}
    for name, value in values.items():
        if isinstance(value, EngineOptions):
            names |= fill(data, command, value.to_dict())
        elif isinstance(value, Lifecycle):
            for key, part in asdict(value).items():
                if part is not None:
                    place = (*_POOLS, _EVERY, "lifecycle", key)
                    names |= dict.fromkeys(_put(data, place, key, part), key)
        else:
            to = place_of(command, name)
            if to is None:
                raise KeyError(name)
            for filled in _put(data, to, name, _plain(value)):
                names[filled] = name
    return names


def _put(data: dict[str, Any], place: Place, name: str, value: Any) -> Iterable[Place]:
    if place[:2] != _POOLS or place == _POOLS:
        node = data
        for step in place[:-1]:
            node = node.setdefault(str(step), {})
        node[str(place[-1])] = value
        return [place]
    pools = data.setdefault("fleet", {}).setdefault("pools", [])
    if not pools:
        pools.append({})
    if place[2] == 0 and len(pools) > 1:
        raise ScenarioError(
            f"{name} is given, and the scenario has {len(pools)} pools: say of which one, as in "
            f"--set fleet.pools.0.{name}={value}"
        )
    filled: list[Place] = []
    for i, pool in enumerate(pools):
        if name == "profile":
            for part in PARTS:
                pool.pop(part, None)
        node = pool
        for step in place[3:-1]:
            node = node.setdefault(str(step), {})
        node[str(place[-1])] = value
        filled.append((*_POOLS, i, *place[3:]))
    return filled


def _plain(value: Any) -> Any:
    if isinstance(value, Slo):
        return str(value)
    if isinstance(value, Pool):
        return {
            "profile": value.profile, "replicas": value.replicas, "weight": value.weight,
            "name": value.name, "sleeps": value.sleeps, "engine": value.options.to_dict(),
            "lifecycle": asdict(value.lifecycle),
        }  # fmt: skip
    if isinstance(value, Failures | Autoscaler):
        return _plain(asdict(value))
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def build(command: str, values: Mapping[str, Any]) -> Scenario:
    """The scenario of a function's keyword arguments; None is as good as leaving one out.

    Raises
    ------
    TypeError
        For one that there is not.
    ScenarioError
        If a value is not allowed.
    """
    data: dict[str, Any] = {}
    given = {k: v for k, v in values.items() if v is not None}
    try:
        names = fill(data, command, given)
    except KeyError as e:
        section: Section = getattr(_DEFAULT, command, _DEFAULT)
        known = [*_PLACES, *type(section).model_fields]
        raise TypeError(
            f"{command}() has no argument {e.args[0]!r}; {near_names(e.args[0], known)}"
        ) from None
    return Scenario.from_dict(data, names=names)


def scenario_of(
    command: str, asked: Scenario | Trace, model: str | None, values: Mapping[str, Any]
) -> Scenario:
    """What is asked of a search: a scenario as it is, or one of a trace and keyword arguments.

    Raises
    ------
    TypeError
        For keyword arguments beside a scenario, or unknown ones.
    ScenarioError
        If a value is not allowed.
    """
    if not isinstance(asked, Scenario):
        return build(command, {"trace": asked, "model": model, **values})
    refuse_clients(command, asked)
    given = [*values] if model is None else ["model", *values]
    if given:
        raise TypeError(
            f"{command}() got a scenario and {', '.join(given)}; the scenario says all: change it "
            "(scenario.updated)"
        )
    return asked


def refuse_clients(command: str, scenario: Scenario, but: Sequence[str] = ()) -> None:
    """Refuse what a search would leave out of its simulations, ``but`` what it does not.

    Raises
    ------
    ScenarioError
    """
    for path, value in (
        ("traffic.concurrency", scenario.traffic.concurrency),
        ("traffic.think_time_s", scenario.traffic.think_time_s),
        ("traffic.client_timeout_s", scenario.traffic.client_timeout_s),
        ("fleet.failures", scenario.fleet.failures),
        ("fleet.autoscaler", scenario.fleet.autoscaler),
    ):
        if value is not None and path not in but:
            raise ScenarioError(
                f"{path} is given, and {command} does not simulate it: leave it out (--set "
                f"{path}=), or use simulate"
            )


_DEFAULT = Scenario()
