"""``qsim calibrate adapt``: a profile made true of a server that is running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.cli import _options as options
from qsim.cli._command import Command
from qsim.cli._outputs import Outputs, check_output, note, tell
from qsim.errors import CalibrationError, MissingExtraError, ScenarioError

if TYPE_CHECKING:
    from qsim.calibrate.adapt.adapting import Adaptation
    from qsim.calibrate.adapt.power import Reader
    from qsim.calibrate.adapt.telemetry_fit import TelemetryFit
    from qsim.profiles.schema import Profile
    from qsim.sim.scheduler.config import EngineOptions
    from qsim.traces.reconstruct.metrics import Metrics

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
@click.option("--jobs", type=options.count, metavar="N",
              help="Processes of the fits; by default one a core. The answer is the "
              "same.")  # fmt: skip
@options.engine
def adapt_command(**given: Any) -> None:
    """Adapt a profile to the machine of a running vLLM server, in about a minute and a half.

    A few loads are sent (idle, single prompts, a batch ladder, arrivals, a stretch at full load);
    factors of host, GPU and power are fitted to what the client saw and to the energy. Or nothing
    is sent, and they are fitted to the server's metrics under its own traffic (--telemetry,
    --prometheus-url, --watch), together with what these do not tell of the traffic. Engine options
    are those that the server was started with.
    """
    from qsim.profiles.lookup import load_profile

    check_output("--out", given["out"])
    if given["keep_loads"] is not None:
        check_output("--keep-loads", given["keep_loads"], folder=True)
    numbers = _gpu_numbers(given["gpus"])
    by_metrics = _check_source(given)
    engine = options.engine_from(given)
    if not by_metrics and not given["serve"]:
        _adapt_by_loads(given["base_url"], given, numbers, engine)
        return
    profile = load_profile(given["profile"], engine.vllm_version)
    if by_metrics:
        _adapt_by_telemetry(given, profile, engine, numbers)
        return
    from qsim.calibrate.adapt.serving import serving

    with serving(
        profile, numbers, model=given["model"], command=given["serve_command"], say=tell
    ) as url:
        _adapt_by_loads(url, given, numbers, engine)


def _check_source(given: Mapping[str, Any]) -> bool:
    """Whether metrics are what is adapted by; refuse what does not go together, or nothing."""
    base_url, serve, watch_s = given["base_url"], given["serve"], given["watch_s"]
    by_metrics = (
        bool(given["telemetry"]) + (given["prometheus_url"] is not None) + (watch_s is not None)
    )
    if by_metrics > 1 or (by_metrics and (base_url is None) != (watch_s is None)):
        raise ScenarioError(
            "metrics come from one place: --telemetry FILE, --prometheus-url URL, or --base-url "
            "with --watch; the other options are to be left out"
        )
    if serve and (by_metrics or base_url is not None):
        raise ScenarioError("--serve starts a server of its own; leave out --base-url and metrics")
    if not serve and (given["model"] is not None or given["serve_command"] is not None):
        raise ScenarioError("--model and --serve-command are of --serve, which starts the server")
    if base_url is None and not by_metrics and not serve:
        raise ScenarioError(
            "no server: give --base-url of one that may be loaded, --serve to start one, or "
            "metrics of its own traffic (--telemetry, --prometheus-url, --watch)"
        )
    return bool(by_metrics)


def _gpu_numbers(text: str) -> list[int]:
    numbers = [int(g) for g in text.split(",") if g.strip().isdecimal()]
    if not numbers or len(numbers) != len(text.split(",")):
        raise ScenarioError(f"--gpus is {text!r}; must be numbers such as 0 or 0,1")
    return numbers


def _adapt_by_loads(
    base_url: str, given: Mapping[str, Any], numbers: list[int], engine: EngineOptions
) -> None:
    """Send loads to a server and adapt by what comes back."""
    from qsim.calibrate.adapt.adapting import adapt
    from qsim.calibrate.adapt.benchmark import write_benchmark
    from qsim.calibrate.adapt.comparing import compare_load
    from qsim.calibrate.adapt.power import EnergyMeter, dcgm_reader
    from qsim.calibrate.adapt.server import check_server, describe
    from qsim.calibrate.adapt.session import plan_loads, send_loads
    from qsim.optimize.search.executors import open_executor
    from qsim.processes import available_cores
    from qsim.profiles.factors import apply
    from qsim.profiles.lookup import load_profile, stated_errors
    from qsim.profiles.spread import shipped_spread
    from qsim.report.text.compare import adapted_text, beyond_text, factors_text, kept_text

    server = describe(base_url)
    chosen = load_profile(given["profile"], engine.vllm_version or server.version or None)
    lost = check_server(server, chosen)
    if server.graph_sizes is None and not given["serve"]:  # the log of one that was started tells
        lost.append(
            "the sizes of the server's CUDA graphs are not known: vLLM tells them with "
            "VLLM_SERVER_DEV_MODE=1"
        )
    power = given["power"]
    reader = None if power in ("none", "nvml") else dcgm_reader(power, numbers)
    if power == "nvml":
        reader = _nvml_if_any(numbers)
    meter = None if reader is None else EnergyMeter(reader)
    longest = min(server.max_model_len or chosen.engine.max_model_len, 16384)
    plans = plan_loads(chosen, given["seconds"], longest, given["seed"])
    try:
        session = send_loads(server, chosen, plans, meter, tell, options=engine)
    finally:
        if meter is not None:
            meter.stop()
    if (keep_loads := given["keep_loads"]) is not None:
        keep_loads.mkdir(parents=True, exist_ok=True)
        for load in session.loads:
            write_benchmark(load, keep_loads / f"{load.name}.json")
    lost += session.lost
    for text in lost:
        note(text)
    if session.idle_w is not None:
        note(f"idle power: {session.idle_w:.1f} W, by the profile {chosen.power.idle_w:.1f} W")
    with open_executor(given["jobs"] or available_cores(), at_most=_MOST_JOBS) as executor:
        found = adapt(
            session.loads,
            chosen,
            idle_w=session.idle_w,
            notes=lost,
            progress=tell,
            executor=executor,
        )
    for text in found.notes:
        note(text)
    if beyond := found.fit.beyond(shipped_spread().prior(chosen)):
        note(f"WARNING: {beyond_text(beyond)}")
    fitted = apply(found.base, found.fit.factors)
    left = [compare_load(x, fitted, explain=False).mismatch_percent for x in found.loads]
    mean = sum(left) / len(left)
    _refuse_misfit(mean, given["most_error"], "loads", chosen.id)
    texts = [
        f"with all factors off by {mean:.1f}% on the loads sent",
        factors_text(found.factors),
        adapted_text(stated_errors(found.profile), "each load left out"),
        kept_text(found.kept, found.errors),
    ]
    _write_adapted(found, given["out"], texts)


def _metrics(given: Mapping[str, Any], gpus: list[int]) -> Metrics:
    """The metrics of one server: of files, Prometheus, or its own."""
    from qsim.calibrate.adapt.server import split_url
    from qsim.calibrate.adapt.telemetry import of_one_server
    from qsim.calibrate.adapt.watch import ask_prometheus, watch_server
    from qsim.traces.reconstruct.metrics import read_metrics

    labels, name, power = _label_pairs(given["labels"]), given["model_name"], given["power"]
    if given["telemetry"]:
        found = read_metrics(given["telemetry"], name)
    elif given["prometheus_url"] is not None:
        found = ask_prometheus(
            given["prometheus_url"],
            given["last_s"],
            given["step_s"],
            labels=labels,
            model_name=name,
        )
    else:
        host, port = split_url(given["base_url"])
        found = watch_server(
            f"http://{host}:{port}/metrics",
            given["watch_s"],
            given["step_s"],
            gpus=tuple(gpus),
            joules=_nvml_if_any(gpus) if power == "nvml" else None,
            power_url=None if power in ("nvml", "none") else power,
            model_name=name,
            say=tell,
        )
    return of_one_server(found, labels, tuple(gpus))


def _adapt_by_telemetry(
    given: Mapping[str, Any], profile: Profile, engine: EngineOptions, gpus: list[int]
) -> None:
    """Adapt a profile by metrics, write it, and say what was found."""
    from qsim.calibrate.adapt.server import cache_blocks, check_cache
    from qsim.calibrate.adapt.telemetry import cache_labels, windows_of
    from qsim.calibrate.adapt.telemetry_fit import adapt_to_windows
    from qsim.optimize.search.executors import open_executor
    from qsim.processes import available_cores
    from qsim.profiles.lookup import stated_errors
    from qsim.report.text.compare import adapted_text, factors_text, windows_text, workload_text

    metrics = _metrics(given, gpus)
    cache = cache_labels(metrics)
    lost = check_cache(cache, profile)
    windows, untold = windows_of(metrics)
    lost += untold
    for text in lost:
        note(text)
    with open_executor(given["jobs"] or available_cores(), at_most=12) as executor:
        found = adapt_to_windows(
            windows,
            profile,
            options=engine,
            num_gpu_blocks=cache_blocks(cache),
            notes=lost,
            progress=tell,
            executor=executor,
        )
    click.echo(windows_text(windows, found))
    _refuse_misfit(
        found.most_error_percent, given["most_error"], "metrics", profile.id,
        "; give --max-num-seqs and the like as it was started",
    )  # fmt: skip
    stated = stated_errors(found.profile)
    texts = [
        factors_text(found.factors),
        workload_text(found),
        adapted_text(stated, "each window left out"),
    ]
    _write_adapted(found, given["out"], texts)


def _label_pairs(texts: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` of ``--label``."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ScenarioError(
                f"--label is {text!r}; must be KEY=VALUE, such as instance=gpu1:8000"
            )
        found[key] = value
    return found


def _nvml_if_any(gpus: Sequence[int]) -> Reader | None:
    """NVML's counters of energy; None, with a note, where there is no NVML."""
    from qsim.calibrate.adapt.power import nvml_reader

    try:
        return nvml_reader(gpus)
    except (CalibrationError, MissingExtraError) as e:
        note(f"{e}; going on without power (--power none says so, a URL asks DCGM's exporter)")
        return None


def _refuse_misfit(percent: float, most: float, what: str, profile: str, hint: str = "") -> None:
    """Refuse a fit that leaves more than ``most`` percent: it is another server."""
    if not percent <= most:
        raise CalibrationError(
            f"with all factors fitted the {what} are still off by {percent:.0f}% on average, more "
            f"than the {most:g}% of --most-error: this is not the server of {profile} (model, "
            f"quantization, GPU or flags differ{hint}). Nothing was written"
        )


def _write_adapted(found: Adaptation | TelemetryFit, out: Path, texts: Sequence[str]) -> None:
    """Write an adapted profile, and say what was found."""
    outputs = Outputs()
    with outputs.attempt("--out"):
        found.profile.save(out)
        click.echo(f"{out}: {found.profile.id}, adapted; kept: {found.kept}")
    for text in texts:
        click.echo(text)
    outputs.finish()
