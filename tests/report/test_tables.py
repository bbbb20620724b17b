from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.report.text.tables import number, table

WORDS = st.text(st.characters(categories=["L", "N"]), max_size=12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.22447, "0.2245"),
        (35.531, "35.53"),
        (2659.4, "2,659"),
        (1666007.3, "1,666,007"),
        (19366, "19,366"),
        (0.0, "0"),
        (-1.5, "-1.500"),
        (None, "-"),
        (math.nan, "-"),
        (math.inf, "inf"),
        ("text", "text"),
        (0.00012347, "0.0001235"),
    ],
)
def test_number(value: object, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-6, 1e12))
def test_number_keeps_about_four_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=6e-4)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=6))
def test_columns_are_aligned(rows: list[tuple[str, str, str]]) -> None:
    lines = table(["name", "two\nlines", "last"], rows, indent=2).split("\n")
    assert len(lines) == 3 + len(rows)
    assert all(line == line.rstrip() for line in lines)
    rule = lines[2]
    ends = [i for i, c in enumerate(rule + " ") if c == " " and i and rule[i - 1] == "-"]
    for line, row in zip(lines[3:], rows, strict=True):
        padded = line.ljust(len(rule))
        assert padded[: ends[0]].strip() == row[0]
        assert padded[: ends[1]].endswith(row[1])
        assert padded[: ends[2]].endswith(row[2])
