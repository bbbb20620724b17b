"""``qsim schedule``: which servers are on when, for traffic that varies over a day or a week."""

from __future__ import annotations

from typing import Any

import click

from qsim.cli import _options as options
from qsim.cli._outputs import Outputs, check_outputs, need_matplotlib, one_to_stdout, tell_reading
from qsim.cli._progress import progress_bar
from qsim.cli._scenario import ScenarioCommand, scenario_from, write_outputs
from qsim.errors import InfeasibleError


@click.command(cls=ScenarioCommand)
@options.trace
@options.candidates("One more candidate; repeatable.")
@options.slo
@options.backlog
@click.option("--objective", default="energy", show_default=True, metavar="energy|cost|carbon",
              help="What is made small over the whole trace: J, USD of rent or gCO2e.")  # fmt: skip
@click.option("--window", default="1h", show_default=True, metavar="10min|1h",
              help="How long a fleet stays as it is; whole minutes.")  # fmt: skip
@click.option("--policy", "policies", multiple=True, metavar="NAME",
              help="Compare with static, reactive, predictive, consolidation or mixed only; none "
              "for nothing. Repeatable.")  # fmt: skip
@click.option("--min-quality", type=float, metavar="X",
              help="The mean quality over requests as routed, low end of its 90% interval, in "
              "percent of the 16-bit model's score.")  # fmt: skip
@click.option("--tasks", metavar="MIX", help="Tasks that quality is told for, as for qsim plan.")
@click.option("--carbon-series", metavar="FILE.csv",
              help="Intensity of the grid by the hour from time 0 of TRACE: "
              "hour,gco2e_per_kwh.")  # fmt: skip
@click.option("--region", metavar="KEY", help="A constant intensity instead, as for qsim plan.")
@click.option("--pue", type=float, default=1.0, show_default=True, metavar="X",
              help="Energy of the whole site over that of its IT, for carbon.")  # fmt: skip
@options.price
@click.option("--max-replicas", type=int, default=32, show_default=True, metavar="N",
              help="The most servers of one method.")  # fmt: skip
@click.option("--max-gpus", type=int, metavar="N",
              help="The most GPUs of the timetable at any time.")  # fmt: skip
@click.option("--owned-gpus", type=int, metavar="N",
              help="N GPUs are paid for, and draw --off-w each, also without a server; by default "
              "a GPU without a server is given back.")  # fmt: skip
@click.option("--off-w", type=float, default=80.3, show_default=True, metavar="W",
              help="Power of an owned GPU without a server.")  # fmt: skip
@click.option("--start-s", type=float, default=105.0, show_default=True, metavar="S",
              help="From a server's start until it answers.")  # fmt: skip
@click.option("--start-w", type=float, metavar="W",
              help="Power meanwhile; idle power unless given.")  # fmt: skip
@click.option("--stop-s", type=float, default=5.0, show_default=True, metavar="S",
              help="From a draining server's last token until it is off.")  # fmt: skip
@click.option("--wake-s", type=float, default=6.0, show_default=True, metavar="S",
              help="From asleep (vLLM's sleep mode, level 1) to on.")  # fmt: skip
@click.option("--sleep-w", type=float, metavar="W",
              help="Power asleep; idle power unless given.")  # fmt: skip
@click.option("--forecast", default="perfect", show_default=True, metavar="perfect|day-before",
              help="Make the timetable from TRACE itself, or from its first day and run it on the "
              "days after.")  # fmt: skip
@click.option("--forecast-margin", type=float, metavar="F",
              help="Plan for F times the traffic; 1 for perfect, else 1.15 unless "
              "given.")  # fmt: skip
@click.option("--trials", type=int, default=6, show_default=True, metavar="N",
              help="Simulations of TRACE for each policy's search.")  # fmt: skip
@options.engine
@options.beyond
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random draw.")
@click.option("--too-long", default="error", show_default=True, metavar="error|reject",
              help="Prompts of max-model-len or more: an error, or counted as failed.")  # fmt: skip
@options.prompts
@click.option("--study", "study_path", metavar="FILE|URL",
              help="Keep the searches in a journal file, or any storage of Optuna's.")  # fmt: skip
@click.option("--resume", is_flag=True, default=None, help="Go on with those in --study.")
@options.executor
@click.option("--export", "exports", multiple=True, metavar="csv|kubernetes[=PATH]",
              help="Write the timetable as a table, or as Deployments with KEDA's cron triggers; "
              "to stdout without PATH. Repeatable.")  # fmt: skip
@click.option("--week-day", type=click.IntRange(0, 6), default=0, show_default=True, metavar="D",
              help="Day of the week at time 0 of TRACE, 0 for Sunday, for --export "
              "kubernetes.")  # fmt: skip
@click.option("--timezone", default="Etc/UTC", show_default=True, metavar="NAME",
              help="Of time 0 of TRACE, which is a midnight, for --export kubernetes.")  # fmt: skip
@click.option("--json", "json_path", metavar="FILE", help="Write everything; - for stdout.")
@click.option("--picture", "picture_path", metavar="FILE.png", help="Draw it over time.")
@click.pass_context
def schedule(ctx: click.Context, /, **given: Any) -> None:
    """Find how many servers of which method are on in each window of TRACE.

    Every SLO must hold in every window. The timetable is compared with a static fleet for the
    peak, autoscalers and others under the same condition. TRACE is a file or a preset, as for
    qsim simulate.
    """
    need_matplotlib("--picture", given["picture_path"])
    from qsim.optimize.schedule.export import check_week, export_schedule, parse_schedule_export
    from qsim.optimize.schedule.scheduling import schedule as run
    from qsim.report.text.schedule import schedule_text
    from qsim.scenario.resolve import load_traffic

    exports = [parse_schedule_export(e) for e in given["exports"]]
    to_stdout = one_to_stdout(given, exports)
    scenario = scenario_from(ctx)
    check_outputs({**given, "trace": scenario.traffic.trace}, exports)
    trace = load_traffic(scenario.traffic, scenario.seed, tell_reading)
    if any(e.kind == "kubernetes" for e in exports):
        check_week(float(trace.arrival_s[-1]))
    with progress_bar("schedule", given["progress"]) as update:
        found = run(
            scenario,
            traffic=trace,
            study=given["study_path"],
            resume=bool(given["resume"]),
            **options.jobs_from(given),
            progress=update,
        )
    out = Outputs()
    if not to_stdout:
        out.echo(schedule_text(found))
    with out.attempt("--json"):
        write_outputs(ctx, found.to_dict, scenario)
    week = {k: given[k] for k in ("week_day", "timezone")}
    out.export(exports, lambda e: export_schedule(found, e, **week))
    if given["picture_path"]:
        from qsim.report.figures.schedule import schedule_figure
        from qsim.report.figures.style import save_figure

        with out.attempt("--picture"):
            save_figure(schedule_figure(found), given["picture_path"])
    out.finish()
    if not found.best.met:
        raise InfeasibleError(found.objection())
