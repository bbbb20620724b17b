from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qsim.errors import CalibrationError, MissingExtraError, ProfileError, ScenarioError
from qsim.quality.measure import (
    Run,
    TaskScore,
    compare,
    completions_url,
    evaluate,
    load_run,
    parse_tasks,
)
from qsim.quality.stored import read_quality
from qsim.quality.tasks import own_tasks
from tests.quality.fake_lm_eval import FakeLmEval

URL = "http://localhost:8000"


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> FakeLmEval:
    fake = FakeLmEval()
    monkeypatch.setitem(sys.modules, "lm_eval", fake)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", fake.tasks)
    return fake


def run(lm: FakeLmEval, model: str = "plain", **options: Any) -> Run:
    return evaluate(URL, model, ["gsm8k", "mmlu", "arc-c"], date="2026-11-20", **options)


def test_the_call(lm_eval: FakeLmEval) -> None:
    run(lm_eval, num_fewshot=4, limit=50, num_concurrent=7, tokenizer="tok", max_model_len=4096,
        apply_chat_template=True, confirm_run_unsafe_code=True)  # fmt: skip
    (call,) = lm_eval.calls
    assert call == {
        "model": "local-completions",
        "model_args": {
            "model": "plain",
            "base_url": "http://localhost:8000/v1/completions",
            "num_concurrent": 7,
            "max_retries": 3,
            "max_length": 4096,
            "tokenized_requests": True,
            "tokenizer_backend": "huggingface",
            "add_bos_token": False,
            "tokenizer": "tok",
        },
        "tasks": ["gsm8k", "mmlu", "arc_challenge"],
        "log_samples": True,
        "num_fewshot": 4,
        "limit": 50,
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "confirm_run_unsafe_code": True,
    }


def test_scores_are_read(lm_eval: FakeLmEval) -> None:
    found = run(lm_eval)
    assert (found.harness_version, found.served_model) == ("0.4.9", "plain")
    gsm8k = found.tasks["gsm8k"]
    assert gsm8k.metric == "exact_match,flexible-extract"  # strict-match scores 0 in the stand-in
    assert 70 < gsm8k.score_pct < 90
    assert (gsm8k.stderr_pct, gsm8k.version, gsm8k.num_fewshot, gsm8k.items) == (3.0, "3", 5, 200)
    mmlu = found.tasks["mmlu"]  # a group of groups
    assert mmlu.items == 200
    assert mmlu.outcomes
    assert {k.split("/")[0] for k in mmlu.outcomes} == {"mmlu_law", "mmlu_physics"}
    for score in found.tasks.values():
        assert score.outcomes
        assert score.score_pct == pytest.approx(100 * sum(score.outcomes.values()) / score.items)


def test_recovery_and_its_paired_error(lm_eval: FakeLmEval) -> None:
    base, ours = run(lm_eval), run(lm_eval, "quantized")
    quality = compare(ours, base, "gptq-w4a16", "http://there")
    read_quality(quality)
    for task, entry in quality["tasks"].items():
        assert entry["recovery_pct"] == pytest.approx(
            100 * ours.tasks[task].score_pct / base.tasks[task].score_pct
        )
        assert entry["paired"]
        assert "outcomes" not in entry
    # an answer is lost with chance 0.05: binomial, over the answers the baseline had right
    entry = quality["tasks"]["gsm8k"]
    n = sum(base.tasks["gsm8k"].outcomes.values())  # type: ignore[union-attr]
    r = entry["recovery_pct"] / 100
    assert entry["recovery_stderr_pct"] == pytest.approx(100 * math.sqrt(r * (1 - r) / n), rel=0.02)
    assert quality["baseline"]["source"] == "http://there"
    assert quality["harness"] == {"name": "lm-eval", "version": "0.4.9", "num_fewshot": None,
                                  "limit": None}  # fmt: skip


def test_without_outcomes_the_error_is_that_of_two_runs(lm_eval: FakeLmEval) -> None:
    base, ours = run(lm_eval), run(lm_eval, "quantized")
    blind = replace(base, tasks={t: replace(s, outcomes=None) for t, s in base.tasks.items()})
    entry = compare(ours, blind, "int8-w8a8")["tasks"]["gsm8k"]
    assert not entry["paired"]
    relative = math.hypot(3 / entry["score_pct"], 3 / entry["baseline_pct"])
    assert entry["recovery_stderr_pct"] == pytest.approx(entry["recovery_pct"] * relative)
    paired = compare(ours, base, "int8-w8a8")["tasks"]["gsm8k"]
    assert paired["recovery_stderr_pct"] < entry["recovery_stderr_pct"]


def test_equal_answers_leave_half_an_answer_of_doubt(lm_eval: FakeLmEval) -> None:
    entry = compare(run(lm_eval), run(lm_eval), "fp8-w8a8")["tasks"]["gsm8k"]
    assert entry["recovery_pct"] == 100
    assert entry["recovery_stderr_pct"] == pytest.approx(100 * 0.5 / (2 * entry["score_pct"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "2"}, ["gsm8k", "version", "'3'", "'2'"]),
        ({"num_fewshot": 8}, ["num_fewshot", "5", "8"]),
        ({"items": 10}, ["items"]),
        ({"metric": "acc,none"}, ["metric"]),
        ({"score_pct": 0.0}, ["baseline's score on gsm8k is 0"]),
    ],
)
def test_what_is_not_comparable_is_refused(
    lm_eval: FakeLmEval, change: dict[str, Any], words: list[str]
) -> None:
    base = run(lm_eval)
    base.tasks["gsm8k"] = replace(base.tasks["gsm8k"], **change)
    with pytest.raises(ScenarioError) as e:
        compare(run(lm_eval), base, "fp8-w8a8")
    for word in words:
        assert word in str(e.value)


def test_a_run_is_saved_and_read_back(lm_eval: FakeLmEval, tmp_path: Path) -> None:
    base = run(lm_eval)
    base.save(tmp_path / "base.json")
    assert load_run(tmp_path / "base.json", ["gsm8k"]) == base
    with pytest.raises(ScenarioError, match="no score for ifeval"):
        load_run(tmp_path / "base.json", ["gsm8k", "ifeval"])


def test_lm_evals_own_results_are_a_baseline(lm_eval: FakeLmEval, tmp_path: Path) -> None:
    results = lm_eval.simple_evaluate(
        "vllm", model_args={"model": "plain"}, tasks=["gsm8k", "mmlu"], log_samples=True
    )
    del results["samples"]  # lm-eval writes them to files of their own
    results.update(lm_eval_version="0.4.8", model_name="base", date=1.7e9)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    base = load_run(path, ["gsm8k", "mmlu"])
    assert (base.harness_version, base.served_model) == ("0.4.8", "base")
    assert base.tasks["mmlu"].items == 200
    ours = evaluate(URL, "quantized", ["gsm8k", "mmlu"], date="2026-11-20")
    assert not compare(ours, base, "fp8-w8a8")["tasks"]["mmlu"]["paired"]


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "not JSON"), ("[]", "neither"), ('{"schema": "qsim-quality-run/1"}', "is missing"),
     ('{"schema": "qsim-quality-run/1", "tasks": {"gsm8k": {"x": 1}}}', "is missing")],
)  # fmt: skip
def test_wrong_baseline_files(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "base.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=word):
        load_run(path, ["gsm8k"])


def test_lm_eval_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"qsim\[quality\]") as e:
        evaluate(URL, "m", ["gsm8k"], date="2026-11-20")
    assert e.value.exit_code == 5


def test_what_lm_eval_raises_is_explained(lm_eval: FakeLmEval) -> None:
    lm_eval.failure = ConnectionError("refused")
    with pytest.raises(CalibrationError, match=r"completions: ConnectionError: refused; check"):
        run(lm_eval)


def test_a_part_of_lm_eval_that_is_missing_is_named(lm_eval: FakeLmEval) -> None:
    lm_eval.failure = ModuleNotFoundError("no tenacity", name="tenacity")
    with pytest.raises(MissingExtraError, match=r"'tenacity'.*qsim\[quality\]"):
        run(lm_eval)


def test_plain_prompts_begin_with_the_models_first_token(lm_eval: FakeLmEval) -> None:
    run(lm_eval)
    assert lm_eval.calls[0]["model_args"]["add_bos_token"] is True


def test_what_lm_eval_prints_does_not_reach_stdout(
    lm_eval: FakeLmEval, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lm_eval.simple_evaluate

    def chatty(model: str, **options: Any) -> dict[str, Any]:
        print("progress")
        return plain(model, **options)

    monkeypatch.setattr(lm_eval, "simple_evaluate", chatty)
    run(lm_eval)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "progress" in printed.err


def test_other_metrics_than_known_are_told(
    lm_eval: FakeLmEval, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        lm_eval, "simple_evaluate", lambda **_: {"results": {"gsm8k": {"score,other": 0.5}}}
    )
    with pytest.raises(CalibrationError, match=r"no 'exact_match,flexible-extract'.*score,other"):
        evaluate(URL, "m", ["gsm8k"], date="2026-11-20")
    with pytest.raises(CalibrationError, match="nothing for its task 'ifeval'"):
        evaluate(URL, "m", ["ifeval"], date="2026-11-20")
    monkeypatch.setattr(
        lm_eval, "simple_evaluate",
        lambda **_: {"results": {"gsm8k": {"exact_match,flexible-extract": 76.0}}},
    )  # fmt: skip
    with pytest.raises(CalibrationError, match=r"is 76.0; expected 0 to 1"):
        evaluate(URL, "m", ["gsm8k"], date="2026-11-20")


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1",
                                 "http://h:1/v1/", "http://h:1/v1/completions"])  # fmt: skip
def test_urls(url: str) -> None:
    assert completions_url(url) == "http://h:1/v1/completions"


def test_wrong_urls_and_tasks() -> None:
    with pytest.raises(ScenarioError, match="'localhost:8000'; must begin with http"):
        completions_url("localhost:8000")
    assert parse_tasks("gsm8k, mmlu") == ["gsm8k", "mmlu"]
    for text, word in (("", "empty"), ("gsm8k:0.3", "names alone"), ("gsm9k", "did you mean"),
                       ("ruler", "cannot run"), ("mmlu,mmlu", "twice")):  # fmt: skip
        with pytest.raises(ScenarioError, match=word):
            parse_tasks(text)


def test_other_questions_than_the_baseline_s_are_refused(lm_eval: FakeLmEval) -> None:
    base = run(lm_eval)
    lm_eval.edition = "b"
    with pytest.raises(ScenarioError, match=r"gsm8k is not comparable.*other questions"):
        compare(run(lm_eval), base, "fp8-w8a8")
    # another version of lm-eval may write its digests in another way
    compare(run(lm_eval), replace(base, harness_version="0.4.8"), "fp8-w8a8")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "t.yaml").write_text(
        "# ours\ntask: 'own-tickets'  # of May\nprocess: !function u.f\n", "utf-8"
    )
    return tmp_path


def test_tasks_of_one_s_own(lm_eval: FakeLmEval, own: Path) -> None:
    assert parse_tasks("own-tickets,gsm8k", own) == ["own-tickets", "gsm8k"]
    runs = {
        name: evaluate(URL, name, ["own-tickets", "gsm8k"], date="2026-11-30", include_path=own)
        for name in ("plain", "quantized")
    }
    assert lm_eval.tasks.folders == [str(own), str(own)]
    score = runs["plain"].tasks["own-tickets"]
    assert (score.metric, score.items) == ("solved,number", 90)  # the first of two filters
    quality = compare(runs["quantized"], runs["plain"], "fp8-w8a8")
    entry = quality["tasks"]["own-tickets"]
    assert entry["family"] == "own"
    assert entry["recovery_pct"] < 100
    assert "family" not in quality["tasks"]["gsm8k"]
    assert read_quality(json.loads(json.dumps(quality))) == quality
    assert "task_manager" not in quality["harness"]


def test_a_score_of_one_s_own_is_a_share_of_what_was_right(
    lm_eval: FakeLmEval, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(entry: dict[str, Any], **more: Any) -> None:
        results = {"results": {"own-tickets": entry}, **more}
        monkeypatch.setattr(lm_eval, "simple_evaluate", lambda **_: results)

    lower = {"own-tickets": {"wer": False}}
    found({"alias": "t", "wer,none": 0.2}, higher_is_better=lower)
    with pytest.raises(CalibrationError, match="'wer', where lower is better"):
        evaluate(URL, "m", ["own-tickets"], date="2026-11-30", include_path=own)
    found({"alias": "t", "acc_stderr,none": 0.2})
    with pytest.raises(CalibrationError, match="no metric that is a number"):
        evaluate(URL, "m", ["own-tickets"], date="2026-11-30", include_path=own)


def test_without_a_folder_of_tasks_a_name_must_be_known(lm_eval: FakeLmEval) -> None:
    with pytest.raises(ScenarioError, match="own-tickets"):
        evaluate(URL, "m", ["own-tickets"], date="2026-11-30")
    assert not lm_eval.calls


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: gsm8k", ["'gsm8k' is the name of a public task"]),
        ("task: arc_challenge", ["'arc_challenge' is the name of a public task"]),
        ("group: a,b", ["'a,b'", "letters, digits"]),
        ("task: " + "x" * 65, ["at most 64"]),
        ("task: other\n", ["'own-tickets' is neither", "which has other"]),
        ("tag: own-tickets\n  task: own-tickets\n", ["which has no task"]),
        ("task:\n  - own-tickets\n", ["which has no task"]),
    ],
)
def test_wrong_task_files(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "t.yaml").write_text(text, "utf-8")
    with pytest.raises(ScenarioError) as e:
        parse_tasks("own-tickets", tmp_path)
    for word in words:
        assert word in str(e.value)


def test_a_folder_of_tasks_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="is no folder"):
        parse_tasks("gsm8k", tmp_path / "none")


def test_the_tasks_of_the_docs() -> None:
    folder = Path("docs/data/own_tasks")
    assert sorted(own_tasks(folder)) == ["own-facts", "own-sums"]
    facts = [json.loads(x) for x in (folder / "facts.jsonl").read_text("utf-8").splitlines()]
    assert len(facts) == 402
    for item in facts:
        assert len(set(item["choices"])) == 4
        assert 0 <= item["gold"] < 4
    sums = [json.loads(x) for x in (folder / "sums.jsonl").read_text("utf-8").splitlines()]
    assert len({x["question"] for x in sums}) == 500
    for item in sums:
        a, b = item["question"].removesuffix(" =").split(" + ")
        assert int(item["answer"]) == int(a) + int(b)


def good() -> dict[str, Any]:
    score = TaskScore("gsm8k", "gsm8k", 75.0, 1.2, "exact_match,flexible-extract", "3", 5, 1319)
    base = replace(score, score_pct=76.0)
    return compare(
        Run("q", URL, "2026-11-20", "0.4.9", {"gsm8k": score}),
        Run("b", URL, "2026-11-19", "0.4.9", {"gsm8k": base}),
        "fp8-w8a8",
    )


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["schema"], "other/1", ["schema is 'other/1'", "qsim-quality/1"]),
        (["method"], "", ["method is ''"]),
        (["date"], 5, ["date is 5"]),
        (["harness"], {}, ["harness is {}"]),
        (["tasks"], {}, ["tasks is {}"]),
        (["tasks", "cooking"], {}, ["tasks.cooking: unknown task"]),
        (["tasks", "a b"], {"family": "own"}, ["tasks.a b: unknown task"]),
        (["tasks", "gsm8k"], 7, ["tasks.gsm8k is 7"]),
        (["tasks", "gsm8k", "score_pct"], "high", ["score_pct is 'high'"]),
        (["tasks", "gsm8k", "stderr_pct"], -1, ["stderr_pct is -1"]),
        (["tasks", "gsm8k", "baseline_pct"], 0, ["baseline_pct is 0", "> 0"]),
        (["tasks", "gsm8k", "recovery_pct"], 120.0, ["120.0", "98.68"]),
        (["tasks", "gsm8k", "recovery_stderr_pct"], float("nan"), ["recovery_stderr_pct is nan"]),
    ],
)
def test_malformed_quality_of_a_profile(path: list[str], value: Any, words: list[str]) -> None:
    quality = json.loads(json.dumps(good()))
    read_quality(quality)
    place = quality
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ProfileError) as e:
        read_quality(quality)
    for word in words:
        assert word in str(e.value)


def test_quality_that_is_no_object() -> None:
    with pytest.raises(ProfileError, match="must be an object"):
        read_quality("good")  # type: ignore[arg-type]
