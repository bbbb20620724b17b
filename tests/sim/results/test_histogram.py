"""Percentiles from a histogram are within its stated error of numpy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.sim.results.histogram import RELATIVE_ERROR, Histogram

QS = [0, 1, 50, 90, 99, 99.9, 100]


@given(
    st.lists(st.integers(1, 2**53), min_size=1, max_size=200),
    st.integers(1, 50),
)
def test_percentiles_are_within_the_stated_error(values: list[int], size: int) -> None:
    ps = np.array(values, np.float64)
    histogram = Histogram()
    for start in range(0, len(ps), size):
        histogram.add(ps[start : start + size])
    assert histogram.total == len(ps)
    found = histogram.percentiles(QS)
    # of two neighbours of a rank each is that near, and so is what lies between them
    for got, exact in zip(found, np.percentile(ps, QS), strict=True):
        assert got == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9))
    assert found[0] == ps.min()
    assert found[-1] == ps.max()


@given(
    st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 40)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_counts_and_order(pairs: list[tuple[int, int]], random: object) -> None:
    ps, counts = (np.array(c) for c in zip(*pairs, strict=True))
    weighted, repeated = Histogram(), Histogram()
    weighted.add(ps.astype(np.float64), counts)
    every = np.repeat(ps, counts).astype(np.float64)
    random.shuffle(every)  # type: ignore[attr-defined]
    repeated.add(every)
    assert weighted.total == len(every)
    assert weighted.percentiles(QS) == repeated.percentiles(QS)


def test_the_error_is_reached_and_no_more() -> None:
    # three values at the lower end of a bin: the middle one is told as the bin's middle
    histogram = Histogram()
    histogram.add(np.array([1.0, 2.0**40, 2.0**41]))
    assert histogram.percentiles([50]) == [2.0**40 * (1 + RELATIVE_ERROR)]


def test_over_nothing_there_is_no_percentile() -> None:
    assert all(math.isnan(v) for v in Histogram().percentiles([50, 99]))
