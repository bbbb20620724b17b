"""Options and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from qsim.bounds import one_line
from qsim.checks import parse_count
from qsim.errors import MissingExtraError, ScenarioError
from qsim.files import write_text
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.trace import Trace

__all__ = [
    "backlog_option",
    "engine_from",
    "engine_options",
    "executor_options",
    "jobs_from",
    "load_shaped",
    "need_matplotlib",
    "note",
    "one_to_stdout",
    "option_group",
    "router_option",
    "run_options",
    "slo_option",
    "tell_reading",
    "to_json",
    "trace_options",
    "write_json",
]

# ROUTERS of qsim.sim.fleet.routers.router in words: importing it would cost --help its speed; a
# test compares them
ROUTER_HELP = (
    "round-robin, random, least-requests, least-tokens, power-of-two, vllm, prefix-affinity, "
    "session-affinity, kv-aware or expected-finish."
)

PICTURES = (".png", ".svg", ".pdf")

F = TypeVar("F", bound=Callable[..., Any])


def option_group(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator that adds several options, in the order of the help page."""

    def decorate(f: F) -> F:
        for decorator in reversed(decorators):
            f = decorator(f)
        return f

    return decorate


def count(text: str) -> int:
    """A whole number, or one with k/m/g/t (1000s) or K/M/G/T (1024s) behind it, as in vLLM."""
    try:
        return parse_count(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None


#: TRACE and the options that read and shape it; :func:`trace_from` reads it
trace_options = option_group(
    click.argument("trace", metavar="TRACE"),
    click.option("--format", metavar="NAME", help="Format of TRACE; recognised by content "
                 "unless given."),
    click.option("--columns", metavar="ROLE=NAME[UNIT],...", help="What the columns of a table "
                 "are: arrival=start_time[unix_ms],prompt=usage.prompt_tokens,output=tokens_out."),
    click.option("--sort", is_flag=True, default=None,
                 help="Sort TRACE by arrival time instead of refusing it."),
    click.option("--start", type=float, metavar="S",
                 help="Leave out requests before this time of the trace, s."),
    click.option("--end", type=float, metavar="S",
                 help="Leave out requests at or after this time of the trace, s."),
    click.option("--sample", type=float, metavar="SHARE", help="Keep this share of the requests "
                 "(of the sessions), drawn with --seed."),
    click.option("--scale-prompt", type=float, metavar="X", help="Make prompts X times as long."),
    click.option("--scale-output", type=float, metavar="X", help="Make outputs X times as long."),
    click.option("--shared-prefix", type=count, metavar="TOKENS", help="So many tokens at the "
                 "beginning of every prompt are the same, as a system prompt."),
    click.option("--speed", type=float, metavar="X",
                 help="Let requests arrive X times as fast (after --start and --end)."),
    click.option("--head", type=count, metavar="N", help="Keep the first N requests."),
    click.option("--merge", multiple=True, metavar="TRACE", help="Add another trace, which starts "
                 "with the first and is cut and scaled as it is; repeatable."),
)  # fmt: skip


def load_shaped(
    trace: str,
    *,
    format: str | None,
    columns: str | None,
    sort: bool | None,
    seed: int,
    merge: Iterable[str] = (),
    **reshaping: Any,
) -> Trace:
    """Read TRACE, say on stderr what was skipped, then cut and scale it.

    ``reshaping`` are fields of :class:`qsim.traces.reshape.Reshaping`.
    """
    from qsim.traces.load import load_reshaped
    from qsim.traces.reshape import Reshaping

    return load_reshaped(
        trace,
        Reshaping(**reshaping),
        merge,
        format=format,
        columns=columns,
        sort=bool(sort),
        seed=seed,
        tell=tell_reading,
    )


def tell_reading(name: str, meta: Mapping[str, Any]) -> None:
    """Say on stderr how a file was understood, and what was left out of it."""
    for text in meta.get("notes") or ():
        note(f"{name}: {text}")
    skipped = meta.get("skipped") or {}
    if isinstance(skipped, Mapping):
        for rule, count in skipped.items():
            if count:
                note(f"{name}: {count} rows skipped ({rule})")


#: ``--router``
router_option = click.option(
    "--router", default="least-requests", show_default=True, metavar="NAME", help=ROUTER_HELP
)


#: ``--seed`` and ``--too-long``
run_options = option_group(
    click.option("--seed", type=int, default=0, show_default=True,
                 help="Of every random draw."),
    click.option("--too-long", default="error", show_default=True, metavar="error|reject",
                 help="Prompts of max-model-len or more: an error, or counted as failed "
                 "as the server would."),
)  # fmt: skip


def _known_version(ctx: click.Context, param: click.Parameter, version: str | None) -> str | None:
    """Refuse what is no version before the work; say it if its rules are not known."""
    if version is not None:
        from qsim.catalog.versions import newer_than_known

        remark = newer_than_known(version)
        if remark and ctx.command.name != "simulate":  # that has it in its notes
            note(remark)
    return version


#: vLLM's options that the simulator knows, under vLLM's names
engine_options = option_group(
    click.option("--max-num-seqs", type=count, metavar="N",
                 help="Requests that a server runs at a time."),
    click.option("--max-num-batched-tokens", type=count, metavar="N",
                 help="Token budget of one step."),
    click.option("--max-model-len", type=count, metavar="N",
                 help="Longest sequence, prompt and output together."),
    click.option("--enable-prefix-caching/--no-enable-prefix-caching", default=None,
                 help="Share KV blocks of equal prompt beginnings (needs hash ids)."),
    click.option("--async-scheduling/--no-async-scheduling", default=None,
                 help="Schedule the next step while the GPU works."),
    click.option("--kv-cache-memory-bytes", type=count, metavar="N",
                 help="Size of the KV cache of one GPU."),
    click.option("--num-gpu-blocks-override", type=count, metavar="N",
                 help="Number of KV blocks."),
    click.option("--long-prefill-token-threshold", type=count, metavar="N",
                 help="Longest prefill chunk of one request; 0 for no limit."),
    click.option("--scheduling-policy", metavar="NAME", help="fcfs or priority."),
    click.option("--max-num-active-seqs", type=count, metavar="N",
                 help="Of max_num_seqs as many may run (vLLM 0.31 and newer)."),
    click.option("--long-prefill-token-threshold-adaptive/"
                 "--no-long-prefill-token-threshold-adaptive", default=None,
                 help="Raise the threshold to a fair share of the budget (vLLM 0.31 and newer)."),
    click.option("--max-num-queued-reqs", type=count, metavar="N",
                 help="Unfinished requests of one server; more are rejected (vLLM 0.29 and newer; "
                 "simulate and sweep)."),
    click.option("--max-num-queued-tokens", type=count, metavar="N",
                 help="Prompt tokens without a first token in one server; with as many further "
                 "requests are rejected."),
    click.option("--vllm-version", metavar="VERSION", callback=_known_version,
                 help="Version of vLLM whose rules and defaults hold, 0.24 to 0.33; by default the "
                 "newest that the profile was measured with."),
)  # fmt: skip


def engine_from(options: Mapping[str, Any]) -> EngineOptions:
    """The engine options among a command's parameters."""
    return EngineOptions().updated(options)


#: ``--slo``, any number of times
slo_option = click.option(
    "--slo",
    "slos",
    type=Slo.parse,
    multiple=True,
    metavar="METRIC:STAT:MS",
    help="Limit on ttft, tpot, itl or e2el by mean, median or percentile, "
    "e.g. ttft:p99:500; repeat for more.",
)


#: ``--allow-backlog``
backlog_option = click.option(
    "--allow-backlog",
    is_flag=True,
    default=None,
    help="Do not count a fleet that finishes less than arrives as missing its SLOs; for work that "
    "may wait, such as an offline batch.",
)


#: ``--jobs`` and ``--dask``: where simulations run. Read them with :func:`jobs_from`
executor_options = option_group(
    click.option("--jobs", type=int, metavar="N",
                 help="Processes; by default one a core. The answer is the same."),
    click.option("--dask", metavar="ADDRESS",
                 help="Simulate on a Dask cluster instead: tcp://scheduler:8786, or a "
                 "scheduler file. The answer is the same."),
)  # fmt: skip


def jobs_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """``jobs`` and ``dask`` for the optimizers, from a command's parameters."""
    from qsim.processes import available_cores

    jobs = options["jobs"]
    return {"jobs": available_cores() if jobs is None else jobs, "dask": options["dask"]}


def to_json(data: Any) -> str:
    """JSON text of plain data, the same bytes for the same data.

    Raises
    ------
    ValueError
        For nan or inf, which JSON does not have.
    """
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(data: Any, path: str) -> None:
    """Write to a file, or to stdout for ``-``."""
    text = to_json(data)
    if path == "-":
        click.echo(text, nl=False)
    else:
        write_text(path, text)


def one_to_stdout(
    given: Mapping[str, Any], exports: Iterable[Any], files: Iterable[str] = ("json",)
) -> list[str]:
    """The option that goes to stdout in the place of the table, if there is one.

    Raises
    ------
    ScenarioError
        If there are several: exports without a path, and ``files`` to ``-``.
    """
    found = [str(e) for e in exports if e.path is None]
    found += [f"--{k} -" for k in files if given[f"{k}_path"] == "-"]
    if len(found) > 1:
        raise ScenarioError(
            f"{' and '.join(found)} would both go to stdout; give a path to all but one"
        )
    return found


def note(text: str) -> None:
    """A remark on stderr; lost if that is closed."""
    with suppress(OSError):
        click.echo(f"Note: {one_line(text)}", err=True)


def need_matplotlib(option: str, path: str | None, endings: tuple[str, ...] = PICTURES) -> None:
    """Fail before the work, not after it, if a picture cannot be drawn or has a wrong name."""
    if path is None:
        return
    if Path(path).suffix.lower() not in endings:
        raise ScenarioError(f"{option} is {path!r}; must end in {' or '.join(endings)}")
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "report", option)
