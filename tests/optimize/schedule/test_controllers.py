"""Controllers on observations written by hand."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.optimize.schedule.controllers import Predictive, Reactive, Timetable
from qsim.sim.fleet.policy import Observation, Policy


def seen(
    now_s: float, on: int = 1, starting: int = 0, outstanding: int = 0, held: int = 0,
    arrivals: np.ndarray | None = None,
) -> Observation:  # fmt: skip
    past = np.zeros(0, np.int64) if arrivals is None else arrivals
    return Observation(now_s, (on,), (starting,), (0,), (0,), (0,), (outstanding,), held, past)


def test_a_timetable_starts_servers_early_and_keeps_them_to_the_end_of_the_window() -> None:
    table = Timetable(((1, 0), (3, 0), (0, 2)), 3600.0, lead_s=105.0, period_s=15.0)
    assert table.initial() == (1, 0)
    at = {t: table.decide(seen(t)) for t in (0, 3465, 3480, 3600, 7065, 7080, 7200, 99_999)}
    assert at[3465] == (1, 0)
    assert at[3480] == (3, 0)  # the next look, at 3495, would be late
    assert at[3600] == (3, 0)
    assert at[7065] == (3, 0)
    assert at[7080] == (3, 2)  # both, while one takes over
    assert at[7200] == at[99_999] == (0, 2)


def test_reactive_scales_up_at_once_and_down_after_its_window() -> None:
    policy = Reactive(10, 1, 8, 2, average_s=15.0, stabilisation_s=60.0)
    assert policy.initial() == (2,)
    assert policy.decide(seen(15, on=2, outstanding=21)) == (2,)  # within 10% of 2 x 10
    assert policy.decide(seen(30, on=2, outstanding=30, held=1)) == (4,)
    assert policy.decide(seen(45, on=2, starting=2, outstanding=5)) == (4,)
    for t in (60, 75):
        assert policy.decide(seen(t, on=4, outstanding=5)) == (4,)
    assert policy.decide(seen(90, on=4, outstanding=5)) == (1,)
    assert policy.decide(seen(105, on=1, outstanding=900)) == (8,)
    smooth = Reactive(10, 1, 8, 1, average_s=60.0)
    assert [smooth.decide(seen(15 * k, outstanding=n))[0] for k, n in enumerate((8, 40))] == [1, 3]


def test_predictive_follows_yesterday_and_today() -> None:
    day = np.concatenate([np.full(720, 60), np.full(720, 300)])  # 1 and 5 requests/s
    table = tuple(float(n) for n in range(1, 11))
    policy = Predictive(table, 1.0, 600.0, 3, stabilisation_s=60.0)
    assert policy.initial() == (3,)
    first = policy.decide(seen(43_200, arrivals=day[:720]))
    assert first == (1,)
    # today runs at twice yesterday's rate; in ten minutes yesterday's went up to 5
    today = np.concatenate([day, np.full(710, 120)])
    assert policy.decide(seen(129_000, arrivals=today)) == (10,)
    early = np.concatenate([day, np.full(500, 120)])
    assert policy.decide(seen(116_400, arrivals=early)) == (2,)
    # a record of the day before the trace says the same
    known = Predictive(table, 1.0, 600.0, 3, tuple(day.tolist()), stabilisation_s=60.0)
    assert known.decide(seen(42_600, arrivals=np.full(710, 120))) == (10,)


@pytest.mark.parametrize(
    "policy",
    [
        Timetable(((1,), (2,)), 600.0, 60.0),
        Reactive(5.0, 1, 4, 2),
        Predictive((1.0, 2.0), 1.0, 60.0, 1),
    ],
)
def test_each_is_a_policy(policy: Policy) -> None:
    assert policy.period_s > 0
    assert len(policy.initial()) == len(policy.decide(seen(60.0, arrivals=np.ones(1, np.int64))))


class _Before:
    """The rule as a schedule had it by itself, before there was one for every simulation."""

    def __init__(self, target: float, least: int, most: int, period_s: float, stable_s: float,
                 average_s: float) -> None:  # fmt: skip
        self.target, self.least, self.most = target, least, most
        self.wishes: deque[int] = deque(maxlen=max(1, round(stable_s / period_s)))
        self.seen: deque[int] = deque(maxlen=max(1, round(average_s / period_s)))

    def decide(self, on: int, starting: int, requests: int) -> int:
        self.seen.append(requests)
        mean = sum(self.seen) / len(self.seen)
        wish = math.ceil(mean / self.target)
        present = on + starting
        if present and abs(mean / (present * self.target) - 1) <= 0.1:
            wish = present
        self.wishes.append(min(max(wish, self.least), self.most))
        return max(self.wishes)


@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=80),
    st.floats(0.2, 1.2).map(lambda share: share * 37) | st.integers(1, 20),
    st.integers(1, 3),
    st.integers(0, 6),
    st.sampled_from([(15.0, 300.0, 60.0), (5.0, 120.0, 60.0), (15.0, 60.0, 15.0)]),
    st.integers(0, 2),
)
@settings(max_examples=200)
def test_reactive_decides_as_it_did_before(
    load: list[int], target: float, least: int, extra: int, times: tuple[float, float, float],
    late: int,
) -> None:  # fmt: skip
    """Servers are on at once or up to two looks after they are wanted."""
    period_s, stable_s, average_s = times
    most = least + extra
    policy = Reactive(target, least, most, least, period_s, stable_s, average_s)
    before = _Before(target, least, most, period_s, stable_s, average_s)
    policy.initial()
    wanted = [least] * (late + 1)
    for k, requests in enumerate(load):
        on = min(wanted[-1], wanted[-1 - late])
        starting = wanted[-1] - on
        now = policy.decide(seen(k * period_s, on=on, starting=starting, outstanding=requests))
        assert now == (before.decide(on, starting, requests),)
        wanted.append(now[0])
