"""``qsim tune``: the fleets and engine settings that no other one beats in every objective."""

from __future__ import annotations

from typing import Any

import click

from qsim.cli._common import (
    engine_from,
    engine_options,
    executor_options,
    jobs_from,
    load_shaped,
    need_matplotlib,
    note,
    router_option,
    run_options,
    slo_option,
    trace_options,
    write_json,
)
from qsim.cli._progress import progress_bar
from qsim.cli._scenario import resolved_scenario, scenario_options, write_scenario
from qsim.cli._search import market_from, market_options, study_options
from qsim.errors import InfeasibleError, ScenarioError

__all__ = ["tune"]


@scenario_options
@click.command()
@trace_options
@click.option("--peak-hour", is_flag=True, default=None,
              help="Tune for the busiest hour of TRACE, by requests.")  # fmt: skip
@click.option("--growth", type=float, default=1.0, show_default=True, metavar="F",
              help="Tune for arrivals F times as fast.")  # fmt: skip
@click.option("--model", metavar="ID", help="Choose among the shipped profiles of this model.")
@click.option("--gpu", "gpus", multiple=True, metavar="ID", help="Only on this GPU; repeatable.")
@click.option(
    "--method", "methods", multiple=True, metavar="ID", help="Only by this method; repeatable."
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="ID|FILE",
    help="One more profile to choose, such as one of your own; repeatable.",
)
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="FIGURE",
    help="What is to be good: latency, ttft, tpot, energy, cost, quality, throughput, carbon, or "
    "any figure such as p95_ttft_ms; repeatable. By default latency, energy and cost.",
)
@slo_option
@click.option("--constraint", "constraints", multiple=True, metavar="FIGURE<=X",
              help="What must hold, such as 'p99_ttft_ms<=500' or 'gpus<=8'; "
              "repeatable.")  # fmt: skip
@click.option("--min-quality", type=float, metavar="X",
              help="Only methods whose 90% interval of quality is not below X percent of the "
              "16-bit model's score.")  # fmt: skip
@click.option("--search", multiple=True, metavar="NAME=VALUES",
              help="Decide this too, or among other values: max_num_seqs=64,128 or 32:1024:log or "
              "64:1024:x2; repeatable.")  # fmt: skip
@click.option("--fix", multiple=True, metavar="NAME[=VALUE]",
              help="Do not decide this: give it VALUE, or leave it to the profile; "
              "repeatable.")  # fmt: skip
@click.option("--sampler", default="nsga2", show_default=True, metavar="NAME",
              help="nsga2, tpe, random, or grid for every combination.")  # fmt: skip
@study_options
@click.option("--pick", metavar="HOW",
              help="Take a point of the front: knee, 'min FIGURE', or a condition such as "
              "'quality>=98 and p99_ttft_ms<=500'. By default the knee.")  # fmt: skip
@market_options
@click.option("--tasks", metavar="MIX", help="Tasks that quality is told for, such as "
              "gsm8k:0.3,mmlu:0.7.")  # fmt: skip
@click.option("--region", metavar="KEY", help="Tell carbon on this grid: a country (DEU), a cloud "
              "region (gcp:us-central1), world, or a number of gCO2e per kWh.")  # fmt: skip
@click.option("--pue", type=float, metavar="X",
              help="Energy of the whole site over that of its IT, for carbon; "
              "1 unless given.")  # fmt: skip
@click.option("--max-replicas", type=int, default=128, show_default=True, metavar="N",
              help="The largest fleet to try.")  # fmt: skip
@router_option
@engine_options
@run_options
@executor_options
@click.option("--export", "exports", multiple=True, metavar="KIND[=PATH]",
              help="Write the picked fleet as vllm (commands), kubernetes (manifests) or scenario "
              "(for qsim simulate), to a file or a folder/; without PATH to stdout instead of the "
              "table. Repeatable.")  # fmt: skip
@click.option("--csv", "csv_path", metavar="FILE", help="Write the front; - for stdout.")
@click.option("--trials-csv", "trials_path", metavar="FILE", help="Write all trials.")
@click.option("--json", "json_path", metavar="FILE", help="Write everything; - for stdout.")
@click.option("--picture", "picture_path", metavar="FILE.png", help="Draw trials and front.")
@click.option("--progress/--no-progress", default=None,
              help="Show a bar on stderr; by default on a terminal.")  # fmt: skip
@click.pass_context
def tune(ctx: click.Context, /, **given: Any) -> None:
    """Find the fleets and engine settings that nothing beats in every objective: the Pareto front.

    Decided are the method, the number of replicas, max_num_seqs and max_num_batched_tokens, and
    what --search adds. Every figure is simulated. TRACE is a file or a preset, as for qsim
    simulate.
    """
    need_matplotlib("--picture", given["picture_path"], (".png", ".svg", ".pdf"))
    from qsim.files import write_text
    from qsim.optimize.export import parse_export
    from qsim.optimize.expressions import parse_pick
    from qsim.optimize.tune_export import export_trial
    from qsim.optimize.tuning import DEFAULT_OBJECTIVES
    from qsim.optimize.tuning import tune as search
    from qsim.report.tune_text import tune_text

    pick = parse_pick(given["pick"] or "knee")
    exports = [parse_export(e) for e in given["exports"]]
    to_stdout = [str(e) for e in exports if e.path is None]
    to_stdout += [f"--{k} -" for k in ("csv", "json") if given[f"{k}_path"] == "-"]
    if len(to_stdout) > 1:
        raise ScenarioError(
            f"{' and '.join(to_stdout)} would both go to stdout; give a path to all but one"
        )
    shape = {k: given[k] for k in ("format", "sort", "start", "end", "speed", "head", "seed")}
    trace = load_shaped(given["trace"], **shape)
    with progress_bar("tune", given["progress"]) as update:
        try:
            found = search(
                trace,
                given["model"],
                objectives=given["objectives"] or DEFAULT_OBJECTIVES,
                slos=given["slos"],
                **market_from(given),
                options=engine_from(given),
                sampler=given["sampler"],
                **{
                    k: given[k]
                    for k in (
                        "constraints", "search", "fix", "gpus", "methods", "profiles", "tasks",
                        "min_quality", "region", "pue", "growth", "max_replicas", "router", "seed",
                        "too_long", "trials", "batch", "population", "study", "study_name",
                    )
                },
                peak_hour=bool(given["peak_hour"]),
                resume=bool(given["resume"]),
                **jobs_from(given),
                progress=update,
            )  # fmt: skip
        except KeyboardInterrupt:
            if given["study"]:
                click.echo("", err=True)
                note(f"the study is kept in {given['study']}; go on with the same command and "
                     "--resume")  # fmt: skip
            raise
    picked, why_none = None, ""
    try:
        picked = found.pick(pick)
    except InfeasibleError as e:
        why_none = str(e)
    if given["picture_path"]:
        from qsim.report.style import save_figure
        from qsim.report.tune_figure import tune_figure

        save_figure(tune_figure(found, picked), given["picture_path"])
    for path, everything in ((given["csv_path"], False), (given["trials_path"], True)):
        if path == "-":
            click.echo(found.to_csv(everything), nl=False)
        elif path:
            write_text(path, found.to_csv(everything))
    if given["save_scenario"]:
        write_scenario(ctx, given["save_scenario"])
    if given["json_path"]:
        chosen = None if picked is None else {"how": str(pick), "trial": picked.number}
        data = {**found.to_dict(), "picked": chosen, "scenario": resolved_scenario(ctx)}
        write_json(data, given["json_path"])
    for export in exports:
        if picked is None:
            break
        text = export_trial(
            found, picked, export, {"trace": given["trace"], **shape}, slos=given["slos"]
        )
        if text is not None:
            click.echo(text, nl=False)
    if not to_stdout:
        click.echo(tune_text(found, picked, str(pick)))
    if picked is None:
        raise InfeasibleError(why_none)
