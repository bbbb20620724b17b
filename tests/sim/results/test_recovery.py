"""How long a fleet takes to recover from a failure."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import qsim
from qsim.report.text.simulation import simulation_text
from qsim.sim.fleet.failures import Failure, Failures
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.fleet.pool import Pool
from qsim.sim.results.outages import TimeCounts, attainment_recovery_s, backlog_recovery_s
from qsim.sim.results.slo import parse_slos
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces.trace import Trace
from tests.make_profile import constant_profile

PROFILE = constant_profile(50.0, max_num_seqs=1)


def steady(rate: float, seconds: float) -> Trace:
    """One request after the other, all alike: ten tokens each."""
    n = round(rate * seconds)
    return Trace(np.arange(n) / rate, np.full(n, 16), np.full(n, 10))


def pools(n: int) -> list[Pool]:
    return [Pool(PROFILE, n, lifecycle=Lifecycle(start_s=0.0))]


@pytest.fixture(scope="module")
def carried() -> float:
    """Requests a second of one server that always has one."""
    result = qsim.simulate(steady(100.0, 2.0), PROFILE)
    return 200 / result.duration_s


@pytest.mark.parametrize(("share", "for_s"), [(0.75, 60.0), (0.6, 100.0), (0.9, 30.0)])
def test_a_backlog_that_grows_and_drains_at_constant_rates(carried, share, for_s):
    # two servers carry 2 c, c while one is down: T (r - c) wait when it is back, and are gone
    # T (r - c) / (2 c - r) later
    rate = share * 2 * carried
    expected = for_s * (1 + (rate - carried) / (2 * carried - rate))
    trace = steady(rate, 120 + 1.6 * expected + 60)
    failures = Failures([Failure(100.0, for_s, 0)])
    result = qsim.simulate(trace, pools=pools(2), failures=failures)
    assert result.outages is not None
    # a window, and what is within three standard deviations of a level of two
    known_to = 10.0 + 5.0 / (2 * carried - rate)
    assert result.outages.recovery_s[0] == pytest.approx(expected, abs=known_to)
    # as long as latencies: the first request after it that waits no longer than before
    usual = float(np.median(result.e2el_ms[result.arrival_s < 100]))
    late = result.arrival_s[result.e2el_ms > 1.5 * usual]
    assert result.outages.recovery_s[0] == pytest.approx(float(late.max()) - 100.0, abs=known_to)
    streamed = simulate_stream([trace], pools=pools(2), failures=failures)
    assert streamed.outages == result.outages


def test_a_fleet_with_room_for_it_is_not_disturbed(carried):
    trace = steady(0.4 * carried, 400.0)
    failures = Failures([Failure(150.0, 60.0, 0)])
    result = qsim.simulate(trace, pools=pools(2), failures=failures)
    assert result.outages is not None
    assert result.outages.recovery_s == (0.0,)


def test_what_has_not_recovered_by_the_end_is_not_known(carried):
    rate = 1.5 * carried
    for seconds, begin_s in ((200.0, 150.0), (152.0, 150.0), (200.0, 0.5)):
        failures = Failures([Failure(begin_s, 1000.0, 0)])
        result = qsim.simulate(steady(rate, seconds), pools=pools(2), failures=failures)
        assert result.outages is not None
        assert result.outages.recovery_s == (None,)
        assert result.outages.to_dict()["time_to_recover_s"] is None


def test_attainment_takes_its_own_time(carried):
    rate = 1.5 * carried
    slos = parse_slos(["ttft:p99:2000"])
    trace = steady(rate, 600.0)
    failures = Failures([Failure(100.0, 60.0, 1)])
    result = qsim.simulate(trace, pools=pools(2), failures=failures)
    streamed = simulate_stream([trace], pools=pools(2), failures=failures, slos=slos)
    summary = result.summary(slos)
    found = summary["failures"]
    assert found == streamed.summary(slos)["failures"]
    late = result.arrival_s[result.ttft_ms > 2000]
    assert found["attainment_time_to_recover_s"] == pytest.approx(late.max() - 100, abs=10)
    assert found["attainment_time_to_recover_s"] < found["time_to_recover_s"]
    assert found["outages"][0]["recovery_s"] == found["time_to_recover_s"]
    text = simulation_text(json.loads(json.dumps(summary)), [], None, "title")
    assert "back as before: requests in the fleet" in text
    assert "; attainment" in " ".join(text.split())


def test_closed_loops_have_no_backlog_to_compare(carried):
    failures = Failures([Failure(5.0, 10.0, 0)])
    result = qsim.simulate(steady(2.0, 60.0), pools=pools(2), failures=failures, concurrency=4)
    assert result.outages is not None
    assert result.outages.recovery_s == (None,)


def counts(arrivals: np.ndarray, second: np.ndarray) -> TimeCounts:
    made = TimeCounts()
    made.add(arrivals, second)
    return made


def test_a_failure_within_another_counts_for_both():
    at = np.arange(0.0, 1000.0, 0.05)
    ends = at + 1.0
    ends[(at > 300) & (at < 360)] = 361.0
    flow = counts(at, np.sort(ends))
    first, second = backlog_recovery_s(flow, [(300.0, 320.0), (310.0, 350.0)])
    assert first == pytest.approx(60, abs=10)
    assert second == pytest.approx(50, abs=10)
    assert backlog_recovery_s(flow, [(500.0, 600.0), (700.0, math.inf)]) == [0.0, 0.0]


def test_a_level_that_swings_by_itself_is_no_disturbance():
    rng = np.random.default_rng(1)
    at = np.cumsum(rng.exponential(0.05, 40_000))
    flow = counts(at, np.sort(at + rng.exponential(2.0, len(at))))
    outages = [(300.0 + 100 * k, 320.0 + 100 * k) for k in range(15)]
    assert sum(r != 0.0 for r in backlog_recovery_s(flow, outages)) <= 1
    good = counts(at, at[rng.random(len(at)) < 0.97])
    assert sum(r != 0.0 for r in attainment_recovery_s(good, outages)) <= 1


def test_bins_widen_with_a_long_run():
    at = np.arange(0.0, 400_000.0, 5.0)
    ends = at + 20.0
    down = (at >= 200_000) & (at < 203_000)
    ends[down] = 203_100.0
    flow = counts(at, np.sort(ends))
    assert flow.width_s == 8.0
    assert backlog_recovery_s(flow, [(200_000.0, 203_000.0)])[0] == pytest.approx(3100, abs=20)
    parts = TimeCounts()
    for chunk in np.array_split(at, 7):
        parts.add(chunk, chunk + 20.0)
    whole = counts(at, at + 20.0)
    assert (parts.inside()[0] == whole.inside()[0]).all()
    assert (parts.inside()[1] == whole.inside()[1]).all()
