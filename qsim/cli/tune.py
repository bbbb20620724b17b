"""``qsim tune``: the fleets and engine settings that no other one beats in every objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from qsim.cli import _options as options
from qsim.cli._outputs import Outputs, check_outputs, need_matplotlib, one_to_stdout, tell_reading
from qsim.cli._progress import progress_bar, resumable
from qsim.cli._scenario import ScenarioCommand, scenario_from, write_outputs
from qsim.errors import InfeasibleError
from qsim.files import write_text


@click.command(cls=ScenarioCommand)
@options.trace
@options.forecast("Tune")
@options.candidates("One more profile to choose, such as one of your own; repeatable.")
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="FIGURE",
    help="What is to be good: latency, ttft, tpot, energy, cost, quality, throughput, carbon, or "
    "any figure such as p95_ttft_ms; repeatable. By default latency, energy and cost.",
)
@options.slo
@options.backlog
@click.option("--constraint", "constraints", multiple=True, metavar="FIGURE<=X",
              help="What must hold, such as 'p99_ttft_ms<=500' or 'gpus<=8'; "
              "repeatable.")  # fmt: skip
@options.stock()
@options.floor
@click.option("--search", multiple=True, metavar="NAME=VALUES",
              help="Decide this too, or among other values: max_num_seqs=64,128 or 32:512:log or "
              "64:512:x2; beside=ID,none and beside_replicas=1:8 for a second pool; "
              "repeatable.")  # fmt: skip
@click.option("--fix", multiple=True, metavar="NAME[=VALUE]",
              help="Do not decide this: give it VALUE, or leave it to the profile; "
              "repeatable.")  # fmt: skip
@click.option("--sampler", default="nsga2", show_default=True, metavar="NAME",
              help="nsga2, tpe, random, or grid for every combination.")  # fmt: skip
@options.study
@click.option("--importance/--no-importance", default=True, show_default=True,
              help="Tell how much each decision matters; takes some seconds.")  # fmt: skip
@click.option("--pick", metavar="HOW",
              help="Take a point of the front: knee, 'min FIGURE', or a condition such as "
              "'quality>=98 and p99_ttft_ms<=500'. By default the knee.")  # fmt: skip
@options.worth
@options.most_replicas
@options.router
@options.engine
@options.beyond
@options.run
@options.executor
@options.export("picked")
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
    from qsim.optimize.deploy.export import parse_export
    from qsim.optimize.search.expressions import parse_pick
    from qsim.optimize.tune.result import export_trial
    from qsim.optimize.tune.tuning import TuneInterrupted, TuneStoppedError, study_of
    from qsim.optimize.tune.tuning import tune as run
    from qsim.report.text.tune import importance_text, tune_text
    from qsim.scenario.resolve import load_traffic

    scenario = scenario_from(ctx)
    pick = parse_pick(scenario.tune.pick or "knee")
    exports = [parse_export(e) for e in given["exports"]]
    to_stdout = one_to_stdout(given, exports, ("csv", "json"))
    check_outputs({**given, "trace": scenario.traffic.trace}, exports)
    keep: dict[str, Any] = {k: given[k] for k in ("study", "study_name")}
    keep["resume"] = bool(given["resume"])
    study_of(scenario, **keep)  # what is wrong with it is told before the trace is read
    trace = load_traffic(scenario.traffic, scenario.seed, tell_reading, grown=False)
    kept = f"the study is kept in {given['study']}" if given["study"] else None
    ended: TuneInterrupted | TuneStoppedError | None = None
    try:
        with (
            progress_bar("tune", given["progress"]) as update,
            resumable(kept, bool(given["resume"])),
        ):
            found = run(
                scenario,
                traffic=trace,
                pick=pick,
                **keep,
                **options.jobs_from(given),
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
    if picked is not None:
        trial = picked
        out.export(exports, lambda e: export_trial(found, trial, e, scenario))
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
        write_outputs(ctx, lambda: {**found.to_dict(), "picked": chosen}, scenario)
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
