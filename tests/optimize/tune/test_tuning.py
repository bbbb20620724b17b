"""The front of a tuning against the exhaustive grid over the same space."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qsim
from qsim.errors import InfeasibleError, ScenarioError
from qsim.optimize.search.pareto import hypervolume
from qsim.optimize.tune.result import TuneResult, export_trial
from qsim.optimize.tune.tuning import tune
from qsim.profiles.schema import Profile
from qsim.report.text.tune import tune_text
from qsim.sim.fleet.pool import Pool
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile


def traffic(n: int = 30, rate: float = 45.0) -> Trace:
    rng = np.random.default_rng(5)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        rng.integers(300, 6000, n),
        rng.integers(2, 60, n),
        name="traffic",
    )


def profiles() -> list[Profile]:
    return [
        make_profile(method="bf16", decode_ms=6.0),
        make_profile(method="fp8-w8a8", decode_ms=4.0),
        make_profile(method="awq-w4a16", decode_ms=3.0, num_gpu_blocks=2000),
    ]


OBJECTIVES = ("mean_ttft_ms", "mean_tpot_ms", "energy")
SEARCH = (
    "replicas=1:4",
    "max_num_seqs=4,8,16,64",
    "max_num_batched_tokens=512,1024,2048,8192",
    "long_prefill_token_threshold=0,512",
)


def run(**more: Any) -> TuneResult:
    given: dict[str, Any] = {
        "profiles": profiles(),
        "objectives": OBJECTIVES,
        "search": SEARCH,
        "slos": ["ttft:p99:1000"],
    }
    return tune(traffic(), **(given | more))


@pytest.fixture(scope="module")
def exhaustive() -> TuneResult:
    return run(sampler="grid", jobs=2)


def dominates(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return bool(np.all(a <= b) and np.any(a < b))


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_the_front_of_200_trials_is_nearly_that_of_the_grid(
    exhaustive: TuneResult, sampler: str
) -> None:
    assert len(exhaustive.trials) == 3 * 4 * 4 * 4 * 2
    found = run(sampler=sampler, trials=200)
    front, best = found.minimised(found.front), exhaustive.minimised(exhaustive.front)
    assert not any(dominates(a, b) for a, b in itertools.permutations(front, 2))
    trials = found.minimised(found.distinct)
    assert not any(dominates(t, f) for t in trials for f in front)
    # the optimum of each objective alone is there
    assert front.min(axis=0) == pytest.approx(best.min(axis=0))
    # a reference just behind the worst of the front: overloaded fleets do not flatter the share
    reference = best.max(axis=0) + 0.1 * (best.max(axis=0) - best.min(axis=0))
    share = hypervolume(front, reference) / hypervolume(best, reference)
    assert 0.95 <= share <= 1 + 1e-12
    assert all(r.feasible for r in found.front)


SLOW = make_profile(method="bf16", gpu="a100_sxm", decode_ms=8.0)
FAST = make_profile(method="fp8-w8a8", decode_ms=4.0)
PRICES = {"h200_sxm": 4.0, "a100_sxm": 1.0}


def mixes(**more: Any) -> TuneResult:
    given: dict[str, Any] = {
        "profiles": [FAST, SLOW],
        "objectives": ["mean_e2el_ms", "cost"],
        "search": [
            f"profile={FAST.id}", "replicas=1:2", f"beside={SLOW.id},none", "beside_replicas=1:2",
        ],
        "fix": ["max_num_seqs", "max_num_batched_tokens"],
        "prices": PRICES,
        "sampler": "grid",
        "allow_backlog": True,
    }  # fmt: skip
    return tune(traffic(), **(given | more))


def test_the_counts_of_two_pools_are_decided() -> None:
    found = mixes()
    assert len(found.trials) == 8
    assert len(found.distinct) == 6, "without a second pool its count means nothing"
    for trial in found.distinct:
        p, figures = trial.params, trial.figures
        if p["beside"] is None:
            result = simulate(traffic(), FAST, replicas=p["replicas"])
            usd = 4.0 * p["replicas"]
            assert "weight" not in figures
        else:
            assert figures["weight"] > figures["beside_weight"] == 1
            pools = [
                Pool(SLOW, p["beside_replicas"]),
                Pool(FAST, p["replicas"], weight=figures["weight"]),
            ]
            result = simulate(traffic(), pools=pools)
            usd = 4.0 * p["replicas"] + 1.0 * p["beside_replicas"]
        assert figures["energy_j"] == result.energy_j
        assert trial.values == (result.statistic("e2el", "mean"), usd)
        assert sum(q.replicas for q in found.pools(trial)) == figures["replicas"]
    mixed = next(t for t in found.distinct if t.params["beside"] == SLOW.id)
    text = export_trial(found, mixed, "vllm") or ""
    assert text.count("vllm serve") == mixed.figures["replicas"]
    assert f"with weight {mixed.figures['weight']:g} in it" in text
    assert found.serve_command(mixed).count("vllm serve") == 2
    assert "beside" in " ".join(tune_text(found, mixed).split())


def test_the_same_mix_said_the_other_way_round_is_one() -> None:
    both = f"{FAST.id},{SLOW.id}"
    found = mixes(search=[f"profile={both}", "replicas=1:1", f"beside={both}",
                          "beside_replicas=1:1"])  # fmt: skip
    assert len(found.trials) == 4
    assert len(found.distinct) == 3
    twice = [t for t in found.distinct if t.params["profile"] == t.params["beside"]]
    assert all(t.figures["replicas"] == 2 for t in twice)
    assert all(len(found.pools(t)) == 1 for t in twice)


def test_a_stock_limits_each_type() -> None:
    found = mixes(stock={"h200_sxm": 1, "a100_sxm": 1})
    feasible = [t for t in found.trials if t.feasible]
    assert feasible
    for t in feasible:
        assert t.figures["gpus_h200_sxm"] <= 1
        assert t.figures["gpus_a100_sxm"] <= 1
    assert any(t.params["beside"] == SLOW.id for t in feasible)
    only = tune(traffic(), profiles=[FAST, SLOW], stock={"h200_sxm": 1}, objectives=["energy"],
                sampler="grid", search=["replicas=1:2"], trials=4, allow_backlog=True,
                fix=["max_num_seqs", "max_num_batched_tokens"])  # fmt: skip
    assert only.excluded[SLOW.id] == "one server needs 1 a100_sxm, and none in stock (--stock)"
    with pytest.raises(ScenarioError, match="'b200' is no type of GPU that a profile"):
        mixes(stock={"b200": 1})
    with pytest.raises(ScenarioError, match="'b200' is no type of GPU that a profile"):
        mixes(constraints=["gpus_b200<=1"])


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (["beside_replicas=1:2"], "beside_replicas is given without beside"),
        (["beside=h100_sxm/x/y"], "beside 'h100_sxm/x/y' is not among the profiles"),
        ([f"beside={SLOW.id}", "beside_replicas=0:2"], "beside_replicas is"),
    ],
)
def test_a_second_pool_that_is_not_allowed(search: list[str], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        mixes(search=search)


def test_figures_are_those_of_simulate(exhaustive: TuneResult) -> None:
    point = exhaustive.front[len(exhaustive.front) // 2]
    p = point.params
    profile = next(x for x in profiles() if x.id == p["profile"])
    result = simulate(
        traffic(),
        profile,
        replicas=p["replicas"],
        options=EngineOptions(
            max_num_seqs=p["max_num_seqs"],
            max_num_batched_tokens=p["max_num_batched_tokens"],
            long_prefill_token_threshold=p["long_prefill_token_threshold"],
        ),
    )
    assert point.figures["energy_j"] == result.energy_j
    assert point.values[:2] == (  # type: ignore[index]
        result.statistic("ttft", "mean"),
        result.statistic("tpot", "mean"),
    )
    assert point.figures["usd_per_hour"] == 4.0 * p["replicas"]
    assert exhaustive.engine_options(point).resolve(profile).max_num_seqs == p["max_num_seqs"]
    command = exhaustive.serve_command(point)
    assert f"--max-num-seqs {p['max_num_seqs']} " in command


@pytest.mark.slow
def test_the_same_in_processes_on_dask_and_when_workers_die(
    dask_address: str, others: set[object]
) -> None:
    few: dict[str, Any] = {"trials": 24, "batch": 8, "profiles": profiles()[:2]}
    expected = run(**few).to_dict()
    killed: list[int] = []

    def kill(share: float, text: str) -> None:
        if not killed:
            for child in set(multiprocessing.active_children()) - others:
                assert isinstance(child.pid, int)
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    assert run(**few, jobs=2, progress=kill).to_dict() == expected
    assert killed
    assert run(**few, dask=dask_address).to_dict() == expected


def test_a_study_is_resumed_and_kept_apart(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"study": str(tmp_path / "tune.journal"), "profiles": profiles()[:2]}
    expected = run(trials=30, profiles=profiles()[:2])

    class Stop(BaseException):
        pass

    def stop(share: float, text: str) -> None:
        if text.startswith("17 of"):
            raise Stop

    with pytest.raises(Stop):
        run(trials=30, progress=stop, **kept)
    found = run(trials=30, resume=True, **kept)
    assert found.to_dict() == expected.to_dict()
    with pytest.raises(ScenarioError, match="another trace"):
        tune(
            traffic(31),
            profiles=profiles()[:2],
            objectives=OBJECTIVES,
            search=SEARCH,
            slos=["ttft:p99:1000"],
            study=kept["study"],
            resume=True,
        )


def test_infeasible_names_the_constraint_and_by_how_much() -> None:
    found = run(trials=20, slos=["ttft:p99:5", "tpot:p99:500"], constraints=["gpus<=3"])
    assert found.front == []
    least = min(t.figures["p99_ttft_ms"] for t in found.trials)
    reason = found.why_infeasible()
    assert reason.startswith("p99_ttft_ms<=5 is met by none")
    assert f"the best reached {least:.4g}" in reason
    assert "tpot" not in reason
    assert "gpus" not in reason
    with pytest.raises(InfeasibleError, match="p99_ttft_ms<=5"):
        found.pick()
    assert found.to_dict()["infeasible"] == reason


def test_constraints_that_exclude_each_other_say_so() -> None:
    sizes: dict[str, Any] = {
        "sampler": "grid",
        "search": ["replicas=1:6"],
        "fix": ["max_num_seqs", "max_num_batched_tokens"],
        "profiles": profiles()[:1],
    }
    grid = run(**sizes, slos=[])
    by_size = {t.params["replicas"]: t.figures for t in grid.trials}
    limit = (by_size[2]["p99_ttft_ms"] + by_size[3]["p99_ttft_ms"]) / 2
    found = run(**sizes, slos=[f"ttft:p99:{limit}"], constraints=["gpus<=2"])
    reason = found.why_infeasible()
    assert "never all at once" in reason
    over = by_size[2]["p99_ttft_ms"] / limit - 1
    assert f"{over * 100:.2g}% too much" in reason or "gpus<=2 with 3" in reason


def test_an_objective_over_nothing_fails_with_its_reason() -> None:
    single = Trace(np.arange(5.0), np.full(5, 100), np.ones(5, int))
    found = tune(single, profiles=profiles()[:1], objectives=["tpot", "energy"], trials=5)
    assert not any(t.complete for t in found.trials)
    assert "p99_tpot_ms is not defined" in found.why_infeasible()
    # as a limit it cannot be met: there is nothing to judge
    with pytest.raises(ScenarioError, match="nothing to judge"):
        tune(single, profiles=profiles()[:1], objectives=["energy"], slos=["tpot:p99:1"], trials=5)
    found = tune(single, profiles=profiles()[:1], objectives=["energy"],
                 constraints=["p99_tpot_ms<=1"], trials=5)  # fmt: skip
    assert not found.front
    assert "nothing known" in found.why_infeasible()


def test_profiles_that_cannot_serve_are_left_out_with_the_reason() -> None:
    small = make_profile(method="w4a8-fp8", num_gpu_blocks=64)
    found = run(trials=12, profiles=[*profiles(), small], min_quality=98)
    assert small.id in found.excluded
    text = " ".join(tune_text(found).split())
    assert "its low end must reach 98; " in text
    methods = {t.params["profile"].split("/")[2] for t in found.front}
    for method in methods:  # nothing is published of a made model; bf16 is 100 by definition
        status = "published" if method == "bf16" else "estimated"
        assert f"; {status}: " in text, method
    assert any("low end is below the floor" in why for why in found.excluded.values())
    assert not {t.params["profile"] for t in found.trials} & set(found.excluded)
    with pytest.raises(ScenarioError, match=r"no profile is left.*low end is below"):
        run(profiles=profiles()[2:3], min_quality=99.9)


def test_options_that_do_not_suit_fail_their_trial_only() -> None:
    found = run(trials=20, search=["num_gpu_blocks_override=200,4000"], slos=[])
    failed = [t for t in found.trials if not t.complete]
    assert failed
    assert all(t.params["num_gpu_blocks_override"] == 200 for t in failed)
    assert all("max_model_len" in t.reason for t in failed)
    assert found.front


def test_what_resolves_to_the_same_is_simulated_once() -> None:
    found = run(
        sampler="grid",
        profiles=profiles()[:1],
        slos=[],
        search=["replicas=1,2", "max_num_seqs=16", "router=random,vllm"],
        fix=["max_num_batched_tokens"],
    )
    assert len(found.trials) == 4
    assert len(found.distinct) == 3, "one replica needs no router"


def test_pick_takes_what_it_says(exhaustive: TuneResult) -> None:
    front = exhaustive.front
    values = exhaustive.minimised(front)
    cheapest = exhaustive.pick("min energy")
    assert cheapest.values is not None
    assert cheapest.values[2] == values[:, 2].min()
    some = exhaustive.pick("gpus<=4 and quality>=99")
    allowed = [t for t in front if t.figures["gpus"] <= 4 and t.figures["quality"] >= 99]
    assert some.number == allowed[0].number, "the best in the first objective"
    slowest = exhaustive.pick("method!=bf16, max mean_ttft_ms")
    assert slowest.figures["mean_ttft_ms"] == max(
        t.figures["mean_ttft_ms"] for t in front if "bf16" not in t.params["profile"]
    )
    knee = exhaustive.pick()
    assert knee.number in {t.number for t in front}
    with pytest.raises(InfeasibleError, match=r"quality>=101 holds for 0 of \d+ \(best 9"):
        exhaustive.pick("quality>=101 and gpus<=9")
    with pytest.raises(ScenarioError, match="did you mean"):
        exhaustive.pick("p99_tfft_ms<=3")
    with pytest.raises(ScenarioError, match="was not measured"):
        exhaustive.pick("p42_ttft_ms<=3")


@pytest.mark.slow
def test_importances_add_up_and_say_when_they_are_not_known(exhaustive: TuneResult) -> None:
    for importance in exhaustive.importances:
        assert sum(importance.shares.values()) == pytest.approx(1.0)
    assert exhaustive.importances[2].shares["replicas"] > 0.1
    fixed = run(trials=10, objectives=["quality", "energy"], profiles=profiles()[:1])
    assert fixed.importances[0].reason == "it was the same in every trial"
    assert fixed.importances[1].shares


def test_the_shipped_profiles_by_the_public_name() -> None:
    trace = qsim.load_trace("azure-conv-2023:duration=5,rate=10")
    found = qsim.tune(
        trace, "llama-3.1-8b", trials=15, objectives=["latency", "cost", "carbon"], region="DEU",
        methods=["bf16", "fp8-w8a8"],
    )  # fmt: skip
    assert found.pick("min cost").params["replicas"] == 1
    assert found.front[0].figures["gco2e_per_1k_output_tokens"] > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"objectives": ["speed"]}, "figure 'speed' is unknown"),
        ({"objectives": ["energy", "energy"]}, "given twice"),
        ({"objectives": []}, "no objective"),
        ({"objectives": ["carbon"]}, "needs a region"),
        ({"objectives": ["goodput"], "slos": []}, "need SLOs"),
        ({"constraints": ["gpus<8"]}, "must be <= or >="),
        ({"constraints": ["gpus<=8 or gpus>=2"]}, "joined by and"),
        ({"search": ["max_seqs=3"]}, "did you mean max_num_seqs"),
        ({"search": ["replicas=0:3"]}, "whole numbers >= 1"),
        ({"search": ["router=best"]}, "router is 'best'"),
        ({"search": ["profile=x/y/z"]}, "not among those"),
        ({"search": ["replicas=1,2", "replicas=3"]}, "twice"),
        ({"fix": ["max_num_seqs"]}, "give it once"),
        ({"fix": ["router=random,vllm"]}, "must be one value"),
        ({"search": ["method=gptq-w8a16"]}, "no profile is left"),
        ({"options": EngineOptions(max_num_seqs=3)}, "give it once"),
        ({"profiles": [make_profile(gpu="b200_sxm")], "objectives": ["cost"]}, "no price"),
        ({"max_replicas": 0}, "max_replicas"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        run(**wrong)
