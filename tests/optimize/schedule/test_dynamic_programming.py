"""The dynamic program against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.optimize.schedule.timetable_search import cheapest_path, fleet_states, starts_between


def brute(costs: np.ndarray, changes: np.ndarray, scale: np.ndarray) -> float:
    best = np.inf
    for path in itertools.product(range(costs.shape[1]), repeat=costs.shape[0]):
        total = sum(costs[t, s] for t, s in enumerate(path))
        total += sum(
            changes[a, b] * scale[t + 1] for t, (a, b) in enumerate(itertools.pairwise(path))
        )
        best = min(best, total)
    return float(best)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_no_path_is_cheaper(seed: int, windows: int, states: int, gaps: bool) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.uniform(0, 10, (windows, states))
    changes = rng.uniform(0, 5, (states, states))
    np.fill_diagonal(changes, 0.0)
    if gaps:
        costs[rng.random(costs.shape) < 0.3] = np.inf
        changes[rng.random(changes.shape) < 0.2] = np.inf
    scale = rng.uniform(0.1, 3, windows)
    path, cost = cheapest_path(costs, changes, scale)
    assert cost == pytest.approx(brute(costs, changes, scale))
    if path:
        own = sum(costs[t, s] for t, s in enumerate(path))
        own += sum(changes[a, b] * scale[t] for t, (a, b) in enumerate(itertools.pairwise(path), 1))
        assert own == pytest.approx(cost)
    else:
        assert np.isinf(cost)


def test_states_and_starts() -> None:
    states = fleet_states([2, 1], None, [1, 2])
    assert states.tolist() == [[0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert fleet_states([2, 1], 2, [1, 2]).tolist() == [[0, 1], [1, 0], [2, 0]]
    starts = starts_between(states)
    assert starts[0, 3].tolist() == [2, 0]  # from (0, 1) to (2, 0)
    assert starts[3, 0].tolist() == [0, 1]
    assert starts[4, 1].tolist() == [0, 0]


def test_a_short_lull_is_not_worth_two_changes() -> None:
    costs = np.array([[9.0, 2.0], [1.0, 2.0], [9.0, 2.0]])
    cheap, dear = np.array([[0, 0.4], [0, 0]]), np.array([[0, 1.5], [0, 0]])
    assert cheapest_path(costs, cheap)[0] == [1, 0, 1]
    assert cheapest_path(costs, dear)[0] == [1, 1, 1]
