from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.catalog.methods import METHODS
from qsim.errors import ProfileError, ScenarioError
from qsim.quality.pool import components, single_variance
from qsim.quality.recovery import Recovery, fleet_recovery, recovery
from qsim.quality.table import recovery_table
from qsim.quality.tasks import TASKS


def stored(method: str = "fp8-w8a8", **tasks: tuple[float, float]) -> dict[str, Any]:
    """``profile.quality`` with (recovery, its standard error) by task, of a baseline of 50."""
    return {
        "schema": "qsim-quality/1",
        "method": method,
        "date": "2026-11-20",
        "harness": {"name": "lm-eval", "version": "0.4.9"},
        "tasks": {
            name: {"score_pct": r / 2, "stderr_pct": 1.0, "baseline_pct": 50.0,
                   "baseline_stderr_pct": 1.0, "recovery_pct": r, "recovery_stderr_pct": se}
            for name, (r, se) in tasks.items()
        },
    }  # fmt: skip


def test_bf16_is_100_by_definition() -> None:
    r = recovery("anything-at-all", "bf16", {"gsm8k": 1})
    assert (r.mean_pct, r.low_pct, r.high_pct) == (100, 100, 100)
    assert "by definition" in r.note


def test_published_is_shrunk_towards_relatives_and_says_what_was_published() -> None:
    r = recovery("meta-llama/Llama-3.1-8B-Instruct", "gptq-w4a16", {"humaneval": 1})
    (task,) = r.tasks
    assert r.status == task.status == "published"
    assert task.published_pct == (99.7,)
    assert "Meta-Llama-3.1-8B-Instruct-quantized.w4a16" in r.sources[0]
    # 164 questions: the relatives count, and 4-bit code does not keep 99.7% elsewhere
    assert 96 < r.mean_pct < 99.7
    assert r.low_pct < 99.7 < r.high_pct


@pytest.mark.slow
def test_the_interval_reaches_what_was_published() -> None:
    (task,) = recovery("qwen2-0.5b", "gptq-w8a16", {"mmlu": 1}).tasks
    assert task.published_pct == (93.93,)  # far from all other 8-bit numbers
    assert task.low_pct <= 93.93
    assert task.mean_pct > 94
    for r in recovery_table():
        if r.same and r.method in METHODS:
            (t,) = recovery(r.model, r.method, {r.task: 1}).tasks
            assert t.low_pct - 1e-9 <= r.recovery_pct <= t.high_pct + 1e-9


def test_an_estimate_is_marked_and_names_its_nearest_relative() -> None:
    r = recovery("qwen2.5-14b", "gptq-w4a16", {"mmlu": 1})
    assert r.status == "estimated"
    assert "estimated" in r.note
    assert "Qwen2.5-14B-Instruct, AutoRound" in r.tasks[0].note  # this model, a near scheme
    assert r.tasks[0].published_pct == ()
    assert r.sources
    far = recovery("gemma-3-27b", "int8-w8a8", {"livecodebench": 1})
    assert far.status == "estimated"
    assert "no number for int8-w8a8 on livecodebench" in far.tasks[0].note


@settings(max_examples=60)
@given(
    st.sampled_from(["llama-3.1-8b", "qwen2.5-32b", "never-heard-of", "Qwen/Qwen3-8B"]),
    st.sampled_from([*METHODS, *(m + "+kv-fp8" for m in METHODS)]),
    st.dictionaries(st.sampled_from(sorted(TASKS)), st.floats(0.01, 9), min_size=1, max_size=4),
)
def test_every_model_method_and_mix_has_an_answer(
    model: str, method: str, mix: dict[str, float]
) -> None:
    r = recovery(model, method, mix)
    assert r.low_pct <= r.mean_pct <= r.high_pct
    assert 60 < r.mean_pct < 104
    assert math.isclose(sum(t.weight for t in r.tasks), 1)
    assert math.isclose(r.mean_pct, sum(t.weight * t.mean_pct for t in r.tasks))
    # parts that err together are not surer than the widest of them
    assert r.high_pct - r.low_pct <= max(t.high_pct - t.low_pct for t in r.tasks) + 1e-9
    names = {(x.model, x.method, x.task) for x in recovery_table() if x.same}
    for t in r.tasks:
        known = (r.model, method, t.task) in names or method == "bf16"
        assert t.status == ("published" if known else "estimated")
        assert bool(t.note) == (t.status == "estimated") or method == "bf16"
        assert t.sources or method == "bf16"


def test_the_status_is_that_of_the_weakest_task() -> None:
    assert recovery("llama-3.1-8b", "int8-w8a8", {"mmlu": 1}).status == "published"
    mixed = recovery("llama-3.1-8b", "int8-w8a8", {"mmlu": 1, "gsm8k": 1})
    assert [t.status for t in mixed.tasks] == ["published", "estimated"]
    assert mixed.status == "estimated"
    assert mixed.note == "estimated from relatives for gsm8k"


def test_measured_comes_before_published() -> None:
    own = stored(mmlu=(91.0, 0.5))
    r = recovery("llama-3.1-8b", "fp8-w8a8", {"mmlu": 1}, own)
    assert r.status == "measured"
    assert r.mean_pct == 91
    assert r.high_pct - r.mean_pct == pytest.approx(1.645 * 0.5, rel=1e-3)
    assert r.sources == ("measured 2026-11-20 with lm-eval 0.4.9",)
    both = recovery("llama-3.1-8b", "fp8-w8a8", {"mmlu": 1, "gsm8k": 3}, own)
    assert [t.status for t in both.tasks] == ["measured", "estimated"]
    assert both.mean_pct == pytest.approx(0.25 * 91 + 0.75 * both.tasks[1].mean_pct)


def test_measurements_of_another_method_are_refused() -> None:
    with pytest.raises(ProfileError, match="of method 'fp8-w8a8', not of 'int8-w8a8'"):
        recovery("llama-3.1-8b", "int8-w8a8", None, stored(mmlu=(99.0, 0.5)))
    with pytest.raises(ProfileError, match=r"quality\.schema is None"):
        recovery("llama-3.1-8b", "int8-w8a8", None, {})


def test_an_fp8_kv_cache_multiplies() -> None:
    mix = {"mmlu": 1.0}
    weights = recovery("llama-3.1-8b", "int8-w8a8", mix)
    cache = recovery("llama-3.1-8b", "bf16+kv-fp8", mix)
    both = recovery("llama-3.1-8b", "int8-w8a8+kv-fp8", mix)
    assert both.mean_pct == pytest.approx(weights.mean_pct * cache.mean_pct / 100)

    def half(r: Recovery) -> float:
        return r.high_pct - r.mean_pct

    assert half(both) == pytest.approx(
        math.hypot(half(weights) * cache.mean_pct, half(cache) * weights.mean_pct) / 100, rel=1e-6
    )
    assert both.status == "estimated"
    assert cache.mean_pct > 98


def test_the_reported_collapse_of_qwen_is_told() -> None:
    assert "verl" in recovery("qwen2.5-14b", "fp8-w8a8+kv-fp8").note
    assert "verl" not in recovery("qwen2.5-14b", "fp8-w8a8").note
    assert "verl" not in recovery("llama-3.1-8b", "fp8-w8a8+kv-fp8").note


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "qwen2.5-32b"])
def test_fp8_activations_cost_something_on_4_bit_weights(model: str) -> None:
    weights, both = recovery(model, "awq-w4a16"), recovery(model, "w4a8-fp8")
    eight = recovery(model, "fp8-w8a8")
    assert both.mean_pct < weights.mean_pct + 0.1  # large models lose nothing to FP8
    assert both.mean_pct == pytest.approx(weights.mean_pct * eight.mean_pct / 100, abs=0.05)
    assert both.high_pct - both.low_pct > weights.high_pct - weights.low_pct


def test_the_published_pairs_agree_with_that_rule() -> None:
    def of(model: str, scheme: str) -> float:
        return next(
            r.recovery_pct for r in recovery_table() if r.model == model and r.scheme == scheme
        )

    for model in ("llama-3.1-8b", "llama-3.1-70b"):
        ratio = 100 * of(model, "W4A8 AWQ (INT4 w, FP8 a)") / of(model, "INT4 AWQ")
        eight = recovery(model, "fp8-w8a8", {"mmlu": 1})
        assert eight.low_pct < ratio < eight.high_pct
    found = [r for r in recovery_table() if r.method == "w4a8-fp8"]
    parts = [recovery(r.model, "w4a8-fp8", {r.task: 1}) for r in found]
    inside = [
        abs(r.recovery_pct - p.mean_pct)
        <= math.hypot(p.high_pct - p.mean_pct, 1.645 * math.sqrt(single_variance(r, components())))
        for p, r in zip(parts, found, strict=True)
    ]
    assert len(found) >= 13
    assert sum(inside) >= 0.8 * len(found)


def test_long_chains_of_thought_lose_more_than_chat_at_4_bits() -> None:
    hard = recovery("qwen3-8b", "awq-w4a16", {"reasoning": 1})
    chat = recovery("qwen3-8b", "awq-w4a16", {"ifeval": 1})
    assert hard.high_pct < chat.mean_pct


def test_wrong_methods_and_tasks() -> None:
    with pytest.raises(ScenarioError, match="fp8-w8a8"):
        recovery("llama-3.1-8b", "fp8-w8a9")
    with pytest.raises(ScenarioError, match="did you mean 'gsm8k'"):
        recovery("llama-3.1-8b", "fp8-w8a8", {"gsmk": 1})


@given(st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=3, max_size=3).filter(any))
def test_a_fleet_is_the_mean_over_requests(shares: list[float]) -> None:
    methods = ["bf16", "int8-w8a8", "awq-w4a16"]
    parts = [recovery("llama-3.1-8b", m, {"humaneval": 1}) for m in methods]
    assert [p.status for p in parts] == ["published", "published", "estimated"]
    fleet = fleet_recovery(list(zip(parts, shares, strict=True)))
    expected = sum(p.mean_pct * s for p, s in zip(parts, shares, strict=True)) / sum(shares)
    assert fleet.mean_pct == pytest.approx(expected)
    assert fleet.low_pct <= fleet.mean_pct <= fleet.high_pct
    assert (fleet.status == "estimated") == (shares[2] > 0)


def test_fleets_that_cannot_be() -> None:
    part = recovery("llama-3.1-8b", "bf16")
    assert fleet_recovery([(part, 7)]).method == "bf16"
    with pytest.raises(ScenarioError, match="0"):
        fleet_recovery([(part, 0)])
    with pytest.raises(ScenarioError, match="bf16 is -1"):
        fleet_recovery([(part, -1)])
    with pytest.raises(ScenarioError, match="no requests"):
        fleet_recovery([])


def test_json_is_plain() -> None:
    import json

    data = recovery("llama-3.1-8b", "fp8-w8a8+kv-fp8").to_dict()
    again = json.loads(json.dumps(data, allow_nan=False))
    assert again == data
    assert {"mean_pct", "low_pct", "high_pct", "status", "sources", "note", "tasks"} <= set(again)
