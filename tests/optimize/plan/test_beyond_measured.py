"""Nothing beyond the measured range is recommended unless it is asked for, and then it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import ScenarioError
from qsim.optimize.plan.detail import DetailWanted
from qsim.optimize.plan.what_if import changes_of
from qsim.optimize.schedule.scheduling import schedule
from qsim.optimize.search.fleet_task import FleetTask
from qsim.optimize.search.study import StudySettings
from qsim.optimize.tune.tuning import tune
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ("e2el:p99:60000",)


def measured(method: str = "bf16", rows: int = 40, tokens: int = 4096, **more: Any) -> Profile:
    profile = make_profile(method=method, num_gpu_blocks=60_000, **more)
    return replace(profile, measured_range={"step_requests": [1, rows], "step_tokens": [1, tokens]})


def crowd(n: int = 200) -> Trace:
    """More requests at once than were measured."""
    return Trace(np.linspace(0, 0.5, n), np.full(n, 500), np.full(n, 100), name="crowd")


def test_a_plan_keeps_to_the_measured_batch_and_budget() -> None:
    found = plan(crowd(), profiles=[measured()], slos=SLOS)
    best = found.best
    assert best is not None
    assert best.engine is not None
    assert (best.engine.max_num_seqs, best.engine.max_num_batched_tokens) == (40, 4096)
    assert best.options.to_dict() == {"max_num_seqs": 40, "max_num_batched_tokens": 4096}
    assert best.outcome is not None
    beyond = best.outcome.summary["beyond_measured"]
    assert beyond["step_share"] == 0
    assert max(r["peak_running"] for r in best.outcome.summary["replicas"]) == 40
    assert "--max-num-seqs 40 --max-num-batched-tokens 4096" in found.serve_command(best)
    assert best.caution == ""


def test_a_plan_may_go_beyond_if_asked_and_says_what_it_rests_on() -> None:
    found = plan(crowd(), profiles=[measured()], slos=SLOS, beyond_measured=True)
    best = found.best
    assert best is not None
    assert best.engine is not None
    assert best.engine.max_num_seqs == 1024
    assert best.outcome is not None
    assert best.outcome.summary["beyond_measured"]["step_share"] > 0.5
    assert "measured up to 40 requests a step" in best.caution
    assert best.to_dict()["caution"] == best.caution


def test_what_is_asked_for_beyond_the_range_is_refused() -> None:
    for options, words in (
        (EngineOptions(max_num_seqs=41), "max_num_seqs is 41; .* up to 40 requests a step"),
        (EngineOptions(max_num_batched_tokens=4097), "is 4097; .* up to 4096 tokens a step"),
    ):
        with pytest.raises(ScenarioError, match=rf"{words}: lower it, or give --beyond-measured"):
            plan(crowd(), profiles=[measured()], slos=SLOS, options=options)
        assert plan(
            crowd(), profiles=[measured()], slos=SLOS, options=options, beyond_measured=True
        ).best
    # of two profiles the one that was measured so far is left
    found = plan(
        crowd(),
        profiles=[measured(), measured("fp8-w8a8", rows=100)],
        slos=SLOS,
        options=EngineOptions(max_num_seqs=100),
    )
    assert found.best is not None
    assert found.best.method == "fp8-w8a8"
    assert "--beyond-measured" in found.candidates[-1].reason


def test_the_usual_values_of_a_search_are_within_the_range() -> None:
    grid = StudySettings("grid", trials=100, seed=0)
    found = plan(
        crowd(), profiles=[measured(rows=140)], slos=SLOS, study=grid, headroom=False,
        search=["max_num_seqs", "max_num_batched_tokens"],
    )  # fmt: skip
    assert found.search is not None
    tried = found.search.space.decisions
    assert tried["max_num_seqs"].grid() == (32, 64, 128)
    assert tried["max_num_batched_tokens"].grid() == (1024, 2048, 4096)
    for text in ("max_num_seqs=64,141", "max_num_batched_tokens=1024:8192"):
        with pytest.raises(ScenarioError, match="the profiles were measured up to"):
            plan(crowd(), profiles=[measured(rows=140)], slos=SLOS, search=[text])


def test_a_tuning_keeps_to_the_range_of_each_profile() -> None:
    given: dict[str, Any] = {
        "profiles": [measured(rows=64), measured("fp8-w8a8", rows=200)],
        "objectives": ["throughput", "gpus"],
        "sampler": "grid",
        "trials": 200,
        "search": ["replicas=1,2"],
    }
    found = tune(crowd(), **given)
    assert found.front
    for trial in found.trials:
        rows = 64 if "bf16" in trial.params["profile"] else 200
        assert trial.params["max_num_seqs"] <= 128
        assert not (trial.complete and trial.params["max_num_seqs"] > rows)
        if trial.complete:
            assert trial.figures["beyond_measured"] == 0
            assert found.caution(trial) == ""
    with pytest.raises(ScenarioError, match="max_num_seqs is to be searched up to 256"):
        tune(crowd(), **{**given, "search": ["replicas=1,2", "max_num_seqs=64,256"]})
    with pytest.raises(ScenarioError, match="max_num_seqs is to be searched up to 256"):
        tune(crowd(), **given, fix=["max_num_seqs=256"])
    wide = tune(crowd(), **given, beyond_measured=True)
    most = [t for t in wide.trials if t.params["max_num_seqs"] == 1024]
    assert all(t.complete for t in most)
    assert any(t.figures["beyond_measured"] for t in most)
    assert all("measured up to" in wide.caution(t) for t in most)


def test_a_what_if_does_not_go_beyond() -> None:
    task = FleetTask(crowd(), measured(rows=500), 1, (), EngineOptions(within_measured=True),
                     "round-robin", 0, "error")  # fmt: skip
    names = [c.name for c in changes_of(task)]
    assert not [n for n in names if n.startswith("max_num_")]
    free = replace(task, options=EngineOptions())
    assert any(n.startswith("max_num_seqs") for n in [c.name for c in changes_of(free)])
    # and so in a plan that tells where the time goes
    told = plan(
        crowd(), profiles=[measured()], slos=SLOS, detail=DetailWanted(bottlenecks=True)
    ).detail
    assert told is not None
    assert "max_num_seqs 80" not in json.dumps(told.to_dict())


def test_a_schedule_keeps_to_the_range() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    trace = Trace(np.sort(rng.uniform(0, 1200, n)), np.full(n, 300), np.full(n, 60), name="t")
    given: dict[str, Any] = {
        "profiles": [measured()], "slos": ["e2el:p99:60000"], "window": "10min", "policies": (),
        "trials": 1, "max_replicas": 4,
    }  # fmt: skip
    found = schedule(trace, **given)
    assert found.choices[0].pool.options.to_dict()["max_num_seqs"] == 40
    with pytest.raises(ScenarioError, match="--beyond-measured"):
        schedule(trace, **given, options=EngineOptions(max_num_seqs=64))


@pytest.mark.parametrize("command", ["plan", "tune", "schedule"])
def test_commands_have_the_option(command: str) -> None:
    text = CliRunner().invoke(main, [command, "--help"]).stdout
    assert "--beyond-measured" in text


def test_shipped_profiles_say_how_far_they_were_measured() -> None:
    args = ["plan", "azure-conv-2023:duration=20,rate=5", "--model", "llama-3.1-8b", "--method",
            "fp8-w8a8", "--slo", "ttft:p99:2000", "--no-headroom"]  # fmt: skip
    done = CliRunner().invoke(main, [*args, "--max-num-batched-tokens", "16384"])
    assert done.exit_code != 0
    assert "measured up to 8192 tokens a step" in done.stderr
    done = CliRunner().invoke(
        main, [*args, "--max-num-batched-tokens", "16384", "--beyond-measured"]
    )
    assert done.exit_code == 0
    assert "rests on whole tiles" in " ".join(done.stdout.split())
    done = CliRunner().invoke(main, [*args, "--json", "-"])
    best = json.loads(done.stdout)["candidates"][0]
    assert best["beyond_measured"]["step_share"] == 0
    assert best["options"]["max_num_seqs"] <= 600
