from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.optimize.plan import headroom
from qsim.optimize.search import drive
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask
from qsim.optimize.tune.arguments import parse_limits
from qsim.profiles.schema import Profile
from qsim.quality.recovery import recovery
from qsim.quality.tasks import DEFAULT_MIX
from qsim.report.figures.results import plan_figure
from qsim.report.text.plan import plan_text
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ["ttft:p99:5000"]
MODEL = "llama-3.1-8b"


def burst(n: int = 10) -> Trace:
    return Trace(np.arange(n) * 0.1, np.full(n, 200), np.full(n, 20))


def made(*methods: str) -> list[Profile]:
    return [make_profile(model=MODEL, method=m) for m in methods]


def measured(profile: Profile, recovery_pct: float) -> Profile:
    entry = {
        "score_pct": 0.77 * recovery_pct, "stderr_pct": 1.0, "metric": "acc", "version": 1,
        "num_fewshot": 5,
        "items": 1000, "lm_eval_task": "gsm8k", "baseline_pct": 77.0, "baseline_stderr_pct": 1.0,
        "recovery_pct": recovery_pct, "recovery_stderr_pct": 0.1, "paired": True,
    }  # fmt: skip
    quality: dict[str, Any] = {
        "schema": "qsim-quality/1", "method": profile.identity.method, "served_model": "mine",
        "date": "2026-11-20", "harness": {"name": "lm-eval", "version": "0.4.9"},
        "baseline": {"served_model": "b", "date": "2026-11-20", "harness_version": "0.4.9",
                     "source": "b.json"},
        "tasks": {"gsm8k": entry},
    }  # fmt: skip
    return replace(profile, quality=quality)


def test_every_candidate_carries_its_recovery_on_the_mix() -> None:
    mix = {"gsm8k": 0.25, "mmlu": 0.75}
    answer = plan(burst(), profiles=made("bf16", "awq-w4a16"), slos=SLOS, tasks=mix)
    by = {c.method: c.quality for c in answer.candidates}
    assert by["awq-w4a16"] == recovery(MODEL, "awq-w4a16", mix)
    assert by["bf16"] is not None
    assert (by["bf16"].low_pct, by["bf16"].mean_pct, by["bf16"].high_pct) == (100, 100, 100)
    data = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert data["quality"]["tasks"] == mix
    awq = next(c["quality"] for c in data["candidates"] if c["method"] == "awq-w4a16")
    assert awq["low_pct"] < awq["mean_pct"] < awq["high_pct"] < 101
    assert awq["status"] == "published"
    assert awq["sources"]
    assert [t["task"] for t in awq["tasks"]] == ["gsm8k", "mmlu"]


def test_the_default_mix_is_stated_and_text_is_taken_too() -> None:
    answer = plan(burst(), profiles=made("bf16"), slos=SLOS)
    assert answer.to_dict()["quality"]["tasks"] == DEFAULT_MIX
    text = " ".join(plan_text(answer).split())
    assert "mmlu:0.2,gsm8k:0.2,humaneval:0.2,ifeval:0.2,arc-c:0.2" in text
    assert "~" not in text, "nothing is estimated, so no mark needs explaining"
    one = plan(burst(), profiles=made("bf16"), slos=SLOS, tasks="gsm8k:3,mmlu:7")
    assert one.to_dict()["quality"]["tasks"] == {"gsm8k": 0.3, "mmlu": 0.7}


def test_an_estimate_is_marked_in_the_table_and_hollow_in_the_picture() -> None:
    answer = plan(burst(), profiles=made("bf16", "awq-w4a16"), slos=SLOS)
    rows = [r for r in plan_text(answer).splitlines() if "w4a16 " in r or "bf16 " in r]
    text = "\n".join(rows)
    q = next(c.quality for c in answer.candidates if c.method == "awq-w4a16")
    assert q is not None
    assert f"~{q.mean_pct:.1f} ({q.low_pct:.1f}-{q.high_pct:.1f})" in text
    assert " 100.0 (100.0-100.0)" in text
    assert "; ~ estimated: " in " ".join(plan_text(answer).split())
    dots = [line for line in plan_figure(answer).axes[3].lines if line.get_marker() == "o"]
    faces = {float(d.get_xdata()[0]): d.get_markerfacecolor() for d in dots}
    assert faces[q.mean_pct] == "white"
    assert faces[100.0] != "white"


def test_below_the_floor_it_is_infeasible_and_never_simulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    run_fleet = drive.run_fleet

    def spy(task: FleetTask) -> FleetOutcome:
        ran.append(task.profile.identity.method)
        return run_fleet(task)

    for module in (drive, headroom):
        monkeypatch.setattr(module, "run_fleet", spy)
    awq = recovery(MODEL, "awq-w4a16")
    assert awq.low_pct < 96 < awq.mean_pct, "the floor must lie between low end and mean"
    answer = plan(burst(), profiles=made("bf16", "awq-w4a16"), slos=SLOS, min_quality=96)
    assert set(ran) == {"bf16"}
    behind_best = answer.candidates[-1]
    assert (behind_best.method, behind_best.feasible, behind_best.evaluations) == (
        "awq-w4a16",
        False,
        (),
    )
    for part in (f"{awq.mean_pct:.2f} ({awq.low_pct:.2f} to {awq.high_pct:.2f}", "floor of 96"):
        assert part in behind_best.reason
    kept = plan(burst(), profiles=made("awq-w4a16"), slos=SLOS, min_quality=awq.low_pct)
    assert kept.best is not None, "a low end equal to the floor is not below it"


def test_with_every_method_below_the_floor_nothing_is_recommended() -> None:
    answer = plan(burst(), profiles=made("awq-w4a16"), slos=SLOS, min_quality=100)
    assert answer.best is None
    assert "floor of 100" in plan_text(answer)
    assert plan(burst(), profiles=made("bf16"), slos=SLOS, min_quality=100).best is not None


def test_a_measurement_of_ones_own_goes_first() -> None:
    own = measured(made("awq-w4a16")[0], 99.5)
    (c,) = plan(burst(), profiles=[own], slos=SLOS, tasks="gsm8k", min_quality=99).candidates
    assert c.feasible
    assert c.quality is not None
    assert c.quality.status == "measured"
    assert c.quality.mean_pct == pytest.approx(99.5)
    (c,) = plan(burst(), profiles=[own], slos=SLOS, tasks="gsm8k,humaneval").candidates
    assert c.quality is not None
    assert c.quality.status == "estimated", "of the mix, one task is not measured"


def test_a_method_of_ones_own_has_no_quality_and_fails_any_floor() -> None:
    own = made("my-w3a16")
    answer = plan(burst(), profiles=own, slos=SLOS)
    assert answer.best is not None
    assert answer.best.quality is None
    assert "; - not known" in " ".join(plan_text(answer).split())
    (c,) = plan(burst(), profiles=own, slos=SLOS, min_quality=50).candidates
    assert "quality is not known for this method" in c.reason


@pytest.mark.parametrize("floor", [0, -1, 49.9, 100.5, float("nan"), float("inf"), True, "98"])
def test_the_floor_must_be_a_percentage(floor: Any) -> None:
    with pytest.raises(ScenarioError, match=r"min_quality is .*must be from 50 to 100, percent"):
        plan(burst(), profiles=made("bf16"), slos=SLOS, min_quality=floor)


@pytest.mark.parametrize(
    ("floor", "meant"),
    [(0.98, "a share of 0.98 is 98"), (1, "a share of 1 is 100"),
     (2, "if 2 points may be lost, that is 98")],
)  # fmt: skip
def test_a_share_or_a_loss_is_told_what_it_would_be(floor: float, meant: str) -> None:
    with pytest.raises(ScenarioError, match=f"kept; {meant}"):
        plan(burst(), profiles=made("bf16"), slos=SLOS, min_quality=floor)
    with pytest.raises(ScenarioError, match=f"quality is .*kept; {meant}"):
        parse_limits((), [f"quality>={floor}"])
    assert parse_limits((), ["quality>=98", "quality<=1"])


def test_an_unknown_task_names_near_ones() -> None:
    with pytest.raises(ScenarioError, match="'gsm8k'"):
        plan(burst(), profiles=made("bf16"), slos=SLOS, tasks="gsm8:1")
