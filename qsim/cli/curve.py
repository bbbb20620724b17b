"""``qsim curve``: what fleets do from light load to beyond what they carry."""

from __future__ import annotations

from typing import Any

import click

from qsim.checks import check_ending
from qsim.cli import _options as options
from qsim.cli._outputs import Outputs, check_outputs, need_matplotlib, tell_reading
from qsim.cli._progress import progress_bar
from qsim.cli._scenario import ScenarioCommand, scenario_from, write_outputs
from qsim.cli.capacity import DEFAULT_TRACE
from qsim.errors import ScenarioError
from qsim.files import write_text


@click.command(cls=ScenarioCommand, default_trace=DEFAULT_TRACE)
@options.trace
@click.option("--profile", "profiles", multiple=True, metavar="ID|FILE",
              help="A fleet of this profile; repeat it to compare fleets.")  # fmt: skip
@click.option("--replicas", type=int, metavar="N", help="Servers of each fleet; 1 unless given.")
@click.option("--gpus", type=int, metavar="N",
              help="Or GPUs of each fleet: as many servers as fit.")  # fmt: skip
@click.option("--rates", metavar="X,Y,...",
              help="Requests a second to simulate; by default shares of what each fleet "
              "carries.")  # fmt: skip
@options.slo
@options.market
@options.router
@options.engine
@options.run
@options.executor
@click.option("--json", "json_path", metavar="FILE", help="Write all figures; - for stdout.")
@click.option("--csv", "csv_path", metavar="FILE", help="Write a row a fleet and rate.")
@click.option("--picture", "picture_path", metavar="FILE.png|svg|pdf", help="Draw the curves.")
@click.pass_context
def curve(ctx: click.Context, /, **given: Any) -> None:
    """Simulate fleets at many rates of TRACE, and find the knee of each.

    The knee is the highest rate, to 2%, at which the fleet keeps up and meets every SLO. TRACE is
    by default azure-conv-2023, made faster or slower.
    """
    need_matplotlib("--picture", given["picture_path"])
    if given["csv_path"] not in (None, "-"):
        check_ending("--csv", given["csv_path"], (".csv",))
    if given["csv_path"] == given["json_path"] == "-":
        raise ScenarioError("--csv - and --json - would both go to stdout; give a path to one")
    from qsim.optimize.capacity.curve import curve as run
    from qsim.report.text.capacity import curve_text

    scenario = scenario_from(ctx)
    check_outputs(given)
    with progress_bar("curve", given["progress"]) as update:
        found = run(scenario, tell=tell_reading, **options.jobs_from(given), progress=update)
    out = Outputs()
    if given["csv_path"] == "-":
        out.echo(found.to_csv(), nl=False)
    elif given["json_path"] != "-":
        out.echo(curve_text(found))
    with out.attempt("--json"):
        write_outputs(ctx, found.to_dict, scenario)
    if given["csv_path"] not in (None, "-"):
        with out.attempt("--csv"):
            write_text(given["csv_path"], found.to_csv())
    if given["picture_path"]:
        from qsim.report.figures.curve import curve_figure
        from qsim.report.figures.style import save_figure

        with out.attempt("--picture"):
            save_figure(curve_figure(found), given["picture_path"])
    out.finish()
