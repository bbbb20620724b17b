"""A command's options, its scenario file and ``--set`` become one ``Scenario``."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qsim.bounds import shown
from qsim.cli._command import Command
from qsim.cli._outputs import note, write_json
from qsim.cli._values import (
    autoscaler_from,
    failures_from,
    gpus_from,
    is_manifest,
    prices_from,
    put_pools,
    rates_from,
)
from qsim.errors import QsimError, ScenarioError
from qsim.files import write_text

if TYPE_CHECKING:
    from qsim.scenario import Scenario

#: keys that only a file in sections has, not one of options
_SECTIONS = {
    "traffic",
    "fleet",
    "slos",
    "accounts",
    "plan",
    "tune",
    "schedule",
    "sweep",
    "study",
    "capacity",
    "curve",
}
#: parameters whose place in a scenario has another name
_RENAMED = {"prices_path": "price_list", "searched": "search"}
_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
#: largest JSON file that may be a scenario
_MOST_JSON = 256 << 10


class ScenarioCommand(Command):
    """Takes a scenario file in the place of TRACE, changes it and saves it; shows its progress.

    ``default_trace`` stands for TRACE where none is given.
    """

    def __init__(self, *args: Any, default_trace: str | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        for param in self.params:
            if param.name in ("trace", "profile"):  # they may come from the file
                param.required = False
            if param.name == "trace" and default_trace is not None:
                param.default = default_trace
        self.params += [
            click.Option(
                ["--progress/--no-progress"],
                default=None,
                help="Show a bar on stderr; by default on a terminal.",
            ),
            click.Option(
                ["--scenario"],
                type=click.Path(exists=True, dir_okay=False),
                is_eager=True,  # before the others, which take their defaults from the file
                expose_value=False,
                callback=_load,
                metavar="FILE.yaml",
                help="Take the scenario from this file (see qsim schema), or the options by their "
                "names with underscores; the command line goes first. It may stand in the place "
                "of TRACE.",
            ),
            click.Option(
                ["--set", "assignments"],
                multiple=True,
                metavar="PATH=VALUE",
                help="Set a field of the scenario, such as fleet.pools.0.engine.max_num_seqs=64; "
                "after all other options; repeatable.",
            ),
            click.Option(
                ["--save-scenario"],
                metavar="FILE.yaml",
                help="Write the scenario as resolved, to be run again.",
            ),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            try:
                values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            except click.UsageError:
                return super().parse_args(ctx, args)  # which says what is wrong
            first = values.get("trace")
            if isinstance(first, str) and _is_scenario(first):
                args = list(args)
                args.remove(first)
                args = ["--scenario", first, *args]
        return super().parse_args(ctx, args)


def _is_scenario(path: str) -> bool:
    """Whether a positional argument is a scenario and no trace: by its name, or its sections."""
    if path.endswith((".yaml", ".yml")):
        return True
    if not path.endswith(".json"):
        return False
    try:
        if os.path.getsize(path) > _MOST_JSON:
            return False
        from qsim.documents import read_json

        data = read_json(path)
    except (OSError, ValueError, QsimError):
        return False  # whoever reads it as a trace says what is wrong
    return isinstance(data, dict) and bool(_SECTIONS & set(data))


def scenario_from(ctx: click.Context) -> Scenario:
    """What is asked: the scenario file, with the options and ``--set`` over it."""
    from qsim.scenario import Scenario
    from qsim.scenario.names import fill, place_of, refuse_clients
    from qsim.scenario.paths import parse_set

    command = str(ctx.command.name)
    data: dict[str, Any] = copy.deepcopy(ctx.meta.get(_DATA, {}))
    values: dict[str, Any] = {}
    for param in ctx.command.params:
        name = str(param.name)
        value = ctx.params.get(name)
        given = ctx.get_parameter_source(name) in _GIVEN
        name = _RENAMED.get(name, name)
        if given and value is not None and place_of(command, name) is not None:
            values[name] = _converted(command, name, value)
    if ctx.params.get("pool_texts"):
        put_pools(data, ctx.params["pool_texts"], values)
    if (failures := failures_from(ctx.params)) is not None:
        values["failures"] = failures
    if (autoscaler := autoscaler_from(ctx.params)) is not None:
        values["autoscale"] = autoscaler
    names = fill(data, command, values)
    for text in ctx.params["assignments"]:
        parse_set(data, text, Scenario)
    scenario = Scenario.from_dict(data, names=names)
    if autoscaler is not None and is_manifest(ctx.params["autoscale_text"]):
        _check_one_pool(scenario)
    if "think_time_s" in values:
        _check_think_time(command, scenario)
    if command not in ("simulate", "capacity"):  # which has users
        refuse_clients(command, scenario)
    if command in _POOLS_ARE_CANDIDATES:
        _tell_candidates(command, scenario)
    if scenario.traffic.trace is None:
        for param in ctx.command.params:
            if param.name == "trace" and isinstance(param.default, str):
                return scenario.updated({"traffic.trace": param.default})
            if param.name == "trace":
                raise click.MissingParameter(ctx=ctx, param=param)
    return scenario


_DATA = "qsim.scenario"
#: searches whose servers are those of the fleet's pools, where nothing else names them
_POOLS_ARE_CANDIDATES = ("plan", "tune", "schedule", "capacity", "curve", "study")


def _check_one_pool(scenario: Scenario) -> None:
    """A manifest scales one Deployment."""
    count = len(scenario.fleet.pools)
    if count > 1 and not getattr(scenario.fleet.autoscaler, "pools", ()):
        raise ScenarioError(
            f"--autoscale names a manifest, which scales one Deployment, and the fleet has {count} "
            "pools: say which one with --set fleet.autoscaler.pools=[NAME]"
        )


def _tell_candidates(command: str, scenario: Scenario) -> None:
    """Say that a search does not take several pools as the one fleet that they are."""
    pools = scenario.fleet.pools
    if len(pools) < 2:
        return
    asked = getattr(scenario, command)
    if asked.profiles or getattr(asked, "model", None) is not None:
        note(
            f"fleet.pools is not looked at: {command}.model and {command}.profiles name the "
            "servers that are compared"
        )
        return
    note(
        f"the {len(pools)} pools of fleet.pools are compared, each as a fleet of its own; their "
        "numbers of servers and weights do not count (qsim simulate runs them as one fleet)"
    )


def _check_think_time(command: str, scenario: Scenario) -> None:
    """Refuse ``--think-time`` where nobody thinks, in the words of the command line."""
    given = f"--think-time is {scenario.traffic.think_time_s:g}"
    if command == "simulate" and scenario.traffic.concurrency is None:
        raise ScenarioError(
            f"{given}, and there are no clients that think: give --concurrency, too; sessions of a "
            "trace have delays of their own"
        )
    if command == "capacity" and not scenario.capacity.users:
        raise ScenarioError(f"{given}, and rates are searched: ask for --users, too")


def _converted(command: str, name: str, value: Any) -> Any:
    if (command, name) == ("capacity", "gpus") or name == "stock":
        return gpus_from(value, f"--{name}")
    if (command, name) == ("curve", "rates"):
        return rates_from(value)
    if name == "prices":
        return prices_from(value)
    if name == "policies" and tuple(value) == ("none",):
        return []
    return value


def save_scenario(ctx: click.Context, scenario: Scenario) -> None:
    """``--save-scenario``: what was asked as YAML."""
    path = ctx.params["save_scenario"]
    if path:
        command = str(ctx.command.name)
        name = " ".join(Path(path).name.split())
        write_text(path, f"# qsim {command} {name}\n{scenario.to_yaml(command)}")


def write_outputs(
    ctx: click.Context, data: Callable[[], Mapping[str, Any]], scenario: Scenario
) -> None:
    """``--save-scenario``, and ``--json``: ``data`` with what was asked."""
    save_scenario(ctx, scenario)
    path = ctx.params["json_path"]
    if path:
        write_json({**data(), "scenario": scenario.to_dict(str(ctx.command.name))}, path)


def _params(command: click.Command) -> dict[str, click.Parameter]:
    """Key of a file of options -> parameter; the key is the longest name, with underscores."""
    keys: dict[str, click.Parameter] = {}
    for param in command.params:
        if isinstance(param, click.Option):
            keys[max(param.opts, key=len).lstrip("-").replace("-", "_")] = param
        else:
            keys[param.name or ""] = param
    return keys


def _load(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Read a scenario; or make the values of a file of options the defaults of the others."""
    if path is None:
        return
    from qsim.documents import read_json, read_yaml

    data = read_json(path) if path.endswith(".json") else read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ScenarioError(
            f"{path}: holds a {type(data).__name__}; must be a mapping of a scenario's sections, "
            "or of option names to values"
        )
    if _SECTIONS & set(data):
        from qsim.scenario import Scenario

        ctx.meta[_DATA] = Scenario.from_dict(data, path).given()
        return
    known = _params(ctx.command)
    del known["scenario"]
    known.pop("set", None)
    defaults: dict[str, Any] = {}
    for key, value in data.items():
        option = known.get(key)
        if option is None:
            names = [*known, *sorted(_SECTIONS)]
            near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5)
            near = near or difflib.get_close_matches(str(key), _SECTIONS, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?"
            if not near:
                hint = f"known: {', '.join(names)}"
            raise ScenarioError(f"{path}: unknown key {shown(key)}; {hint}")
        if value is not None:
            defaults[option.name or ""] = _texts(option, value, f"{path}: {key}")
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _texts(param: click.Parameter, value: Any, where: str) -> Any:
    """The value as it would stand on the command line, so that the same checks apply."""
    if param.multiple:
        if isinstance(value, dict):
            return [f"{k}={_text(v, where)}" for k, v in value.items()]
        return [_text(v, where) for v in (value if isinstance(value, list) else [value])]
    return _text(value, where)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ScenarioError(f"{where} is {shown(value)}; must be text, a number, true or false")
