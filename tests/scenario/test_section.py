"""Sections take by themselves what pydantic would take, and nothing else."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qsim.errors import ScenarioError
from qsim.scenario import Scenario
from qsim.scenario.models import judged
from qsim.scenario.section import Doubt, Section, plainly
from qsim.scenario.sections import Engine, FailuresSection, Fleet, PoolSection, Traffic

SECTIONS = [Scenario, *(type(v) for _, v in Scenario() if isinstance(v, Section)), PoolSection,
            Engine, FailuresSection]  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(["8k", "fcfs", "0.33", "error", "cost", "ttft:p99:500", "a\nb", "", "x" * 1001,
                     "x" * 4097, "chat.csv", "least-requests", "prefix-affinity:a=1", "1h", "tpe"]),
    st.text(max_size=5),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 9), st.integers(), st.floats(), st.booleans(),
    st.sampled_from([0, 0.0, 1.0, 1e18, 1e19, -1e18, float("nan"), float("inf"), 1 << 64, 1 << 53]),
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), TEXTS, NUMBERS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(TEXTS, inner, max_size=3),
        st.tuples(inner),
    ),
    max_leaves=4,
)


def said(section: Section) -> str:
    """All of it: types of numbers included, and what was given."""
    return repr((section, sorted(section.given()), sorted(section.model_fields_set)))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_plain_is_what_pydantic_makes_of_it(data: st.DataObject) -> None:
    cls = data.draw(st.sampled_from(SECTIONS))
    names = data.draw(st.lists(st.sampled_from([*cls.model_fields, "other"]), max_size=3))
    asked = {name: data.draw(VALUES) for name in names}
    try:
        found = plainly(cls, asked)
    except Doubt:
        return
    assert said(found) == said(judged(cls, asked))


def test_plain_values_need_no_pydantic() -> None:
    asked = {
        "traffic": {"trace": "a.csv", "head": "8k", "speed": 2, "merge": ["b.csv"], "sort": True},
        "fleet": {
            "pools": [{"profile": "p", "replicas": 2, "engine": {"max_num_seqs": 64},
                       "lifecycle": {"start_s": 60.0}}],
            "router": "round-robin",
        },
        "slos": ["ttft:p99:500"],
        "seed": 3,
        "plan": {"stock": {"h100_sxm": 8}, "objective": "energy", "trials": None},
    }  # fmt: skip
    found = plainly(Scenario, asked)
    assert said(found) == said(judged(Scenario, asked))
    assert isinstance(found, Scenario)
    assert found.traffic.head == 8000
    assert type(found.traffic.speed) is float
    assert found.plan.trials is None
    assert "trials" not in found.plan.model_fields_set


@pytest.mark.parametrize("wrong", [
    {"seed": True}, {"seed": 1.0}, {"seed": -1}, {"slos": ("a",)}, {"slos": [1]},
    {"allow_backlog": 1}, {"traffic": {"speed": True}}, {"traffic": {"speed": float("nan")}},
    {"traffic": {"too_long": "no"}}, {"fleet": {"pools": [{"profile": "p", "gpu": "g"}]}},
    {"fleet": {"pools": {}}}, {"other": 1}, {"traffic": {"growth": "2"}},
    {"accounts": {"prices": {"h100_sxm": True}}},
])  # fmt: skip
def test_what_is_wrong_is_never_plain(wrong: dict[str, Any]) -> None:
    with pytest.raises(Doubt):
        plainly(Scenario, wrong)
    with pytest.raises(ScenarioError):
        Scenario(**wrong)


def test_sections_are_values() -> None:
    one = Scenario(traffic={"trace": "a.csv"}, fleet={"pools": [{"profile": "p"}]})
    assert one == Scenario(traffic=Traffic(trace="a.csv"), fleet=Fleet(pools=[{"profile": "p"}]))
    assert one != Scenario()
    assert pickle.loads(pickle.dumps(one)) == one
    assert one.traffic.model_copy(update={"head": 3}).given() == {"trace": "a.csv", "head": 3}
    with pytest.raises(AttributeError, match="does not change"):
        one.seed = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="does not change"):
        del one.seed
    with pytest.raises(ValidationError):
        Traffic(head="many")
    assert repr(Scenario().accounts).startswith("Accounts(prices={}")
