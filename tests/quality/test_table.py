from __future__ import annotations

import subprocess
import sys

import pytest

from qsim.catalog.methods import METHODS
from qsim.quality.pool import CLASS_OF, KIN
from qsim.quality.table import recovery_table
from qsim.quality.tasks import TASKS
from tests.quality import derive_table


def test_rows_are_consistent() -> None:
    rows = recovery_table()
    assert len(rows) > 1100
    stand_ins = {"kv-int8", "kv-fp8", "nvfp4-w4a4", "mxfp4-w4a4", "fp8-w8a8-static+kv-fp8"}
    for r in rows:
        assert r.method in METHODS or r.method in stand_ins
        assert r.task in TASKS
        assert r.source
        assert r.scheme
        assert r.license_class.startswith("fact")
        assert (r.score is None) == (r.baseline is None)
        if r.score is not None and r.baseline is not None:
            assert 10 <= r.baseline <= 100
            assert 0 < r.score <= 100
            assert r.recovery_pct == pytest.approx(100 * r.score / r.baseline, abs=0.006)
        assert 30 < r.recovery_pct < 115
        assert r.items >= min(100, TASKS[r.task].items)  # some sources asked only a part
        assert r.items <= 32 * TASKS[r.task].items  # repeats count, and no more than were run
    keys = [(r.variant, r.method, r.scheme, r.task, r.source, r.score, r.note) for r in rows]
    assert len(keys) == len(set(keys))


def test_known_facts_survive_the_curation() -> None:
    def find(model: str, method: str, task: str) -> list[float]:
        return [
            r.recovery_pct
            for r in recovery_table()
            if (r.model, r.method, r.task) == (model, method, task) and r.same
        ]

    assert find("llama-3.1-8b", "fp8-w8a8", "openllm-v1") == [99.31]  # 73.55 of 74.06
    assert find("qwen2-7b", "awq-w4a16", "mmlu") == [95.6]  # 67.4 of 70.5
    assert find("qwen2.5-14b", "gptq-w4a16", "mmlu") == []  # only a near scheme, AutoRound
    assert find("llama-3.1-8b", "awq-w4a16", "gsm8k") == [94.9, 97.39]  # two harnesses
    assert find("llama-3.1-8b", "awq-w4a16", "mmlu") == [96.71, 97.33]
    assert find("llama-3.1-8b", "gptq-w4a16", "gsm8k") == [93.22, 95.77, 100.12]
    assert find("qwen3-0.6b", "gptq-w4a16", "gsm8k") == [30.7]  # collapsed, and said


def test_replaced_rows_and_averages_with_parts_are_gone() -> None:
    def find(model: str, method: str, task: str) -> list[tuple[float | None, float]]:
        return [
            (r.score, r.recovery_pct)
            for r in recovery_table()
            if (r.model, r.method, r.task) == (model, method, task) and r.same
        ]

    # four rows without scores had the same checkpoint's card behind them
    assert find("llama-3.1-8b", "gptq-w4a16", "humaneval") == [(67.1, 99.7)]
    assert find("llama-3.1-8b", "gptq-w4a16", "humaneval-plus") == [(59.1, 97.36)]
    assert find("llama-3.1-8b", "gptq-w4a16", "arena-hard") == [(24.0, 93.02)]
    assert (66.9, 97.95) in find("llama-3.1-8b", "gptq-w4a16", "mmlu")
    assert not [x for x in find("llama-3.1-8b", "gptq-w4a16", "mmlu") if x[0] is None]
    for model, method in (("llama-3.1-8b", "gptq-w4a16"), ("llama-3.1-8b", "fp8-w8a8-static")):
        assert find(model, method, "openllm-v1") == []
    # the base model's average has no parts here
    assert find("llama-3.1-70b", "fp8-w8a8-static", "openllm-v1") == [(79.7, 99.82)]


def test_rescaled_scores_are_shares_of_right_answers_again() -> None:
    """Open LLM Leaderboard 2 puts chance at 0: 28.8 of 30.8 on ten choices is 35.92 of 37.72."""
    (r,) = [r for r in recovery_table()
            if (r.model, r.method, r.task) == ("llama-3.1-8b", "gptq-w4a16", "mmlu-pro")
            and "rescaled" in r.note]  # fmt: skip
    assert (r.score, r.baseline, r.recovery_pct) == (35.92, 37.72, 95.23)


def test_publishers_are_one_name_each() -> None:
    names = {r.publisher for r in recovery_table()}
    assert {"RedHatAI", "intel/auto-round", "NVIDIA/TensorRT-LLM"} <= names
    assert not {"neuralmagic", "neuralmagic-ent", "arXiv:2411.02355", "", "datasets"} & names


def test_what_must_not_be_in_it() -> None:
    schemes = {r.scheme.split(" ")[0] for r in recovery_table()}
    assert not schemes & {"RTN", "HQQ", "Omniquant", "QuaRot", "SpinQuant", "Atom", "bitsandbytes"}
    for r in recovery_table():
        assert "QAT" not in r.scheme.replace("before QAT", "")
        assert "g256" not in r.scheme
        assert r.task in TASKS
        assert "normalised for chance" not in r.note


def test_every_method_has_numbers_or_relatives() -> None:
    have = {r.method for r in recovery_table()}
    assert set(METHODS) - {"bf16"} <= set(CLASS_OF)
    for method in [*METHODS, "kv-fp8"]:
        if method != "bf16":
            assert have & {method, *KIN.get(method, {})}, method
    for method, kin in KIN.items():
        assert method not in kin
        assert set(kin) <= have


def test_the_table_is_what_the_collected_numbers_give() -> None:
    if not derive_table.RAW.is_file():
        pytest.skip("the optional developer folder ../shared is absent")
    text, dropped = derive_table.derive()
    assert derive_table.SHIPPED.read_text("utf-8") == text
    kept = text.count("\n") - 1
    lines = 0
    for path in (derive_table.RAW, derive_table.EXTRA, *derive_table.NAMED):
        lines += len(path.read_text("utf-8").splitlines()) - 1
    assert kept + sum(dropped.values()) == lines  # no row vanishes without a rule
    assert all(count > 0 for count in dropped.values())


def test_the_derivation_is_not_needed_by_users() -> None:
    code = "import qsim.quality.recovery, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"scipy", "sklearn", "pandas", "lm_eval"} & set(done.stdout.split())
