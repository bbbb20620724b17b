"""Scenario files: everything a command can be told, as YAML under the options' names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from qsim.bounds import shown
from qsim.cli._common import write_json
from qsim.documents import read_yaml, to_yaml
from qsim.errors import ScenarioError
from qsim.files import write_text

__all__ = ["resolved_scenario", "save_scenario", "shared_options", "write_outputs"]

#: options that say where results go or how the work is done, not what is computed
_NOT_SAVED = {
    "scenario", "save_scenario", "json", "out", "csv", "trials_csv", "requests", "report",
    "picture", "export", "autoscaler", "gpus_per_host", "steps", "timeline", "fail_on_slo",
    "progress", "jobs", "dask", "study", "study_name", "resume", "importance",
}  # fmt: skip


def shared_options(command: click.Command) -> click.Command:
    """Give a command that simulates ``--progress``, ``--scenario`` and ``--save-scenario``."""
    command.params.append(
        click.Option(
            ["--progress/--no-progress"],
            default=None,
            help="Show a bar on stderr; by default on a terminal.",
        )
    )
    command.params.append(
        click.Option(
            ["--scenario"],
            type=click.Path(exists=True, dir_okay=False),
            is_eager=True,  # before the others, which take their defaults from the file
            expose_value=False,
            callback=_load,
            metavar="FILE.yaml",
            help="Take the options from this file (names with underscores); the command line "
            "goes first.",
        )
    )
    command.params.append(
        click.Option(
            ["--save-scenario"],
            metavar="FILE.yaml",
            help="Write the scenario as resolved, to be run again with --scenario.",
        )
    )
    return command


def resolved_scenario(ctx: click.Context) -> dict[str, Any]:
    """All options that decide the result, as used, by scenario key; those not set are left out."""
    scenario: dict[str, Any] = {}
    for key, param in _params(ctx.command).items():
        value = ctx.params.get(param.name or "")
        if key in _NOT_SAVED or value is None or value == ():
            continue
        scenario[key] = _plain(value)
    return scenario


def save_scenario(ctx: click.Context) -> None:
    """``--save-scenario``: the resolved scenario as YAML."""
    path = ctx.params["save_scenario"]
    if not path:
        return
    text = to_yaml(resolved_scenario(ctx))
    write_text(
        path, f"# qsim {ctx.command.name} --scenario {' '.join(Path(path).name.split())}\n{text}"
    )


def write_outputs(ctx: click.Context, data: Callable[[], Mapping[str, Any]]) -> None:
    """``--save-scenario``, and ``--json``: ``data`` with the resolved scenario."""
    save_scenario(ctx)
    path = ctx.params["json_path"]
    if path:
        write_json({**data(), "scenario": resolved_scenario(ctx)}, path)


def _params(command: click.Command) -> dict[str, click.Parameter]:
    """Scenario key -> parameter; the key is the longest option name, with underscores."""
    keys: dict[str, click.Parameter] = {}
    for param in command.params:
        if isinstance(param, click.Option):
            keys[max(param.opts, key=len).lstrip("-").replace("-", "_")] = param
        else:
            keys[param.name or ""] = param
    return keys


def _load(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Make the values of the file the defaults of the other options."""
    if path is None:
        return
    data = read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ScenarioError(
            f"{path}: holds a {type(data).__name__}; must be a mapping of option names to values"
        )
    known = _params(ctx.command)
    del known["scenario"]
    defaults: dict[str, Any] = {}
    for key, value in data.items():
        option = known.get(key)
        if option is None:
            near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"known: {', '.join(known)}"
            )
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


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | float):
        return value
    return str(value)
