"""The search for the highest rate, against fleets whose limit is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.optimize.capacity.rate_search import Carried, rate_search, users_search
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.sim.results.slo import Slo, SloOutcome

MET = FleetOutcome(1, {}, (), None, {})
MISSED = replace(MET, slos=(SloOutcome(Slo("ttft", "mean", 1.0), 2.0),))


def found(limit: float, guess: float, precision: float) -> tuple[Carried, list[float]]:
    """Search for a fleet that meets its goals up to the speed ``limit``."""
    tried: list[float] = []
    search = rate_search(guess, precision)
    speed = next(search)
    while True:
        tried.append(speed)
        try:
            speed = search.send(MET if speed <= limit else MISSED)
        except StopIteration as stop:
            return stop.value, tried


@given(
    st.floats(1e-3, 1e3), st.floats(1 / 200, 200), st.floats(0.005, 0.3)
)  # fmt: skip
def test_the_limit_lies_between_what_met_and_what_missed(
    guess: float, ratio: float, precision: float
) -> None:
    limit = guess * ratio
    carried, tried = found(limit, guess, precision)
    assert carried.best is not None
    assert carried.broken is not None
    assert carried.best.speed <= limit < carried.broken.speed
    assert carried.broken.speed <= carried.best.speed * (1 + precision) * (1 + 1e-4)
    assert len(set(tried)) == len(tried) == len(carried.points)
    assert len(tried) < 40
    assert [p.speed for p in carried.points] == sorted(tried)
    assert all(float(f"{s:.5g}") == s for s in tried)


def test_none_and_all() -> None:
    carried, tried = found(0.0, 1.0, 0.02)
    assert carried.best is None
    assert min(tried) <= 1 / 256
    carried, _ = found(1e9, 1.0, 0.02)
    assert carried.broken is None


@given(
    st.integers(1, 5000), st.integers(0, 3000), st.integers(1, 2000), st.floats(0.002, 0.3)
)  # fmt: skip
def test_users_lie_between_what_met_and_what_missed(
    guess: int, limit: int, most: int, precision: float
) -> None:
    tried: list[int] = []
    search = users_search(guess, most, precision)
    users = next(search)
    while True:
        tried.append(users)
        try:
            users = search.send(MET if users <= limit else MISSED)
        except StopIteration as stop:
            carried = stop.value
            break
    assert len(set(tried)) == len(tried) < 60
    assert min(tried) >= 1
    assert max(tried) <= most
    assert [p.users for p in carried.points] == sorted(tried)
    if limit == 0:
        assert carried.best is None
        assert carried.broken.users == 1
        return
    assert carried.best.users <= limit
    if limit >= most:
        assert (carried.best.users, carried.broken) == (most, None)
        return
    assert limit < carried.broken.users
    more = max(1.0, carried.best.users * precision * (1 + 1e-6))
    assert carried.broken.users - carried.best.users <= more


@pytest.mark.parametrize("precision", [0.0, 0.001, 0.6, float("nan")])
def test_a_precision_that_cannot_be(precision: float) -> None:
    with pytest.raises(ScenarioError, match="precision is"):
        next(rate_search(1.0, precision))
