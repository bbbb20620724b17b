from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.report.text.plan import plan_text
from qsim.traces.reshape import busiest_hour, forecast
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan


def at(*arrival_s: float) -> Trace:
    n = len(arrival_s)
    return Trace(np.array(arrival_s), np.full(n, 20), np.full(n, 3), name="given")


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=40))
def test_no_hour_holds_more_requests(times: list[int]) -> None:
    times = sorted([0, 9000, *times])
    cut, shaped = forecast(at(*times), peak_hour=True)
    most = max(sum(s <= t < s + 3600 for t in times) for s in range(-3600, 20_001, 1)
               if s in times or s % 100 == 0)  # fmt: skip
    assert len(cut) == most
    assert shaped.peak_hour_start_s is not None
    assert cut.arrival_s[0] == 0
    assert cut.duration_s < 3600


def test_an_hour_ends_before_its_last_second_and_the_first_of_equals_is_taken() -> None:
    assert busiest_hour(at(0, 3600, 7200, 10799)) == 7200
    assert busiest_hour(at(0, 3600, 7200)) == 0


def test_growth_comes_after_the_busiest_hour() -> None:
    cut, shaped = forecast(at(0, 5000, 5010, 5020, 9000), growth=2, peak_hour=True)
    assert cut.arrival_s.tolist() == [0, 5, 10]
    assert shaped.text() == (
        "the busiest hour of the trace by requests, 5,000 s to 8,600 s; "
        "arrivals 2 times as fast as in the trace"
    )
    assert forecast(at(0, 1))[1].text() == ""


def test_a_trace_below_an_hour_has_no_busiest_one() -> None:
    with pytest.raises(ScenarioError, match=r"given lasts 3599 s.*leave it out.*longer"):
        forecast(at(0, 3599), peak_hour=True)


@pytest.mark.parametrize("growth", [0, -1, float("inf"), float("nan"), True, "2"])
def test_growth_must_be_a_number(growth: Any) -> None:
    with pytest.raises(ScenarioError, match=r"growth is .*> 0"):
        forecast(at(0, 1), growth=growth)


def test_a_plan_is_for_the_shaped_trace_and_says_so() -> None:
    trace = at(0, *(5000 + 0.1 * k for k in range(20)), 9000)
    given: dict[str, Any] = {"profiles": [make_profile()], "slos": ["ttft:p99:5000"]}
    answer = plan(trace, growth=2, peak_hour=True, **given)
    assert answer.trace["requests"] == 20
    assert answer.to_dict()["forecast"] == {"peak_hour_start_s": 5000.0, "growth": 2.0}
    assert answer.best is not None
    same = plan(at(*(0.05 * k for k in range(20))), **given).best
    assert same is not None
    assert answer.best.metric("energy_j") == pytest.approx(same.metric("energy_j"))
    text = " ".join(plan_text(answer).split())
    assert "planned for the busiest hour of the trace by requests, 5,000 s to 8,600 s" in text
