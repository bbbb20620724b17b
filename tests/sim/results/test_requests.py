"""Rows of CSV are those that Python's own formatting writes."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qsim.sim.results.requests import csv_rows


def _expected(columns: list[np.ndarray]) -> bytes:
    def text(v: float | int) -> str:
        if isinstance(v, int):
            return str(v)
        return "" if v != v else f"{v:.9f}".rstrip("0").rstrip(".")

    rows = zip(*(c.tolist() for c in columns), strict=True)
    return "".join(",".join(map(text, r)) + "\n" for r in rows).encode()


_decimal = st.one_of(
    st.floats(0, 1e7, allow_nan=False),
    st.just(math.nan),
    st.integers(0, 10**16).map(lambda ps: ps / 1e9),
    st.integers(0, 10**13).map(lambda half: (half + 0.5) / 1e9),  # next to a tie
    st.sampled_from([0.0, 1e-10, 5e-10, 0.5, 1.0, 999.9999999995, 4503599.6, 1e6]),
)
_large = st.floats(-1e12, 1e12, allow_nan=False)


@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.integers(0, 2**62), _decimal), min_size=1, max_size=30
    )
)
def test_rows_are_those_of_python(rows: list[tuple[int, int, float]]) -> None:
    small, big, decimal = (np.array(c) for c in zip(*rows, strict=True))
    columns = [small.astype(np.int64), decimal.astype(np.float64), big.astype(np.int64)]
    assert csv_rows(columns) == _expected(columns)


@given(st.lists(_large, min_size=1, max_size=20))
def test_numbers_that_the_fast_way_cannot_do(values: list[float]) -> None:
    column = np.array(values)
    assert csv_rows([column]) == _expected([column])


def test_many_rows() -> None:
    rng = np.random.default_rng(1)
    columns = [
        np.arange(50_000),
        np.cumsum(rng.exponential(0.2, 50_000)),
        rng.random(50_000) * 30,
        rng.integers(0, 10**12, 50_000) / 1e9,
    ]
    assert csv_rows(columns) == _expected(columns)


def test_no_row_is_no_text() -> None:
    assert csv_rows([np.empty(0), np.empty(0, np.int64)]) == b""
