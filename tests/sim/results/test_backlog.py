"""Whether a fleet keeps up: against queues whose load is known, and servers of qsim."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.sim.results.backlog import Flow, Load, judge
from qsim.sim.results.continued import MOST_REQUESTS, find_carried, repeated, settled
from qsim.sim.results.result import SimulationResult
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces import load_trace
from qsim.traces.trace import HashIds, Trace, Turns
from tests.make_profile import make_profile

RATE = 20.0


def _queue(arrival_s: np.ndarray, service_s: np.ndarray, servers: int = 1) -> Flow:
    """First come, first served: the work that each request waits for is known exactly."""
    free = np.zeros(servers)
    begin, end = np.empty_like(arrival_s), np.empty_like(arrival_s)
    for i, (a, s) in enumerate(zip(arrival_s, service_s, strict=True)):
        k = int(free.argmin())
        begin[i] = max(a, free[k])
        end[i] = free[k] = begin[i] + s
    flow = Flow(float(arrival_s[0]))
    flow.add(arrival_s, begin, end)
    return flow


def _arrivals(rng: np.random.Generator, duration_s: float, variation: float) -> np.ndarray:
    shape = 1 / variation**2
    gaps = rng.gamma(shape, 1 / (shape * RATE), int(RATE * duration_s))
    return np.cumsum(gaps)


@pytest.mark.parametrize("variation", [1.0, 3.0])
@pytest.mark.parametrize("duration_s", [15.0, 60.0, 600.0])
@pytest.mark.parametrize(("load", "wrong"), [(0.6, "overloaded"), (1.3, "sustained")])
def test_one_run_is_never_sure_of_what_is_wrong(
    load: float, wrong: str, duration_s: float, variation: float
) -> None:
    for seed in range(20):
        rng = np.random.default_rng([seed, 1])
        at = _arrivals(rng, duration_s, variation)
        rate = len(at) / (at[-1] - at[0])
        service = rng.exponential(1.0, len(at))
        service *= load / (service.mean() * rate)  # the load of this draw, not of its law
        assert judge(_queue(at, service)).verdict != wrong, seed


def test_long_runs_are_clear() -> None:
    for load, want in ((0.6, "sustained"), (0.9, "sustained"), (1.1, "overloaded")):
        rng = np.random.default_rng(8)
        at = _arrivals(rng, 1800.0, 1.0)
        service = rng.exponential(1.0, len(at))
        service *= load * (at[-1] - at[0]) / len(at) / service.mean()
        found = judge(_queue(at, service))
        assert found.verdict == want
        if found.finished_rps is not None:
            assert found.finished_rps == pytest.approx(found.arriving_rps / load, rel=0.03)


@pytest.mark.parametrize("step", [1, 64, 10_000])
def test_bins_that_widen_count_the_same(step: int) -> None:
    rng = np.random.default_rng(3)
    at = np.sort(rng.uniform(5, 4000, 5000))
    first, last = at + rng.exponential(2, 5000), at + 2 + rng.exponential(500, 5000)
    last = np.maximum(first, last)
    whole, parts = Flow(5.0), Flow(5.0)
    whole.add(at, first, last)
    for i in range(0, 5000, step):
        part = slice(i, i + step)
        parts.add(at[part], first[part], last[part])
    assert judge(whole) == judge(parts)
    begin, end = 1000.0, 3000.0
    inside = (np.clip(last, begin, end) - np.clip(at, begin, end)).sum() / (end - begin)
    queue = (np.clip(first, begin, end) - np.clip(at, begin, end)).sum() / (end - begin)
    found = whole.mean_inside(begin, end)
    assert found[0] == pytest.approx(inside, rel=0.01)
    assert found[1] == pytest.approx(queue, abs=0.1)


def test_nobody_inside_is_none_whatever_the_rounding() -> None:
    start_s, end_s = 0.0004578199099871938, 7.702792581222293

    def times(counts: dict[int, int]) -> np.ndarray:  # of bins of 1/16 s
        return np.repeat([start_s + (k + 0.5) / 16 for k in counts], [*counts.values()])

    flow = Flow(start_s)
    flow.add(
        times({0: 5, 7: 1, 12: 4, 14: 1, 16: 1, 26: 1, 29: 1, 31: 1, 123: 1}),
        times({0: 4, 8: 2, 12: 3, 13: 1, 15: 1, 16: 1, 26: 1, 29: 1, 31: 1, 123: 1}),
        times({0: 4, 12: 5, 15: 2, 19: 1, 29: 1, 31: 1, 36: 1, 123: 1}),
    )
    span_s = end_s - start_s
    inside = [
        flow.mean_inside(start_s + span_s * k / 3, start_s + span_s * (k + 1) / 3) for k in range(3)
    ]
    assert inside[0][0] > 0.5
    assert min(min(pair) for pair in inside) >= 0.0
    assert not judge(flow, end_s=end_s).overloaded


def test_a_burst_has_no_rate_to_keep_up_with() -> None:
    at = np.linspace(0, 0.9, 500)
    found = judge(_queue(at, np.full(500, 1.0)))
    assert found.verdict == "burst"
    assert found.sentence() == ""


PROFILE = make_profile(num_gpu_blocks=10_000, decode_ms=15.0)


def _judged(trace: Trace, **settings: object) -> Load:
    def run(longer: Trace) -> SimulationResult:
        return simulate(longer, PROFILE, too_long="reject", **settings)  # type: ignore[arg-type]

    return settled(run(trace).load, trace, run)


def _throughput_rps(trace: Trace, replicas: int) -> float:
    """What a fleet finishes a second of a trace's requests at about the rate that it carries."""
    longer, _ = repeated(trace, max(3, 1500 // len(trace)))
    rate, found = 1.0, 0.0
    while True:
        faster = longer.speed(rate * longer.duration_s / len(longer))
        result = simulate(faster, PROFILE, replicas=replicas, too_long="reject")
        left_s = np.sort(result.arrival_s + result.e2el_ms / 1000)
        a, b = len(left_s) // 3, len(left_s) * 2 // 3
        rps = (b - a) / (left_s[b] - left_s[a])
        if rps < 0.9 * rate:
            return max(found, rps)
        found, rate = max(found, rps), rate * 1.15


@pytest.mark.parametrize(("duration_s", "replicas"), [(12, 1), (60, 1), (30, 3)])
def test_a_server_is_told_by_its_load_whatever_the_trace(duration_s: int, replicas: int) -> None:
    trace = load_trace(f"azure-conv-2023:duration={duration_s},seed=2,rate=10")
    carried = _throughput_rps(trace, replicas)
    own = (len(trace) - 1) / trace.duration_s
    for share, want in ((0.6, "sustained"), (1.25, "overloaded")):
        found = _judged(trace.speed(share * carried / own), replicas=replicas)
        assert found.verdict == want, (share, found)
        assert bool(found.sentence()) == found.overloaded


def test_the_rate_that_is_carried_is_kept_up_with() -> None:
    trace = load_trace("azure-conv-2023:duration=15,rate=40,seed=2")

    def run(longer: Trace) -> SimulationResult:
        return simulate(longer, PROFILE)

    load = find_carried(settled(run(trace).load, trace, run), trace, run)
    assert load.overloaded
    assert load.carried_rps is not None
    assert "could carry" in load.sentence()
    share = load.carried_rps / load.arriving_rps
    assert not _judged(trace.speed(share)).overloaded
    assert _judged(trace.speed(share * 1.06)).overloaded
    long = load_trace("azure-conv-2023:duration=300,rate=40,seed=2")
    assert find_carried(load, long, run, 10_000) is load  # too long to look for it


@pytest.fixture(scope="module")
def carried_rps() -> float:
    """About what one server of the profile carries."""
    return _throughput_rps(load_trace("azure-conv-2023:duration=60,rate=10,seed=9"), 1)


def test_a_fleet_of_which_one_server_gets_all_does_not_keep_up(carried_rps: float) -> None:
    trace = load_trace(f"azure-conv-2023:duration=120,rate={1.4 * carried_rps},seed=4")
    ids = HashIds(np.zeros(len(trace), np.int64), np.arange(len(trace) + 1), 512)
    pinned = Trace(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, ids)
    assert not _judged(trace, replicas=2).overloaded
    found = simulate(pinned, PROFILE, replicas=2, router="prefix-affinity", too_long="reject")
    busiest = max(r["requests"] for r in found.replica_stats)
    if busiest > 0.95 * len(trace):  # a router that spreads them all the same is no such case
        assert _judged(pinned, replicas=2, router="prefix-affinity").overloaded


def test_few_seats_are_overload_too() -> None:
    trace = load_trace("azure-conv-2023:duration=60,rate=4,seed=3")
    assert not _judged(trace).overloaded
    few = _judged(trace, options=EngineOptions(max_num_seqs=3))
    assert few.overloaded
    assert few.finished_rps is not None
    assert few.finished_rps < few.arriving_rps


def test_a_repeated_trace_keeps_rate_lengths_and_prefixes() -> None:
    trace = load_trace("mooncake-conversation:duration=60,rate=2,seed=1")
    longer, end_s = repeated(trace, 3)
    n = len(trace)
    assert len(longer) == 3 * n
    assert end_s == pytest.approx(3 * trace.duration_s * n / (n - 1))
    assert (len(longer) - 1) / longer.duration_s == pytest.approx((n - 1) / trace.duration_s)
    assert (longer.prompt_tokens.reshape(3, n) == trace.prompt_tokens).all()
    assert longer.hash_ids is not None
    sets = [
        set(np.concatenate([longer.hash_ids[k * n + i] for i in range(n)]).tolist())
        for k in range(3)
    ]
    assert not sets[0] & sets[1]
    assert not sets[1] & sets[2]
    assert len(sets[0]) == len(sets[2])


def test_sessions_are_repeated_with_their_turns() -> None:
    turns = Turns(np.array([-1, 0, -1, 1, 2]), np.array([0, 1.0, 0, 2.0, 0.5]))
    trace = Trace(np.arange(5.0), np.full(5, 200), np.full(5, 20), turns=turns)
    longer, _ = repeated(trace, 3)
    assert longer.turns is not None
    assert longer.turns.previous.tolist() == [-1, 0, -1, 1, 2, -1, 5, -1, 6, 7, -1, 10, -1, 11, 12]
    assert longer.turns.delay_s.tolist() == [0, 1.0, 0, 2.0, 0.5] * 3
    assert _judged(trace).verdict == "sustained"


def test_a_clear_trace_does_not_go_on() -> None:
    trace = load_trace("azure-conv-2023:duration=600,rate=2,seed=3")
    clear = simulate(trace, PROFILE).load
    assert clear.verdict == "sustained"
    assert settled(clear, trace, lambda _: pytest.fail("was simulated again")) is clear


def test_going_on_is_bounded() -> None:
    trace = load_trace("azure-conv-2023:duration=20,rate=5,seed=3")
    runs = []

    def run(longer: Trace) -> SimulationResult:
        runs.append(len(longer))
        return simulate(longer, PROFILE)

    unclear = Load("too short to tell", 10.0, None, 3)
    assert settled(unclear, trace, run, 10).unclear
    assert runs == []
    settled(unclear, trace, run)
    assert 0 < sum(runs) <= 2 * MOST_REQUESTS


def test_a_streamed_run_says_the_same() -> None:
    for rate in (2, 40):
        trace = load_trace(f"azure-conv-2023:duration=300,rate={rate},seed=3")
        begins = range(0, len(trace), 999)
        parts = (trace.take(np.arange(i, min(i + 999, len(trace)))) for i in begins)
        streamed = simulate_stream(parts, PROFILE).load
        whole = simulate(trace, PROFILE).load
        assert streamed.verdict == whole.verdict
        assert streamed.overloaded == (rate == 40)
        assert streamed.finished_rps == (
            None if whole.finished_rps is None else pytest.approx(whole.finished_rps, rel=1e-4)
        )


def test_traffic_of_long_outputs_goes_on_for_fewer_requests() -> None:
    """Five requests of 16,000 tokens became 30,000 of them."""
    asked: list[int] = []

    def ask(longer: Trace) -> SimulationResult:
        asked.append(int(longer.output_tokens.sum()))
        raise RuntimeError

    at = np.array([0.0, 0.0, 0.4, 1.1, 1.15])
    trace = Trace(at, np.full(5, 200), np.full(5, 16_000))
    load = Load("too short to tell", 4.0, None, 5)
    with pytest.raises(RuntimeError):
        settled(load, trace, ask, 12_000)
    assert asked[0] <= 12_000 * 250
