"""Fleets whose servers come and go: equal to static ones where they stay, and closed forms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.optimize.deploy.deployment import STARTUP_S
from qsim.sim.fleet.dynamic import DynamicResult, simulate_dynamic
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.fleet.policy import Constant, Observation
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.results.slo import Slo
from qsim.sim.simulate import simulate
from qsim.traces.trace import HashIds, Trace
from tests.make_profile import make_profile

SLOW = make_profile(method="bf16", decode_ms=7.0)
FAST = make_profile(method="fp8-w8a8")
IDLE_W = FAST.power.idle_w


def random_trace(seed: int, n: int = 120, span_s: float = 400.0, prefixes: bool = False) -> Trace:
    rng = np.random.default_rng(seed)
    prompts = rng.integers(16, 900, n)
    ids = None
    if prefixes:
        lists = [[int(k) for k in rng.integers(0, 3, p // 16)] for p in prompts]
        ids = HashIds.from_lists(lists, 16)
    return Trace(np.sort(rng.uniform(0, span_s, n)), prompts, rng.integers(1, 120, n), hash_ids=ids)


@dataclass
class Script:
    """Wants what was written down for each of its periods, and notes what it saw."""

    counts: list[tuple[int, ...]]
    period_s: float = 10.0
    seen: list[Observation] = field(default_factory=list)

    def initial(self) -> tuple[int, ...]:
        return self.counts[0]

    def decide(self, seen: Observation) -> tuple[int, ...]:
        self.seen.append(seen)
        return self.counts[min(len(self.seen), len(self.counts) - 1)]


def pool(profile=FAST, limit=3, **kwargs) -> ServerPool:  # type: ignore[no-untyped-def]
    return ServerPool(profile, limit, **kwargs)


def requests_of(result: DynamicResult) -> list[object]:
    r = result.requests
    return [r.ttft_ms, r.tpot_ms, r.e2el_ms, r.cached_tokens, r.preemptions, r.replica]


def equal(a: DynamicResult, b: DynamicResult) -> None:
    for x, y in zip(requests_of(a), requests_of(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.requests.replica_stats == b.requests.replica_stats
    assert a.pools == b.pools
    # servers may report in another order, and a sum of floats depends on it
    np.testing.assert_allclose(a.energy_bins_j, b.energy_bins_j, rtol=1e-12)
    assert a.changes == b.changes
    assert a.decisions == b.decisions


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_constant_policy_is_a_static_fleet(replicas: int) -> None:
    trace = random_trace(1, 400, 60.0, prefixes=True)
    static = simulate(trace, FAST, replicas=replicas)
    constant = simulate_dynamic(
        trace, [pool(limit=replicas)], Constant((replicas,), 17.0), keep_gaps=True
    )
    for name in ("ttft_ms", "tpot_ms", "e2el_ms", "cached_tokens", "preemptions", "replica"):
        np.testing.assert_array_equal(getattr(static, name), getattr(constant.requests, name))
    assert static.itl.percentile(99.0) == constant.requests.itl.percentile(99.0)
    # a static fleet is counted from its first arrival on
    before = float(trace.arrival_s[0]) * IDLE_W * replicas
    assert constant.energy_j - before == pytest.approx(static.energy_j, rel=1e-9)


counts = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=20).map(
    lambda c: [(max(1, c[0][0]), c[0][1]), *c]
)


@settings(max_examples=25)
@given(counts, st.integers(0, 5), st.booleans(), st.sampled_from([0, 4]), st.booleans())
@pytest.mark.slow
def test_stepping_and_jumping_are_the_same_and_every_request_ends_once(
    script: list[tuple[int, int]], seed: int, sleeps: bool, pack: int, prefixes: bool
) -> None:
    trace = random_trace(seed, prefixes=prefixes)
    cycle = Lifecycle(start_s=15.0, wake_s=1.5, stop_s=2.0, off_w=70.0)
    pools = [
        pool(SLOW, lifecycle=cycle, sleeps=sleeps),
        pool(FAST, lifecycle=cycle, weight=2.0),
    ]
    script = [*script, (1, 1)]  # nobody waits for ever
    runs = [
        simulate_dynamic(trace, pools, Script(script), end_s=450.0, pack=pack, jump=jump)
        for jump in (True, False)
    ]
    equal(*runs)
    r = runs[0]
    n = len(trace)
    assert r.requests.completed.all()
    assert sum(p.requests for p in r.pools) == n
    assert (r.requests.ttft_ms > 0).all()
    assert (r.requests.e2el_ms >= r.requests.ttft_ms).all()
    # energy and time are all accounted for, in states and in bins
    for p in r.pools:
        assert sum(p.state_s.values()) == pytest.approx(3 * r.end_s, abs=20.0)
    assert r.energy_bins_j.sum() == pytest.approx(r.energy_j, rel=1e-3)
    # never a request to a server that is not on
    for p, (profile_pool, own) in enumerate(zip(pools, r.pools, strict=True)):
        assert own.requests == int((r.pool == p).sum())
        assert own.starts == 0 or profile_pool.replicas > 0


def test_a_server_without_traffic_costs_its_idle_power_and_its_start() -> None:
    """Server 1 starts at 10 s (15 s at 200 W), is on for 40 s, drains (2 s), then is off."""
    trace = Trace([0.5], [100], [5])
    cycle = Lifecycle(start_s=15.0, start_w=200.0, stop_s=2.0, off_w=30.0)
    script = Script([(1,), (2,), (2,), (2,), (2,), (2,), (1,)])
    # server 0 has the only request, and is done with it long before
    result = simulate_dynamic(trace, [pool(limit=2, lifecycle=cycle)], script, end_s=100.0)
    second = result.requests.replica_stats[1]
    assert second["requests"] == 0
    on_s = 60.0 - 25.0
    expected = 30.0 * (10.0 + 38.0) + 200.0 * 15.0 + IDLE_W * (on_s + 2.0)
    # least requests, highest index: server 1 is the one that goes
    assert second["energy_j"] == pytest.approx(expected)
    own = result.pools[0]
    assert own.starts == 1
    assert own.state_s["starting"] == 15.0
    assert own.state_s["draining"] == 2.0
    assert own.state_s["off"] == 48.0
    assert own.state_j["starting"] == 3000.0
    assert own.billed_gpu_s == pytest.approx(200.0 - 48.0)
    assert replace(cycle, off_billed=True).billed(0)


def test_sleeping_servers_wake_sooner_and_stay_paid_for() -> None:
    trace = Trace([0.5, 95.0], [100, 100], [5, 5])
    cycle = Lifecycle(start_s=50.0, wake_s=3.0, stop_s=2.0, sleep_w=60.0)
    script = Script([(2,), (1,), (1,), (1,), (2,)])
    result = simulate_dynamic(
        trace, [pool(limit=2, lifecycle=cycle, sleeps=True)], script, end_s=100.0
    )
    own = result.pools[0]
    assert (own.starts, own.wakes) == (0, 1)
    assert own.state_s["asleep"] == 40.0 - 12.0
    assert own.state_j["asleep"] == pytest.approx(60.0 * 28.0)
    assert own.state_s["waking"] == 3.0
    assert own.billed_gpu_s == pytest.approx(200.0)


def test_requests_wait_at_the_gateway_until_a_server_is_on() -> None:
    trace = Trace([12.0, 13.0], [100, 100], [5, 5])
    script = Script([(1,), (0,), (1,)])
    cycle = Lifecycle(start_s=30.0, stop_s=2.0)
    result = simulate_dynamic(trace, [pool(limit=1, lifecycle=cycle)], script)
    # drained at 10 s, wanted again at 20 s, on at 50 s
    assert result.requests.ttft_ms[0] == pytest.approx(38_000, rel=0.01)
    assert result.requests.ttft_ms[1] > 37_000
    assert [seen.held for seen in script.seen[:3]] == [0, 2, 2]
    with pytest.raises(ScenarioError, match="must keep one on"):
        simulate_dynamic(trace, [pool(limit=1)], Script([(1,), (0,)]))


def test_a_policy_sees_only_the_past() -> None:
    """Two traces that are equal up to 200 s give the same observations and servers up to then."""
    a = random_trace(3, 300, 400.0)
    k = int(np.searchsorted(a.arrival_s, 200.0))
    late = np.sort(np.random.default_rng(9).uniform(200.0, 400.0, 500))
    b = Trace(
        np.concatenate([a.arrival_s[:k], late]),
        np.concatenate([a.prompt_tokens[:k], np.full(500, 800)]),
        np.concatenate([a.output_tokens[:k], np.full(500, 90)]),
    )
    seen = []
    for trace in (a, b):
        script = Script([(1, 1), (2, 0), (0, 2), (1, 2), (2, 2), (0, 1), (1, 1)])
        result = simulate_dynamic(trace, [pool(SLOW), pool()], script)
        seen.append((script.seen, [c for c in result.changes if c[0] < 200.0]))
    for x, y in zip(seen[0][0][:19], seen[1][0][:19], strict=True):
        for name in x.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), name)
    assert seen[0][1] == seen[1][1]
    assert seen[0][0][30].arrivals.sum() != seen[1][0][30].arrivals.sum()
    with pytest.raises(ValueError, match="read-only"):
        seen[0][0][5].arrivals[0] = 7


def test_arrivals_are_counted_by_period() -> None:
    trace = random_trace(4, 200, 100.0)
    script = Script([(1,)])
    simulate_dynamic(trace, [pool()], script)
    want, _ = np.histogram(trace.arrival_s, np.arange(0, 100.0, 10.0))
    np.testing.assert_array_equal(script.seen[-1].arrivals[: len(want)], want)


def test_weights_and_packing_decide_where_requests_go() -> None:
    trace = random_trace(5, 600, 60.0)
    slow, fast = pool(SLOW, limit=1), pool(FAST, limit=1, weight=3.0)
    shares = [
        simulate_dynamic(trace, pools, Constant((1, 1))).pools[1].requests / len(trace)
        for pools in ([slow, replace(fast, weight=1.0)], [slow, fast])
    ]
    assert shares[0] < 0.7 < shares[1]
    packed = simulate_dynamic(trace, [pool(limit=3)], Constant((3,)), pack=2)
    by = [r["requests"] for r in packed.requests.replica_stats]
    assert by[0] > by[1] > by[2] > 0


def test_windows_of_latency_and_energy() -> None:
    trace = random_trace(6, 300, 290.0)
    result = simulate_dynamic(trace, [pool(limit=1)], Constant((1,)), end_s=300.0, bin_s=10.0)
    slo = Slo.parse("ttft:p90:50")
    values = result.values(slo, 100.0)
    at = trace.arrival_s // 100.0
    for k in range(3):
        assert values[k] == pytest.approx(np.quantile(result.requests.ttft_ms[at == k], 0.9))
        share = np.mean(result.requests.ttft_ms[at == k] <= 50)
        assert result.attainment([slo], 100.0)[k] == pytest.approx(share)
    energy = result.energy_by(100.0)
    assert energy.sum() == pytest.approx(result.energy_j, rel=1e-6)
    with pytest.raises(ScenarioError, match="whole number"):
        result.energy_by(15.0)


def test_mistakes_are_named() -> None:
    trace = Trace([0.0], [10], [2])
    with pytest.raises(ScenarioError, match="no pool"):
        simulate_dynamic(trace, [], Constant(()))
    with pytest.raises(ScenarioError, match="the policy wants"):
        simulate_dynamic(trace, [pool()], Constant((1, 1)))
    with pytest.raises(ScenarioError, match="start_s is -1"):
        Lifecycle(start_s=-1)
    with pytest.raises(ScenarioError, match="replicas is 0"):
        ServerPool(FAST, 0)
    with pytest.raises(ScenarioError, match="weight"):
        ServerPool(FAST, 1, weight=0.0)


def test_the_start_is_the_one_that_manifests_use() -> None:
    assert Lifecycle().start_s == STARTUP_S
