"""``qsim compare``: a measured load beside the same load, simulated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.cli import _options as options
from qsim.cli._command import Command
from qsim.cli._outputs import Outputs, check_output, need_matplotlib, note, tell, write_json
from qsim.errors import ScenarioError
from qsim.sim.scheduler.config import ENGINE

if TYPE_CHECKING:
    from qsim.calibrate.adapt.load import Load
    from qsim.profiles.schema import Profile


@click.command(cls=Command)
@click.argument("result", metavar="RESULT|RECORDING")
@click.option("--profile", metavar="ID|FILE", help="A shipped profile's id, or a file; of a "
              "recording by default the shipped one of its server.")  # fmt: skip
@click.option("--phase", metavar="LABEL", help="Which load of a recording.")
@click.option("--energy-j", type=click.FloatRange(min=0.0, min_open=True), metavar="J",
              help="Energy of the server's GPUs from the first send to the last token, for a "
              "result that does not hold it.")  # fmt: skip
@click.option("--adapt", "adapt_path", metavar="OUT.json",
              help="Write the profile adapted to this machine, by this load alone.")  # fmt: skip
@click.option("--no-explain", is_flag=True, help="Only replay; do not look for what would explain "
              "the difference.")  # fmt: skip
@click.option("--picture", "picture_path", metavar="FILE",
              help="Draw single requests and distributions: .png, .svg or .pdf.")  # fmt: skip
@click.option("--json", "json_path", metavar="FILE", help="Write the numbers; - for stdout.")
@click.option("--seed", type=int, default=0, show_default=True,
              help="For results without times of sending.")  # fmt: skip
@options.prompts
@options.engine
def compare(**given: Any) -> None:
    """Replay a measured load through a profile, and compare request by request.

    RESULT is that of a benchmark which keeps the latencies of single requests: vllm bench serve
    --save-detailed, SGLang's bench_serving --output-details, GuideLLM, AIPerf. RECORDING is a
    folder of qsim calibrate run; --phase chooses a load of it.
    """
    from qsim.calibrate.adapt.adapting import adapt
    from qsim.calibrate.adapt.comparing import compare_load
    from qsim.profiles.lookup import stated_errors
    from qsim.report.text.compare import adapted_text, compare_text, factors_text, kept_text

    adapt_path, picture_path, json_path = (
        given[k] for k in ("adapt_path", "picture_path", "json_path")
    )
    need_matplotlib("--picture", picture_path)
    for option, path in (
        ("--adapt", adapt_path),
        ("--picture", picture_path),
        ("--json", json_path),
    ):
        if path is not None and path != "-":
            check_output(option, path)
    load, chosen = _load(given)
    compared = compare_load(load, chosen, explain=not given["no_explain"], progress=tell)
    outputs = Outputs()
    if json_path is not None:
        with outputs.attempt("--json"):
            write_json(compared.to_dict(), json_path)
    if json_path != "-":
        click.echo(compare_text(compared), nl=False)
    if picture_path is not None:
        from qsim.report.figures.results import compare_figure
        from qsim.report.figures.style import save_figure

        with outputs.attempt("--picture"):
            save_figure(compare_figure(compared), picture_path)
    if adapt_path is not None:
        adapted = adapt([load], chosen, progress=tell)
        with outputs.attempt("--adapt"):
            adapted.profile.save(adapt_path)
            how = str(adapted.profile.fit_error.get("how", "")).partition(" left out")[0]
            note(f"{adapt_path}: {adapted.profile.id}, kept: {adapted.kept}")
            if json_path != "-":
                click.echo("\n" + factors_text(adapted.factors))
                click.echo(adapted_text(stated_errors(adapted.profile), f"{how} left out"))
                click.echo(kept_text(adapted.kept, adapted.errors))
    outputs.finish()


def _load(given: Mapping[str, Any]) -> tuple[Load, Profile]:
    """The load, and the profile to replay it through."""
    from qsim.profiles.lookup import load_profile

    result, name, phase = (given[k] for k in ("result", "profile", "phase"))
    energy_j, version = given["energy_j"], given["vllm_version"]
    if Path(result).is_dir():
        from qsim.calibrate.adapt.load import of_phase
        from qsim.calibrate.recordings.read import read_recording

        recording = read_recording(result)
        if energy_j is not None:
            raise ScenarioError("--energy-j is for results of benchmarks; a recording holds it")
        if given["text_prompts"]:
            raise ScenarioError(
                "--text-prompts is for results of benchmarks; prompts of a recording are token ids"
            )
        if set_ := [k for k in ENGINE if given[k] is not None and k != "vllm_version"]:
            option = "--" + set_[0].replace("_", "-")
            raise ScenarioError(f"{option}: a recording is replayed under its server's settings")
        if phase is None:
            labels = [p.label for p in recording.phases if p.load != "idle"]
            raise ScenarioError(f"--phase is missing; {recording.name} has {', '.join(labels)}")
        release = version or recording.server.release or None
        return of_phase(recording, phase), load_profile(
            name or recording.server.profile_id, release
        )
    from qsim.calibrate.adapt.benchmark import read_benchmark
    from qsim.sim.fleet.admission import text_notes

    if phase is not None:
        raise ScenarioError("--phase is for recordings; the result of a benchmark is one load")
    if name is None:
        raise ScenarioError(
            "--profile is missing: a benchmark's result does not say what was served; "
            "'qsim profiles' lists the shipped profiles"
        )
    texts = bool(given["text_prompts"])
    load = read_benchmark(
        result,
        options.engine_from(given),
        energy_j=energy_j,
        seed=given["seed"],
        text_prompts=texts,
    )
    profile = load_profile(name, version)
    untold = text_notes([profile]) if texts else []
    for text in (*(load.trace.meta.get("notes") or ()), *untold):
        note(f"{load.name}: {text}")
    return load, profile
