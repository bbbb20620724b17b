"""``qsim calibrate adapt``: a profile made true of a server that is running."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.cli._command import Command
from qsim.cli._common import count, engine_from, engine_options
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.sim.scheduler.config import EngineOptions

__all__ = ["adapt_command"]

#: processes that replay loads, at most
_MOST_JOBS = 10


@click.command("adapt", cls=Command)
@click.option("--base-url", metavar="http://HOST:PORT",
              help="The vLLM server that loads are sent to; nothing else may use it meanwhile. "
              "With --watch it is only scraped.")  # fmt: skip
@click.option("--serve", is_flag=True, help="Start the profile's server here, load it, and end "
              "it; dummy weights unless --model names a checkpoint.")  # fmt: skip
@click.option("--model", metavar="MODEL", help="With --serve: a checkpoint's folder or id.")
@click.option("--serve-command", metavar="CMD", help="With --serve: starts a server; by default "
              "vllm serve, or its module.")  # fmt: skip
@click.option("--profile", required=True, metavar="ID|FILE", help="What it serves.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              metavar="FILE.json", help="The adapted profile.")  # fmt: skip
@click.option("--telemetry", "telemetry", multiple=True, metavar="RANGE.json",
              help="Send nothing: adapt by vLLM's metrics of a time of production traffic (and "
              "DCGM's), answers of Prometheus's /api/v1/query_range; any number.")  # fmt: skip
@click.option("--prometheus-url", metavar="URL", help="The same, asked of Prometheus.")
@click.option("--last", "last_s", type=click.FloatRange(60.0, 1e7), default=3600.0,
              show_default=True, metavar="S", help="Of Prometheus, so many seconds.")  # fmt: skip
@click.option("--watch", "watch_s", type=click.FloatRange(10.0, 1e6), metavar="S",
              help="The same, scraped for so many seconds of --base-url/metrics.")  # fmt: skip
@click.option("--step", "step_s", type=click.FloatRange(1.0, 3600.0), default=15.0,
              show_default=True, metavar="S", help="Between moments of the metrics.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE",
              help="Of metrics of several servers, those with this label.")  # fmt: skip
@click.option("--model-name", metavar="NAME", help="Of metrics of several models.")
@click.option("--power", default="nvml", show_default=True, metavar="nvml|none|URL",
              help="Energy by NVML on this machine, or DCGM's exporter (URL).")  # fmt: skip
@click.option("--gpus", default="0", show_default=True, metavar="0,1",
              help="The server's GPUs, as NVML or DCGM numbers them.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(5.0, 600.0), default=45.0, show_default=True,
              help="How long the loads take on the profile's machine.")  # fmt: skip
@click.option("--most-error", type=click.FloatRange(min=0.0, min_open=True), default=15.0,
              show_default=True, metavar="PERCENT",
              help="Write nothing if means, medians and energy of the loads are off by more than "
              "this on average after all: the server is then not that of the profile.")  # fmt: skip
@click.option("--keep-loads", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep what the client saw of each load, for qsim compare.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the loads.")
@click.option("--jobs", type=count, metavar="N", help="Processes of the fits; by default one a "
              "core. The answer is the same.")  # fmt: skip
@engine_options
def adapt_command(
    base_url: str | None,
    serve: bool,
    model: str | None,
    serve_command: str | None,
    profile: str,
    out: Path,
    telemetry: tuple[str, ...],
    prometheus_url: str | None,
    last_s: float,
    watch_s: float | None,
    step_s: float,
    labels: tuple[str, ...],
    model_name: str | None,
    power: str,
    gpus: str,
    seconds: float,
    most_error: float,
    keep_loads: Path | None,
    seed: int,
    jobs: int | None,
    **given: Any,
) -> None:  # fmt: skip
    """Adapt a profile to the machine of a running vLLM server, in about a minute and a half.

    A few loads are sent (idle, single prompts, a batch ladder, arrivals, a stretch at full load);
    factors of host, GPU and power are fitted to what the client saw and to the energy. Or nothing
    is sent, and they are fitted to the server's metrics under its own traffic (--telemetry,
    --prometheus-url, --watch), together with what these do not tell of the traffic. Engine options
    are those that the server was started with.
    """
    from qsim.cli._outputs import check_output
    from qsim.cli.calibrate._telemetry import Sources, adapt_by_telemetry, label_pairs
    from qsim.profiles.lookup import load_profile

    check_output("--out", out)
    if keep_loads is not None:
        check_output("--keep-loads", keep_loads, folder=True)
    numbers = _gpu_numbers(gpus)
    by_metrics = bool(telemetry) + (prometheus_url is not None) + (watch_s is not None)
    if by_metrics > 1 or (by_metrics and (base_url is None) != (watch_s is None)):
        raise ScenarioError(
            "metrics come from one place: --telemetry FILE, --prometheus-url URL, or --base-url "
            "with --watch; the other options are to be left out"
        )
    if serve and (by_metrics or base_url is not None):
        raise ScenarioError("--serve starts a server of its own; leave out --base-url and metrics")
    if not serve and (model is not None or serve_command is not None):
        raise ScenarioError("--model and --serve-command are of --serve, which starts the server")
    if base_url is None and not by_metrics and not serve:
        raise ScenarioError(
            "no server: give --base-url of one that may be loaded, --serve to start one, or "
            "metrics of its own traffic (--telemetry, --prometheus-url, --watch)"
        )
    options = engine_from(given)
    if by_metrics:
        sources = Sources(
            telemetry, prometheus_url, last_s, watch_s, step_s, base_url, label_pairs(labels),
            model_name, power, tuple(numbers),
        )  # fmt: skip
        chosen = load_profile(profile, options.vllm_version)
        adapt_by_telemetry(sources, chosen, options, out, most_error, jobs)
        return
    if serve:
        from qsim.calibrate.adapt.serving import serving
        from qsim.cli.calibrate._telemetry import say

        started = load_profile(profile, options.vllm_version)
        with serving(started, numbers, model=model, command=serve_command, say=say) as url:
            _adapt_by_loads(
                url,
                profile,
                out,
                power,
                numbers,
                seconds,
                most_error,
                keep_loads,
                seed,
                options,
                jobs,
            )
        return
    assert base_url is not None
    _adapt_by_loads(
        base_url, profile, out, power, numbers, seconds, most_error, keep_loads, seed, options, jobs
    )


def _gpu_numbers(text: str) -> list[int]:
    numbers = [int(g) for g in text.split(",") if g.strip().isdecimal()]
    if not numbers or len(numbers) != len(text.split(",")):
        raise ScenarioError(f"--gpus is {text!r}; must be numbers such as 0 or 0,1")
    return numbers


def _adapt_by_loads(
    base_url: str,
    profile: str,
    out: Path,
    power: str,
    numbers: list[int],
    seconds: float,
    most_error: float,
    keep_loads: Path | None,
    seed: int,
    options: EngineOptions,
    jobs: int | None,
) -> None:
    """Send loads to a server and adapt by what comes back."""
    from qsim.calibrate.adapt.adapting import adapt
    from qsim.calibrate.adapt.benchmark import write_benchmark
    from qsim.calibrate.adapt.comparing import compare_load
    from qsim.calibrate.adapt.power import EnergyMeter, dcgm_reader, nvml_reader
    from qsim.calibrate.adapt.server import check_server, describe
    from qsim.calibrate.adapt.session import plan_loads, send_loads
    from qsim.cli._common import note
    from qsim.cli._outputs import Outputs
    from qsim.cli.calibrate._telemetry import say
    from qsim.errors import CalibrationError, MissingExtraError
    from qsim.optimize.search.executors import open_executor
    from qsim.processes import available_cores
    from qsim.profiles.factors import apply
    from qsim.profiles.lookup import load_profile, stated_errors
    from qsim.profiles.spread import shipped_spread
    from qsim.report.text.compare import adapted_text, beyond_text, factors_text, kept_text

    server = describe(base_url)
    chosen = load_profile(profile, options.vllm_version or server.version or None)
    lost = check_server(server, chosen)
    meter = None
    if power != "none":
        try:
            reader = nvml_reader(numbers) if power == "nvml" else dcgm_reader(power, numbers)
            meter = EnergyMeter(reader)
        except (CalibrationError, MissingExtraError) as e:
            if power != "nvml":
                raise
            note(f"{e}; going on without power (--power none says so, a URL asks DCGM's exporter)")
    longest = min(server.max_model_len or chosen.engine.max_model_len, 16384)
    plans = plan_loads(chosen, seconds, longest, seed)
    try:
        session = send_loads(server, chosen, plans, meter, say, options=options)
    finally:
        if meter is not None:
            meter.stop()
    if keep_loads is not None:
        keep_loads.mkdir(parents=True, exist_ok=True)
        for load in session.loads:
            write_benchmark(load, keep_loads / f"{load.name}.json")
    lost += session.lost
    for text in lost:
        note(text)
    if session.idle_w is not None:
        note(f"idle power: {session.idle_w:.1f} W, by the profile {chosen.power.idle_w:.1f} W")
    with open_executor(jobs or available_cores(), at_most=_MOST_JOBS) as executor:
        found = adapt(
            session.loads,
            chosen,
            idle_w=session.idle_w,
            notes=lost,
            progress=say,
            executor=executor,
        )
    for text in found.notes:
        note(text)
    if beyond := found.fit.beyond(shipped_spread().prior(chosen)):
        note(f"WARNING: {beyond_text(beyond)}")
    fitted = apply(found.base, found.fit.factors)
    left = [compare_load(x, fitted, explain=False).mismatch_percent for x in found.loads]
    mean = sum(left) / len(left)
    if not mean <= most_error:
        raise CalibrationError(
            f"with all factors fitted the loads are still off by {mean:.0f}% on average, more than "
            f"the {most_error:g}% of --most-error: this is not the server of {chosen.id} (model, "
            "quantization, GPU or flags differ). Nothing was written"
        )
    outputs = Outputs()
    with outputs.attempt("--out"):
        found.profile.save(out)
        click.echo(f"{out}: {found.profile.id}, adapted; kept: {found.kept}")
        click.echo(f"with all factors off by {mean:.1f}% on the loads sent")
    click.echo(factors_text(found.factors))
    click.echo(adapted_text(stated_errors(found.profile), "each load left out"))
    click.echo(kept_text(found.kept, found.errors))
    outputs.finish()
