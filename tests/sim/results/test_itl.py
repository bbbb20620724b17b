"""Progressions of gaps against the gaps themselves."""

from __future__ import annotations

import sys
from array import array
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qsim.sim.results import itl as module
from qsim.sim.results.itl import Gaps

entries = st.lists(
    st.tuples(
        st.integers(0, 10**6) | st.integers(0, 10**13),
        st.integers(0, 2000),
        st.integers(0, 64),
        st.integers(1, 1024),
    ),
    min_size=1,
    max_size=30,
)


@given(entries, st.lists(st.floats(0, 100), min_size=1, max_size=4), st.integers(0, 3))
@pytest.mark.slow
def test_statistics_are_those_of_every_single_gap(table, qs, size):
    gaps = Gaps(np.array(table, np.int64).ravel())
    assume(gaps.total)
    every = [f + k * g for f, g, n, rows in table for k in range(n) for _ in range(rows)]
    assert gaps.total == len(every)
    # memory for few gaps and few bins at a time: parts, and bins within bins
    with (
        patch.object(module, "_FEW", [0, 0, 0, 1 << 14][size]),
        patch.object(module, "_CHUNK", [1, 7, 100, 1 << 18][size]),
        patch.object(module, "_BINS", [2, 3, 16, 1 << 14][size]),
    ):
        assert gaps.mean() == sum(every) / (len(every) * 10**9)
        want = np.percentile(np.array(every) / 1e9, qs)
        assert gaps.percentiles(qs) == pytest.approx(want, rel=1e-12, abs=1e-15)
        assert np.repeat(gaps.ms, gaps.count).sum() == pytest.approx(sum(every) / 1e9)


def test_a_sum_beyond_64_bits_is_exact():
    gaps = Gaps(np.array([10**13 + 1, 0, 1, 10**7], np.int64))
    assert gaps.mean() == (10**13 + 1) / 1e9


def test_without_gaps_there_are_no_statistics():
    gaps = Gaps(np.empty(0, np.int64))
    assert np.isnan(gaps.mean())
    assert all(np.isnan(gaps.percentiles([50.0, 99.0])))
    assert len(gaps.ms) == len(gaps.count) == 0


def test_a_look_from_elsewhere_does_not_stop_packing() -> None:
    # a profiler in another thread may hold the frame's locals, and with them views of the array
    emitted = array("q", [10, 1, 3, 2, 20, 0, 1, 1])
    held: list[dict[str, Any]] = []

    def look(frame: Any, event: str, arg: object) -> Any:
        if frame.f_code is Gaps.pack.__code__:
            held.append(dict(frame.f_locals))
        return look

    gaps = Gaps(array("q"))
    before = sys.gettrace()
    sys.settrace(look)
    try:
        gaps.pack(emitted)
    finally:
        sys.settrace(before)
    assert any("columns" in values for values in held)
    assert len(emitted) == 0
    assert gaps.total == 7
