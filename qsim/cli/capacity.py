"""``qsim capacity``: the most that given GPUs carry, by layout."""

from __future__ import annotations

from typing import Any

import click

from qsim.cli import _options as options
from qsim.cli._outputs import Outputs, check_outputs, tell_reading
from qsim.cli._progress import progress_bar
from qsim.cli._scenario import ScenarioCommand, scenario_from, write_outputs
from qsim.errors import InfeasibleError

#: TRACE where none is given; that of qsim.optimize.capacity, which a test compares
DEFAULT_TRACE = "azure-conv-2023"


@click.command(cls=ScenarioCommand, default_trace=DEFAULT_TRACE)
@options.trace
@click.option("--gpus", multiple=True, metavar="GPU=N",
              help="GPUs of a type, such as h100_sxm=8; repeatable. Layouts use one.")  # fmt: skip
@click.option("--model", metavar="ID", help="Take the shipped profiles of this model.")
@click.option("--method", "methods", multiple=True, metavar="ID",
              help="Only by this method; repeatable.")  # fmt: skip
@click.option("--profile", "profiles", multiple=True, metavar="ID|FILE",
              help="One more candidate, such as a profile of your own; repeatable.")  # fmt: skip
@options.slo
@options.goodput
@click.option("--objective", default="rate", show_default=True, metavar="rate|cost|energy",
              help="Order by requests/s, USD per output token or J per output token, each at the "
              "highest rate.")  # fmt: skip
@options.market
@click.option("--tasks", metavar="MIX", help="Tasks that quality is told for, such as "
              "gsm8k:0.3,mmlu:0.7.")  # fmt: skip
@options.floor
@click.option("--users", is_flag=True, default=None,
              help="Find the most users instead: each sends the next request after the answer and "
              "--think-time.")  # fmt: skip
@click.option("--think-time", "think_time_s", type=float, metavar="S",
              help="Mean seconds that a user waits after an answer, exponentially "
              "distributed.")  # fmt: skip
@click.option("--precision", type=float, default=0.02, show_default=True, metavar="SHARE",
              help="Search until a rate at most so much higher misses a limit.")  # fmt: skip
@options.router
@options.engine
@options.beyond
@options.run
@options.executor
@click.option("--json", "json_path", metavar="FILE", help="Write all figures; - for stdout.")
@click.pass_context
def capacity(ctx: click.Context, /, **given: Any) -> None:
    """Find the highest rate, or the most users, of each layout of --gpus at which every SLO holds.

    A layout is a method and a tensor-parallel size, with as many replicas as fit. All are given the
    requests of TRACE (by default azure-conv-2023), faster or slower, and every figure is simulated.
    """
    from qsim.optimize.capacity.capacity import capacity as run
    from qsim.report.text.capacity import capacity_text

    scenario = scenario_from(ctx)
    check_outputs(given)
    with progress_bar("capacity", given["progress"]) as update:
        found = run(scenario, tell=tell_reading, **options.jobs_from(given), progress=update)
    out = Outputs()
    if given["json_path"] != "-":
        out.echo(capacity_text(found))
    with out.attempt("--json"):
        write_outputs(ctx, found.to_dict, scenario)
    out.finish()
    if found.best is None:
        raise InfeasibleError(found.objection())
