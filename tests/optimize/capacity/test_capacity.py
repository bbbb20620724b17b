"""Capacities and load curves of fleets, and that what they say can be simulated again."""

from __future__ import annotations

import csv
import io
import itertools
import math

import numpy as np
import pytest

import qsim
from qsim.errors import ScenarioError
from qsim.optimize.capacity.curve import SHARES
from qsim.optimize.capacity.layout import DEFAULT_TRAFFIC
from qsim.optimize.plan.detail import DetailWanted
from qsim.report.text.capacity import capacity_text, curve_text
from qsim.report.text.plan import plan_text
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces import load_trace
from qsim.traces.trace import Trace
from tests.make_profile import constant_profile, make_profile

FAST = make_profile(method="fp8-w8a8")
SLOW = make_profile(method="bf16", decode_ms=7.0)
SLOS = ["ttft:p90:400", "tpot:p90:12"]


@pytest.fixture(scope="module", name="trace")
def traffic() -> Trace:
    return load_trace("azure-conv-2023:requests=600", seed=3)


def test_the_winner_and_its_figures(trace: Trace) -> None:
    answer = qsim.capacity(None, {"h200_sxm": 2}, trace, profiles=[SLOW, FAST], slos=SLOS)
    best = answer.best
    assert best is not None
    assert best.profile == FAST.id
    assert best.best is not None
    assert [y.profile for y in answer.layouts] == [FAST.id, SLOW.id]
    rates = [y.rate_rps(answer.traffic) or 0.0 for y in answer.layouts]
    assert rates[0] > rates[1] > 0
    again = simulate(trace.speed(best.best.speed), FAST, replicas=2, seed=0)
    assert again.summary() == best.best.outcome.summary
    ranges = answer.range_90
    assert ranges["p90_tpot_ms"][0] < ranges["p90_tpot_ms"][1]
    assert answer.to_dict()["machines"]["range_90"] == ranges
    text = " ".join(capacity_text(answer).split())
    assert "machine: on yours it may have (90%) TTFT p90" in text
    told = answer.to_dict()["layouts"][0]
    assert told["usd_per_1m_output_tokens"] == pytest.approx(
        best.usd_per_hour / 3600 / again.summary()["output_throughput"] * 1e6  # type: ignore[operator]
    )
    assert told["breaks_at_rps"] == pytest.approx(told["rate_rps"], rel=0.021)
    assert told["breaks_first"] in SLOS


def test_a_small_kv_cache_is_told_as_a_plan_tells_it(trace: Trace) -> None:
    options = EngineOptions(num_gpu_blocks_override=2000)
    stock = {"h200_sxm": 1}
    answer = qsim.capacity(None, stock, trace, profiles=[FAST], slos=SLOS, options=options)
    plan = qsim.plan(
        trace, profiles=[FAST], slos=SLOS, options=options, detail=DetailWanted(replications=0)
    )
    curve = qsim.curve([FAST], trace, rates=[1.0], options=options)
    note = "max_model_len is 31,984 and not 65,520: the KV cache of 2,000 blocks holds no longer"
    for text in (plan_text(plan), capacity_text(answer), curve_text(curve)):
        assert f"{FAST.id}: {note}" in " ".join(text.split())
    plain = capacity_text(qsim.capacity(None, {"h200_sxm": 1}, trace, profiles=[FAST], slos=SLOS))
    assert "max_model_len" not in plain


def test_twice_the_gpus_carry_twice_as_much(trace: Trace) -> None:
    longer = load_trace("azure-conv-2023:requests=2400", seed=3)
    one, two = (
        qsim.capacity(None, {"h200_sxm": n}, longer, profiles=[FAST], slos=SLOS).best
        for n in (1, 2)
    )
    assert one is not None
    assert two is not None
    assert one.best is not None
    assert two.best is not None
    assert two.best.speed == pytest.approx(2 * one.best.speed, rel=0.12)


def test_no_layout_carries_it(trace: Trace) -> None:
    answer = qsim.capacity(None, {"h200_sxm": 1}, trace, profiles=[FAST], slos=["tpot:p50:0.1"])
    assert answer.best is None
    assert "even at" in answer.layouts[0].reason
    assert "tpot p50" in answer.objection()


def test_a_preset_is_drawn_as_long_as_the_fleet_needs(trace: Trace) -> None:
    answer = qsim.capacity(
        "llama-3.1-8b", {"h200_sxm": 1}, methods=["fp8-w8a8"], slos=["ttft:p90:400"], jobs=2
    )
    name, _, rest = answer.traffic.words[0].partition(":requests=")
    assert name == DEFAULT_TRAFFIC
    assert 2000 <= int(rest) <= 8000
    assert answer.best is not None
    assert f"--speed {answer.best.best.speed:.15g}" in answer.best.simulate_command(answer)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpus": {}}, "no GPUs are given"),
        ({"gpus": {"h200_sxm": 0}}, "capacity.gpus.h200_sxm is 0"),
        ({"gpus": {"a100_sxm": 8}}, "of gpu 'h200_sxm', of which there is none"),
        ({"slos": []}, "no SLO is given"),
        ({"objective": "speed"}, "objective is 'speed'; must be one of rate, cost, energy"),
    ],
)
def test_wrong_arguments(trace: Trace, change: dict[str, object], words: str) -> None:
    given: dict[str, object] = {"gpus": {"h200_sxm": 1}, "slos": SLOS, "profiles": [FAST]}
    with pytest.raises(ScenarioError, match=words):
        qsim.capacity(None, trace=trace, **{**given, **change})  # type: ignore[arg-type]


def test_a_burst_has_no_rate(trace: Trace) -> None:
    burst = trace.speed(1e6)
    with pytest.raises(ScenarioError, match="all requests arrive within a second"):
        qsim.capacity(None, {"h200_sxm": 1}, burst, profiles=[FAST], slos=SLOS)


def test_a_curve_rises_to_its_knee(trace: Trace) -> None:
    found = qsim.curve([FAST, SLOW], trace, slos=SLOS, jobs=1)
    assert [f.name for f in found.fleets] == ["fp8-w8a8", "bf16"]
    for fleet in found.fleets:
        knee = fleet.fleet.best
        assert knee is not None
        rows = [r for r in found.rows() if r["fleet"] == fleet.name]
        assert len(rows) == len(SHARES) + 2
        assert all(r["met"] for r in rows if r["speed"] <= knee.speed)
        assert not any(r["met"] for r in rows if r["speed"] > knee.speed)
        tpot = [r["tpot:p90:12"] for r in rows]
        assert all(b > 0.99 * a for a, b in itertools.pairwise(tpot))
        energy = [r["joules_per_output_token"] for r in rows if r["speed"] <= knee.speed]
        assert energy == sorted(energy, reverse=True)
    table = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(table) == len(found.rows())
    capacity = qsim.capacity(None, {"h200_sxm": 1}, trace, profiles=[FAST], slos=SLOS)
    assert capacity.best is not None
    assert capacity.best.rate_rps(capacity.traffic) == pytest.approx(
        found.to_dict()["fleets"][0]["knee_rps"]
    )


def test_rates_of_ones_own(trace: Trace) -> None:
    found = qsim.curve([FAST], trace, rates=[4.0, 2.0])
    speeds = [r["speed"] for r in found.rows()]
    assert len(speeds) == 3  # and the knee
    assert {round(r["rate_rps"], 3) for r in found.rows()} >= {2.0, 4.0}
    assert all(r["met"] is None for r in found.rows())
    with pytest.raises(ScenarioError, match=r"curve.rates\[0\] is -1"):
        qsim.curve([FAST], trace, rates=[-1.0])
    with pytest.raises(ScenarioError, match="replicas and gpus are both given"):
        qsim.curve([FAST], trace, replicas=1, gpus=1)


def test_the_most_users_are_those_of_the_machine_repairman() -> None:
    """M/M/1//N: one seat, exponential services and think times; response R(N) = N / X(N) - Z."""
    n, step_ms, think_s, limit_s = 3_000, 10.0, 8.0, 2.5
    output = np.random.default_rng(4).geometric(1 / 100, n)
    trace = Trace(np.zeros(n), np.ones(n, np.int64), output, name="users")
    profile = constant_profile(step_ms, max_num_seqs=1, max_num_batched_tokens=8192)
    slos = [f"e2el:mean:{limit_s * 1000}"]
    answer = qsim.capacity(None, {profile.identity.gpu: 1}, trace, profiles=[profile], slos=slos,
                           users=True, think_time_s=think_s)  # fmt: skip
    service_s = float(output.mean()) * step_ms / 1000

    def response_s(users: int) -> float:
        ratio = service_s / think_s
        idle = 1 / sum(math.perm(users, k) * ratio**k for k in range(users + 1))
        return users * service_s / (1 - idle) - think_s

    expected = next(u for u in range(1, 1000) if response_s(u + 1) > limit_s)
    best = answer.best
    assert best is not None
    assert best.users is not None
    assert abs(best.users - expected) <= 1  # sampling error of 3,000 responses
    told = answer.to_dict()["layouts"][0]
    assert told["users"] == best.users
    assert told["breaks_at_users"] == best.users + 1
    assert told["breaks_at_rps"] is None
    again = simulate(trace, profile, concurrency=best.users, think_time_s=think_s)
    assert again.summary()["p99_e2el_ms"] == told["summary"]["p99_e2el_ms"]
    assert told["rate_rps"] == again.summary()["request_throughput"]
    assert told["joules_per_output_token"] == again.summary()["joules_per_output_token"]
    # users = X (R + Z)
    mean_s = again.summary()["mean_e2el_ms"] / 1000
    assert told["rate_rps"] * (mean_s + think_s) == pytest.approx(best.users, rel=0.02)


def test_users_are_ordered_by_their_number_and_a_short_trace_says_so(trace: Trace) -> None:
    asked = {"profiles": [SLOW, FAST], "users": True, "think_time_s": 5.0}
    answer = qsim.capacity(None, {"h200_sxm": 2}, trace, slos=["tpot:p90:9"], **asked)
    users = [y.users or 0 for y in answer.layouts]
    assert users == sorted(users, reverse=True)
    assert answer.layouts[0].profile == FAST.id
    easy = qsim.capacity(None, {"h200_sxm": 2}, trace, slos=["e2el:p90:1e9"], **asked)
    assert easy.best is not None
    assert easy.best.users == len(trace) // 4
    assert "too few to tell of more" in " ".join(capacity_text(easy).split())  # lines are filled
    none = qsim.capacity(None, {"h200_sxm": 2}, trace, slos=["e2el:p90:1"], **asked)
    assert none.best is None
    assert "even with one user" in none.objection()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"think_time_s": 3.0}, "rates are searched; ask for users"),
        ({"users": True, "think_time_s": -1.0}, "think_time_s is -1.0"),
    ],
)
def test_think_times_that_cannot_be(trace: Trace, given: dict[str, float], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        qsim.capacity(None, {"h200_sxm": 1}, trace, profiles=[FAST], slos=SLOS, **given)
