from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import qsim
from qsim.errors import InfeasibleError, ProfileError, ScenarioError
from qsim.optimize.plan import planning
from qsim.optimize.plan.result import Plan
from qsim.profiles.schema import Profile
from qsim.report.text.plan import plan_rows
from qsim.report.text.tables import number
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ("ttft:p99:400", "tpot:mean:9")


def traffic(n: int = 300, rate: float = 60.0, seed: int = 1) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        rng.integers(50, 2500, n),
        rng.integers(1, 250, n),
        name="traffic",
    )


def profiles() -> list[Profile]:
    return [
        make_profile(method="bf16", decode_ms=6.0),
        make_profile(method="fp8-w8a8", decode_ms=4.0),
        make_profile(method="awq-w4a16", decode_ms=9.5),
    ]


@pytest.fixture(scope="module")
def answer() -> Plan:
    return plan(traffic(), profiles=profiles(), slos=SLOS)


def test_the_fleet_meets_the_slos_and_one_replica_less_does_not(answer: Plan) -> None:
    slos = [Slo.parse(s) for s in SLOS]
    by_id = {p.id: p for p in profiles()}
    feasible = [c for c in answer.candidates if c.feasible]
    assert len(feasible) == 2
    assert max(c.replicas or 0 for c in feasible) > 2, "the search would have nothing to do"
    for c in feasible:
        assert c.replicas
        enough = simulate(traffic(), by_id[c.profile], replicas=c.replicas)
        assert all(s.met(enough) for s in slos)
        assert c.metric("energy_j") == enough.energy_j
        assert c.metric("p99_ttft_ms") == enough.statistic("ttft", "p99")
        if c.replicas > 1:
            fewer = simulate(traffic(), by_id[c.profile], replicas=c.replicas - 1)
            assert not all(s.met(fewer) for s in slos)


def test_a_method_that_is_too_slow_even_alone_says_so(answer: Plan) -> None:
    slow = answer.candidates[-1]
    assert slow.method == "awq-w4a16"
    assert not slow.feasible
    assert slow.replicas is None
    assert slow.usd_per_hour is None
    assert "tpot mean 9." in slow.reason
    assert "over its limit of 9 ms" in slow.reason
    assert "alone" in slow.reason
    assert [e.replicas for e in slow.evaluations][-1] == 128, "the largest fleet was tried, too"
    assert not any(e.met for e in slow.evaluations)


def test_cost_is_price_times_gpus(answer: Plan) -> None:
    best = answer.best
    assert best is not None
    assert best.price
    assert best.gpus == best.replicas
    assert best.usd_per_hour == pytest.approx(best.price.usd_per_hour * (best.gpus or 0))
    data = best.to_dict()
    assert data["cost_usd"] == pytest.approx(best.usd_per_hour * data["duration"] / 3600)


def test_money_by_token_requests_a_second_and_p95(answer: Plan) -> None:
    best = answer.best
    assert best is not None
    assert best.usd_per_hour
    by_id = {p.id: p for p in profiles()}
    again = simulate(traffic(), by_id[best.profile], replicas=best.replicas)
    data = best.to_dict()
    hours, tokens = again.duration_s / 3600, traffic().output_tokens.sum()
    every = tokens + traffic().prompt_tokens.sum()
    usd = best.usd_per_hour * hours
    assert data["usd_per_1m_output_tokens"] == pytest.approx(usd / tokens * 1e6)
    assert data["usd_per_1m_tokens"] == pytest.approx(usd / every * 1e6)
    assert data["request_throughput"] == pytest.approx(len(traffic()) / again.duration_s)
    for metric in ("ttft", "tpot", "itl", "e2el"):
        assert data[f"p95_{metric}_ms"] == again.statistic(metric, "p95")
    head, *rows = plan_rows(answer)
    row = dict(zip(head, rows[0][0], strict=True))
    assert row["requests\n/s"] == number(data["request_throughput"])
    assert row["USD/1M\noutput"] == number(data["usd_per_1m_output_tokens"], 3)
    assert row["E2EL p95\nms"] == number(data["p95_e2el_ms"])
    assert "energy\nkJ" not in row, "it is told where it decides"
    energy = plan(traffic(60), profiles=profiles()[:1], slos=["ttft:p95:9000"], objective="energy")
    assert {"energy\nkJ", "TTFT p95\nms"} < set(plan_rows(energy)[0])


def test_sorted_by_the_objective() -> None:
    made = [
        replace(p, identity=replace(p.identity, gpu=gpu, method=method))
        for p, gpu, method in [
            (make_profile(decode_ms=4.0), "h200_sxm", "fp8-w8a8"),
            (make_profile(decode_ms=7.0), "a100_sxm", "int8-w8a8"),
        ]
    ]
    prices = {"h200_sxm": 100.0, "a100_sxm": 1.0}
    by: dict[str, Any] = {
        o: plan(traffic(), profiles=made, slos=SLOS, objective=o, prices=prices).candidates
        for o in ("cost", "energy", "gpus")
    }
    for o, key in [("cost", "usd_per_hour"), ("gpus", "gpus")]:
        values = [getattr(c, key) for c in by[o]]
        assert values == sorted(values)
    energies = [c.metric("energy_j") for c in by["energy"]]
    assert energies == sorted(energies)
    assert by["cost"][0].gpu == "a100_sxm"
    assert by["gpus"][0].gpu == "h200_sxm"


def test_the_same_answer_from_two_processes(answer: Plan) -> None:
    again = plan(traffic(), profiles=profiles(), slos=SLOS, jobs=2)
    assert json.dumps(again.to_dict()) == json.dumps(answer.to_dict())


def test_to_dict_is_json_with_the_evidence(answer: Plan) -> None:
    data = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert data["best"] == "h200_sxm/toy-1b/fp8-w8a8"
    assert data["slos"] == list(SLOS)
    assert data["prices"][0]["gpu"] == "h200_sxm"
    best, *_, slow = data["candidates"]
    assert data["serve_command"] == best["serve_command"] == answer.serve_command(answer.best)
    assert slow["serve_command"] is None
    tried = {e["replicas"]: e["met"] for e in best["evaluations"]}
    assert tried[best["replicas"]] is True
    assert tried[best["replicas"] - 1] is False
    assert set(best["evaluations"][0]["values_ms"]) == set(SLOS)
    for key in ("p99_ttft_ms", "mean_tpot_ms", "p99_itl_ms", "median_e2el_ms", "energy_j",
                "avg_power_w", "joules_per_output_token", "attainment"):  # fmt: skip
        assert best[key] > 0, key


def test_too_small_a_limit_names_the_slo_and_the_excess() -> None:
    answer = plan(traffic(), profiles=profiles()[:1], slos=SLOS, max_replicas=2)
    (c,) = answer.candidates
    assert answer.best is None
    assert not c.feasible
    assert "over its limit" in c.reason or "times its limit" in c.reason
    assert "even with 2 replicas" in c.reason
    assert answer.to_dict()["serve_command"] is None
    with pytest.raises(InfeasibleError, match="nothing to serve"):
        answer.serve_command()


def test_a_sequence_that_does_not_fit_makes_that_profile_infeasible() -> None:
    made = [make_profile(method="bf16", num_gpu_blocks=200), make_profile(method="fp8-w8a8")]
    answer = plan(
        traffic(60), profiles=made, slos=["ttft:p99:4000"],
        options=EngineOptions(max_model_len=8000),
    )  # fmt: skip
    assert answer.best is not None
    assert answer.best.method == "fp8-w8a8"
    assert "KV cache of 200 blocks" in answer.candidates[1].reason


def test_options_that_suit_no_profile_are_an_error() -> None:
    with pytest.raises(ScenarioError, match="max_num_seqs is 0"):
        plan(traffic(5), profiles=profiles(), slos=SLOS, options=EngineOptions(max_num_seqs=0))


def test_prompts_longer_than_max_model_len() -> None:
    short = make_profile(method="bf16", max_model_len=500)
    answer = plan(traffic(40), profiles=[short], slos=SLOS)
    assert answer.best is None
    assert "prompt_tokens of request" in answer.candidates[0].reason
    rejected = plan(traffic(40), profiles=[short], slos=SLOS, too_long="reject")
    assert rejected.best is not None
    assert (rejected.best.metric("failed") or 0) > 0
    assert (rejected.best.outcome.attainment or 0) < 1  # type: ignore[union-attr]


@pytest.mark.parametrize("n", [1, 2])
def test_a_single_request_or_a_burst_at_zero(n: int) -> None:
    trace = Trace(np.zeros(n), np.full(n, 100), np.full(n, 10))
    answer = plan(trace, profiles=[make_profile()], slos=["ttft:p99:100"])
    assert answer.best is not None
    assert answer.best.replicas == 1
    assert answer.trace["request_rate"] is None


def test_tensor_parallelism_counts_every_gpu() -> None:
    p = make_profile()
    two = replace(p, identity=replace(p.identity, tensor_parallel_size=2))
    (c,) = plan(traffic(50), profiles=[two], slos=["ttft:p99:5000"]).candidates
    assert c.profile.endswith("/tp2")
    assert c.gpus == 2 * (c.replicas or 0)


def test_progress_rises_to_one() -> None:
    seen: list[float] = []
    plan(traffic(100), profiles=profiles(), slos=SLOS, progress=lambda f, _: seen.append(f))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 3


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"slos": []}, ScenarioError, "no SLO is given"),
        ({"slos": ["ttft:p99"]}, ScenarioError, "'ttft:p99' does not parse"),
        ({"objective": "speed"}, ScenarioError, "objective is 'speed'"),
        ({"max_replicas": 0}, ScenarioError, "max_replicas is 0"),
        ({"jobs": 0}, ScenarioError, "jobs is 0"),
        ({"router": "magic"}, ScenarioError, "router is 'magic'"),
        ({"prices": {"h200": 3.0}}, ScenarioError, "'h200'.*h200_sxm"),
        ({"prices": {"h200_sxm": -3.0}}, ScenarioError, "h200_sxm is -3.0"),
        ({"profiles": []}, ScenarioError, "neither a model nor a profile"),
        ({"profiles": [], "gpus": ["h200_sxm"]}, ScenarioError, "give model"),
        ({"profiles": ["h200_sxm/nope/bf16"]}, ProfileError, "unknown profile"),
        ({"model": "nope-1b"}, ProfileError, "no profile of model 'nope-1b'"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given: dict[str, Any] = {"profiles": profiles()[:1], "slos": SLOS, **change}
    with pytest.raises(error, match=words):
        plan(traffic(5), **given)


def test_a_gpu_without_a_price_matters_only_for_cost() -> None:
    made = [make_profile(gpu="b300_sxm")]
    with pytest.raises(ScenarioError, match="--price b300_sxm=USD"):
        plan(traffic(20), profiles=made, slos=["ttft:p99:5000"])
    answer = plan(traffic(20), profiles=made, slos=["ttft:p99:5000"], objective="energy")
    assert answer.best is not None
    assert answer.best.usd_per_hour is None
    assert answer.best.to_dict()["cost_usd"] is None


def test_it_is_public() -> None:
    assert qsim.plan is planning.plan


def test_requests_are_simulated_alone_only_where_two_fleets_missed(answer: Plan) -> None:
    sizes = {c.method: [e.replicas for e in c.evaluations] for c in answer.candidates}
    slow = sizes["awq-w4a16"]
    assert slow[1] == 2 * slow[0]
    assert slow[2:] == [128]
