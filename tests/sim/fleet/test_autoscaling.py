"""Fleets whose servers an autoscaler starts and stops."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim import (
    Autoscaler,
    EngineOptions,
    Failure,
    Failures,
    Lifecycle,
    Pool,
    ScalingRules,
    Scenario,
    Signal,
    load_trace,
    plan,
    simulate,
)
from qsim.cli import main
from qsim.errors import ScenarioError
from qsim.sim.fleet.routers.router import ROUTERS
from qsim.sim.results.slo import Slo
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces.trace import HashIds, Trace, Turns
from tests.make_profile import constant_profile, make_profile
from tests.sim.fleet.test_clients import requests
from tests.sim.fleet.test_sessions import sessions

PROFILE = make_profile(num_gpu_blocks=30_000)
OTHER = make_profile(gpu="a100_sxm", method="int8-w8a8", decode_ms=12.0, num_gpu_blocks=9_000)


def steady(rate: float, span_s: float, tokens: int = 200, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    n = rng.poisson(rate * span_s)
    at = np.sort(rng.uniform(0.0, span_s, n))
    return Trace(at, np.full(n, 8), rng.geometric(1 / tokens, n), name="steady")


def pool(n: int = 1, start_s: float = 20.0, profile=PROFILE, **more) -> list[Pool]:
    return [Pool(profile, n, lifecycle=Lifecycle(start_s=start_s), **more)]


def on_at(result, time_s: float, pool: int = 0) -> int:
    found = [on for t, k, on, *_ in result.scaling.changes if k == pool and t <= time_s]
    return found[-1] if found else 0


def test_a_step_of_load_starts_servers_after_scrape_window_and_start():
    """1 ms a step, 1000 steps a request: the load is the rate, in requests; a server holds 10."""
    profile = constant_profile(1.0)
    at = np.concatenate([np.arange(0.0, 300.0, 0.25), np.arange(300.0, 600.0, 1 / 30)])
    trace = Trace(at, [1] * len(at), [1000] * len(at), name="step")
    quick = Autoscaler((Signal("requests", 10.0),), 8, scale_up=ScalingRules(0), provision_s=40.0)
    result = simulate(trace, pools=pool(1, 100.0, profile), autoscaler=quick)
    assert on_at(result, 299.0) == 1
    # the scrape at 315 s is the first that sees 30 requests; the look at 330 s sees that scrape
    up = [(t, starting) for t, _, _, starting, _ in result.scaling.changes if starting]
    assert up[0] == (330.0, 2)
    assert on_at(result, 330.0 + 139.9) == 1
    assert on_at(result, 330.0 + 140.1) == 3
    assert result.scaling.pools[0].scale_ups == 1
    assert result.scaling.pools[0].starting_hours == pytest.approx(2 * 140 / 3600)
    assert result.completed.all()
    # what a server costs is what it is on or starts for
    found = result.scaling.pools[0]
    hours = (result.duration_s + 2 * (result.duration_s - 330.0)) / 3600
    assert found.server_hours == pytest.approx(hours, rel=1e-6)
    assert found.mean_servers == pytest.approx(
        (result.duration_s + 2 * (result.duration_s - 470.0)) / result.duration_s, rel=1e-6
    )
    idle_w = profile.power.idle_w
    assert found.starting_energy_j == pytest.approx(2 * 140 * idle_w)
    assert result.energy_j == pytest.approx(found.energy_j)


def test_an_autoscaler_that_may_not_change_anything_changes_nothing():
    trace = requests(300, 3)
    still = Autoscaler((Signal("requests", 5.0),), 2, 2)
    plain = simulate(trace, pools=pool(2))
    same = simulate(trace, pools=pool(2), autoscaler=still)
    for name in ("ttft_ms", "e2el_ms", "replica", "cached_tokens"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(same, name))
    assert same.energy_j == pytest.approx(plain.energy_j, rel=1e-12)
    assert same.scaling.pools[0].server_hours == pytest.approx(2 * plain.duration_s / 3600)


@pytest.mark.parametrize("kind", ["keda", "hpa"])
@pytest.mark.parametrize("load", [6.0, 9.6, 10.5, 15.0, 19.4, 21.0])
def test_even_load_does_not_flap(kind: str, load: float) -> None:
    """Whatever the load beside the target, servers are not started and stopped all the time."""
    trace = steady(load / 10, 3000.0, 1000)  # 1000 tokens at 10 ms
    profile = constant_profile(10.0)
    settings_ = Autoscaler((Signal("requests", 10.0),), 8, kind=kind)
    first = max(1, math.ceil(load / 10))
    result = simulate(trace, pools=pool(first, 30.0, profile), autoscaler=settings_)
    found = result.scaling.pools[0]
    assert found.reversals == 0
    assert found.scale_ups + found.scale_downs <= 2


def test_without_windows_it_flaps():
    trace = steady(10.5 / 10, 3000.0, 1000)
    none = Autoscaler(
        (Signal("requests", 10.0),), 8, scale_up=ScalingRules(0), scale_down=ScalingRules(0)
    )
    result = simulate(trace, pools=pool(2, 30.0, constant_profile(10.0)), autoscaler=none)
    assert result.scaling.pools[0].reversals > 10


def test_at_zero_requests_wait_at_the_gateway():
    """KEDA looks every 30 s, after a scrape, and the server takes 20 s to start."""
    trace = Trace([0.0, 1000.0, 1001.0], [1] * 3, [100] * 3, name="three")
    zero = Autoscaler((Signal("requests", 10.0),), 3, 0)
    result = simulate(trace, pools=pool(1, 20.0, constant_profile(10.0)), autoscaler=zero)
    found = result.scaling
    assert on_at(result, 299.0) == 1
    # seen for the last time by the look at 0 s; more than 300 s later there is none
    down = [t for t, _, on, *_ in found.changes if on == 0]
    assert down[0] == pytest.approx(330.0, abs=0.01)
    # scraped at 1005 s, seen at 1020 s, on at 1040 s
    assert found.held_requests == 2
    assert found.most_held_s == pytest.approx(40.0)
    assert found.mean_held_s == pytest.approx(39.5)
    assert result.ttft_ms[1] == pytest.approx(40_000 + 10, abs=20)
    assert found.none_on_s == pytest.approx(1040.0 - down[0])
    assert found.pools[0].starts == 1
    # energy is not drawn while there is none
    assert found.pools[0].server_hours * 3600 < 400.0


def test_who_waits_for_a_server_that_never_comes_is_told():
    trace = Trace([0.0, 900.0], [1, 1], [10, 10], name="two")
    zero = Autoscaler((Signal("requests", 10.0, None, 5.0),), 3, 0)
    with pytest.raises(ScenarioError, match="1 requests wait at the gateway and no more come"):
        simulate(trace, pools=pool(1), autoscaler=zero)
    blind = Autoscaler((Signal("kv_usage", 0.5),), 3, 0)
    with pytest.raises(ScenarioError, match="a signal that counts requests"):
        simulate(trace, pools=pool(1), autoscaler=blind)
    # nor do clients that wait for answers send more, however much of the trace is left
    many = Trace(np.zeros(50), np.ones(50), np.full(50, 10))
    with pytest.raises(ScenarioError, match="2 requests wait at the gateway and no more come"):
        simulate(many, pools=pool(1), autoscaler=blind, concurrency=2, think_time_s=400.0)
    turns = Turns(np.array([-1, 0]), np.array([0.0, 900.0]))
    with pytest.raises(ScenarioError, match="1 requests wait at the gateway and no more come"):
        simulate(replace(trace, turns=turns), pools=pool(1), autoscaler=blind)


def test_only_named_pools_are_scaled():
    pools = [
        Pool(PROFILE, 1, name="fast", lifecycle=Lifecycle(start_s=5.0)),
        Pool(OTHER, 2, name="slow", lifecycle=Lifecycle(start_s=5.0)),
    ]
    trace = requests(600, 4)
    one = Autoscaler((Signal("requests", 2.0),), 6, pools=("fast",), scale_up=ScalingRules(0))
    result = simulate(trace, pools=pools, autoscaler=one)
    fast, slow = result.scaling.pools
    assert (fast.pool, slow.pool) == ("fast", "slow")
    assert fast.scale_ups
    assert not slow.scale_ups
    assert (slow.least_servers, slow.most_servers) == (2, 2)
    assert [p["replicas"] for p in result.scenario["pools"]] == [1, 2]
    with pytest.raises(ScenarioError, match="pools of the autoscaler has 'quick'"):
        simulate(
            trace,
            pools=pools,
            autoscaler=Autoscaler((Signal("requests", 2.0),), 6, pools=["quick"]),
        )
    with pytest.raises(ScenarioError, match="request_rate is that of the whole gateway"):
        simulate(trace, pools=pools, autoscaler=Autoscaler((Signal("request_rate", 2.0),), 6))


@pytest.mark.parametrize(
    "signal",
    [
        Signal("waiting", 1.0), Signal("running", 1.5), Signal("kv_usage", 0.001),
        Signal("request_rate", 2.5), Signal("ttft", 0.05),
    ],
    ids=lambda s: s.metric,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["keda", "hpa"])
def test_every_signal_scales_up_under_load_and_down_after_it(signal: Signal, kind: str) -> None:
    busy = steady(10.0, 300.0)
    calm = steady(0.2, 900.0, seed=1)
    at = np.concatenate([busy.arrival_s, 300.0 + calm.arrival_s])
    tokens = np.concatenate([busy.output_tokens, calm.output_tokens])
    trace = Trace(at, np.full(len(at), 300), tokens, name="busy and calm")
    options = EngineOptions(max_num_seqs=4)
    result = simulate(
        trace,
        pools=[Pool(PROFILE, 1, options, lifecycle=Lifecycle(start_s=20.0))],
        autoscaler=Autoscaler((signal,), 5, kind=kind),
    )
    assert result.completed.all()
    assert result.scaling.pools[0].most_servers > 1
    assert on_at(result, 1190.0) == 1


def test_a_failed_server_is_replaced_at_once():
    trace = steady(20.0, 300.0)
    two = Autoscaler((Signal("requests", 100.0),), 3, 2)
    failures = Failures([Failure(at_s=100.0, for_s=150.0)])
    result = simulate(trace, pools=pool(2, 30.0), autoscaler=two, failures=failures)
    assert on_at(result, 129.9) == 1
    assert on_at(result, 130.1) == 2
    assert result.completed.all()
    assert result.outages.failures == 1
    assert result.outages.availability < 1


def test_errors_name_the_field():
    trace = requests(5)
    auto = Autoscaler((Signal("requests", 5.0),), 2)
    with pytest.raises(ScenarioError, match=r"replicas of h200.* is 3; must be <= max_replicas 2"):
        simulate(trace, pools=pool(3), autoscaler=auto)
    with pytest.raises(ScenarioError, match="router is 'vllm'"):
        simulate(trace, pools=pool(1), router="vllm", autoscaler=auto)
    with pytest.raises(ScenarioError, match=r"autoscaler is 3; must be a qsim\.Autoscaler"):
        simulate(trace, pools=pool(1), autoscaler=3)


def test_a_scenario_says_the_same():
    auto = Autoscaler((Signal("waiting", 2.0),), 4, scale_down=ScalingRules(120))
    with pytest.raises(ScenarioError, match="policies of the autoscaler is empty"):
        Scenario(fleet={"autoscaler": {
            "signals": [{"metric": "waiting", "target": 2.0}], "max_replicas": 4,
            "scale_up": {"policies": []},
        }}).fleet.autoscaler.autoscaler()  # fmt: skip
    given = Scenario(fleet={"autoscaler": {
        "signals": [{"metric": "waiting", "target": 2.0}], "max_replicas": 4,
        "scale_down": {"stabilization_window_s": 120},
    }})  # fmt: skip
    found = given.fleet.autoscaler.autoscaler()
    assert found.scale_down.stabilization_window_s == auto.scale_down.stabilization_window_s
    assert found.scale_down.policies == Autoscaler(auto.signals, 4).scale_down.policies
    assert found.scale_up == auto.scale_up
    again = Scenario.from_dict(given.to_dict())
    assert again.fleet.autoscaler.autoscaler() == found
    with pytest.raises(ScenarioError, match="plan does not simulate it"):
        plan(given)


# -------------------------------------------------------------------------- conservation

autoscalers = st.builds(
    lambda metric, target, least, extra, kind, up, down, provision: Autoscaler(
        (Signal(metric, target),),
        max(1, least) + extra,
        least if kind == "keda" else max(1, least),
        kind=kind,
        scale_up=ScalingRules(up, Autoscaler((Signal("requests", 1.0),), 1).scale_up.policies),
        scale_down=ScalingRules(down),
        provision_s=provision,
        sync_s=2,
        scrape_s=1,
        **({"cooldown_s": 5, "polling_s": 3} if kind == "keda" and not least else {}),
    ),
    st.sampled_from(["requests", "waiting"]),
    st.sampled_from([0.5, 3.0, 10.0]),
    st.integers(0, 2),
    st.integers(0, 3),
    st.sampled_from(["keda", "hpa"]),
    st.sampled_from([0, 6]),
    st.sampled_from([0, 10]),
    st.sampled_from([0.0, 2.0]),
)
all_failures = st.builds(
    Failures,
    st.lists(
        st.builds(Failure, st.floats(0.0, 12.0), st.floats(0.0, 6.0), st.just(0), st.just(0)),
        max_size=3,
    ),
    st.none() | st.sampled_from([2.0, 8.0]),
    st.sampled_from([0.0, 1.5]),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.5]),
)


@given(
    autoscalers,
    st.none() | all_failures,
    st.sampled_from(sorted(set(ROUTERS) - {"vllm"})),
    st.sampled_from(["open", "sessions", "closed"]),
    st.sampled_from([None, 1.5]),
    st.booleans(),
    st.integers(0, 1000),
)
@settings(max_examples=25)
def test_every_request_ends_exactly_once(auto, failures, router, clients, timeout_s, several, seed):
    """With failures, scaling, sessions or closed loops, timeouts and priorities all on."""
    rng = np.random.default_rng(seed)
    if clients == "sessions":
        trace = sessions(20, 4, seed)
    else:
        trace = requests(80, seed, hash_ids=_prefixes(rng, 80))
    n = len(trace)
    trace = Trace(
        trace.arrival_s, trace.prompt_tokens, trace.output_tokens, name="all", turns=trace.turns,
        hash_ids=trace.hash_ids, priority=rng.integers(0, 3, n),
    )  # fmt: skip
    cycle = Lifecycle(start_s=1.0, stop_s=1.0)
    options = EngineOptions(scheduling_policy="priority", max_num_seqs=4)
    pools = [Pool(PROFILE, 1, options, lifecycle=cycle, sleeps=seed % 2 == 0)]
    if several:
        pools.append(Pool(OTHER, 1, options, lifecycle=cycle))
    fleet = {
        "pools": pools, "router": router, "seed": seed, "failures": failures, "autoscaler": auto,
        "client_timeout_s": timeout_s, "concurrency": 6 if clients == "closed" else None,
    }  # fmt: skip
    result = simulate(trace, **fleet)
    done = result.completed
    ended = result.outcomes or {"rejected": 0, "timed_out": 0, "failed": 0}
    assert int(done.sum()) + sum(ended.values()) == n
    assert (result.replica[done] >= 0).all()
    assert (result.replica[~done] == -1).all()
    assert sum(r["requests"] for r in result.replica_stats) == done.sum()
    assert (result.e2el_ms[done] >= result.ttft_ms[done] - 1e-9).all()
    assert (result.ttft_ms[done] > 0).all()
    found = result.scaling
    for own, asked in zip(found.pools, pools, strict=True):
        assert 0 <= own.least_servers <= own.mean_servers + 1e-9
        assert own.mean_servers <= own.most_servers + 1e-9 <= auto.max_replicas + 1e-9
        assert asked.replicas <= auto.max_replicas
    # the books of all servers are those of the whole time
    span_s = result.duration_s
    for server in result.replica_stats:
        assert server["busy_s"] <= span_s + 1.0, (server, span_s)
    assert result.energy_j == pytest.approx(sum(p.energy_j for p in found.pools))
    # and the same again, step by step and streamed
    again = simulate(trace, **fleet, jump=False)
    np.testing.assert_array_equal(again.completed, result.completed)
    assert again.scaling.changes == found.changes
    if trace.turns is None:
        streamed = simulate_stream([trace], **fleet)
        assert streamed.counts["completed"] == done.sum()
        assert streamed.outcomes == result.outcomes
        assert streamed.scaling == found


def _prefixes(rng: np.random.Generator, n: int) -> HashIds:
    return HashIds.from_lists([rng.integers(0, 9, k).tolist() for k in rng.integers(0, 5, n)], 16)


def test_streamed_in_parts_it_is_the_same():
    trace = load_trace("azure-conv-2023:duration=900,rate=30")
    auto = Autoscaler((Signal("requests", 20.0),), 6, scale_up=ScalingRules(0))
    fleet = {"pools": pool(1, 30.0), "autoscaler": auto, "failures": Failures(mtbf_s=300.0)}
    whole = simulate(trace, **fleet)
    size = 1000
    parts = [
        trace.take(np.arange(i, min(i + size, len(trace)))) for i in range(0, len(trace), size)
    ]
    streamed = simulate_stream(parts, **fleet, slos=[Slo("ttft", "p99", 1000.0)])
    assert streamed.scaling == whole.scaling
    assert streamed.counts["completed"] == whole.completed.sum()
    assert streamed.energy_j == pytest.approx(whole.energy_j)
    assert whole.scaling.pools[0].most_servers > 1


@pytest.mark.parametrize("command", ["plan", "tune", "schedule", "sweep"])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("fleet.autoscaler", {"signals": [{"metric": "requests", "target": 9}], "max_replicas": 2}),
        ("fleet.failures", {"mtbf_s": 9.0}),
        ("traffic.concurrency", 3),
    ],
)
def test_a_search_refuses_what_it_would_leave_out(command, path, value, tmp_path):
    """From the command line as from Python."""
    section, name = path.split(".")
    data = {"traffic": {"trace": "azure-conv-2023:duration=5,rate=2"}, "slos": ["ttft:p99:500"]}
    data.setdefault(section, {})[name] = value
    file = tmp_path / "s.json"
    file.write_text(json.dumps(data))
    found = CliRunner().invoke(main, [command, str(file)])
    assert found.exit_code == 2
    assert f"{path} is given, and {command} does not simulate it" in found.output
