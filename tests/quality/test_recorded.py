"""What a real server and a real lm-eval gave, read again."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from qsim.quality.measure import Run, compare, load_run
from qsim.quality.tasks import OWN
from tests.quality.fake_lm_eval import FakeLmEval

DATA = Path(__file__).parent / "data"
TASKS = ["own-facts", "own-sums"]


def scores(name: str) -> Run:
    return load_run(DATA / "smollm2-135m" / f"scores-{name}.json", TASKS)


def test_the_figures_of_the_docs() -> None:
    base = scores("bf16")
    rows = []
    for task in TASKS:
        cells = [task, str(base.tasks[task].items), f"{base.tasks[task].score_pct:.2f}"]
        for method in ("fp8-w8a8", "int8-w8a8"):
            run = scores(method)
            entry = compare(run, base, method)["tasks"][task]
            assert entry["paired"]
            assert entry["family"] == OWN
            ours, theirs = run.tasks[task].outcomes, base.tasks[task].outcomes
            assert ours
            assert theirs
            lost = sum(theirs[k] > ours[k] for k in ours)
            won = sum(theirs[k] < ours[k] for k in ours)
            recovery, error = entry["recovery_pct"], entry["recovery_stderr_pct"]
            cells += [f"{recovery:.2f} +- {error:.2f}", f"{lost}, {won}"]
        rows.append("| " + " | ".join(cells) + " |")
    page = Path("docs/quality.md").read_text("utf-8")
    for row in rows:
        assert row in page


def test_the_words_of_the_docs() -> None:
    base, again, fp8, int8 = map(scores, ("bf16", "bf16-again", "fp8-w8a8", "int8-w8a8"))
    assert all(again.tasks[t].outcomes == base.tasks[t].outcomes for t in TASKS)
    assert sum(base.tasks[t].items for t in TASKS) == 902

    def distance(run: Run, task: str) -> float:
        entry = compare(run, base, "fp8-w8a8")["tasks"][task]
        return float((100 - entry["recovery_pct"]) / entry["recovery_stderr_pct"])

    assert distance(fp8, "own-sums") > 4
    assert max(distance(int8, "own-sums"), *(distance(r, "own-facts") for r in (fp8, int8))) < 2
    ours, theirs = fp8.tasks["own-sums"], base.tasks["own-sums"]
    apart = (
        ours.score_pct
        / theirs.score_pct
        * math.hypot(ours.stderr_pct / ours.score_pct, theirs.stderr_pct / theirs.score_pct)
    )
    page = Path("docs/quality.md").read_text("utf-8")
    found = re.search(r"it would\s+be ([\d.]+) instead of ([\d.]+) points", page)
    assert found
    paired = compare(fp8, base, "fp8-w8a8")["tasks"]["own-sums"]["recovery_stderr_pct"]
    assert found.groups() == (f"{100 * apart:.1f}", f"{paired:.1f}")


def test_results_of_lm_eval_0_4_13(tmp_path: Path) -> None:
    """Its own results JSON with samples, of four questions each against a stub."""
    recorded = json.loads((DATA / "lm_eval_0.4.13.json").read_text("utf-8"))
    run = load_run(DATA / "lm_eval_0.4.13.json", TASKS)
    facts, sums = run.tasks["own-facts"], run.tasks["own-sums"]
    assert (facts.score_pct, facts.metric, facts.num_fewshot) == (25.0, "acc,none", 0)
    assert (sums.score_pct, sums.metric, sums.num_fewshot) == (0.0, "exact_match,number", 5)
    assert (facts.items, sums.items, run.harness_version) == (4, 4, "0.4.13")
    assert facts.outcomes == {f"own-facts/{i}": float(i == 0) for i in range(4)}
    assert facts.questions
    assert facts.questions != sums.questions
    # one question in other words is another set of questions
    recorded["samples"]["own-facts"][2]["doc_hash"] = "0" * 64
    path = tmp_path / "other.json"
    path.write_text(json.dumps(recorded), "utf-8")
    assert load_run(path, TASKS).tasks["own-facts"].questions != facts.questions


@pytest.mark.parametrize("part", ["versions", "n-shot", "n-samples", "samples", "results"])
def test_the_stand_in_has_the_parts_of_the_real_one(part: str) -> None:
    real = json.loads((DATA / "lm_eval_0.4.13.json").read_text("utf-8"))
    fake = FakeLmEval().simple_evaluate(
        "local-completions", model_args={"model": "m"}, tasks=["own-tickets"], log_samples=True
    )
    ours, theirs = fake[part]["own-tickets"], real[part]["own-sums"]
    assert type(ours) in (type(theirs), int)
    if part == "samples":
        assert set(ours[0]) - {"solved"} <= set(theirs[0])
    elif isinstance(ours, dict):
        number = [k for k in ours if "," in k]
        assert set(ours) - set(number) <= set(theirs)
