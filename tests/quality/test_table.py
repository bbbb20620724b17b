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
    assert len(rows) > 400
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
        assert 60 < r.recovery_pct < 115
        assert r.items >= TASKS[r.task].items or r.items == 500
    keys = [(r.variant, r.method, r.scheme, r.task, r.source, r.score) for r in rows]
    assert len(keys) == len(set(keys))


def test_known_facts_survive_the_curation() -> None:
    def find(model: str, method: str, task: str) -> list[float]:
        return [
            r.recovery_pct
            for r in recovery_table()
            if (r.model, r.method, r.task) == (model, method, task) and r.same
        ]

    assert find("llama-3.1-8b", "fp8-w8a8", "openllm-v1") == [99.31]  # 73.55 of 74.06
    assert find("llama-3.1-70b", "fp8-w8a8-static", "openllm-v1") == [99.87, 99.82]
    assert find("qwen2-7b", "awq-w4a16", "mmlu") == [95.6]  # 67.4 of 70.5
    assert find("qwen2.5-14b", "gptq-w4a16", "mmlu") == []  # only a near scheme, AutoRound
    assert sum(r.method == "kv-fp8" for r in recovery_table()) == 2


def test_what_must_not_be_in_it() -> None:
    schemes = {r.scheme.split(" ")[0] for r in recovery_table()}
    assert not schemes & {"RTN", "HQQ", "Omniquant", "QuaRot", "SpinQuant", "Atom", "bitsandbytes"}
    assert not any("QAT" in r.scheme or "g256" in r.scheme for r in recovery_table())
    assert all(r.task != "hle" for r in recovery_table())


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
    with derive_table.RAW.open() as raw, derive_table.EXTRA.open() as extra:
        lines = sum(1 for _ in raw) + sum(1 for _ in extra) - 2
    assert kept + sum(dropped.values()) == lines  # no row vanishes without a rule
    assert all(count > 0 for count in dropped.values())


def test_the_derivation_is_not_needed_by_users() -> None:
    code = "import qsim.quality.recovery, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"scipy", "sklearn", "pandas", "lm_eval"} & set(done.stdout.split())
