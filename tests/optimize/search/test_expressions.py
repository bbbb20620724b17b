from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.optimize.search.expressions import (
    All,
    Any_,
    Comparison,
    Condition,
    Not,
    Pick,
    parse_condition,
    parse_pick,
)

FIGURES: dict[str, Any] = {"a": 1.0, "b": 2, "m": "fp8-w8a8", "none": None, "flag": True}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a<=1", True),
        ("a < 1", False),
        ("1.5>a", True),
        ("2e0 <= b and a==1", True),
        ("a>5 or b>5 or m==fp8-w8a8", True),
        ("a>5 or (b>1 and m!='fp8-w8a8')", False),
        ("not a>5 and not (b>5)", True),
        ('m = "fp8-w8a8"', True),
        ("a>0 or a>0 and a>5", True),  # and binds closer
        ("none<=1", False),
        ("none>=1", False),
        ("missing!=1", False),
        ("m>=1", False),
        ("flag==true", True),
        ("b>=-1 and b<=.2e1", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert parse_condition(text).holds(FIGURES) is holds


COMPARISONS = st.builds(
    Comparison,
    st.sampled_from(["a", "b", "none"]),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(-2, 3).map(float),
)
CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(tuple).map(All),
        st.lists(inner, min_size=2, max_size=3).map(tuple).map(Any_),
    ),
    max_leaves=8,
)


@given(CONDITIONS)
def test_what_is_written_is_read_back(condition: Condition) -> None:
    read = parse_condition(str(condition))
    assert read.holds(FIGURES) == condition.holds(FIGURES)
    assert list(read.comparisons()) == list(condition.comparisons())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "ends too early"),
        ("a", "ends too early"),
        ("a<=", "ends too early"),
        ("a b 3", "not one of"),
        ("a<=3 b<=4", "not expected there"),
        ("(a<=3", "bracket is not closed"),
        ("a<=x", "no number"),
        ("1<=2", "compared with"),
        ("__import__('os').system('true')", "cannot be read"),
        ("a<=1 and", "ends too early"),
        ("a<=1 & b", "cannot be read"),
        ("a<=2<=3", "not expected there"),
        ("a<=1)", "not expected there"),
        ("a<=1 if b<=2 else b<=3", "not expected there"),
        ("lambda: 1", "cannot be read"),
        ("a<=(1)", "compared with"),
        ("not " * 400 + "a<=1", "nested deeper than 20"),
        ("(" * 400 + "a<=1" + ")" * 400, "nested deeper than 20"),
        ("a<=1 and " * 300 + "a<=1", "2704 characters"),
        ("a<=1e300", "too large"),
    ],
)
def test_what_is_wrong_is_told(text: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        parse_condition(text, "--pick")


@pytest.mark.parametrize(
    ("text", "pick"),
    [
        ("knee", Pick(None, "knee")),
        ("min energy_j", Pick(None, "min", "energy_j")),
        ("a<=1", Pick(Comparison("a", "<=", 1.0), "first")),
        ("a<=1, knee", Pick(Comparison("a", "<=", 1.0), "knee")),
        ("a<=1; MAX quality", Pick(Comparison("a", "<=", 1.0), "max", "quality")),
    ],
)
def test_picks(text: str, pick: Pick) -> None:
    assert parse_pick(text) == pick
    assert parse_pick(str(pick)) == pick


@pytest.mark.parametrize("text", ["knee knee", "min", "a<=1, best", "a<=1,"])
def test_wrong_picks(text: str) -> None:
    with pytest.raises(ScenarioError, match="--pick"):
        parse_pick(text)
