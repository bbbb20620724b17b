from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.optimize.plan.detail import DetailWanted
from qsim.optimize.plan.profile_choice import Choice
from qsim.optimize.plan.result import Plan
from qsim.optimize.plan.setting_search import search_space
from qsim.optimize.search.study import StudySettings
from qsim.profiles.lookup import load_profile
from qsim.report.text.plan import plan_text
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.load import load_trace
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ("ttft:p99:250", "tpot:p99:16")
SPACE = ("max_num_seqs=48,512", "max_num_batched_tokens=1024,8192", "router=random,least-requests")
METHODS = ("fp8-w8a8", "awq-w4a16")


@pytest.fixture(scope="module")
def azure() -> Trace:
    return load_trace("azure-conv-2023:duration=5,rate=80,seed=2")


@pytest.fixture(scope="module")
def brute(azure: Trace) -> dict[tuple[Any, ...], tuple[int, float]]:
    """Replicas and energy of every setting's smallest fleet: all sizes simulated, from 1 up."""
    slos = [Slo.parse(s) for s in SLOS]
    found = {}
    for method in METHODS:
        profile = load_profile(f"h200_sxm/llama-3.1-8b/{method}")
        for seats in (48, 512):
            for budget in (1024, 8192):
                for router in ("random", "least-requests"):
                    for n in range(1, 13):
                        run = simulate(
                            azure, profile, replicas=n, router=router,
                            options=EngineOptions(
                                max_num_seqs=seats, max_num_batched_tokens=budget
                            ),
                        )  # fmt: skip
                        if all(s.met(run) for s in slos):
                            found[method, seats, budget, router] = (n, run.energy_j)
                            break
    return found


def searched(trace: Trace, objective: str, settings: StudySettings, **more: Any) -> Plan:
    return plan(
        trace, "llama-3.1-8b", methods=METHODS, slos=SLOS, objective=objective, search=SPACE,
        study=settings, headroom=False, router="round-robin", **more,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["cost", "energy"])
@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_never_worse_than_every_size_of_every_setting(
    azure: Trace, brute: dict[Any, tuple[int, float]], objective: str, sampler: str
) -> None:
    assert len({n for n, _ in brute.values()}) > 1, "the settings must matter"
    answer = searched(azure, objective, StudySettings(sampler, trials=40, seed=1))
    best = answer.best
    assert best is not None
    least = min(n if objective == "cost" else e for n, e in brute.values())
    assert (best.gpus if objective == "cost" else best.metric("energy_j")) <= least
    assert answer.search is not None
    every = sum(n for n, _ in brute.values())
    assert answer.search.simulations < every / 2, "lost settings are given up early"


def test_simulating_the_recommended_fleet_gives_the_plans_figures() -> None:
    trace = load_trace("azure-conv-2023:duration=5,rate=80,seed=1")
    answer = searched(trace, "energy", StudySettings("grid"))
    best = answer.best
    assert best is not None
    assert best.outcome is not None
    assert best.options.max_num_seqs is not None, "a setting of the search wins"
    run = simulate(
        trace, best.profile, replicas=best.replicas or 0, router=answer.router_of(best),
        options=best.options, seed=answer.settings["seed"],
    )  # fmt: skip
    assert run.summary() == best.outcome.summary
    text = " ".join(plan_text(answer).split())
    assert f"settings of {best.profile}: max_num_seqs {best.options.max_num_seqs}" in text
    assert f"--max-num-seqs {best.options.max_num_seqs} " in answer.serve_command()


# ---------------------------------------------------------------- quick ones, on a toy


def toy(**more: Any) -> Plan:
    rng = np.random.default_rng(4)
    trace = Trace(
        np.cumsum(rng.exponential(1 / 60, 120)),
        rng.integers(50, 2500, 120),
        rng.integers(1, 100, 120),
    )
    profiles = [make_profile(decode_ms=6.0), make_profile(method="fp8-w8a8", decode_ms=4.0)]
    given: dict[str, Any] = {
        "slos": ["ttft:p99:400", "tpot:p99:14"], "profiles": profiles, "headroom": False,
        "search": ["max_num_seqs=8,32,256", "max_num_batched_tokens"], **more,
    }  # fmt: skip
    return plan(trace, **given)


#: every one of a few settings
FEW: dict[str, Any] = {
    "search": ["max_num_seqs=8,256", "max_num_batched_tokens=2048,8192"],
    "study": StudySettings("grid"),
}


def tpe(trials: int = 8, **more: Any) -> StudySettings:
    return StudySettings("tpe", trials=trials, batch=4, **more)


def test_the_same_from_two_processes_and_after_an_interruption(tmp_path: Path) -> None:
    one, two = (toy(study=tpe(), jobs=j).to_dict() for j in (1, 2))
    assert one == two
    journal = str(tmp_path / "study.log")
    toy(study=tpe(5, storage=journal))
    later = toy(study=tpe(storage=journal, resume=True)).to_dict()
    for answer in (one, later):
        answer["search"].pop("simulations")  # those of the first run are not counted again
        for c in answer["candidates"]:
            c.pop("evaluations")
    assert later == one


def test_the_plan_without_a_search_is_never_better() -> None:
    plain, found = toy(search=()), toy(study=tpe(4))
    assert plain.best is not None
    assert found.best is not None
    assert found.best.rank("cost") <= plain.best.rank("cost")
    assert plain.search is None
    assert plain.to_dict()["search"] is None


def test_an_infeasible_start_does_not_end_the_search() -> None:
    options = EngineOptions(max_num_seqs=1)
    assert toy(search=(), options=options, max_replicas=12).best is None
    found = toy(options=options, max_replicas=12, **FEW).best
    assert found is not None
    assert found.options.max_num_seqs != 1


def test_budgets_hold_in_a_search_too() -> None:
    free = toy(**FEW).best
    assert free is not None
    n = free.gpus or 0
    assert n > 1
    enough = toy(**FEW, max_gpus=n).best
    assert enough is not None
    assert replace(enough, evaluations=()) == replace(free, evaluations=())
    assert toy(**FEW, max_gpus=n - 1).best is None
    kw = (free.metric("avg_power_w") or 0) / 1000
    tight = toy(**FEW, max_power_kw=kw * 0.7)
    if tight.best is not None:
        assert (tight.best.metric("avg_power_w") or math.inf) <= kw * 700


def test_settings_that_cannot_be_are_failed_trials_with_a_reason() -> None:
    answer = toy(
        search=["max_num_seqs=64,4096", "max_num_batched_tokens=2048"],
        study=StudySettings("grid"),
    )
    assert answer.search is not None
    failed = [r for r in answer.search.records if not r.complete]
    assert [r.params["max_num_seqs"] for r in failed] == [4096, 4096]
    assert "must be >= max_num_seqs 4096" in failed[0].reason
    json.dumps(answer.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (["replicas"], "search is 'replicas'|'replicas' does not parse"),
        (["seats=1,2"], "may be max_num_seqs"),
        (["router=magic"], "router is 'magic'"),
        (["max_num_seqs", "max_num_seqs=3,4"], "twice"),
    ],
)
def test_wrong_searches(search: list[str], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        search_space(search, [Choice(make_profile())], EngineOptions())


def test_a_study_needs_something_to_search() -> None:
    with pytest.raises(ScenarioError, match="nothing to search"):
        toy(search=(), study=tpe())


def test_profiles_below_the_quality_floor_are_not_searched() -> None:
    model = "llama-3.1-8b"
    profiles = [make_profile(model=model), make_profile(model=model, method="awq-w4a16")]
    answer = toy(profiles=profiles, min_quality=96, study=tpe(4), slos=["ttft:p99:4000"])
    assert answer.search is not None
    assert answer.search.space.to_dict()["profile"] == profiles[0].id
    assert replace(answer.candidates[-1]).method == "awq-w4a16"


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_plan(dask_address: str) -> None:
    wanted = DetailWanted(replications=3, sensitivity=True, bottlenecks=True)
    here, there = (
        toy(study=tpe(6), detail=wanted, **more) for more in ({}, {"dask": dask_address})
    )
    assert json.dumps(here.to_dict()) == json.dumps(there.to_dict())
