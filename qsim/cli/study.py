"""``qsim study``: what quantization does to a model, on GPUs, under traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qsim.bounds import shown
from qsim.cli import _options as options
from qsim.cli._outputs import Outputs, check_output, note, to_json
from qsim.cli._progress import progress_bar, resumable
from qsim.cli._scenario import ScenarioCommand, save_scenario, scenario_from
from qsim.cli.capacity import DEFAULT_TRACE
from qsim.errors import ScenarioError

#: finished runs, beside the files that are written
JOURNAL = "study.runs.jsonl"


@click.command(cls=ScenarioCommand, default_trace=DEFAULT_TRACE)
@options.trace
@options.candidates("One more profile, such as one of your own; repeatable.",
                   "The model: its shipped profiles.")  # fmt: skip
@click.option("--traffic", metavar="TRACE", help="TRACE, as an option.")
@click.option("--task", "applications", multiple=True, metavar="NAME",
              help="Only this task of the application level: chat, code, summarization, reasoning "
              "or maths; repeatable.")  # fmt: skip
@click.option("--level", "levels", multiple=True, metavar="NAME",
              help="Only this level: application, workload, parallelism or hardware; "
              "repeatable.")  # fmt: skip
@options.floor
@options.market
@options.router
@options.engine
@options.beyond
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random draw.")
@options.prompts
@click.option("--out", metavar="FOLDER", required=True, help="Write the study here.")
@click.option("--resume", is_flag=True, default=None,
              help="Take what an interrupted study to the same --out finished.")  # fmt: skip
@options.executor
@click.pass_context
def study(ctx: click.Context, /, **given: Any) -> None:
    """Show what quantization does to a model: quality, speed, energy and cost at four levels.

    Application (tasks), workload (rate, clients, lengths, bursts, batches), parallelism and
    hardware; with findings that the profiles' errors do not explain and a table of decisions.
    TRACE is the traffic of the last three levels, by default azure-conv-2023; a scenario file may
    stand in its place. Without --gpu all types take part of which the model has profiles.
    """
    from qsim.optimize.study.studying import check_tasks, study_for
    from qsim.report.text.study import study_text

    if given["traffic"] is not None:
        if ctx.get_parameter_source("trace") is not click.core.ParameterSource.DEFAULT:
            raise ScenarioError("TRACE and --traffic are both given; they are the same: drop one")
        ctx.params["trace"] = given["traffic"]
        ctx.set_parameter_source("trace", click.core.ParameterSource.COMMANDLINE)
    folder = Path(given["out"])
    scenario = scenario_from(ctx)
    check_tasks(scenario)
    told = ctx.get_parameter_source("trace") is click.core.ParameterSource.COMMANDLINE
    if told and [*scenario.study.levels] == ["application"]:
        raise ScenarioError(
            f"TRACE is {shown(scenario.traffic.trace)}, and the application level has traffic of "
            "its own: leave it out, or add a level that is under TRACE (--level workload)"
        )
    check_output("--out", given["out"], folder=True)
    journal = folder / JOURNAL
    kept = f"finished runs are kept in {journal}"
    with progress_bar("study", given["progress"]) as update, resumable(kept, bool(given["resume"])):
        found = study_for(
            scenario,
            journal=journal,
            resume=bool(given["resume"]),
            **options.jobs_from(given),
            progress=update,
        )
    out = Outputs()
    out.echo(study_text(found))
    with out.attempt("--out"):
        from qsim.report.html.study import write_study

        files = write_study(folder, found, to_json(found.to_dict()))
        note(f"{len(files)} files in {folder}: {', '.join(files[:4])}, ...")
        journal.unlink(missing_ok=True)
    with out.attempt("--save-scenario"):
        save_scenario(ctx, scenario)
    out.finish()
