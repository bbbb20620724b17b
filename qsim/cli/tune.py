"""``qsim tune``: the fleets and engine settings that no other one beats in every objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from qsim.cli._command import Command
from qsim.cli._common import (
    SHAPE,
    backlog_option,
    engine_from,
    engine_options,
    executor_options,
    jobs_from,
    need_matplotlib,
    one_to_stdout,
    router_option,
    run_options,
    slo_option,
    trace_from,
    trace_options,
)
from qsim.cli._outputs import Outputs, check_outputs
from qsim.cli._progress import progress_bar, resumable
from qsim.cli._scenario import shared_options, write_outputs
from qsim.cli._search import (
    beyond_option,
    candidate_options,
    market_from,
    study_options,
    worth_options,
)
from qsim.errors import InfeasibleError, ScenarioError

if TYPE_CHECKING:
    from qsim.optimize.deploy.export import Export

__all__ = ["tune"]

#: options that the search takes under their own names
_SAME = ("slos", "constraints", "search", "fix", "gpus", "methods", "profiles", "tasks",
         "min_quality", "region", "pue", "growth", "max_replicas", "router", "seed", "too_long",
         "allow_backlog", "sampler", "trials", "batch", "population", "study",
         "study_name")  # fmt: skip


@shared_options
@click.command(cls=Command)
@trace_options
@click.option("--peak-hour", is_flag=True, default=None,
              help="Tune for the busiest hour of TRACE, by requests.")  # fmt: skip
@click.option("--growth", type=float, default=1.0, show_default=True, metavar="F",
              help="Tune for arrivals F times as fast.")  # fmt: skip
@candidate_options("One more profile to choose, such as one of your own; repeatable.")
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="FIGURE",
    help="What is to be good: latency, ttft, tpot, energy, cost, quality, throughput, carbon, or "
    "any figure such as p95_ttft_ms; repeatable. By default latency, energy and cost.",
)
@slo_option
@backlog_option
@click.option("--constraint", "constraints", multiple=True, metavar="FIGURE<=X",
              help="What must hold, such as 'p99_ttft_ms<=500' or 'gpus<=8'; "
              "repeatable.")  # fmt: skip
@click.option("--min-quality", type=float, metavar="X",
              help="Only methods whose 90% interval of quality is not below X percent of the "
              "16-bit model's score.")  # fmt: skip
@click.option("--search", multiple=True, metavar="NAME=VALUES",
              help="Decide this too, or among other values: max_num_seqs=64,128 or 32:512:log or "
              "64:512:x2; repeatable.")  # fmt: skip
@click.option("--fix", multiple=True, metavar="NAME[=VALUE]",
              help="Do not decide this: give it VALUE, or leave it to the profile; "
              "repeatable.")  # fmt: skip
@click.option("--sampler", default="nsga2", show_default=True, metavar="NAME",
              help="nsga2, tpe, random, or grid for every combination.")  # fmt: skip
@study_options
@click.option("--importance/--no-importance", default=True, show_default=True,
              help="Tell how much each decision matters; takes some seconds.")  # fmt: skip
@click.option("--pick", metavar="HOW",
              help="Take a point of the front: knee, 'min FIGURE', or a condition such as "
              "'quality>=98 and p99_ttft_ms<=500'. By default the knee.")  # fmt: skip
@worth_options
@click.option("--max-replicas", type=int, default=128, show_default=True, metavar="N",
              help="The largest fleet to try.")  # fmt: skip
@router_option
@engine_options
@beyond_option
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
@click.pass_context
def tune(ctx: click.Context, /, **given: Any) -> None:
    """Find the fleets and engine settings that nothing beats in every objective: the Pareto front.

    Decided are the method, the number of replicas, max_num_seqs and max_num_batched_tokens, and
    what --search adds. Every figure is simulated. TRACE is a file or a preset, as for qsim
    simulate.
    """
    need_matplotlib("--picture", given["picture_path"])
    from qsim.files import write_text
    from qsim.optimize.deploy.export import parse_export
    from qsim.optimize.search.expressions import parse_pick
    from qsim.optimize.tune.export import export_trial
    from qsim.optimize.tune.tuning import DEFAULT_OBJECTIVES, TuneInterrupted, TuneStoppedError
    from qsim.optimize.tune.tuning import tune as search
    from qsim.report.text.tune import importance_text, tune_text

    pick = parse_pick(given["pick"] or "knee")
    exports = [parse_export(e) for e in given["exports"]]
    to_stdout = one_to_stdout(given, exports, ("csv", "json"))
    check_outputs(given, exports)
    _check_scenario(given, exports)
    trace = trace_from(given)
    kept = f"the study is kept in {given['study']}" if given["study"] else None
    ended: TuneInterrupted | TuneStoppedError | None = None
    try:
        with (
            progress_bar("tune", given["progress"]) as update,
            resumable(kept, bool(given["resume"])),
        ):
            found = search(
                trace,
                given["model"],
                objectives=given["objectives"] or DEFAULT_OBJECTIVES,
                **{k: given[k] for k in _SAME},
                **market_from(given),
                options=engine_from(given),
                beyond_measured=bool(given["beyond_measured"]),
                peak_hour=bool(given["peak_hour"]),
                resume=bool(given["resume"]),
                pick=pick,
                **jobs_from(given),
                progress=update,
            )
    except (TuneInterrupted, TuneStoppedError) as e:  # what was finished is not lost
        found, ended = e.result, e
    importance = given["importance"] and ended is None
    found = replace(found, wants_importances=importance)
    picked, why_none = None, ""
    try:
        picked = found.pick(pick)
    except InfeasibleError as e:
        why_none = str(e)
    out = Outputs()
    if not to_stdout:
        out.echo(tune_text(found, picked, str(pick)))
    for option, path, everything in (
        ("--csv", given["csv_path"], False),
        ("--trials-csv", given["trials_path"], True),
    ):
        if path == "-":
            out.echo(found.to_csv(everything), nl=False)
        elif path:
            with out.attempt(option):
                write_text(path, found.to_csv(everything))
    for export in exports:
        if picked is None:
            break
        with out.attempt(f"--export {export.kind}"):
            read_as = {k: given[k] for k in ("trace", *SHAPE)}
            text = export_trial(found, picked, export, read_as, slos=given["slos"])
            if text is not None:
                out.echo(text, nl=False)
    if importance and not (to_stdout and not given["json_path"]):
        try:
            _ = found.importances
        except KeyboardInterrupt as e:
            out.interrupted(e)
            found = replace(found, wants_importances=False)
    if importance and found.wants_importances and not to_stdout:
        out.echo("\n" + importance_text(found))
    chosen = None if picked is None else {"how": str(pick), "trial": picked.number}
    with out.attempt("--json"):
        write_outputs(ctx, lambda: {**found.to_dict(), "picked": chosen})
    if given["picture_path"]:
        from qsim.report.figures.style import save_figure
        from qsim.report.figures.tune import tune_figure

        with out.attempt("--picture"):
            save_figure(tune_figure(found, picked), given["picture_path"])
    out.finish()
    if ended is not None:
        raise ended
    if picked is None:
        raise InfeasibleError(why_none)


def _check_scenario(given: dict[str, Any], exports: Sequence[Export]) -> None:
    """Refuse before the study what cannot be said in a scenario after it."""
    if not any(e.kind == "scenario" for e in exports):
        return
    if given["peak_hour"]:
        raise ScenarioError(
            "--export scenario and --peak-hour are both given; a scenario names the trace as qsim "
            "simulate reads it: cut it with --start and --end instead"
        )
    if given["growth"] != 1 and given["speed"] not in (None, 1.0):
        raise ScenarioError(
            "--growth and --speed together cannot be said in a scenario (--export scenario); give "
            "one of them"
        )
