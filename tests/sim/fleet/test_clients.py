"""Clients that wait for answers (closed loops), and clients that give up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim import EngineOptions, Failure, Failures, Pool, load_trace, simulate
from qsim.errors import ScenarioError
from qsim.sim.fleet.routers.router import ROUTERS
from qsim.sim.results.slo import Slo
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces.trace import Trace, Turns
from tests.make_profile import constant_profile, make_profile

PROFILE = make_profile(num_gpu_blocks=30_000)
SLOW = make_profile(gpu="a100_sxm", method="int8-w8a8", decode_ms=12.0, num_gpu_blocks=9_000)


def requests(n: int, seed: int = 0, **columns) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.sort(rng.uniform(0.0, n / 20.0, n)),
        rng.integers(1, 900, n),
        rng.integers(1, 300, n),
        name="random",
        **columns,
    )


def in_flight(result) -> np.ndarray:
    """How many requests are in flight right after each was sent."""
    done = result.completed
    sent = result.arrival_s[done]
    ended = sent + result.e2el_ms[done] / 1000
    return np.array([((sent <= t) & (ended > t + 1e-9)).sum() for t in sent])


@pytest.mark.parametrize("router", sorted(ROUTERS))
@pytest.mark.parametrize("clients", [1, 7])
def test_so_many_requests_are_in_flight_and_no_more(router, clients):
    trace = requests(150)
    pools = [Pool(PROFILE, 2), Pool(SLOW)]
    result = simulate(trace, pools=pools, router=router, concurrency=clients, seed=4)
    assert result.completed.all()
    # trace order, one after the other
    assert (np.diff(result.arrival_s) >= 0).all()
    there = in_flight(result)
    assert there.max() == clients
    assert np.median(there) == clients
    # Little's law: all clients are busy until the last request was sent
    time_s = result.e2el_ms.sum() / 1000
    assert time_s <= clients * result.duration_s * (1 + 1e-12)
    last = float(result.arrival_s[-1] - result.arrival_s[0])
    assert time_s >= clients * last * (1 - 1e-12)


@pytest.mark.parametrize("replicas", [1, 3])
def test_closed_loop_step_by_step_ends_at_the_same_picosecond(replicas):
    trace = requests(120, 1)
    a = simulate(trace, PROFILE, replicas=replicas, concurrency=9)
    b = simulate(trace, PROFILE, replicas=replicas, concurrency=9, jump=False)
    for name in ("arrival_s", "ttft_ms", "e2el_ms", "replica"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.energy_j == pytest.approx(b.energy_j, rel=1e-12)


def test_closed_loop_is_the_open_one_at_the_times_at_which_it_sent():
    trace = requests(120, 2)
    closed = simulate(trace, PROFILE, replicas=2, concurrency=9)
    again = Trace(closed.arrival_s, trace.prompt_tokens, trace.output_tokens, name="again")
    opened = simulate(again, PROFILE, replicas=2)
    np.testing.assert_allclose(opened.e2el_ms, closed.e2el_ms, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(opened.replica, closed.replica)


def test_a_trace_s_own_times_mean_nothing_to_a_closed_loop():
    trace = requests(80, 3)
    a = simulate(trace, PROFILE, concurrency=5)
    late = Trace(trace.arrival_s * 50, trace.prompt_tokens, trace.output_tokens, name="late")
    b = simulate(late, PROFILE, concurrency=5)
    np.testing.assert_allclose(a.e2el_ms, b.e2el_ms, rtol=0, atol=1e-6)
    assert a.load.verdict == "closed loop"
    assert not a.load.overloaded


@pytest.mark.parametrize("size", [1, 13])
def test_streamed_closed_loop_is_the_whole_one(size):
    trace = requests(90, 4)
    whole = simulate(trace, PROFILE, replicas=2, concurrency=6)
    rows = []
    parts = (trace.take(np.arange(i, min(i + size, 90))) for i in range(0, 90, size))
    streamed = simulate_stream(
        parts, PROFILE, replicas=2, concurrency=6, rows=lambda c: rows.append(dict(c))
    )
    for name in ("arrival_s", "e2el_ms", "ttft_ms", "replica"):
        got = np.concatenate([r[name] for r in rows])
        np.testing.assert_array_equal(got, getattr(whole, name))
    assert streamed.duration_s == whole.duration_s


def test_machine_repairman():
    """M/M/1//N: N users who think and one seat, both exponential (Jaiswal 1968).

    P(0) = 1 / sum_n N!/(N-n)! (S/Z)^n, throughput (1 - P(0)) / S, response by Little's law.
    """
    users, each, think_s, step_ms = 5, 4000, 3.0, 10.0
    rng = np.random.default_rng(7)
    profile = constant_profile(step_ms, max_num_seqs=1, max_num_batched_tokens=8192)
    # the service is a step a token: geometric with mean 100 tokens, so exponential to a percent
    output = rng.geometric(1 / 100, users * each)
    n = users * each
    previous = np.where(np.arange(n) < users, -1, np.arange(n) - users)
    delay_s = np.where(previous >= 0, rng.exponential(think_s, n), 0.0)
    trace = Trace(
        np.zeros(n), np.ones(n, np.int64), output, turns=Turns(previous, delay_s), name="users"
    )
    result = simulate(trace, profile)
    service_s = float(output.mean()) * step_ms / 1000
    ratio = service_s / think_s
    idle = 1 / sum(math.perm(users, k) * ratio**k for k in range(users + 1))
    rate = (1 - idle) / service_s
    assert n / result.duration_s == pytest.approx(rate, rel=0.02)
    response_s = users / rate - think_s
    assert result.e2el_ms.mean() / 1000 == pytest.approx(response_s, rel=0.02)


@pytest.mark.parametrize(("users", "think_s"), [(5, 3.0), (1, 2.0), (12, 10.0)])
def test_machine_repairman_with_a_think_time(users, think_s):
    """The same of clients that think: Jaiswal's throughput, and N = X (R + Z)."""
    n, step_ms = 24_000, 10.0
    profile = constant_profile(step_ms, max_num_seqs=1, max_num_batched_tokens=8192)
    output = np.random.default_rng(8).geometric(1 / 100, n)
    trace = Trace(np.zeros(n), np.ones(n, np.int64), output, name="users")
    result = simulate(trace, profile, concurrency=users, think_time_s=think_s, seed=3)
    service_s = float(output.mean()) * step_ms / 1000
    ratio = service_s / think_s
    idle = 1 / sum(math.perm(users, k) * ratio**k for k in range(users + 1))
    rate = (1 - idle) / service_s
    assert n / result.duration_s == pytest.approx(rate, rel=0.02)
    response_s = float(result.e2el_ms.mean()) / 1000
    assert users == pytest.approx(n / result.duration_s * (response_s + think_s), rel=0.02)


def test_think_times_are_the_seeds_and_those_of_any_parts():
    trace = requests(300, 2)
    run = {"replicas": 2, "concurrency": 6, "think_time_s": 0.7, "client_timeout_s": 1.5}
    whole = simulate(trace, PROFILE, **run)
    stepped = simulate(trace, PROFILE, jump=False, **run)
    other = simulate(trace, PROFILE, seed=1, **run)
    for name in ("arrival_s", "e2el_ms", "ttft_ms", "replica"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(stepped, name))
    assert (whole.arrival_s != other.arrival_s).any()
    rows = []
    parts = [trace.take(np.arange(k, k + 50)) for k in range(0, 300, 50)]
    simulate_stream(parts, PROFILE, rows=lambda r: rows.append(dict(r)), **run)
    for name in ("arrival_s", "e2el_ms", "replica"):
        got = np.concatenate([r[name] for r in rows])
        np.testing.assert_array_equal(got, getattr(whole, name))
    idle = simulate(trace, PROFILE, concurrency=6, think_time_s=0.0)
    np.testing.assert_array_equal(idle.e2el_ms, simulate(trace, PROFILE, concurrency=6).e2el_ms)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"think_time_s": 1.0}, "no clients that think: give concurrency"),
        ({"think_time_s": -1.0, "concurrency": 2}, "think_time_s is -1.0; must be"),
        ({"think_time_s": 1e6, "concurrency": 2}, "at most 86400"),
        ({"think_time_s": math.nan, "concurrency": 2}, "think_time_s is nan"),
    ],
)
def test_a_think_time_that_cannot_be(given, words):
    with pytest.raises(ScenarioError, match=words):
        simulate(requests(5), PROFILE, **given)


# ---------------------------------------------------------------------- clients that give up


def test_nobody_gives_up_who_waits_for_long_enough():
    trace = requests(200, 5)
    plain = simulate(trace, PROFILE, replicas=2)
    patient = simulate(trace, PROFILE, replicas=2, client_timeout_s=1000.0)
    for name in ("ttft_ms", "e2el_ms", "replica"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(patient, name))
    assert patient.outcomes == {"rejected": 0, "timed_out": 0, "failed": 0}


def test_who_gives_up_frees_seat_and_blocks():
    """One seat: the first needs 1,000 steps of 10 ms, its client waits for 2 s."""
    profile = constant_profile(10.0, max_num_seqs=1, max_num_batched_tokens=8192)
    trace = Trace([0.0, 0.5], [1, 1], [1000, 10], timeout_s=[2.0, math.inf], name="two")
    for jump in (True, False):
        result = simulate(trace, profile, jump=jump)
        assert result.completed.tolist() == [False, True]
        assert result.outcomes["timed_out"] == 1
        # at 2 s the seat is free, within the steps in flight
        assert result.e2el_ms[1] == pytest.approx(1500 + 10 * 10, abs=30)
        assert result.counts["failed"] == 1
        assert any("1 requests timed out" in text for text in result.notes)
    assert simulate(trace, profile, client_timeout_s=3.0).outcomes["timed_out"] == 1
    # the second waits for the seat of the first
    both = simulate(trace, profile, client_timeout_s=0.9)
    assert both.completed.tolist() == [False, False]
    assert both.outcomes["timed_out"] == 2


@settings(max_examples=15)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.2, 0.7, 2.0]),
    st.sampled_from([None, 3, 12]),
    st.integers(1, 2),
    st.sampled_from([40, 400]),
    st.booleans(),
)
def test_every_request_ends_once_and_steps_and_jumps_agree(
    seed, timeout_s, clients, replicas, blocks, sync
):
    trace = requests(70, seed)
    profile = make_profile(num_gpu_blocks=blocks * 4, max_num_seqs=8)
    options = EngineOptions(async_scheduling=not sync)
    runs = [
        simulate(
            trace,
            profile,
            replicas=replicas,
            options=options,
            client_timeout_s=timeout_s,
            concurrency=clients,
            jump=jump,
        )
        for jump in (True, False)
    ]
    a, b = runs
    for name in ("arrival_s", "ttft_ms", "e2el_ms", "completed", "replica"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for r in runs:
        assert int(r.completed.sum()) + r.outcomes["timed_out"] == len(trace)
        assert (r.e2el_ms[r.completed] <= timeout_s * 1000 + 1e-6).all()
        assert np.isnan(r.e2el_ms[~r.completed]).all()
    assert a.itl.total == b.itl.total
    assert a.itl.percentile(99.0) == b.itl.percentile(99.0)


def test_priorities_of_a_trace_decide_who_is_admitted():
    profile = constant_profile(10.0, max_num_seqs=1, max_num_batched_tokens=8192)
    trace = Trace([0.0, 0.1, 0.2], [1, 1, 1], [100, 10, 10], priority=[0, 5, -5], name="urgent")
    fcfs = simulate(trace, profile)
    urgent = simulate(trace, profile, options=EngineOptions(scheduling_policy="priority"))
    # 100, 10 and 10 steps of 10 ms, one request after the other
    np.testing.assert_allclose(fcfs.e2el_ms, [1000, 1000, 1000], atol=50)
    np.testing.assert_allclose(urgent.e2el_ms, [1000, 1100, 900], atol=50)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": 2.5}, "concurrency is 2.5"),
        ({"client_timeout_s": 0}, "client_timeout_s is 0"),
        ({"client_timeout_s": math.nan}, "client_timeout_s is nan"),
        ({"failures": 3}, "must be a qsim.Failures"),
    ],
)
def test_wrong_values_are_named(values, words):
    with pytest.raises(ScenarioError, match=words):
        simulate(requests(3), PROFILE, **values)


def test_sessions_wait_by_themselves():
    trace = Trace([0.0, 0.0], [5, 5], [2, 2], turns=Turns(np.array([-1, 0]), np.zeros(2)), name="s")
    with pytest.raises(ScenarioError, match=":turns=open"):
        simulate(trace, PROFILE, concurrency=2)


def test_command(tmp_path, capsys):
    import json

    from qsim.cli import main

    out = tmp_path / "out.json"
    args = ["simulate", "azure-conv-2023:duration=30,seed=1"]
    args += ["--profile", "h200_sxm/llama-3.1-8b/fp8-w8a8", "--concurrency", "4"]
    args += ["--client-timeout", "0.8", "--slo", "e2el:p99:1000", "--json", str(out)]
    for stream in ([], ["--stream"]):
        with pytest.raises(SystemExit) as exit_:
            main([*args, *stream])
        assert not exit_.value.code
        summary = json.loads(out.read_text())
        trace = load_trace("azure-conv-2023:duration=30,seed=1")
        direct = simulate(
            trace, "h200_sxm/llama-3.1-8b/fp8-w8a8", concurrency=4, client_timeout_s=0.8
        )
        assert summary["outcomes"] == direct.summary([Slo.parse("e2el:p99:1000")])["outcomes"]
        assert summary["outcomes"]["timed_out"] > 0
        assert summary["load"]["verdict"] == "closed loop"
        assert summary["resolved"]["concurrency"] == 4
        assert summary["duration"] == direct.duration_s


def test_a_request_in_the_place_of_another_is_not_given_up_with_it() -> None:
    """Nor before it is sent: all requests of a closed loop's trace may have one arrival."""
    rng = np.random.default_rng(2)
    load = Trace(np.zeros(60), rng.integers(1, 300, 60), rng.choice([2, 30, 150], 60))
    options = EngineOptions(max_num_seqs=2)
    failing = Failures([Failure(0.3, 0.0), Failure(0.9, 0.1)], retries=3, retry_after_s=0.4)
    for failures in (None, failing):
        asked = {"options": options, "concurrency": 5, "client_timeout_s": 1.0}
        whole = simulate(load, make_profile(), failures=failures, **asked)
        for size in (3, 4, 5, 6, 7):
            parts = [load.take(np.arange(i, min(i + size, 60))) for i in range(0, 60, size)]
            streamed = simulate_stream(parts, make_profile(), failures=failures, **asked)
            assert streamed.counts == whole.counts
            assert streamed.mean("e2el") == pytest.approx(whole.mean("e2el"))
