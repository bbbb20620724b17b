"""Pools of unlike servers behind one router: the same requests, and figures by pool."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from qsim import Pool, load_trace, simulate
from qsim.cli import main
from qsim.errors import ScenarioError
from qsim.sim.engine.timing import Timing
from qsim.sim.fleet.pool import resolve_pools
from qsim.sim.fleet.routers.router import ROUTERS
from qsim.sim.fleet.routers.server_speed import ServerSpeed
from qsim.sim.results.histogram import RELATIVE_ERROR
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces.trace import Trace
from tests.make_profile import constant_profile, make_profile

TRACE = "azure-conv-2023:duration=120,seed=3"
H200, A100 = "h200_sxm/llama-3.1-8b/fp8-w8a8", "a100_sxm/llama-3.1-8b/int8-w8a8"
FAST = make_profile(num_gpu_blocks=30_000)
SLOW = make_profile(gpu="a100_sxm", method="int8-w8a8", decode_ms=16.0, num_gpu_blocks=9_000)


def mixed(**weights: float) -> list[Pool]:
    return [
        Pool(FAST, 4, name="fast", weight=weights.get("fast", 1.0)),
        Pool(SLOW, 2, EngineOptions(max_num_seqs=64), name="slow"),
    ]


def figures(result) -> dict:
    summary = result.summary()
    return {k: v for k, v in summary.items() if k not in ("scenario",)}


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_two_pools_behind_each_router_serve_every_request_once(router):
    trace = load_trace(TRACE).speed(12.0)
    result = simulate(trace, pools=mixed(), router=router, seed=5)
    fast, slow = result.pools
    assert fast["requests"] + slow["requests"] == len(trace) == result.counts["completed"]
    assert fast["input_tokens"] + slow["input_tokens"] == int(trace.prompt_tokens.sum())
    assert fast["output_tokens"] + slow["output_tokens"] == int(trace.output_tokens.sum())
    assert fast["energy_j"] + slow["energy_j"] == pytest.approx(result.energy_j, rel=1e-12)
    assert (fast["replicas"], slow["replicas"], fast["gpus"], slow["gpus"]) == (4, 2, 4, 2)
    own = result.replica >= 4
    assert slow["p99_ttft_ms"] == pytest.approx(np.percentile(result.ttft_ms[own], 99), rel=1e-12)
    assert slow["mean_tpot_ms"] > 1.3 * fast["mean_tpot_ms"]  # 16 ms a step against 4
    assert slow["peak_running"] <= 64
    assert all(0 < p["utilisation"] <= 1 for p in result.pools)


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_pools_of_equal_servers_are_one_pool(router):
    """Splitting a pool changes nothing but what is told of the pools."""
    trace = load_trace(TRACE).speed(3.0)
    one = simulate(trace, FAST, replicas=5, router=router, seed=5)
    two = simulate(trace, pools=[Pool(FAST, 2), Pool(FAST, 3)], router=router, seed=5)
    assert np.array_equal(one.replica, two.replica)
    assert np.array_equal(one.e2el_ms, two.e2el_ms)
    assert one.energy_j == two.energy_j
    a, b = figures(one), figures(two)
    by_server = [p["pool"] for p in b["pools"] for _ in range(p["replicas"])]
    assert [r.pop("pool") for r in b["replicas"]] == by_server
    assert [p["pool"] for p in b.pop("pools")] == [f"{FAST.id} #1", f"{FAST.id} #2"]
    b.pop("notes"), a.pop("notes"), a.pop("beyond_measured", None)
    # a server is hot beside the others of its pool
    a.pop("hot_spots"), b.pop("hot_spots")
    assert a == b


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_mixed_pools_step_by_step_end_at_the_same_picosecond(router):
    trace = load_trace("azure-conv-2023:duration=40,seed=3").speed(3.0)
    quick = simulate(trace, pools=mixed(), router=router, seed=5)
    stepped = simulate(trace, pools=mixed(), router=router, seed=5, jump=False)
    assert np.array_equal(quick.replica, stepped.replica)
    assert np.array_equal(quick.ttft_ms, stepped.ttft_ms)
    assert np.array_equal(quick.e2el_ms, stepped.e2el_ms)


@pytest.mark.parametrize("router", ["least-requests", "expected-finish"])
def test_streamed_pools_are_those_of_the_whole_run(router):
    trace = load_trace(TRACE).speed(12.0)
    parts = (trace.take(np.arange(i, min(i + 97, len(trace)))) for i in range(0, len(trace), 97))
    whole = simulate(trace, pools=mixed(), router=router)
    streamed = simulate_stream(parts, pools=mixed(), router=router)
    for a, b in zip(whole.pools, streamed.pools, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if key.endswith("_ms"):
                assert b[key] == pytest.approx(value, rel=2 * RELATIVE_ERROR), key
            else:
                assert b[key] == value, key


def test_weights_share_the_requests():
    trace = load_trace(TRACE).speed(2.0)
    for router in ("round-robin", "random"):
        result = simulate(trace, pools=mixed(fast=4.0), router=router, seed=1)
        # four servers of weight 4 beside two of weight 1: 16/18 of the requests
        share = result.pools[0]["requests"] / len(trace)
        tolerance = 0.002 if router == "round-robin" else 0.05
        assert share == pytest.approx(16 / 18, abs=tolerance)
    for router in ("least-requests", "least-tokens", "power-of-two", "prefix-affinity"):
        plain = simulate(trace, pools=mixed(), router=router, seed=1)
        weighted = simulate(trace, pools=mixed(fast=4.0), router=router, seed=1)
        assert weighted.pools[0]["requests"] > plain.pools[0]["requests"]


@pytest.mark.parametrize("router", ["vllm", "expected-finish"])
def test_routers_without_weights_say_so(router):
    with pytest.raises(ScenarioError, match=f"router {router} takes no weights"):
        simulate(load_trace(TRACE), pools=mixed(fast=2.0), router=router)


def test_expected_finish_is_not_held_up_by_the_slow_pool():
    trace = load_trace(TRACE).speed(4.0)
    e2el = {
        r: simulate(trace, pools=mixed(), router=r, seed=2).statistic("e2el", "p99")
        for r in ("round-robin", "least-requests", "expected-finish")
    }
    assert e2el["expected-finish"] < 0.8 * e2el["least-requests"]
    assert e2el["least-requests"] < e2el["round-robin"]


def test_expected_finish_of_an_idle_server_is_what_a_lone_request_takes():
    for profile in (FAST, SLOW, constant_profile(10.0)):
        profile = replace(profile, frontend=make_profile(frontend=False).frontend)
        config = EngineOptions().resolve(profile)
        alone = Trace(np.array([0.0]), np.array([700]), np.array([200]), name="one")
        taken = simulate(alone, profile).statistic("e2el", "mean")
        expected = ServerSpeed(config, Timing(profile, config)).finish_ms(0, 700, 0.0, 200.0)
        assert expected == pytest.approx(taken, rel=0.05)


def test_a_prompt_must_fit_every_pool():
    short = Pool(SLOW, 1, EngineOptions(max_model_len=1000), name="short")
    trace = Trace(np.arange(3.0), np.array([10, 1500, 20]), np.array([5, 5, 5]), name="t")
    result = simulate(trace, pools=[Pool(FAST), short], too_long="reject")
    assert result.completed.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ([], "no pool is given"),
        ([Pool(FAST), "x"], "must be a qsim.Pool"),
        ([Pool(FAST), Pool(make_profile(model="toy-2b"))], "toy-1b and toy-2b"),
        ([Pool(FAST, name="a"), Pool(SLOW, name="a")], "'a' twice"),
        ([Pool(FAST, 6000), Pool(SLOW, 6000)], "replicas of all pools is 12000"),
    ],
)
def test_pools_that_do_not_go_together(pools, words):
    with pytest.raises(ScenarioError, match=words):
        simulate(load_trace(TRACE), pools=pools)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"replicas": 1.5}, "replicas is 1.5"),
        ({"weight": 0}, "weight is 0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"weight": True}, "weight is True"),
        ({"name": ""}, "name of a pool is ''"),
    ],
)
def test_wrong_numbers_of_a_pool(values, words):
    with pytest.raises(ScenarioError, match=words):
        Pool(FAST, **values)


def test_profile_and_pools_exclude_each_other():
    trace = load_trace(TRACE)
    with pytest.raises(ScenarioError, match="profile and pools are both given"):
        simulate(trace, FAST, pools=[Pool(FAST)])
    with pytest.raises(ScenarioError, match="replicas and pools are both given"):
        simulate(trace, pools=[Pool(FAST)], replicas=2)
    with pytest.raises(ScenarioError, match="neither profile nor pools"):
        simulate(trace)


def test_names_of_pools_differ():
    found = resolve_pools([Pool(FAST), Pool(FAST), Pool(FAST, name=f"{FAST.id} #1"), Pool(SLOW)])
    assert [p.name for p in found] == [f"{FAST.id} #2", f"{FAST.id} #3", f"{FAST.id} #1", SLOW.id]


# ---------------------------------------------------------------------- the command


def run(args, capsys, code=0, trace=("azure-conv-2023:duration=60,seed=1",)):
    with pytest.raises(SystemExit) as exit_:
        main(["simulate", *trace, *args])
    assert (exit_.value.code or 0) == code, capsys.readouterr().err
    return capsys.readouterr()


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_command_with_two_pools_is_the_simulation_of_them(stream, capsys, tmp_path):
    texts = f"profile={H200},replicas=4,max-num-seqs=256", f"profile={A100},replicas=2"
    pools = [word for text in texts for word in ("--pool", text)]
    out = tmp_path / "out.json"
    saved = tmp_path / "saved.yaml"
    text = run([*pools, "--json", str(out), "--save-scenario", str(saved), *stream], capsys).out
    assert f"4 x {H200} + 2 x {A100}" in text
    assert "TTFT p99" in text
    summary = json.loads(out.read_text())
    trace = load_trace("azure-conv-2023:duration=60,seed=1")
    asked = [Pool(H200, 4, EngineOptions(max_num_seqs=256)), Pool(A100, 2)]
    direct = simulate(trace, pools=asked)
    for a, b in zip(summary["pools"], direct.pools, strict=True):
        if stream:
            a, b = ({k: v for k, v in p.items() if not k.endswith("_ms")} for p in (a, b))
        assert a == b
    assert summary["resolved"]["pools"][0]["max_num_seqs"] == 256
    again = tmp_path / "again.json"
    run(["--scenario", str(saved), "--json", str(again), *stream], capsys, trace=())
    assert json.loads(again.read_text())["pools"] == summary["pools"]


def test_engine_options_beside_pools_hold_for_those_that_give_none(capsys):
    pools = ["--pool", f"profile={H200},max_num_seqs=256", "--pool", f"profile={A100}"]
    out = run([*pools, "--max-num-seqs", "64", "--json", "-"], capsys).out
    assert [p["max_num_seqs"] for p in json.loads(out)["resolved"]["pools"]] == [256, 64]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--pool", "replicas=4"], "has no profile"),
        (["--pool", f"profile={H200},replica=4"], "unknown key 'replica'; did you mean"),
        (["--pool", f"profile={H200},replicas=x"], "replicas is 'x'; must be a whole number"),
        (["--pool", f"profile={H200},replicas=0"], "replicas is 0"),
        (["--pool", f"profile={H200},replicas=1,replicas=2"], "replicas is given twice"),
        (["--pool", f"profile={H200},async-scheduling=maybe"], "must be true or false"),
        (["--pool", f"profile={H200},weight=heavy"], "weight is 'heavy'"),
        (["--pool", f"profile={H200}", "--profile", H200], "--profile and --pool are both given"),
        (["--pool", f"profile={H200}", "--replicas", "2"], "--replicas and --pool are both given"),
        ([], "neither --profile nor --pool is given"),
    ],
)
def test_wrong_pools_are_refused_in_one_line(args, words, capsys):
    err = run(args, capsys, code=2).err
    assert words in err
    assert len(err.strip().splitlines()) == 1
