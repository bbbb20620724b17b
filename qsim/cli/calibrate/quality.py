"""``qsim calibrate quality``: measure a server's quality with lm-eval and store it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.cli._command import Command
from qsim.cli._outputs import Outputs, check_output, check_outputs, note, to_json, write_json
from qsim.errors import CalibrationError, ScenarioError

if TYPE_CHECKING:
    from qsim.profiles.schema import Profile
    from qsim.quality.measure import Run

#: options of lm-eval, as they are handed on
_EVALUATION = ("num_fewshot", "limit", "num_concurrent", "max_model_len", "tokenizer",
               "apply_chat_template", "confirm_run_unsafe_code", "include_path")  # fmt: skip
#: options that belong to one running server, and to servers that are started
_ONE = {"base_url": "--base-url", "model": "--model", "baseline_url": "--baseline-url",
        "baseline_model": "--baseline-model", "save_scores": "--save-scores"}  # fmt: skip
_STARTED = {"out_folder": "--out", "serve_command": "--serve-command", "resume": "--resume",
            "server_args": "--server-arg", "start_timeout": "--start-timeout"}  # fmt: skip


@click.command("quality", cls=Command)
@click.option("--base-url", metavar="URL", help="The server, http://host:8000.")
@click.option("--model", metavar="NAME", help="The name it is served under.")
@click.option("--serve", multiple=True, metavar="METHOD=CHECKPOINT",
              help="Instead: start a vLLM server of each in turn, the 16-bit model's (bf16) first; "
              "any number of them.")  # fmt: skip
@click.option("--out", "out_folder", metavar="DIR",
              help="With --serve: scores, results and the servers' logs.")  # fmt: skip
@click.option("--resume", is_flag=True, help="With --serve: keep the scores that are in --out.")
@click.option("--serve-command", metavar="CMD", help="Starts a server; by default vllm serve.")
@click.option("--server-arg", "server_args", multiple=True, metavar="ARG",
              help="Passed on to the servers of --serve.")  # fmt: skip
@click.option("--start-timeout", type=click.FloatRange(min=0, min_open=True), metavar="S",
              help="For each server of --serve; 900 if not given.")  # fmt: skip
@click.option("--tasks", required=True, metavar="A,B", help="Tasks; 'qsim quality --list-tasks'.")
@click.option("--include-path", metavar="DIR",
              help="Folder of your own task files (YAML, as lm-eval's).")  # fmt: skip
@click.option("--baseline", "baseline_file", metavar="FILE", help="Scores of the 16-bit model: "
              "a file of --save-scores, or lm-eval's results JSON.")  # fmt: skip
@click.option("--baseline-url", metavar="URL", help="A server of the 16-bit model to measure, too.")
@click.option("--baseline-model", metavar="NAME", help="Its name there; --model if not given.")
@click.option("--profile", "profile_files", multiple=True, metavar="FILE",
              help="Store the result in this profile; with --serve, one a method.")  # fmt: skip
@click.option("--save-scores", metavar="FILE", help="Write this run's scores, for --baseline.")
@click.option("--num-fewshot", type=click.IntRange(min=0), metavar="N",
              help="Examples in the prompt; lm-eval's own number if not given.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="First N questions only.")
@click.option("--num-concurrent", type=click.IntRange(min=1), default=32, show_default=True,
              metavar="N", help="Requests at a time.")  # fmt: skip
@click.option("--max-model-len", type=click.IntRange(min=2), default=8192, show_default=True,
              metavar="N", help="The server's; longer prompts lose their beginning.")  # fmt: skip
@click.option("--tokenizer", metavar="NAME|DIR", help="Where it is not the served name.")
@click.option("--apply-chat-template", is_flag=True, help="Prompts in the model's chat format.")
@click.option("--confirm-run-unsafe-code", is_flag=True,
              help="Allow tasks that run the code the model writes, here.")  # fmt: skip
@click.option("--json", "json_path", metavar="FILE", help="Write the result; - for stdout.")
def quality(**given: Any) -> None:
    """Measure quality with lm-eval on vLLM servers and store it in profiles.

    The recovery of each task is the score over that of the 16-bit model, from --baseline,
    --baseline-url or --serve bf16=CHECKPOINT. Needs the extra qsim[quality].

    \b
    qsim calibrate quality --base-url http://localhost:8000 --model NAME --tasks gsm8k,mmlu \\
        --save-scores bf16.json
    qsim calibrate quality --base-url http://localhost:8001 --model NAME --tasks gsm8k,mmlu \\
        --baseline bf16.json --profile my-profile.json
    qsim calibrate quality --serve bf16=DIR --serve fp8-w8a8=DIR --serve awq-w4a16=AWQ-DIR \\
        --tasks gsm8k,mmlu --out quality --profile my-fp8.json --profile my-awq.json
    """
    from qsim.quality.measure import parse_tasks

    # everything that can be wrong is found before hours of measuring
    serve = bool(given["serve"])
    for name, option in (_ONE if serve else _STARTED).items():
        if given[name]:
            raise ScenarioError(
                f"{option} and --serve exclude each other: --serve starts the servers"
                if serve
                else f"{option} has no effect without --serve METHOD=CHECKPOINT"
            )
    tasks = parse_tasks(given["tasks"], given["include_path"])
    (_of_started_servers if serve else _of_one_server)(given, tasks)


def _of_one_server(given: dict[str, Any], tasks: list[str]) -> None:
    from qsim.quality.measure import compare, completions_url, evaluate, load_run

    for name in ("base_url", "model"):
        if not given[name]:
            raise ScenarioError(
                f"{_ONE[name]} is missing: name a running server by --base-url URL --model NAME, "
                "or let --serve METHOD=CHECKPOINT start them"
            )
    for url in (given["base_url"], given["baseline_url"]):
        if url is not None:
            completions_url(url)
    if given["baseline_file"] and given["baseline_url"]:
        raise ScenarioError("--baseline and --baseline-url exclude each other; give one")
    if not any(given[k] for k in ("profile_files", "save_scores", "json_path")):
        raise ScenarioError(
            "nothing would be kept: give --profile FILE, --save-scores FILE or --json FILE"
        )
    if len(given["profile_files"]) > 1:
        raise ScenarioError("--profile is given twice: one server is of one method; give one")
    profiles = _profiles(given)
    path, profile = next(iter(profiles.items()), ("", None))
    has_baseline = bool(given["baseline_file"] or given["baseline_url"])
    method = profile.identity.method if profile else "" if has_baseline else "bf16"
    if profile and method != "bf16" and not has_baseline:
        raise ScenarioError(
            f"the profile is of {method}: give the 16-bit model's scores by --baseline FILE or "
            "--baseline-url URL"
        )
    if method == "bf16" and has_baseline:
        raise ScenarioError("the profile is of bf16, the baseline itself: leave --baseline out")
    baseline = load_run(given["baseline_file"], tasks) if given["baseline_file"] else None
    options = {k: given[k] for k in _EVALUATION}
    today = date.today().isoformat()
    run = evaluate(given["base_url"], given["model"], tasks, date=today, **options)
    out = Outputs()
    if given["save_scores"]:
        with out.attempt("--save-scores"):
            run.save(given["save_scores"])
    source = given["baseline_file"] or given["baseline_url"] or ""
    if given["baseline_url"]:
        name = given["baseline_model"] or given["model"]
        baseline = evaluate(given["baseline_url"], name, tasks, date=today, **options)
    _tell_versions(run, baseline)
    result = compare(run, baseline, method or "unknown", source)
    if given["json_path"] != "-":
        out.echo(_text(result))
    if profile is not None:
        with out.attempt("--profile"):
            replace(profile, quality=result).save(path)
            note(f"stored in {path}")
    if given["json_path"]:
        with out.attempt("--json"):
            write_json(result, given["json_path"])
    if out.failed and given["json_path"] != "-":  # hours of measuring are not to be lost
        out.echo(to_json(result), nl=False)
    out.finish()


def _of_started_servers(given: dict[str, Any], tasks: list[str]) -> None:
    from qsim.calibrate.measure.quality import (
        BASELINE,
        parse_served,
        scores_of,
        serve_and_evaluate,
    )
    from qsim.quality.measure import compare, load_run

    served = parse_served(given["serve"])
    methods = [s.method.id for s in served]
    folder = given["out_folder"]
    if not folder:
        raise ScenarioError("--serve needs --out DIR, for scores, results and the servers' logs")
    if given["baseline_file"] and BASELINE in methods:
        raise ScenarioError("--baseline and --serve bf16=... exclude each other; give one")
    if not given["baseline_file"] and BASELINE not in methods:
        raise ScenarioError(
            "recoveries need the 16-bit model: add --serve bf16=CHECKPOINT, or give its scores by "
            "--baseline FILE"
        )
    check_output("--out", folder, folder=True)
    profiles = _profiles(given)
    for path, profile in profiles.items():
        if profile.identity.method not in methods:
            raise ScenarioError(
                f"--profile {path} is of {profile.identity.method}, which --serve does not have; "
                f"it has {', '.join(methods)}"
            )
    baseline = load_run(given["baseline_file"], tasks) if given["baseline_file"] else None
    options = {k: given[k] for k in _EVALUATION}
    runs, failed = serve_and_evaluate(
        served, tasks, folder, date=date.today().isoformat(), say=note,
        command=given["serve_command"], server_args=given["server_args"],
        start_timeout_s=given["start_timeout"] or 900.0, resume=given["resume"], **options,
    )  # fmt: skip
    source = given["baseline_file"] or str(scores_of(folder, BASELINE))
    baseline = baseline or runs.get(BASELINE)
    out, results = Outputs(), {}
    for method in [m for m in methods if m in runs]:
        base = None if method == BASELINE else baseline
        if base is None and method != BASELINE:
            failed[method] = "no scores of the 16-bit model to compare with"
            continue
        _tell_versions(runs[method], base)
        try:
            results[method] = compare(runs[method], base, method, source)
        except ScenarioError as e:
            failed[method] = str(e)
            continue
        with out.attempt("--out"):
            write_json(results[method], str(Path(folder) / f"quality-{method}.json"))
        for path, profile in profiles.items():
            if profile.identity.method == method:
                with out.attempt("--profile"):
                    replace(profile, quality=results[method]).save(path)
                    note(f"stored in {path}")
    if given["json_path"]:
        with out.attempt("--json"):
            write_json(results, given["json_path"])
    if results and given["json_path"] != "-":
        out.echo("\n\n".join(f"{m}\n{_text(r)}" for m, r in results.items()))
    if failed:
        reasons = "; ".join(f"{m}: {why}" for m, why in failed.items())
        raise CalibrationError(
            f"{len(failed)} of {len(methods)} methods failed ({reasons}); --resume keeps what is "
            f"in {folder}"
        )
    out.finish()


def _profiles(given: dict[str, Any]) -> dict[str, Profile]:
    """The profiles to store in, by path; every file to be written is tried."""
    from qsim.profiles.schema import Profile

    check_outputs(given)
    found: dict[str, Profile] = {}
    for path in given["profile_files"]:
        check_output("--profile", path)
        found[path] = Profile.load(path)
        twin = [p for p, q in found.items() if q.identity.method == found[path].identity.method]
        if len(twin) > 1:
            raise ScenarioError(f"--profile {' and '.join(twin)} are of one method; give one")
    return found


def _tell_versions(run: Run, baseline: Run | None) -> None:
    if baseline and baseline.harness_version != run.harness_version:
        note(f"lm-eval {run.harness_version} here, {baseline.harness_version} for the baseline")


def _text(result: dict[str, Any]) -> str:
    from qsim.report.text.tables import table

    rows = [
        [
            task,
            f"{e['score_pct']:.2f} +- {e['stderr_pct']:.2f}",
            f"{e['baseline_pct']:.2f}" if "baseline_pct" in e else "-",
            f"{e['recovery_pct']:.2f} +- {e['recovery_stderr_pct']:.2f}"
            if "recovery_pct" in e
            else "-",
        ]
        for task, e in result["tasks"].items()
    ]
    return table(["task", "score %", "16-bit %", "recovery %"], rows)
