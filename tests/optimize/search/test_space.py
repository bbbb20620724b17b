from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.optimize.search.space import Choices, Decision, Range, Space, parse_decision


@pytest.mark.parametrize(
    ("text", "name", "decision"),
    [
        ("max_num_seqs=64,128", "max_num_seqs", Choices((64, 128))),
        ("--max-num-seqs=64", "max_num_seqs", Choices((64,))),
        ("max_num_seqs=32:1024:log", "max_num_seqs", Range(32, 1024, log=True)),
        ("replicas=2:6", "replicas", Range(2, 6)),
        ("tokens=1K:8K:x2", "tokens", Choices((1024, 2048, 4096, 8192))),
        ("tokens=8k", "tokens", Choices((8000,))),
        ("speed=0.5:1.5:0.25", "speed", Range(0.5, 1.5, 0.25)),
        ("rate=1.5:12:x2", "rate", Choices((1.5, 3.0, 6.0, 12.0))),
        ("async_scheduling=true,false", "async_scheduling", Choices((True, False))),
        ("method=bf16,fp8-w8a8", "method", Choices(("bf16", "fp8-w8a8"))),
        ("trace=azure-conv-2023:rate=2", "trace", Choices(("azure-conv-2023:rate=2",))),
        ("profile=a:b:c", "profile", Choices(("a:b:c",))),
    ],
)
def test_decisions_parse(text: str, name: str, decision: Decision) -> None:
    assert parse_decision(text) == (name, decision)
    assert parse_decision(f"{name}={decision}") == (name, decision), "as text and back"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_num_seqs", "does not parse"),
        ("=3", "does not parse"),
        ("n=5:2", "the lower one first"),
        ("n=0:8:log", "log needs a beginning above 0"),
        ("n=0:8:x2", "from a number above 0"),
        ("n=1:8:x1", "F above 1"),
        ("n=1:8:0", "step must be above 0"),
        ("n=1:8:0.5", "whole number"),
        ("n=1:8:many", "no step"),
        ("n=3,4,3", "choice 3 twice"),
    ],
)
def test_what_does_not_parse_is_explained(text: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        parse_decision(text, "--grid")
    with pytest.raises(ScenarioError, match="--grid"):
        parse_decision(text, "--grid")


DECISIONS: list[Any] = [
    Choices(("a", "b", None, True)),
    Range(3, 17),
    Range(0, 100, 30),
    Range(1, 4096, log=True),
    Range(0.1, 3.0),
    Range(0.5, 8.0, log=True),
    Range(0.0, 1.0, 0.3),
]


def contains(space: Space, point: dict[str, object]) -> bool:
    """Whether a point gives every decision a value that it may have."""
    if set(point) != set(space.decisions):
        return False
    for name, decision in space.decisions.items():
        value = point[name]
        if isinstance(decision, Choices):
            if value not in decision.values:
                return False
        elif (
            not isinstance(value, int | float)
            or not decision.low <= value <= decision.high
            or (decision.whole and not isinstance(value, int))
            or (decision.step is not None and value not in decision.grid())
        ):
            return False
    return True


@given(st.floats(0, 1, exclude_max=True), st.sampled_from(DECISIONS))
def test_every_share_is_a_value_of_the_decision(share: float, decision: Decision) -> None:
    assert contains(Space({"d": decision}), {"d": decision.at(share)})


@pytest.mark.parametrize("decision", DECISIONS[:3])
def test_equal_shares_reach_every_value(decision: Decision) -> None:
    values = decision.grid()
    n = len(values)
    assert [decision.at((i + 0.5) / n) for i in range(n)] == list(values)


@pytest.mark.parametrize("decision", DECISIONS)
def test_optuna_sees_the_same_values(decision: Decision) -> None:
    import optuna

    trials = [
        optuna.samplers.RandomSampler(seed=i).sample_independent(
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            "d",
            decision.distribution(),
        )
        for i in range(20)
    ]
    space = Space({"d": decision})
    assert all(contains(space, {"d": v}) for v in trials)


def test_a_grid_is_every_combination() -> None:
    space = Space({"a": Range(1, 2), "b": Choices(("x", "y", "z"))})
    grid = list(space.grid())
    assert len(grid) == space.size() == 6
    assert grid[:3] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 1, "b": "z"}]
    assert Space({"a": Range(1.0, 2.0)}).size() is None
    assert not contains(space, {"a": 1})
    assert not contains(space, {"a": 3, "b": "x"})
    with pytest.raises(ScenarioError, match="nothing to decide"):
        Space({})
