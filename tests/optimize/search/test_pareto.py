from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.optimize.search.pareto import front_mask, hypervolume, knee

#: few distinct values, so that ties and equal points come up
POINTS = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=1, max_size=8)
)


def dominates(a: list[int], b: list[int]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(POINTS)
def test_a_point_is_on_the_front_unless_one_dominates_it(points: list[list[int]]) -> None:
    expected = [not any(dominates(a, b) for a in points) for b in points]
    assert front_mask(np.array(points, float)).tolist() == expected


@given(POINTS)
def test_hypervolume_counts_the_dominated_cells(points: list[list[int]]) -> None:
    """With whole coordinates the volume is a number of unit cells."""
    m = len(points[0])
    cells = sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points)
        for cell in itertools.product(range(4), repeat=m)
    )
    found = hypervolume(np.array(points, float), np.full(m, 4.0))
    assert found == pytest.approx(cells)


def test_hypervolume_of_a_known_front() -> None:
    points = np.array([[1.0, 3.0], [2.0, 1.0], [5.0, 0.5]])
    assert hypervolume(points, np.array([4.0, 4.0])) == pytest.approx(1 + 2 * 3)
    assert hypervolume(points, np.array([1.0, 1.0])) == 0.0


def test_knee_is_nearest_to_the_best_of_each() -> None:
    points = np.array([[0.0, 100.0, 7.0], [1.0, 20.0, 7.0], [10.0, 0.0, 7.0]])
    assert knee(points) == 1
    assert knee(points[:1]) == 0
    scaled = points * [1000.0, 1e-6, 1.0]
    assert knee(scaled) == 1, "units do not matter"
