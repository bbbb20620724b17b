"""``qsim calibrate run``: measure real vLLM servers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.bounds import MAX_SEED
from qsim.checks import finite, whole
from qsim.cli._command import Command
from qsim.cli._outputs import check_output, note, say
from qsim.errors import CalibrationError, MissingExtraError, QsimError, ScenarioError

if TYPE_CHECKING:
    from qsim.calibrate.measure.workload import HoldoutTrace


@click.command("run", cls=Command)
@click.option(
    "--model",
    required=True,
    metavar="DIR|HF-ID|NAME",
    help="A checkpoint's folder, a Hugging Face id, or an architecture by name (with "
    "--dummy-weights), e.g. llama-3.1-8b.",
)
@click.option(
    "--model-id",
    metavar="ID",
    help="The model's name in profiles; by default from --model. Give quantized checkpoints of "
    "one model the same, so that they can be compared.",
)
@click.option(
    "--methods",
    required=True,
    metavar="A,B,...",
    help="Quantization methods, see qsim methods; 'all' for every one that can run.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--dummy-weights", is_flag=True, help="Random weights: only the architecture is needed."
)
@click.option(
    "--tensor-parallel-size", type=click.IntRange(min=1), default=1, metavar="N", show_default=True
)
@click.option(
    "--gpus", metavar="0,1,...", help="GPUs to use, by NVML's number; all of them by default."
)
@click.option("--gpu-type", metavar="ID", help="h200_sxm, h100_sxm, ...; by default asked of NVML.")
@click.option(
    "--minutes",
    type=float,
    default=4.0,
    show_default=True,
    metavar="M",
    help="Time for one method, the server's start included.",
)
@click.option("--max-model-len", type=click.IntRange(min=2048), metavar="N")
@click.option(
    "--holdout-trace",
    "holdout",
    multiple=True,
    metavar="TRACE",
    help="Trace for a held-out load, any number of them: the last at 1.2 times the server's "
    "capacity, the others at 0.65 times; a single one at both.",
)
@click.option(
    "--holdout-load",
    "holdout_loads",
    multiple=True,
    type=float,
    metavar="X",
    help="Load of each --holdout-trace instead, times the server's capacity.",
)
@click.option(
    "--holdout-clients",
    "clients",
    multiple=True,
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Add a held-out closed loop of N clients, any number of them: each sends its next "
    "request after an answer.",
)
@click.option(
    "--only-holdout",
    is_flag=True,
    help="Only the held-out loads: enough for 'qsim calibrate validate --profile', no fit.",
)
@click.option("--resume", is_flag=True, help="Skip what is complete in DIR.")
@click.option("--dry-run", is_flag=True, help="Print the plan, the commands and the time.")
@click.option(
    "--serve-command", metavar="CMD", help="Starts a server; by default vllm serve, or its module."
)
@click.option("--server-arg", "server_args", multiple=True, metavar="ARG", help="Passed on to it.")
@click.option("--server-env", multiple=True, metavar="NAME=VALUE", help="Set for the server.")
@click.option("--start-timeout", type=float, default=900.0, show_default=True, metavar="S")
@click.option(
    "--start-estimate",
    type=float,
    default=90.0,
    show_default=True,
    metavar="S",
    help="How long a server takes to start; --minutes less this is for the loads.",
)
@click.option("--no-fit", is_flag=True, help="Only record; fit later with qsim calibrate fit.")
@click.option("--seed", type=int, default=0, show_default=True)
def run(**given: Any) -> None:
    """Measure a model under quantization methods on real vLLM servers, and fit profiles.

    Each method gets a server of its own on one GPU (or --tensor-parallel-size of them); several
    GPUs work side by side. DIR gets a recording per method, and the profile fitted to it.
    """
    from qsim.calibrate.measure.job import Job
    from qsim.calibrate.measure.power import Nvml, choose_gpus, gpu_type_of
    from qsim.calibrate.measure.run import (
        Campaign,
        groups_of,
        load_seconds,
        make_jobs,
        require_complete,
    )
    from qsim.calibrate.measure.server import serve_command as find_command
    from qsim.catalog.gpus import gpu_type as find_gpu
    from qsim.catalog.methods import METHODS
    from qsim.catalog.models import load_model
    from qsim.cli._progress import campaign_progress, draw

    out, dry_run, resume, tp = (
        given[k] for k in ("out", "dry_run", "resume", "tensor_parallel_size")
    )
    if not dry_run:
        check_output("--out", out, folder=True)
    finite("start_timeout", given["start_timeout"], 0.0, 86_400.0, above=True)
    whole("seed", given["seed"], 0, MAX_SEED)
    numbers = _numbers(given["gpus"])
    driver, limit_w = "", None
    found = []
    try:
        nvml = Nvml()
        found = nvml.gpus()
        driver = nvml.driver()
    except (CalibrationError, MissingExtraError):
        if not dry_run:
            raise
    if found:
        numbers = choose_gpus(found, numbers, os.environ)
        limit_w = found[numbers[0]].power_limit_w
        if limit_w is None:
            note("NVML does not tell the GPU's power limit: a profile takes its type's usual one")
    if given["gpu_type"] is not None:
        kind = find_gpu(given["gpu_type"])
    elif found:
        kind = gpu_type_of(found[numbers[0]])
    else:
        kind = find_gpu("h200_sxm")
        note(f"no GPU can be asked here: the plan is for {kind.name}; --gpu-type names another")
    wanted = load_model(given["model"], dummy_weights=given["dummy_weights"])
    for remark in wanted.remarks:
        note(remark)
    if given["model_id"] is not None:
        wanted = replace(wanted, id=_model_id(given["model_id"]))
    start = given["serve_command"]
    command = ["vllm", "serve"] if dry_run and not start else find_command(start)
    template = Job(
        model=wanted,
        method=METHODS["bf16"],
        gpu=kind,
        dummy_weights=given["dummy_weights"],
        tensor_parallel_size=tp,
        load_s=load_seconds(given["minutes"], given["start_estimate"]),
        max_model_len=given["max_model_len"],
        seed=given["seed"],
        serve_command=tuple(command),
        server_args=given["server_args"],
        server_env=tuple(_pair(x) for x in given["server_env"]),
        start_timeout_s=given["start_timeout"],
        start_s=given["start_estimate"],
        holdout=_traces(given["holdout"], given["holdout_loads"], given["seed"]),
        only_holdout=given["only_holdout"],
        clients=_different(given["clients"]),
        driver=driver,
        power_limit_w=limit_w,
    )
    methods = given["methods"]
    names = list(METHODS) if methods == "all" else [m.strip() for m in methods.split(",")]
    jobs, refused = make_jobs(wanted, names, kind, template)
    for name, reason in refused.items():
        say(f"Note: {name} is left out: {reason}", err=True)
    with campaign_progress() as report:
        groups = groups_of(numbers or range(tp), tp)
        campaign = Campaign(jobs, refused, groups, out, report)
        if dry_run:
            click.echo(json.dumps(campaign.plan(), indent=2))
            return
        if not jobs:
            raise ScenarioError("no method is left to measure; see the notes above")
        try:
            result = campaign.run(resume=resume)
        except KeyboardInterrupt:
            how = "the same command goes on" if resume else "add --resume to go on"
            draw(f"\nComplete recordings are kept: {how}.\n")
            raise
    fitted = {} if given["no_fit"] or given["only_holdout"] else _fit(result.complete)
    click.echo(
        json.dumps(
            {
                "complete": {k: str(v) for k, v in sorted(result.complete.items())},
                "failed": result.failed,
                "refused": result.refused,
                "fitted": fitted,
            },
            indent=2,
        )
    )
    require_complete(result)


def _numbers(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        return [int(x) for x in text.split(",")]
    except ValueError:
        raise ScenarioError(f"gpus is {text!r}; must be numbers such as 0,1") from None


def _model_id(text: str) -> str:
    import re

    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", text) or "--" in text:
        raise ScenarioError(
            f"model_id is {text!r}; must be of a-z, 0-9, '.', '_' and '-', such as llama-3.1-8b"
        )
    return text


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ScenarioError(f"server_env is {text!r}; must be NAME=VALUE")
    return name, value


def _different(clients: Sequence[int]) -> tuple[int, ...]:
    """Numbers of clients, none of them twice."""
    for number in clients:
        if clients.count(number) > 1:
            raise ScenarioError(f"holdout_clients is {number} twice; give each number once")
    return tuple(clients)


def _traces(texts: Sequence[str], loads: Sequence[float], seed: int) -> tuple[HoldoutTrace, ...]:
    """The held-out traces with their loads."""
    from qsim.calibrate.measure.workload import HoldoutTrace
    from qsim.traces import load_trace

    if loads and len(loads) != len(texts):
        raise ScenarioError(
            f"holdout_load is given {len(loads)} times, holdout_trace {len(texts)} times; give one "
            "load for each trace, or none"
        )
    for load in loads:
        if not 0.01 <= load <= 5.0:
            raise ScenarioError(
                f"holdout_load is {load:g}; must be 0.01 to 5, such as 0.65 for 65% of the capacity"
            )
    result = []
    for text, load in zip_longest(texts, loads):
        trace = load_trace(text, seed=seed)
        result.append(
            HoldoutTrace(
                trace.name,
                trace.arrival_s.tolist(),
                trace.prompt_tokens.tolist(),
                trace.output_tokens.tolist(),
                load,
            )
        )
    return tuple(result)


def _fit(folders: dict[str, Path]) -> dict[str, str]:
    """Fit each recording and validate the profile; what fails leaves its recording as it is."""
    from qsim.calibrate.profiling import is_newer, profile_recording

    fitted = {}
    for name, folder in sorted(folders.items()):
        target = folder.parent / f"{name}.profile.json"
        if not is_newer(target, folder):
            say(f"fitting and validating {name}", err=True)
            try:
                profile_recording(folder, target)
            except Exception as e:  # whatever it is, the recordings of the others must be fitted
                reason = str(e) if isinstance(e, QsimError) else f"{type(e).__name__}: {e}"
                click.echo(
                    f"Note: {name} was recorded but not fitted: {reason}. Its recording is whole; "
                    "qsim calibrate fit can be tried again",
                    err=True,
                )
                continue
        fitted[name] = str(target)
    return fitted


if __name__ == "__main__":  # where only this module is wanted: python -m qsim.cli.calibrate.run ...
    from qsim.cli import main

    main(["calibrate", "run", *sys.argv[1:]], prog_name="qsim")
