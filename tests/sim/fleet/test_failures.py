"""Servers that fail: what is lost, who tries again, and how long it is felt."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim import EngineOptions, Failure, Failures, Pool, load_trace, simulate
from qsim.errors import ScenarioError
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.fleet.routers.router import ROUTERS
from qsim.sim.results.slo import Slo
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces.trace import HashIds, Trace
from tests.make_profile import constant_profile, make_profile
from tests.sim.fleet.test_clients import requests

PROFILE = make_profile(num_gpu_blocks=30_000)
QUICK = Lifecycle(start_s=5.0)


def pools(n: int = 2, profile=PROFILE, start_s: float = 5.0, **options) -> list[Pool]:
    cycle = Lifecycle(start_s=start_s)
    return [Pool(profile, n, EngineOptions(**options), lifecycle=cycle)]


def test_requests_under_way_are_lost_and_sent_again():
    """10 ms a step, 100 steps: the server fails after half of them, and is on again 8 s later."""
    trace = Trace([0.0], [1], [100], name="one")
    profile = constant_profile(10.0)
    failures = Failures([Failure(at_s=0.5, for_s=3.0)], retry_after_s=1.0)
    for jump in (True, False):
        result = simulate(trace, pools=pools(1, profile), failures=failures, jump=jump)
        # its client tries at 1.5 s, waits for the server until 8.5 s, and has all tokens anew
        assert result.e2el_ms[0] == pytest.approx(8500 + 1000, abs=20)
        assert result.ttft_ms[0] == pytest.approx(8500 + 10, abs=20)
        found = result.outages
        assert (found.failures, found.lost, found.retried) == (1, 1, 1)
        assert found.outages == ((0, 0.5, 8.5),)
        assert found.availability == pytest.approx(1 - 8.0 / result.duration_s, rel=1e-6)
        # the gap to the answer of the lost attempt is no gap between tokens
        assert result.itl.percentile(100.0) == pytest.approx(10.0)


def test_who_may_not_try_again_has_failed():
    trace = Trace([0.0, 20.0], [1, 1], [100, 100], name="two")
    failures = Failures([Failure(at_s=0.5, for_s=3.0)], retries=0)
    result = simulate(trace, pools=pools(1, constant_profile(10.0)), failures=failures)
    assert result.completed.tolist() == [False, True]
    assert result.outcomes == {"rejected": 0, "timed_out": 0, "failed": 1}
    assert result.counts["failed"] == 1
    assert any("1 requests failed" in text for text in result.notes)


def test_a_client_may_give_up_while_no_server_is_on():
    trace = Trace([0.0, 1.0], [1, 1], [100, 100], name="two")
    failures = Failures([Failure(at_s=0.5, for_s=30.0)])
    result = simulate(
        trace, pools=pools(1, constant_profile(10.0)), failures=failures, client_timeout_s=4.0
    )
    assert result.outcomes["timed_out"] == 2
    assert not result.completed.any()


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_every_router_passes_by_who_is_down(router):
    trace = load_trace("azure-conv-2023:duration=60,seed=2").speed(2.0)
    down = Failure(at_s=5.0, for_s=10.0, server=1)
    result = simulate(trace, pools=pools(3), failures=Failures([down]), router=router, seed=1)
    assert result.completed.all()
    at = (result.arrival_s >= 5.0) & (result.arrival_s < 20.0)
    assert at.sum() > 20
    assert set(result.replica[at].tolist()) == {0, 2}
    assert 1 in result.replica[result.arrival_s >= 20.0]


def test_the_kv_cache_is_gone():
    n = 40
    ids = HashIds(np.tile(np.arange(60), n), np.arange(0, 60 * n + 1, 60), 16)
    trace = Trace(np.arange(n) * 1.0, np.full(n, 960), np.full(n, 4), hash_ids=ids, name="same")
    plain = simulate(trace, pools=pools(1))
    failed = simulate(trace, pools=pools(1), failures=Failures([Failure(20.5, 1.0)]))
    assert plain.cached_tokens[1:].min() > 900
    first = int(np.argmax(failed.arrival_s >= 20.5))
    assert failed.cached_tokens[first] < 100
    assert failed.cached_tokens[first + 8 :].min() > 900


def test_attainment_before_during_and_after():
    trace = load_trace("azure-conv-2023:duration=240,seed=2").speed(3.0)
    failures = Failures([Failure(at_s=30.0, for_s=15.0)])
    slos = [Slo.parse("e2el:p99:4000")]
    result = simulate(trace, pools=pools(2, max_num_seqs=24), failures=failures)
    found = result.summary(slos)["failures"]
    good = result.meets(slos)
    during = (result.arrival_s >= 30.0) & (result.arrival_s < 50.0)
    assert found["attainment_during"] == pytest.approx(good[during].mean())
    assert found["attainment_before"] == pytest.approx(good[result.arrival_s < 30.0].mean())
    assert found["attainment_after"] == pytest.approx(good[result.arrival_s >= 50.0].mean())
    assert found["attainment_during"] < found["attainment_before"]
    parts = (trace.take(np.arange(i, min(i + 50, len(trace)))) for i in range(0, len(trace), 50))
    streamed = simulate_stream(parts, pools=pools(2, max_num_seqs=24), failures=failures, slos=slos)
    assert streamed.summary(slos)["failures"] == found


def test_availability_is_that_of_the_renewal_process():
    """Up for MTBF, down for repair and start-up: their share of the time, whatever the law."""
    trace = Trace(np.linspace(0.0, 40_000.0, 400), np.ones(400), np.full(400, 2), name="thin")
    failures = Failures(mtbf_s=300.0, repair_s=80.0)
    result = simulate(trace, pools=pools(8, start_s=20.0), failures=failures, seed=3)
    up = 300.0 / (300.0 + 80.0 + 20.0)
    # about 800 periods, each with a deviation of about its mean: 5% of the down-time
    assert result.outages.availability == pytest.approx(up, abs=0.012)
    assert result.outages.failures == pytest.approx(8 * 40_000 / 400.0, rel=0.1)
    again = simulate(trace, pools=pools(8, start_s=20.0), failures=failures, seed=3)
    assert again.outages == result.outages
    other = simulate(trace, pools=pools(8, start_s=20.0), failures=failures, seed=4)
    assert other.outages != result.outages


@settings(max_examples=20)
@given(
    st.integers(0, 10_000),
    st.sampled_from(sorted(ROUTERS)),
    st.sampled_from([None, 4]),
    st.sampled_from([None, 1.0, 5.0]),
    st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from([None, 6]),
)
def test_every_request_ends_once(seed, router, clients, timeout_s, retries, replicas, limit):
    trace = requests(80, seed)
    profile = make_profile(num_gpu_blocks=200, max_num_seqs=8)
    failures = Failures(
        [Failure(1.0, 0.5, replicas - 1), Failure(2.0, 0.0)],
        mtbf_s=4.0,
        repair_s=0.5,
        retries=retries,
        retry_after_s=0.1,
    )
    options = {} if limit is None else {"max_num_queued_reqs": limit, "vllm_version": "0.33"}
    asked = [
        Pool(profile, replicas, EngineOptions(**options), lifecycle=Lifecycle(start_s=0.7)),
        Pool(profile, 1, EngineOptions(**options), lifecycle=Lifecycle(start_s=0.2)),
    ]
    settings_ = {
        "pools": asked,
        "router": router,
        "failures": failures,
        "concurrency": clients,
        "client_timeout_s": timeout_s,
        "seed": seed,
    }
    runs = [simulate(trace, jump=jump, **settings_) for jump in (True, False)]
    parts = (trace.take(np.arange(i, min(i + 7, 80))) for i in range(0, 80, 7))
    streamed = simulate_stream(parts, **settings_)
    for r in runs:
        assert int(r.completed.sum()) + sum(r.outcomes.values()) == len(trace)
        assert (r.replica[r.completed] >= 0).all()
        assert np.isnan(r.e2el_ms[~r.completed]).all()
        assert (r.e2el_ms[r.completed] >= r.ttft_ms[r.completed]).all()
        if timeout_s is not None:
            assert (r.e2el_ms[r.completed] <= timeout_s * 1000 + 1e-6).all()
        elif retries and limit is None:
            assert r.outages.retried <= r.outages.lost
        assert r.outages.lost == r.outages.retried + r.outcomes["failed"] or timeout_s is not None
    a, b = runs
    for name in ("arrival_s", "e2el_ms", "replica"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.outcomes == b.outcomes == streamed.outcomes
    assert a.outages == b.outages
    assert streamed.counts["completed"] == int(a.completed.sum())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Failure(-1.0, 1.0), "at_s of a failure is -1.0"),
        (lambda: Failure(1.0, math.inf), "for_s of a failure is inf"),
        (lambda: Failure(1.0, 1.0, server=-1), "server of a failure is -1"),
        (lambda: Failures(mtbf_s=0.0), "mtbf_s is 0.0"),
        (lambda: Failures(mtbf_s=1e-9), "mtbf_s is 1e-09; must be a finite number >= 0.01"),
        (lambda: Failures(repair_s=-1.0), "repair_s is -1.0"),
        (lambda: Failures(retries=-1), "retries is -1"),
        (lambda: Failures([3]), "no qsim.Failure"),
        (lambda: run(Failure(1.0, 1.0, server=2)), "has 2, numbered from 0"),
        (lambda: run(Failure(1.0, 1.0, pool="x")), "pool of a failure is 'x'"),
        (lambda: run(Failure(1.0, 1.0, pool=1)), "pool of a failure is 1"),
    ],
)
def test_wrong_values_are_named(make, words):
    with pytest.raises(ScenarioError, match=words):
        make()


def run(failure: Failure):
    return simulate(requests(3), pools=pools(2), failures=Failures([failure]))


def test_command(tmp_path, capsys):
    import json

    from qsim.cli import main

    out, saved = tmp_path / "out.json", tmp_path / "saved.yaml"
    profile, trace = "h200_sxm/llama-3.1-8b/fp8-w8a8", "azure-conv-2023:duration=60,seed=1"
    args = ["simulate", trace, "--profile", profile, "--replicas", "2", "--json", str(out)]
    args += ["--failure", "at=10,for=5,server=1", "--mtbf", "5000", "--retries", "1"]
    args += ["--slo", "e2el:p99:3000", "--save-scenario", str(saved)]
    direct = simulate(
        load_trace(trace),
        profile,
        replicas=2,
        failures=Failures([Failure(10, 5, 1)], mtbf_s=5000.0, retries=1),
    ).summary([Slo.parse("e2el:p99:3000")])
    for again in (args, [*args, "--stream"], ["simulate", str(saved), "--json", str(out)]):
        with pytest.raises(SystemExit) as exit_:
            main(again)
        assert not exit_.value.code
        summary = json.loads(out.read_text())
        assert summary["failures"] == json.loads(json.dumps(direct["failures"]))
        assert summary["outcomes"] == direct["outcomes"]
        assert summary["scenario"]["fleet"]["failures"]["events"][0]["at_s"] == 10.0
    assert "availability" in capsys.readouterr().out
    for wrong, words in (
        (["--failure", "at=10"], "has no for"),
        (["--failure", "at=10,for=x"], "for is 'x'"),
        (["--failure", "at=10,fro=2"], "unknown key 'fro'; did you mean"),
        (["--repair-time", "3"], "--repair-time is given without --mtbf"),
        (["--retries", "3"], "no server fails"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["simulate", trace, "--profile", profile, *wrong])
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err


def test_searches_say_that_they_do_not_simulate_it():
    from qsim import Scenario, plan

    asked = Scenario(
        traffic={"trace": "azure-conv-2023:duration=60"}, fleet={"failures": {"mtbf_s": 100.0}}
    )
    with pytest.raises(ScenarioError, match="failures is given, and plan does not"):
        plan(asked)


def test_a_server_that_failed_goes_no_further_than_the_others_when_it_is_back() -> None:
    """Nothing that a client's cancel could change is decided before it."""
    # a front end so slow that a run may go on for long until the next request is ready
    profile = make_profile()
    profile = replace(profile, frontend=replace(profile.frontend, receive_ms=60.0))
    pools = [Pool(profile, 1, lifecycle=Lifecycle(start_s=0.0))]
    failures = Failures([Failure(at_s, 0.0) for at_s in (0.1, 0.4, 0.6)], retry_after_s=0.0)
    rng = np.random.default_rng(0)
    load = Trace(
        np.cumsum(rng.exponential(0.02, 60)), rng.integers(1, 500, 60), rng.choice([3, 40, 90], 60),
        timeout_s=rng.choice([np.inf, 0.1, 0.4], 60),
    )  # fmt: skip
    a, b = (simulate(load, pools=pools, failures=failures, jump=jump) for jump in (True, False))
    np.testing.assert_array_equal(a.e2el_ms, b.e2el_ms)
    assert a.replica_stats == b.replica_stats
