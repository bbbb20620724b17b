"""``qsim calibrate quality``: measure a server's quality with lm-eval and store it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import click

from qsim.cli._command import Command
from qsim.errors import ScenarioError

__all__ = ["quality"]


@click.command("quality", cls=Command)
@click.option("--base-url", required=True, metavar="URL", help="The server, http://host:8000.")
@click.option("--model", required=True, metavar="NAME", help="The name it is served under.")
@click.option("--tasks", required=True, metavar="A,B", help="Tasks; 'qsim quality --list-tasks'.")
@click.option("--include-path", metavar="DIR",
              help="Folder of your own task files (YAML, as lm-eval's).")  # fmt: skip
@click.option("--baseline", "baseline_file", metavar="FILE", help="Scores of the 16-bit model: "
              "a file of --save-scores, or lm-eval's results JSON.")  # fmt: skip
@click.option("--baseline-url", metavar="URL", help="A server of the 16-bit model to measure, too.")
@click.option("--baseline-model", metavar="NAME", help="Its name there; --model if not given.")
@click.option("--profile", "profile_file", metavar="FILE", help="Store the result in this profile.")
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
    """Measure quality with lm-eval on a running server and store it in a profile.

    The recovery of each task is the score over that of the 16-bit model, from --baseline or
    --baseline-url. Needs the extra qsim[quality].

    \b
    qsim calibrate quality --base-url http://localhost:8000 --model NAME --tasks gsm8k,mmlu \\
        --save-scores bf16.json
    qsim calibrate quality --base-url http://localhost:8001 --model NAME --tasks gsm8k,mmlu \\
        --baseline bf16.json --profile my-profile.json
    """
    from qsim.cli._common import note, to_json, write_json
    from qsim.cli._outputs import Outputs, check_output, check_outputs
    from qsim.profiles.schema import Profile
    from qsim.quality.measure import compare, completions_url, evaluate, load_run, parse_tasks

    # everything that can be wrong is found before hours of measuring
    tasks = parse_tasks(given["tasks"], given["include_path"])
    for url in (given["base_url"], given["baseline_url"]):
        if url is not None:
            completions_url(url)
    if given["baseline_file"] and given["baseline_url"]:
        raise ScenarioError("--baseline and --baseline-url exclude each other; give one")
    if not any(given[k] for k in ("profile_file", "save_scores", "json_path")):
        raise ScenarioError(
            "nothing would be kept: give --profile FILE, --save-scores FILE or --json FILE"
        )
    check_outputs(given)
    if given["profile_file"]:
        check_output("--profile", given["profile_file"])
    profile = Profile.load(given["profile_file"]) if given["profile_file"] else None
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
    options = {
        k: given[k]
        for k in ("num_fewshot", "limit", "num_concurrent", "max_model_len", "tokenizer",
                  "apply_chat_template", "confirm_run_unsafe_code", "include_path")
    }  # fmt: skip
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
    if baseline and baseline.harness_version != run.harness_version:
        note(f"lm-eval {run.harness_version} here, {baseline.harness_version} for the baseline")
    result = compare(run, baseline, method or "unknown", source)
    if given["json_path"] != "-":
        out.echo(_text(result))
    if profile is not None:
        with out.attempt("--profile"):
            replace(profile, quality=result).save(given["profile_file"])
            note(f"stored in {given['profile_file']}")
    if given["json_path"]:
        with out.attempt("--json"):
            write_json(result, given["json_path"])
    if out.failed and given["json_path"] != "-":  # hours of measuring are not to be lost
        out.echo(to_json(result), nl=False)
    out.finish()


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
