"""``qsim calibrate adapt``: a profile made true of a server that is running."""

from __future__ import annotations

from pathlib import Path

import click

from qsim.cli._command import Command

__all__ = ["adapt_command"]

#: processes that replay loads, at most
_MOST_JOBS = 10


@click.command("adapt", cls=Command)
@click.option("--base-url", required=True, metavar="http://HOST:PORT",
              help="The vLLM server; nothing else may use it meanwhile.")  # fmt: skip
@click.option("--profile", required=True, metavar="ID|FILE", help="What it serves.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              metavar="FILE.json", help="The adapted profile.")  # fmt: skip
@click.option("--vllm-version", metavar="VERSION", help="Of the profile; by default the server's.")
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
def adapt_command(
    base_url: str,
    profile: str,
    out: Path,
    vllm_version: str | None,
    power: str,
    gpus: str,
    seconds: float,
    most_error: float,
    keep_loads: Path | None,
    seed: int,
) -> None:
    """Adapt a profile to the machine of a running vLLM server, in about a minute and a half.

    A few loads are sent (idle, single prompts, a batch ladder, arrivals, a stretch at full load);
    factors of host, GPU and power are fitted to what the client saw and to the energy.
    """
    from qsim.calibrate.adapt.adapting import adapt
    from qsim.calibrate.adapt.benchmark import write_benchmark
    from qsim.calibrate.adapt.comparing import compare_load
    from qsim.calibrate.adapt.power import EnergyMeter, dcgm_reader, nvml_reader
    from qsim.calibrate.adapt.server import check_server, describe
    from qsim.calibrate.adapt.session import plan_loads, send_loads
    from qsim.cli._common import note
    from qsim.cli._outputs import Outputs, check_output
    from qsim.errors import CalibrationError, MissingExtraError, ScenarioError
    from qsim.optimize.search.executor import available_cores
    from qsim.optimize.search.executors import open_executor
    from qsim.profiles.factors import apply
    from qsim.profiles.lookup import load_profile, stated_errors
    from qsim.profiles.spread import shipped_spread
    from qsim.report.text.compare import adapted_text, beyond_text, factors_text, kept_text

    check_output("--out", out)
    if keep_loads is not None:
        check_output("--keep-loads", keep_loads, folder=True)
    numbers = [int(g) for g in gpus.split(",") if g.strip().isdecimal()]
    if not numbers or len(numbers) != len(gpus.split(",")):
        raise ScenarioError(f"--gpus is {gpus!r}; must be numbers such as 0 or 0,1")
    server = describe(base_url)
    chosen = load_profile(profile, vllm_version or server.version or None)
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
        session = send_loads(server, chosen, plans, meter, _say)
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
    with open_executor(available_cores(), at_most=_MOST_JOBS) as executor:
        found = adapt(
            session.loads,
            chosen,
            idle_w=session.idle_w,
            notes=lost,
            progress=_say,
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
            f"with all factors fitted the loads are still off by {mean:.0f}% on average: this is "
            f"not the server of {chosen.id} (model, quantization, GPU or flags differ). Nothing "
            "was written"
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


def _say(text: str) -> None:
    click.echo(f"  {text}", err=True)
