"""``qsim plan``: how many GPUs, with which method, meet the SLOs, at what cost and energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from qsim.checks import whole
from qsim.cli import _options as options
from qsim.cli._outputs import (
    Outputs,
    check_outputs,
    need_matplotlib,
    note,
    one_to_stdout,
    tell_reading,
)
from qsim.cli._progress import progress_bar
from qsim.cli._scenario import ScenarioCommand, scenario_from, write_outputs
from qsim.errors import InfeasibleError, ScenarioError

if TYPE_CHECKING:
    from qsim.optimize.deploy.export import Export
    from qsim.optimize.search.study import StudySettings
    from qsim.scenario import Scenario
    from qsim.scenario.sections import Traffic


@click.command(cls=ScenarioCommand)
@options.trace
@options.forecast("Plan")
@options.candidates("One more candidate, such as a profile of your own; repeatable.",
                   "Plan with the shipped profiles of this model.")  # fmt: skip
@options.slo
@options.backlog
@click.option(
    "--objective",
    default="cost",
    show_default=True,
    metavar="cost|energy|gpus|carbon",
    help="What decides: USD per hour, energy over the trace, the number of GPUs, or gCO2e "
    "(with --region); of equals confidence, head-room, cost, energy, GPUs.",
)
@options.market
@options.goodput
@click.option("--max-gpus", type=int, metavar="N", help="At most so many GPUs.")
@click.option("--max-usd-per-hour", type=float, metavar="USD", help="At most this rent.")
@click.option("--max-power-kw", type=float, metavar="KW",
              help="At most this power of all GPUs, on average over TRACE.")  # fmt: skip
@click.option("--max-peak-power-kw", type=float, metavar="KW",
              help="At most this power of all GPUs in any 1/400 of TRACE.")  # fmt: skip
@options.stock(" Mixed fleets are looked for, too.")
@click.option("--survive", type=int, default=0, show_default=True, metavar="N",
              help="Meet every limit with any N servers down, too.")  # fmt: skip
@click.option("--tasks", metavar="MIX", help="Tasks that quality is told for, such as "
              "gsm8k:0.3,mmlu:0.7 (qsim quality --list-tasks); by default mmlu, gsm8k, humaneval, "
              "ifeval and arc-c in equal shares.")  # fmt: skip
@options.floor
@options.carbon
@click.option("--headroom/--no-headroom", default=True, show_default=True,
              help="Find how much more traffic the best fleet carries.")  # fmt: skip
@click.option("--search", "searched", multiple=True, metavar="NAME[=VALUES]",
              help="Search this too: max_num_seqs, max_num_batched_tokens, router or any engine "
              "option =A,B,C; the fleet's size is found for each. Repeatable.")  # fmt: skip
@click.option("--trials", type=int, metavar="N", help="Settings to try; 60 unless given.")
@click.option("--sampler", metavar="tpe|random|nsga2|grid",
              help="How settings are chosen; tpe unless given.")  # fmt: skip
@click.option("--study", "study_path", metavar="FILE|URL",
              help="Keep the search in a journal file, or any storage of Optuna's.")  # fmt: skip
@click.option("--study-name", metavar="NAME", help="Of the search within --study.")
@click.option("--resume", is_flag=True, default=None, help="Go on with the search in --study.")
@click.option(
    "--replications",
    type=int,
    metavar="N",
    help="Simulate the best fleet again N times with other traffic, seeds and profile "
    "errors; 5 unless given where TRACE has at most 20,000 requests, 0 for none.",
)
@click.option("--min-confidence", type=float, metavar="SHARE",
              help="Let the best fleet grow until this share of the replications (20 unless given) "
              "meets every limit.")  # fmt: skip
@click.option("--sensitivity", is_flag=True, default=None,
              help="Find the best fleet's size for each limit 20% tighter and looser.")  # fmt: skip
@click.option("--bottlenecks", is_flag=True, default=None,
              help="Tell where the best fleet's time goes, and what would help.")  # fmt: skip
@click.option("--explain", is_flag=True, default=None,
              help="--sensitivity, --bottlenecks and 20 replications.")  # fmt: skip
@options.most_replicas
@options.router
@options.engine
@options.beyond
@options.run
@options.executor
@options.export("best")
@click.option("--autoscaler", default="hpa", show_default=True, metavar="hpa|keda|none",
              help="What --export kubernetes adds to scale the fleet.")  # fmt: skip
@click.option("--gpus-per-host", type=int, default=8, show_default=True, metavar="N",
              help="GPUs of one machine, for --export vllm.")  # fmt: skip
@click.option("--json", "json_path", metavar="FILE", help="Write the plan; - for stdout.")
@click.option("--report", "report_path", metavar="FILE.html", help="Write a page with pictures.")
@click.option("--picture", "picture_path", metavar="FILE.png", help="Draw the comparison.")
@click.pass_context
def plan(ctx: click.Context, /, **given: Any) -> None:
    """Find the smallest fleet of each method that meets every SLO on TRACE.

    Every figure is simulated: n replicas meet the SLOs and n - 1 miss one. TRACE is a file or a
    preset, as for qsim simulate.
    """
    need_matplotlib("--report", given["report_path"], (".html", ".htm"))
    need_matplotlib("--picture", given["picture_path"])
    from qsim.optimize.deploy.export import export_plan, parse_export
    from qsim.optimize.plan.planning import plan as run
    from qsim.profiles.lookup import left_out_note
    from qsim.report.text.plan import plan_text
    from qsim.scenario.resolve import candidates_of, load_traffic

    exports = [parse_export(e) for e in given["exports"]]
    to_stdout = one_to_stdout(given, exports)
    scenario = scenario_from(ctx)
    check_outputs({**given, "trace": scenario.traffic.trace}, exports)
    _check_exports(given, scenario.traffic, exports)
    trace = load_traffic(scenario.traffic, scenario.seed, tell_reading, grown=False)
    with progress_bar("plan", given["progress"]) as update:
        found = run(
            scenario,
            traffic=trace,
            study=_study(given, scenario),
            **options.jobs_from(given),
            progress=update,
        )
    out = Outputs()
    if not to_stdout:
        out.echo(plan_text(found))
        if found.best is not None and found.best.parts:
            from qsim.optimize.deploy.export import simulate_command

            if command := simulate_command(found, found.best, scenario):
                out.echo(f"\nits figures: {command}")
    with out.attempt("--json"):
        write_outputs(ctx, found.to_dict, scenario)
    if found.best is not None:
        scale = {k: given[k] for k in ("autoscaler", "gpus_per_host")}
        out.export(
            exports, lambda e: export_plan(found, e, trace=trace, scenario=scenario, **scale)
        )
    if given["report_path"]:
        from qsim.report.html.reports import write_plan_report

        with out.attempt("--report"):
            write_plan_report(given["report_path"], found)
    if given["picture_path"]:
        from qsim.report.figures.results import plan_figure
        from qsim.report.figures.style import save_figure

        with out.attempt("--picture"):
            save_figure(plan_figure(found), given["picture_path"])
    if to_stdout and found.best is not None and found.best.note:
        note(found.best.note)  # it is part of the text, which was not shown
    among = candidates_of(scenario, scenario.plan)
    if among.model and not among.gpus and not scenario.plan.stock:
        more = left_out_note(among.model, among.methods)
        if more is not None:
            note(more)
    out.finish()
    if found.best is None:
        raise InfeasibleError(found.objection())


def _check_exports(given: dict[str, Any], traffic: Traffic, exports: Sequence[Export]) -> None:
    """Refuse before the search what would be refused after it."""
    from qsim.optimize.deploy.kubernetes import AUTOSCALERS

    if any(e.kind == "kubernetes" for e in exports) and given["autoscaler"] not in AUTOSCALERS:
        raise ScenarioError(
            f"autoscaler is {given['autoscaler']!r}; must be one of {', '.join(AUTOSCALERS)}"
        )
    if any(e.kind == "vllm" for e in exports):
        whole("gpus_per_host", given["gpus_per_host"])


def _study(given: dict[str, Any], scenario: Scenario) -> StudySettings | None:
    """Where the search is kept; None if nothing is said of it."""
    from qsim.optimize.plan.planning import study_of

    names = {"study_path": "storage", "study_name": "name", "resume": "resume"}
    kept = {to: given[name] for name, to in names.items() if given[name] is not None}
    return study_of(scenario, **kept) if kept else None
