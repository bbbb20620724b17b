"""Derive qsim/quality/data/recovery.csv from the collected numbers.

Run in the checkout: ``python -m tests.quality.derive_table`` (``--check`` only compares). The
collected numbers are in the optional developer folder ``../shared``: data/quality.csv as the
sources name things, data/quality_rows*.csv with qsim's names. A few more, with their sources, are
beside this file: extra_rows.csv as the former, kv_rows.csv as the latter. Every row that is left
out is counted under the rule that left it out.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from pathlib import Path

from qsim.quality.models import model_key
from qsim.quality.pool import CLASS_OF
from qsim.quality.tasks import TASKS

ROOT = Path(__file__).parent.parent.parent
RAW = ROOT.parent / "shared" / "data" / "quality.csv"
EXTRA = Path(__file__).parent / "extra_rows.csv"
#: rows with the shipped table's columns
NAMED = (
    RAW.parent / "quality_rows_2026-11-30.csv",
    RAW.parent / "quality_rows_extra_2026-11-30.csv",
    RAW.parent / "quality_rows_replace_2026-11-30.csv",
    Path(__file__).parent / "kv_rows.csv",
)
SHIPPED = ROOT / "qsim" / "quality" / "data" / "recovery.csv"
FIELDS = (
    "model", "variant", "method", "fit", "scheme", "task", "score", "baseline", "recovery_pct",
    "items", "source", "commit", "license_class", "note",
)  # fmt: skip

ALIASES = {alias: t.id for t in TASKS.values() for alias in (t.id, *t.aliases)}

#: (scheme of the source, its group size) -> (method, fit). "same": the number format and the
#: algorithm are those of the method. "near": the same bits, another rounding, grouping or scaling.
METHODS: dict[tuple[str, str], tuple[str, str]] = {
    ("GPTQ", "128"): ("gptq-w4a16", "same"),
    ("GPTQ W4A16", "128"): ("gptq-w4a16", "same"),
    ("GPTQ W4A16", "64"): ("gptq-w4a16", "near"),
    ("GPTQ-Int4", "128"): ("gptq-w4a16", "same"),
    ("AutoGPTQ 4-bit", ""): ("gptq-w4a16", "near"),
    ("AWQ", "128"): ("awq-w4a16", "same"),
    ("AWQ asym (llm-compressor)", "128"): ("awq-w4a16", "same"),
    ("AWQ sym (llm-compressor)", "128"): ("awq-w4a16", "near"),
    ("AWQ 4-bit", ""): ("awq-w4a16", "near"),
    ("INT4 AWQ", ""): ("awq-w4a16", "near"),
    ("GPTQ-Int8", "128"): ("gptq-w8a16", "same"),
    ("GPTQ W8A16", "per-channel"): ("gptq-w8a16", "near"),
    ("FP8 W8A8 (dynamic per-token)", ""): ("fp8-w8a8", "same"),
    ("FP8 W8A8 rowwise (torchao)", ""): ("fp8-w8a8", "same"),
    ("FP8 W8A8 per-tensor static", ""): ("fp8-w8a8-static", "same"),
    ("FP8", ""): ("fp8-w8a8-static", "same"),
    ("FP8 block W8A8 RTN", "128x128"): ("fp8-block", "same"),
    ("FP8 W8A8 + FP8 KV", ""): ("fp8-w8a8-static+kv-fp8", "near"),
    ("INT8 W8A8 (GPTQ, dynamic per-token)", ""): ("int8-w8a8", "same"),
    ("INT8 W8A8 (GPTQ/SmoothQuant, dynamic)", ""): ("int8-w8a8", "same"),
    ("INT8 W8A8", ""): ("int8-w8a8", "same"),
    ("INT8 W8A8 rowwise (torchao)", ""): ("int8-w8a8", "near"),
    ("INT8 SmoothQuant", ""): ("int8-w8a8", "near"),
    ("W4A8 AWQ (INT4 w, FP8 a)", ""): ("w4a8-fp8", "near"),
    ("NVFP4 RTN", "16"): ("nvfp4-w4a4", "same"),
    ("NVFP4 OPT-RTN", "16"): ("nvfp4-w4a4", "near"),
    ("NVFP4 W4A4 (QuantizationModifier)", "16"): ("nvfp4-w4a4", "same"),
    ("NVFP4 W4A4 AutoRound iters=0", "16"): ("nvfp4-w4a4", "near"),
    ("NVFP4 W4A4 AutoRound iters=200", "16"): ("nvfp4-w4a4", "near"),
    # the model card's group of 128 is that of the rotation; NVFP4's scales are per 16
    ("NVFP4 W4A4 RTN", "128"): ("nvfp4-w4a4", "near"),
    ("NVFP4 W4A4 (torchao)", ""): ("nvfp4-w4a4", "same"),
    ("MXFP4 RTN", "32"): ("mxfp4-w4a4", "same"),
    ("MXFP4 OPT-RTN", "32"): ("mxfp4-w4a4", "near"),
    ("KV INT8 (lmdeploy)", ""): ("kv-int8", "same"),
    ("KV FP8 E4M3 (vLLM)", ""): ("kv-fp8", "same"),
}

#: an average is dropped where the source gives its parts, too
PARTS_GIVEN = {"avg11", "avg", "avg10", "avg4", "average_3tasks", "avg_commonsense_0shot"}
#: two readings of one run: the one that is kept comes first
SAME_RUN = {
    "gsm8k_5shot_strict": "gsm8k_5shot_flexible",
    "leaderboard_ifeval_inst_level_strict_acc": "leaderboard_ifeval_prompt_level_strict_acc",
}
#: (source, task) whose scores lie on a finer grid than 1/questions: questions x repeats, worked out
#: from the grid (50.86, 46.95, 44.10 are multiples of 1/1050)
REPEATS = {("llm_compressor.md", "aime"): 32, ("llm_compressor.md", "gpqa"): 8,
           ("llm_compressor.md", "livecodebench"): 6}  # fmt: skip
FEWER_ITEMS = {("pull/23647", "gsm8k"): 500}

#: averages and the tasks that they are of: one is dropped where the same people give most of these
#: for the same checkpoint
PARTS_OF = {
    "openllm-v1": {"mmlu", "gsm8k", "arc-c", "hellaswag", "winogrande", "truthfulqa"},
    "openllm-v2": {"ifeval", "math", "mmlu-pro", "gpqa", "bbh", "musr"},
}
#: people who publish under several names
PUBLISHERS = ("neuralmagic", "RedHatAI", "arXiv:2411.02355")
#: scores that Open LLM Leaderboard 2 rescaled to 0 at chance: the share of right answers by chance,
#: percent; bbh and musr have other chances for each of their parts
CHANCE = {"mmlu-pro": 10.0, "gpqa": 25.0}
RESCALED = "normalised for chance by the leaderboard"
#: tasks of the named rows under another name; MMLU with chains of thought is MMLU asked otherwise
NAMED_TASKS = {"mmlu-cot": "mmlu"}


SCHEME = "scheme: not one that qsim serves, nor a relative of one (algorithm, bits, groups)"
AVERAGE = "average: its parts are in the table, or cannot be told apart"


def autoround(row: dict[str, str]) -> tuple[str, str] | None:
    """AutoRound's 4-bit formats: symmetric is GPTQ's, asymmetric AWQ's, with other rounding."""
    if row["method"] != "AutoRound" or row["group_size"] != "128" or row["weight_bits"] != "4":
        return None
    if " sym" in f" {row['note']}".replace("W4G128", ""):
        return "gptq-w4a16", "near"
    return ("awq-w4a16", "near") if "asym" in row["note"] else None


def rule_of(
    row: dict[str, str], sources_with_parts: set[tuple[str, ...]], again: set[tuple[str, ...]]
) -> str | None:
    """Why a row is left out; None to keep it."""
    if row["metric"] == "perplexity":
        return "perplexity: a ratio of perplexities is not a share of right answers"
    if row["task"] in PARTS_GIVEN:
        return AVERAGE
    if row["task"] == "openllm_v1_avg" and (row["model"], row["method"], row["source"]) in (
        sources_with_parts
    ):
        return AVERAGE
    if row["task"] in SAME_RUN:
        return "second reading of the same run"
    if autoround(row) is None and (row["method"], row["group_size"]) not in METHODS:
        return SCHEME
    if row["weight_bits"] == "3":
        return SCHEME
    if (
        not row["score"]
        and (row["model"], row["act_bits"], row["task"]) in again
        and ("huggingface" in row["source"])
    ):
        return "repeated: the paper of the same authors gives the scores"
    if row["score"] and float(row["baseline_score"]) < 10:
        return "floor: baseline below 10%, so that a ratio says nothing"
    return None


def rule_of_named(row: dict[str, str]) -> str | None:
    """Why a row that has qsim's names is left out; None to keep it."""
    if row["method"] not in CLASS_OF:
        return SCHEME
    task = NAMED_TASKS.get(row["task"], row["task"])
    if task == "longbench" or row["note"].endswith("disputed: an older model card says 35.4"):
        # the reference file itself reports 38.8 for the score of 47.65
        return "disputed: the source, or another page of its authors, gives a very different score"
    if task not in TASKS:
        return "task: not one that qsim knows (tool calls, a project's own test)"
    if RESCALED in row["note"] and task not in CHANCE:
        return "rescaled: zero is chance, so that a ratio says nothing"
    return None


def named(row: dict[str, str]) -> dict[str, str]:
    """A named row as it is shipped."""
    out = {**row, "task": NAMED_TASKS.get(row["task"], row["task"])}
    if RESCALED in row["note"]:
        low = CHANCE[row["task"]]
        score, baseline = (
            round(low + (1 - low / 100) * float(row[x]), 2) for x in ("score", "baseline")
        )
        out.update(score=f"{score:.2f}", baseline=f"{baseline:.2f}",
                   recovery_pct=f"{100 * score / baseline:.2f}",
                   note="model card table (copy of the card); worked out from the scores that the "
                        "leaderboard rescaled to 0 at chance")  # fmt: skip
    return out


def is_average_with_parts(row: dict[str, str], rows: list[dict[str, str]]) -> bool:
    """Whether the same people give most parts of an average for the same checkpoint."""
    parts = PARTS_OF.get(row["task"], set())
    if not any(p in row["source"] for p in PUBLISHERS):
        return False
    mine = {
        r["task"]
        for r in rows
        if (r["variant"], r["method"], r["fit"]) == (row["variant"], row["method"], row["fit"])
        and r["task"] in parts
        and any(p in r["source"] for p in PUBLISHERS)
    }
    return len(mine) >= 4


def license_class(source: str) -> str:
    """What kind of page the fact was read from."""
    if source.startswith("arXiv"):
        return "fact, paper by way of a summary"
    if "huggingface.co/datasets" in source:
        return "fact, data set"
    if "huggingface.co" in source:
        return "fact, model card"
    return "fact, pull request" if "/pull/" in source else "fact, repository documentation"


def items_of(row: dict[str, str], task: str) -> int:
    """Answers behind a score."""
    for (mark, name), repeats in REPEATS.items():
        if mark in row["source"] and name == task:
            return TASKS[task].items * repeats
    for (mark, name), items in FEWER_ITEMS.items():
        if mark in row["source"] and name == task:
            return items
    return TASKS[task].items


def derive() -> tuple[str, Counter[str]]:
    """The shipped table as text, and how many rows each rule left out."""
    rows: list[dict[str, str]] = []
    for path in (RAW, EXTRA):
        with path.open(encoding="utf-8", newline="") as f:
            rows += csv.DictReader(f)
    with_parts = {(r["model"], r["method"], r["source"]) for r in rows if r["task"] == "mmlu_5shot"}
    # the model cards' summaries of 4-bit and INT8 checkpoints repeat arXiv:2411.02355
    again = {
        (r["model"], r["act_bits"], r["task"])
        for r in rows
        if r["score"] and r["source"].startswith("arXiv") and not r["method"].startswith("FP8")
    }
    dropped: Counter[str] = Counter()
    kept: list[dict[str, str]] = []
    for row in rows:
        rule = rule_of(row, with_parts, again)
        if rule:
            dropped[rule] += 1
            continue
        task = ALIASES[row["task"]]
        method, fit = autoround(row) or METHODS[row["method"], row["group_size"]]
        scheme = row["method"] + (f" g{row['group_size']}" if row["group_size"] else "")
        if row["method"] == "AutoRound":
            scheme += " sym" if method.startswith("gptq") else " asym"
        recovery = (
            100 * float(row["score"]) / float(row["baseline_score"])
            if row["score"]
            else float(row["recovery_pct"])
        )
        if abs(recovery - float(row["recovery_pct"])) > 0.02:
            raise ValueError(f"recovery does not fit score and baseline: {row}")
        tuned = any(w in row["model"].lower() for w in ("instruct", "chat", "wizard", "distill"))
        kept.append(
            {
                "model": model_key(row["model"]).id,
                "variant": row["model"] if tuned else row["model"] + " (base)",
                "method": method,
                "fit": fit,
                "scheme": scheme,
                "task": task,
                "score": row["score"],
                "baseline": row["baseline_score"],
                "recovery_pct": f"{recovery:.2f}",
                "items": str(items_of(row, task)),
                "source": row["source"],
                "commit": row["source_commit"],
                "license_class": license_class(row["source"]),
                "note": row["note"],
            }
        )
    replaced = set()
    for path in NAMED:
        with path.open(encoding="utf-8", newline="") as f:
            for row in csv.DictReader(f):
                rule = rule_of_named(row)
                if rule:
                    dropped[rule] += 1
                    continue
                kept.append(named(row))
                if "replaces the row without scores" in row["note"]:
                    replaced.add((row["model"], row["method"], row["task"]))
    for row in list(kept):
        if not row["score"] and (row["model"], row["method"], row["task"]) in replaced:
            kept.remove(row)
            dropped["replaced: the same checkpoint's card has the scores"] += 1
    for row in [r for r in kept if is_average_with_parts(r, kept)]:
        kept.remove(row)
        dropped[AVERAGE] += 1
    kept.sort(key=lambda r: [r[f] for f in ("model", "method", "task", "fit", "scheme", "source")])
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    return out.getvalue(), dropped


def main() -> None:
    """Write the table, or compare."""
    text, dropped = derive()
    if "--check" in sys.argv:
        if SHIPPED.read_text("utf-8") != text:
            sys.exit(f"{SHIPPED} differs: run python -m tests.quality.derive_table")
    else:
        SHIPPED.write_text(text, encoding="utf-8")
    print(f"kept {text.count(chr(10)) - 1}")
    for rule, count in sorted(dropped.items(), key=lambda x: -x[1]):
        print(f"dropped {count}: {rule}")


if __name__ == "__main__":
    main()
