from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.quality.models import model_key
from qsim.quality.tasks import (
    DEFAULT_MIX,
    FAMILIES,
    TASKS,
    family_mix,
    find_task,
    normalise_mix,
    parse_mix,
)


def test_the_vocabulary() -> None:
    assert {t.family for t in TASKS.values()} == set(FAMILIES)
    aliases = [a for t in TASKS.values() for a in {t.id, *t.aliases}]
    assert len(aliases) == len(set(aliases))  # no published name stands for two tasks
    assert set(DEFAULT_MIX) <= set(TASKS)
    assert math.isclose(sum(DEFAULT_MIX.values()), 1)
    assert len({TASKS[t].family for t in DEFAULT_MIX}) == len(DEFAULT_MIX)
    assert find_task("gsm8k").items == 1319


@given(st.dictionaries(st.sampled_from(sorted(TASKS)), st.floats(1e-3, 1e3), min_size=1))
def test_a_mix_is_scaled_and_keeps_its_proportions(shares: dict[str, float]) -> None:
    mix = parse_mix(",".join(f"{t}:{w!r}" for t, w in shares.items()))
    assert list(mix) == list(shares)
    assert math.isclose(sum(mix.values()), 1)
    total = sum(shares.values())
    for t, w in shares.items():
        assert math.isclose(mix[t], w / total)
    assert normalise_mix(mix) == pytest.approx(mix)


def test_families_stand_for_their_tasks() -> None:
    mix = parse_mix("code:1,humaneval:1")
    members = family_mix("code")
    assert set(mix) == set(members)
    assert math.isclose(mix["humaneval"], 0.5 + 0.5 / len(members))
    assert normalise_mix(None) == DEFAULT_MIX


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty", "gsm8k:0.3"]),
        (" , ", ["empty"]),
        ("gsm8", ["'gsm8'", "did you mean 'gsm8k'", "--list-tasks"]),
        ("mmlu_pro:1", ["'mmlu-pro'"]),
        ("zzzzzz", ["must be one of", "mmlu", "commonsense"]),
        ("mmlu:0", ["'mmlu'", "0.0", "> 0"]),
        ("mmlu:-1", ["-1.0", "> 0"]),
        ("mmlu:nan", ["nan", "> 0"]),
        ("mmlu:inf", ["inf"]),
        ("mmlu:lots", ["'lots'", "> 0"]),
        ("mmlu:1,mmlu:2", ["'mmlu' twice"]),
        ("mmlu,,gsm8k", ["''"]),
    ],
)
def test_a_wrong_mix(text: str, words: list[str]) -> None:
    with pytest.raises(ScenarioError) as e:
        parse_mix(text)
    for word in words:
        assert word in str(e.value)


def test_a_wrong_mapping() -> None:
    with pytest.raises(ScenarioError, match="is empty"):
        normalise_mix({})
    with pytest.raises(ScenarioError, match="True"):
        normalise_mix({"mmlu": True})
    with pytest.raises(ScenarioError, match="'gsm9k'; did you mean 'gsm8k'"):
        find_task("gsm9k")
    with pytest.raises(ScenarioError, match="task family"):
        family_mix("cooking")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", ("llama-3.1-70b", "llama-3", 70.0, "50B+")),
        ("Llama-2-7B-chat", ("llama-2-7b", "llama-2", 7.0, "3-20B")),
        ("Qwen/Qwen2.5-0.5B-Instruct", ("qwen2.5-0.5b", "qwen2", 0.5, "<3B")),
        ("qwen2.5-32b", ("qwen2.5-32b", "qwen2", 32.0, "20-50B")),
        ("Qwen3-30B-A3B", ("qwen3-30b-a3b", "qwen3", 30.0, "20-50B")),
        ("Mixtral-8x7B-Instruct-v0.1", ("mixtral-8x7b-v0.1", "mistral", 46.7, "20-50B")),
        ("google/gemma-3-27b-it", ("gemma-3-27b", "gemma", 27.0, "20-50B")),
        ("my-model", ("my-model", "", None, "?")),
    ],
)
def test_what_a_name_says(name: str, key: tuple[str, str, float | None, str]) -> None:
    found = model_key(name)
    assert (found.id, found.lineage, found.size_b, found.size_class) == key


@pytest.mark.parametrize("share", [0.0, -1.0, 1e-300, 1e10, 1e308, math.inf, math.nan, True, "1"])
def test_a_share_without_sense_is_refused(share: float) -> None:
    with pytest.raises(ScenarioError, match=r"the share of task 'gsm8k' is .*; must be"):
        normalise_mix({"gsm8k": share, "mmlu": 0.5})
