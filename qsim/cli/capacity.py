"""``qsim capacity``: the most that given GPUs carry, by layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from qsim.cli._command import Command
from qsim.cli._common import (
    SHAPE,
    engine_from,
    engine_options,
    executor_options,
    jobs_from,
    router_option,
    run_options,
    slo_option,
    trace_from,
    trace_options,
)
from qsim.cli._outputs import Outputs, check_outputs
from qsim.cli._progress import progress_bar
from qsim.cli._scenario import shared_options, write_outputs
from qsim.cli._search import (
    beyond_option,
    floor_option,
    goodput_options,
    gpus_from,
    market_from,
    market_options,
)
from qsim.errors import InfeasibleError, ScenarioError
from qsim.traces.trace import Trace

__all__ = ["capacity", "optional_trace", "traffic_from"]

#: TRACE where none is given; that of qsim.optimize.capacity, which a test compares
DEFAULT_TRACE = "azure-conv-2023"


def optional_trace(command: click.Command) -> click.Command:
    """Let a command that reads TRACE do without: then it is :data:`DEFAULT_TRACE`."""
    for param in command.params:
        if param.name == "trace":
            param.required, param.default = False, DEFAULT_TRACE
    return command


def traffic_from(given: Mapping[str, Any]) -> tuple[Trace | str, tuple[str, ...]]:
    """The trace, or a preset that is yet to be drawn; and its words on the command line."""
    from qsim.traces.load import preset_names

    shaped = {k: given[k] for k in SHAPE if given[k] not in (None, False, ())}
    if given["trace"] in preset_names() and not shaped:
        return given["trace"], ()
    words = [str(given["trace"])]
    for name, value in shaped.items():
        if name != "speed":  # the commands that are printed have a speed of their own
            flag = f"--{name.replace('_', '-')}"
            values = value if isinstance(value, tuple) else (value,)
            words += [flag] if value is True else [w for v in values for w in (flag, str(v))]
    if shaped.get("speed", 1.0) != 1.0:
        raise ScenarioError("--speed is what is searched here; leave it out")
    return trace_from(given), tuple(words)


@optional_trace
@shared_options
@click.command(cls=Command)
@trace_options
@click.option("--gpus", multiple=True, metavar="GPU=N",
              help="GPUs of a type, such as h100_sxm=8; repeatable. Layouts use one.")  # fmt: skip
@click.option("--model", metavar="ID", help="Take the shipped profiles of this model.")
@click.option("--method", "methods", multiple=True, metavar="ID",
              help="Only by this method; repeatable.")  # fmt: skip
@click.option("--profile", "profiles", multiple=True, metavar="ID|FILE",
              help="One more candidate, such as a profile of your own; repeatable.")  # fmt: skip
@slo_option
@goodput_options
@click.option("--objective", default="rate", show_default=True, metavar="rate|cost|energy",
              help="Order by requests/s, USD per output token or J per output token, each at the "
              "highest rate.")  # fmt: skip
@market_options
@click.option("--tasks", metavar="MIX", help="Tasks that quality is told for, such as "
              "gsm8k:0.3,mmlu:0.7.")  # fmt: skip
@floor_option
@click.option("--precision", type=float, default=0.02, show_default=True, metavar="SHARE",
              help="Search until a rate at most so much higher misses a limit.")  # fmt: skip
@router_option
@engine_options
@beyond_option
@run_options
@executor_options
@click.option("--json", "json_path", metavar="FILE", help="Write all figures; - for stdout.")
@click.pass_context
def capacity(ctx: click.Context, /, **given: Any) -> None:
    """Find the highest rate of each layout of --gpus at which every SLO holds.

    A layout is a method and a tensor-parallel size, with as many replicas as fit. All are given the
    requests of TRACE (by default azure-conv-2023), faster or slower, and every figure is simulated.
    """
    from qsim.optimize.capacity.capacity import capacity as search
    from qsim.report.text.capacity import capacity_text

    check_outputs(given)
    stock = gpus_from(given["gpus"], "--gpus")
    trace, words = traffic_from(given)
    names = ("slos", "goodput", "min_goodput", "methods", "profiles", "objective", "tasks",
             "min_quality", "router", "precision", "seed", "too_long")  # fmt: skip
    with progress_bar("capacity", given["progress"]) as update:
        found = search(
            given["model"],
            stock,
            trace,
            **{k: given[k] for k in names},
            **market_from(given),
            options=engine_from(given),
            beyond_measured=bool(given["beyond_measured"]),
            words=words,
            **jobs_from(given),
            progress=update,
        )
    out = Outputs()
    if given["json_path"] != "-":
        out.echo(capacity_text(found))
    with out.attempt("--json"):
        write_outputs(ctx, found.to_dict)
    out.finish()
    if found.best is None:
        raise InfeasibleError(found.objection())
