"""``qsim curve``: what fleets do from light load to beyond what they carry."""

from __future__ import annotations

from typing import Any

import click

from qsim.checks import check_ending
from qsim.cli._command import Command
from qsim.cli._common import (
    engine_from,
    engine_options,
    executor_options,
    jobs_from,
    need_matplotlib,
    router_option,
    run_options,
    slo_option,
    trace_options,
)
from qsim.cli._outputs import Outputs, check_outputs
from qsim.cli._progress import progress_bar
from qsim.cli._scenario import shared_options, write_outputs
from qsim.cli._search import market_from, market_options
from qsim.cli.capacity import optional_trace, traffic_from
from qsim.errors import ScenarioError
from qsim.files import write_text

__all__ = ["curve"]


def _rates(text: str | None) -> list[float]:
    """``5,10,20`` as numbers."""
    if text is None:
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ScenarioError(
            f"--rates is {text[:80]!r}; must be requests a second, such as 5,10,20"
        ) from None


@optional_trace
@shared_options
@click.command(cls=Command)
@trace_options
@click.option("--profile", "profiles", multiple=True, metavar="ID|FILE",
              help="A fleet of this profile; repeat it to compare fleets.")  # fmt: skip
@click.option("--replicas", type=int, metavar="N", help="Servers of each fleet; 1 unless given.")
@click.option("--gpus", type=int, metavar="N",
              help="Or GPUs of each fleet: as many servers as fit.")  # fmt: skip
@click.option("--rates", metavar="X,Y,...",
              help="Requests a second to simulate; by default shares of what each fleet "
              "carries.")  # fmt: skip
@slo_option
@market_options
@router_option
@engine_options
@run_options
@executor_options
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
    if not given["profiles"]:
        raise ScenarioError("no fleet is given; name a profile (--profile ID; qsim profiles)")
    from qsim.optimize.capacity.curve import curve as run
    from qsim.report.text.capacity import curve_text

    check_outputs(given)
    rates = _rates(given["rates"])
    trace, words = traffic_from(given)
    names = ("replicas", "gpus", "slos", "router", "seed", "too_long")
    with progress_bar("curve", given["progress"]) as update:
        found = run(
            given["profiles"],
            trace,
            rates=rates,
            **{k: given[k] for k in names},
            **market_from(given),
            options=engine_from(given),
            words=words,
            **jobs_from(given),
            progress=update,
        )
    out = Outputs()
    if given["csv_path"] == "-":
        out.echo(found.to_csv(), nl=False)
    elif given["json_path"] != "-":
        out.echo(curve_text(found))
    with out.attempt("--json"):
        write_outputs(ctx, found.to_dict)
    if given["csv_path"] not in (None, "-"):
        with out.attempt("--csv"):
            write_text(given["csv_path"], found.to_csv())
    if given["picture_path"]:
        from qsim.report.figures.curve import curve_figure
        from qsim.report.figures.style import save_figure

        with out.attempt("--picture"):
            save_figure(curve_figure(found), given["picture_path"])
    out.finish()
