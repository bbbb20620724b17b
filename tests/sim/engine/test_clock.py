"""Arrivals on any clock: far ones give what near ones give, and too long a trace is an error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import qsim
from qsim.errors import TraceError
from qsim.sim.engine.clock import MOST_S, arrivals_ps, within_clock
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces import Trace

PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"


def trace(first_s: float, *gaps_s: float) -> Trace:
    arrival = first_s + np.concatenate([[0.0], np.cumsum(gaps_s)])
    n = len(arrival)
    return Trace(arrival, np.full(n, 300), np.full(n, 20))


@pytest.mark.parametrize("first_s", [1_700_000_000.0, 20_000_000.0, 9_999_999_000.0])
@pytest.mark.parametrize("jump", [True, False])
def test_far_arrivals_fare_as_near_ones(first_s: float, jump: bool) -> None:
    near = qsim.simulate(trace(0.0, 0.5, 0.25, 3.0), PROFILE, jump=jump)
    far = qsim.simulate(trace(first_s, 0.5, 0.25, 3.0), PROFILE, jump=jump)
    assert far.e2el_ms.tolist() == near.e2el_ms.tolist()
    assert far.duration_s == near.duration_s
    assert far.summary()["energy_j"] == near.summary()["energy_j"]
    assert far.arrival_s[0] == first_s  # on the clock of the trace, as its timeline is
    assert far.timeline["t_s"][0] - near.timeline["t_s"][0] == pytest.approx(first_s)


def test_far_arrivals_fare_as_near_ones_when_streamed() -> None:
    whole = qsim.simulate(trace(0.0, 0.5, 0.25, 3.0), PROFILE)
    far = trace(1_700_000_000.0, 0.5, 0.25, 3.0)
    parts = [far.take(np.array([0, 1])), far.take(np.array([2, 3]))]
    streamed = simulate_stream(parts, PROFILE)
    assert streamed.duration_s == whole.duration_s
    assert streamed.summary()["mean_e2el_ms"] == pytest.approx(whole.summary()["mean_e2el_ms"])


def test_months_are_right_and_years_are_an_error() -> None:
    months = qsim.simulate(trace(0.0, MOST_S - 1.0), PROFILE)
    assert months.e2el_ms[0] == months.e2el_ms[1]
    assert months.summary()["energy_j"] > 0
    for years in (trace(0.0, MOST_S + 1.0), trace(0.0, 3e8), trace(5e6, 1e9)):
        with pytest.raises(TraceError, match=r"days after the start.*--speed"):
            qsim.simulate(years, PROFILE)
        with pytest.raises(TraceError, match="days after the start"):
            simulate_stream([years.head(1), years.take(np.array([1]))], PROFILE)
    fast = trace(0.0, 3e8).speed(1e6)
    assert qsim.simulate(fast, PROFILE).summary()["completed"] == 2


def test_a_backlog_beyond_the_clock_is_an_error() -> None:
    with pytest.raises(TraceError, match="more replicas"), within_clock("x"):
        arrivals_ps("x", np.array([0.0])).append(1 << 63)


@pytest.mark.parametrize(
    "change",
    [
        {"arrival_s": np.array([0.0, 1e300])},
        {"arrival_s": np.array([0.0, np.inf])},
        {"prompt_tokens": np.array([1, 2**53])},
        {"output_tokens": np.array([1, 2**40])},
    ],
)
def test_values_that_no_trace_has_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(TraceError, match=r"request 1 is .*at most"):
        replace(trace(0.0, 1.0), **change)
