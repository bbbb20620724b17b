"""``qsim simulate``: one trace, one fleet, what it does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from qsim.checks import check_ending
from qsim.cli import _options as options
from qsim.cli._outputs import (
    Outputs,
    check_outputs,
    need_matplotlib,
    note,
    one_to_stdout,
    tell_reading,
    write_json,
)
from qsim.cli._progress import progress_bar
from qsim.cli._scenario import ScenarioCommand, save_scenario, scenario_from
from qsim.errors import InfeasibleError, ScenarioError
from qsim.files import write_text
from qsim.processes import Beside

if TYPE_CHECKING:
    from qsim.optimize.deploy.export import Export
    from qsim.scenario import Scenario
    from qsim.scenario.sections import Traffic
    from qsim.sim.engine.steplog import Step
    from qsim.sim.fleet.pool import Pool
    from qsim.sim.results.backlog import Load
    from qsim.sim.results.machine_ranges import MachineRanges
    from qsim.sim.results.requests import Columns
    from qsim.sim.results.result import SimulationResult
    from qsim.sim.results.slo import SloOutcome
    from qsim.sim.simulate_stream import StreamResult
    from qsim.traces.trace import Trace

#: a trace that is too short to tell whether the fleet keeps up goes on for so many requests
_GOES_ON = 12_000
#: ranges over machines are simulated beside a trace of so many requests or more
_BESIDE = 1000
#: fewer drawn machines tell no 90% range
_FEWEST_MACHINES = 8
#: options that need every request or step at the end, by parameter
_WHOLE = {"report_path": "--report", "steps_path": "--steps", "timeline_path": "--timeline"}


@click.command(cls=ScenarioCommand)
@options.trace
@click.option("--profile", metavar="ID|FILE", help="A shipped profile's id, or a file.")
@click.option("--replicas", type=int, default=1, show_default=True, help="Servers in the fleet.")
@options.pool
@options.router
@options.engine
@options.slo
@options.backlog
@options.clients
@options.autoscaler
@options.run
@click.option("--json", "json_path", metavar="FILE", help="Write the summary; - for stdout.")
@click.option("--requests", "requests_path", metavar="FILE",
              help="Write a row a request: .csv, .csv.gz or .parquet.")  # fmt: skip
@click.option("--report", "report_path", metavar="FILE.html", help="Write a page with pictures.")
@click.option("--steps", "steps_path", metavar="FILE",
              help="Write what each engine step ran, as JSON Lines; - for stdout.")  # fmt: skip
@click.option("--timeline", "timeline_path", metavar="FILE",
              help="Write the steps as a Chrome trace, for Perfetto.")  # fmt: skip
@click.option("--stream/--no-stream", default=None,
              help="Read TRACE and write requests part by part, in bounded memory; by default when "
              "TRACE is large.")  # fmt: skip
@click.option("--export", "exports", multiple=True, metavar="KIND[=PATH]",
              help="Write the fleet as kubernetes (with the autoscaler, as simulated) or vllm, to "
              "a file, a folder/ or stdout; repeatable.")  # fmt: skip
@click.option("--machines", type=click.IntRange(0, 1000), metavar="N",
              help="Simulate again on N machines (8 or more) as they are known to differ, for the "
              "90% range of each figure; by default ranges are from a few simulations of the "
              "busiest stretch. 0: no ranges.")  # fmt: skip
@click.option(
    "--fail-on-slo",
    is_flag=True,
    default=None,
    help="Exit with 3 unless every SLO is met, or if the fleet is overloaded.",
)
@click.pass_context
def simulate(ctx: click.Context, /, **given: Any) -> None:
    """Replay TRACE against a fleet: equal replicas of one profile, or pools that differ.

    TRACE is a file (Azure, Mooncake, BurstGPT, ServeGen, vLLM bench, or arrival_s,prompt_tokens,
    output_tokens as CSV or Parquet) or a preset such as azure-conv-2023:duration=600,rate=20.
    """
    need_matplotlib("--report", given["report_path"], (".html", ".htm"))
    if given["requests_path"] is not None:
        check_ending("--requests", given["requests_path"], (".csv", ".csv.gz", ".parquet"))
    from qsim import __version__
    from qsim.report.text.simulation import simulation_text
    from qsim.sim.results.histogram import RELATIVE_ERROR
    from qsim.sim.results.result import SimulationResult
    from qsim.sim.results.slo import MET, all_met, attainment, attainment_interval, check_slos
    from qsim.sim.run_scenario import pools_of

    exports = _exports(given)
    to_stdout = one_to_stdout(given, exports, ("json", "steps")) if exports else []
    scenario = scenario_from(ctx)
    check_outputs({**given, "trace": scenario.traffic.trace}, exports)
    out = Outputs()
    if not any(p.profile or p.model for p in scenario.fleet.pools):
        raise ScenarioError(
            "neither --profile nor --pool is given; give one of them, or fleet.pools in a scenario"
        )
    _check_start(given, scenario)
    pools = pools_of(scenario)
    steps: list[Step] | None = None
    if given["steps_path"] or given["timeline_path"]:
        steps = []
    slos = scenario.limits()
    if scenario.goodput:
        raise ScenarioError(
            "goodput is given; qsim simulate judges SLOs only: leave it out (--set goodput=), or "
            "use qsim plan"
        )
    if given["machines"] is not None and 0 < given["machines"] < _FEWEST_MACHINES:
        raise ScenarioError(
            f"--machines is {given['machines']}; must be {_FEWEST_MACHINES} or more, or 0 for none"
        )
    told = ""
    whole: _Whole | None = None
    streamed = _wants_stream(given, scenario.traffic)
    if streamed and given["machines"]:
        raise ScenarioError(
            "--machines simulates the trace again and again, which needs it in memory: add "
            "--no-stream, or take a part of the trace (--head, --start, --end)"
        )
    result: SimulationResult | StreamResult
    if streamed:
        result, name, requests = _run_streamed(given, scenario, out)
        load = result.load
    else:
        whole = _run_whole(ctx, given, scenario, steps)
        result, load, trace = whole.result, whole.load, whole.trace
        name, requests = trace.name, len(trace)
    attained = attainment(result, slos)
    outcomes = check_slos(result, slos)
    summary = result.summary(slos)
    if streamed:
        summary["percentile_error"] = RELATIVE_ERROR
    # what was asked for, so that it can be asked for again, beside what it came down to
    resolved = summary["scenario"]
    summary["slos"] = [o.to_dict() for o in outcomes]
    summary["attainment"] = attained
    summary["attainment_interval"] = attainment_interval(attained, requests)
    summary["load"] = load.to_dict()
    backlog = load.overloaded and not scenario.allow_backlog
    summary["slos_met"] = all_met(outcomes, backlog)
    summary["scenario"] = scenario.to_dict()
    summary["resolved"] = resolved
    summary |= {"profile": resolved["profile"]} if len(pools) == 1 else {}
    summary |= {"seed": scenario.seed, "qsim_version": __version__}
    if given["machines"] is None and scenario.fleet.autoscaler is not None:
        note(
            "no ranges over machines: a stretch of the traffic does not tell what an autoscaler "
            "does (--machines N simulates all of it)"
        )
    elif whole is not None and given["machines"] != 0:
        told = _machines(given["machines"], scenario, whole, summary, outcomes)
    elif streamed:
        note("no ranges over machines: they need the trace in memory (--no-stream)")
    for text in result.notes:
        note(text)
    fleet = _fleet_title(resolved, pools)
    title = f"{name}: {requests:,} requests on {fleet} ({scenario.fleet.router} router)"
    if not to_stdout and "-" not in (given["json_path"], given["steps_path"]):
        out.echo(simulation_text(summary, outcomes, attained, title, load, told))
    elif load.sentence():
        note(load.sentence())
    if given["json_path"]:
        with out.attempt("--json"):
            write_json(summary, given["json_path"])
    with out.attempt("--save-scenario"):
        save_scenario(ctx, scenario)
    if exports:
        from qsim.optimize.deploy.export import export_simulated

        out.export(exports, lambda e: export_simulated(scenario, e))
    if given["requests_path"] and isinstance(result, SimulationResult):
        with out.attempt("--requests"):
            result.write_requests(given["requests_path"])
    if steps is not None:
        _write_steps(out, steps, given["steps_path"], given["timeline_path"])
    if given["report_path"] and isinstance(result, SimulationResult):
        from qsim.report.html.reports import write_simulation_report

        with out.attempt("--report"):
            write_simulation_report(given["report_path"], result, summary, outcomes, title, load)
    out.finish()
    missed = [o.doubt() or o.sentence() for o in outcomes if o.verdict != MET]
    if outcomes and backlog:
        missed.insert(0, load.sentence())
    if missed and given["fail_on_slo"]:
        raise InfeasibleError("; ".join(missed))


def _fleet_title(resolved: Mapping[str, Any], pools: Sequence[Pool]) -> str:
    """The pools in words; of a single one the profile's id."""
    if len(pools) == 1:
        return f"{resolved['replicas']} x {resolved['profile']}"
    names = [p.profile if isinstance(p.profile, str) else p.profile.id for p in pools]
    return " + ".join(f"{p.replicas} x {name}" for p, name in zip(pools, names, strict=True))


def _exports(given: Mapping[str, Any]) -> list[Export]:
    """What is written of the fleet."""
    if not given["exports"]:
        return []
    from qsim.optimize.deploy.export import SIMULATED_EXPORTS, parse_export

    return [parse_export(e, SIMULATED_EXPORTS) for e in given["exports"]]


def _check_start(given: Mapping[str, Any], scenario: Scenario) -> None:
    """Refuse a start-up time of servers that never start."""
    fleet = scenario.fleet
    if given["start_s"] is not None and fleet.autoscaler is None and fleet.failures is None:
        raise ScenarioError(
            "--start-s is given, and no server starts: give --autoscale, --failure or --mtbf"
        )


def _wants_stream(given: Mapping[str, Any], traffic: Traffic) -> bool:
    """Whether to take the trace part by part: when asked to, or when it is large.

    A ScenarioError if it is asked for together with an option that needs the whole run.
    """
    whole = [option for name, option in _WHOLE.items() if given[name]]
    whole += (
        ["--merge"] * bool(traffic.merge)
        + ["--sort"] * traffic.sort
        + ["--peak-hour (traffic.peak_hour)"] * traffic.peak_hour
    )
    if not isinstance(traffic.trace, str):
        return False
    if traffic.stream is None:
        from qsim.traces.parts import is_large

        return not whole and is_large(traffic.trace)
    if traffic.stream and whole:
        help_ = ": sort the file first" if whole[-1] == "--sort" else ""
        raise ScenarioError(
            f"--stream and {whole[-1]} are both given; {whole[-1]} needs the whole run in "
            f"memory{help_}"
        )
    return traffic.stream


def _run_streamed(
    given: Mapping[str, Any], scenario: Scenario, out: Outputs
) -> tuple[StreamResult, str, int]:
    """Simulate, and write the requests file on the way; also the trace's name and length."""
    from qsim.sim.results.histogram import RELATIVE_ERROR
    from qsim.sim.results.requests import request_writer
    from qsim.sim.run_scenario import fleet_of
    from qsim.sim.simulate_stream import simulate_stream
    from qsim.traces.parts import open_parts

    traffic = scenario.traffic
    trace = open_parts(
        str(traffic.trace), format=traffic.format, seed=scenario.seed, columns=traffic.columns
    )
    shape = asdict(traffic.reshaping())
    parts = trace.shaped(shape.pop("start"), shape.pop("end"), seed=scenario.seed, **shape)
    if traffic.growth != 1:
        parts = parts.shaped(speed=traffic.growth)
    begin_s = time.monotonic()
    failure: OSError | None = None
    result: StreamResult | None = None
    try:
        with ExitStack() as stack:
            update = stack.enter_context(progress_bar("simulate", given["progress"]))
            write = None
            if given["requests_path"]:
                write = stack.enter_context(request_writer(given["requests_path"]))

            def rows(columns: Columns) -> None:
                nonlocal failure
                if write is not None and failure is None:
                    try:
                        write(columns)
                    except OSError as e:  # a full disk, say: the figures are not to be lost
                        failure = e

            def progress(requests: int) -> None:
                if update is not None:
                    rate = requests / max(1e-9, time.monotonic() - begin_s)
                    update(parts.share(requests), f"{requests:,} requests, {rate:,.0f}/s")

            result = simulate_stream(
                parts,
                **fleet_of(scenario),
                slos=scenario.limits(),
                rows=None if write is None else rows,
                progress=progress,
            )
            if failure is not None:
                raise failure  # so that no half of a file is left
    except OSError as e:
        if result is None:
            raise
        out.failure("--requests", e)
    tell_reading(trace.name, trace.meta)
    asked = "" if traffic.stream else " because it is large (--no-stream holds it in memory)"
    note(
        f"{trace.name} was streamed{asked}: percentiles are within {RELATIVE_ERROR:.4%} of the "
        "exact ones"
    )
    return result, trace.name, result.scenario["requests"]


class _Whole(NamedTuple):
    """What a simulation with the trace in memory is told from."""

    result: SimulationResult
    #: Whether the fleet kept up.
    load: Load
    trace: Trace
    #: Quick ranges over machines, where they are to be given.
    ranges: Beside[MachineRanges] | None


def _run_whole(
    ctx: click.Context, given: Mapping[str, Any], scenario: Scenario, steps: list[Step] | None
) -> _Whole:
    """Simulate with the trace in memory; ranges over machines are simulated beside."""
    from qsim.scenario.resolve import load_traffic
    from qsim.sim.results.continued import find_carried, settled
    from qsim.sim.run_scenario import fleet_of
    from qsim.sim.simulate import simulate as run

    trace = load_traffic(scenario.traffic, scenario.seed, tell_reading)
    fleet = fleet_of(scenario)
    ranges = None
    if given["machines"] is None and scenario.fleet.autoscaler is None:
        ranges = ctx.with_resource(
            Beside(lambda: _quick_ranges(scenario, trace), worth=len(trace) >= _BESIDE)
        )
    with progress_bar("simulate", given["progress"]) as update:
        result = run(
            trace,
            **fleet,
            progress=None if update is None else lambda share: update(share, ""),
            step_log=steps,
        )

    def again(longer: Trace) -> SimulationResult:
        return run(longer, **fleet)

    load = find_carried(settled(result.load, trace, again, _GOES_ON), trace, again, _GOES_ON)
    return _Whole(result, load, trace, ranges)


def _quick_ranges(scenario: Scenario, trace: Trace) -> MachineRanges:
    from qsim.sim.machines import quick_ranges
    from qsim.sim.run_scenario import fleet_of

    statistics = [(slo.metric, slo.statistic) for slo in scenario.limits()]
    return quick_ranges(trace, statistics=statistics, **fleet_of(scenario))


def _machines(
    draws: int | None,
    scenario: Scenario,
    whole: _Whole,
    summary: dict[str, Any],
    outcomes: Sequence[SloOutcome],
) -> str:
    """Add ``machines``, the 90% ranges over machines, to a summary; where they are from."""
    if whole.ranges is None:
        from qsim.sim.machines import machine_ranges
        from qsim.sim.run_scenario import fleet_of

        assert draws is not None
        statistics = [(o.slo.metric, o.slo.statistic) for o in outcomes]
        fleet = fleet_of(scenario)
        ranges = machine_ranges(whole.trace, draws=draws, statistics=statistics, **fleet)
        summary["machines"] = {"draws": draws, "range_90": ranges}
        return (
            f"90%: what the figures may be on your machine, by {draws} drawn ones (docs/adapt.md)"
        )
    quick = whole.ranges.value()
    figures = {o.slo.figure: o.value_ms for o in outcomes}
    summary["machines"] = {
        "draws": 0, "requests": quick.requests, "range_90": quick.of(figures | summary)
    }  # fmt: skip
    return quick.told()


def _write_steps(
    out: Outputs, steps: list[Step], steps_path: str | None, timeline_path: str | None
) -> None:
    from qsim.sim.engine.steplog import steps_a_span, to_json_lines, to_trace_events

    for option, path, convert in (
        ("--steps", steps_path, to_json_lines),
        ("--timeline", timeline_path, to_trace_events),
    ):
        if path == "-":
            out.echo(convert(steps), nl=False)
        elif path:
            with out.attempt(option):
                write_text(path, convert(steps))
    together = steps_a_span(len(steps))
    if timeline_path and together > 1:
        note(
            f"--timeline: {len(steps):,} steps, {together} consecutive ones of a replica in each "
            "span; --steps has all of them, and a part of the trace (--start, --end) is finer"
        )
