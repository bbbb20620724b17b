"""``qsim sweep``: one simulation for every point of a grid or a Latin hypercube."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qsim.checks import check_ending
from qsim.cli import _options as options
from qsim.cli._outputs import Outputs, check_outputs, note
from qsim.cli._progress import progress_bar, resumable
from qsim.cli._scenario import ScenarioCommand, save_scenario, scenario_from
from qsim.errors import ScenarioError


@click.command(cls=ScenarioCommand)
@options.trace
@click.option("--profile", metavar="ID|FILE", help="A shipped profile's id, or a file.")
@click.option("--growth", type=float, default=1.0, show_default=True, metavar="F",
              help="Let requests arrive F times as fast, after --speed.")  # fmt: skip
@click.option("--replicas", type=int, default=1, show_default=True, help="Servers in the fleet.")
@options.pool
@options.router
@options.engine
@options.slo
@options.backlog
@click.option("--grid", "--over", "over", multiple=True, metavar="NAME=VALUES",
              help="Vary this: max_num_seqs=64,128, replicas=1:4, trace.rate=5:40:x2, "
              "method=bf16,fp8-w8a8, fleet.pools.1.replicas=1:4; repeatable.")  # fmt: skip
@click.option("--lhs", type=int, metavar="N",
              help="Run N points of a Latin hypercube instead of every combination.")  # fmt: skip
@options.worth
@options.run
@click.option("--out", metavar="FILE", default="-", show_default=True,
              help="Write a row a run: .csv, .json or .parquet; - for CSV on stdout.")  # fmt: skip
@click.option("--resume", is_flag=True, default=None,
              help="Take what an interrupted sweep to the same --out finished.")  # fmt: skip
@options.executor
@click.pass_context
def sweep(ctx: click.Context, /, **given: Any) -> None:
    """Simulate TRACE at every point of a grid over anything in a scenario; one row a run.

    Instead of TRACE stands a scenario file (.yaml), or --scenario FILE.
    """
    from qsim.documents import rows_csv
    from qsim.optimize.sweep.sweeping import ENDINGS
    from qsim.optimize.sweep.sweeping import sweep as run

    out = given["out"]
    if out == "-" and given["resume"]:
        raise ScenarioError("--resume needs --out FILE: what was finished is kept beside it")
    if out != "-":
        check_ending("--out", out, ENDINGS)
    scenario = scenario_from(ctx)
    check_outputs({**given, "trace": scenario.traffic.trace})
    journal = None if out == "-" else Path(f"{out}.rows.jsonl")
    kept = None if journal is None else f"finished runs are kept in {journal}"
    with progress_bar("sweep", given["progress"]) as update, resumable(kept, bool(given["resume"])):
        found = run(
            scenario,
            journal=journal,
            resume=bool(given["resume"]),
            **options.jobs_from(given),
            progress=update,
        )
    for text in found.notes:
        note(text)
    failed = [r for r in found.rows if r.error]
    if failed:
        note(f"{len(failed)} of {len(found.rows)} runs failed, such as run {failed[0].number}: "
             f"{failed[0].error}")  # fmt: skip
    beyond = [r for r in found.rows if r.figures.get("beyond_measured")]
    if beyond:
        note(f"{len(beyond)} of {len(found.rows)} runs had steps beyond the measured range, their "
             "times extrapolated (column beyond_measured)")  # fmt: skip
    outputs = Outputs()
    if journal is not None:
        with outputs.attempt("--out"):
            found.write(out)
            journal.unlink(missing_ok=True)
            note(f"{len(found.rows)} rows in {out}")
    if journal is None or outputs.failed:  # the rows are not to be lost for a file
        outputs.echo(rows_csv(found.to_rows()), nl=False)
    with outputs.attempt("--save-scenario"):
        save_scenario(ctx, scenario)
    outputs.finish()
