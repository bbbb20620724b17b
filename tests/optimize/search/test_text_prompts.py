"""Text prompts in searches: figures are those of texts, and token ids are not taken for them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qsim
from qsim.errors import InfeasibleError, ScenarioError
from qsim.optimize.deploy.deployment import pools_of
from qsim.optimize.deploy.export import pools_scenario
from qsim.optimize.schedule.tasks import RunTask, WindowTask, run_policy, run_window
from qsim.optimize.study.studying import study_for
from qsim.optimize.sweep.sweeping import sweep
from qsim.optimize.tune.tuning import tune
from qsim.profiles.schema import ApiTimes
from qsim.report.text.plan import plan_text
from qsim.scenario import Scenario
from qsim.scenario.sections import Traffic
from qsim.sim.fleet.policy import Constant
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.results.slo import parse_slos
from qsim.sim.simulate import simulate
from qsim.traces import load_trace
from qsim.traces.trace import Trace
from tests.cli.helpers import qsim as command
from tests.make_profile import make_profile
from tests.optimize.study.test_studying import SMALL

PLAIN = make_profile(method="int8-w8a8")
#: 40 ms for 1,000 tokens of a text
TEXTS = make_profile(method="fp8-w8a8")
TEXTS = replace(
    TEXTS,
    frontend=replace(TEXTS.frontend, api=ApiTimes(0.5, 0.1, 40.0, 0.1, 0.01, 0.01, 4)),
)
SLOS = ["ttft:p90:500"]
UNTOLD = "prompts count as token ids: the profile does not tell"


def traffic(n: int = 200) -> Trace:
    return load_trace(f"azure-conv-2023:requests={n},rate=8", seed=3)


def ttft_ms(result: Any) -> float:
    return float(result.summary()["mean_ttft_ms"])


def test_a_plan(tmp_path: Path) -> None:
    trace = traffic()
    asked: dict[str, Any] = {"slos": SLOS, "headroom": False, "replications": 0}
    found = qsim.plan(trace, profiles=[TEXTS, PLAIN], text_prompts=True, **asked)
    one = {c.profile: c for c in found.candidates}
    outcome = one[TEXTS.id].outcome
    assert outcome is not None
    again = simulate(trace, TEXTS, replicas=outcome.replicas, text_prompts=True)
    assert outcome.summary == again.summary()
    assert ttft_ms(again) > ttft_ms(simulate(trace, TEXTS, replicas=outcome.replicas)) + 20
    assert found.settings["text_prompts"] is True
    text = " ".join(plan_text(found).split())
    assert f"{PLAIN.id}: {UNTOLD}" in text
    assert f"{TEXTS.id}: {UNTOLD}" not in text
    plain = qsim.plan(trace, profiles=[TEXTS, PLAIN], **asked)
    assert "text_prompts" not in plain.settings
    assert UNTOLD not in " ".join(plan_text(plain).split())
    # the fleet is exported for what it was planned for
    best = one[TEXTS.id]
    pools = pools_of(best, "least-requests")
    exported = pools_scenario(
        pools, Traffic(trace="burstgpt"), ["p.json"], found.slos, found.settings
    )
    assert exported.traffic.text_prompts


def test_a_plan_of_settings_is_not_gone_on_with_for_other_prompts(tmp_path: Path) -> None:
    from qsim.optimize.search.study import StudySettings

    def search(**more: Any) -> None:
        scenario = Scenario(
            traffic={"text_prompts": True, **more}, slos=SLOS,
            plan={"profiles": [TEXTS], "headroom": False, "replications": 0, "max_replicas": 2,
                  "search": {"max_num_seqs": [8, 64]}},
        )  # fmt: skip
        settings = StudySettings("grid", trials=2, storage=str(tmp_path / "s.journal"), resume=True)
        qsim.plan(scenario, traffic=traffic(60), study=settings)

    search()
    search()
    with pytest.raises(ScenarioError, match="begun with another text_prompts"):
        search(text_prompts=False)


def test_a_capacity_and_the_command_that_gives_it_again(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    TEXTS.save(path)
    preset = "azure-conv-2023:requests=300,rate=5"
    found = qsim.capacity(
        None, {"h200_sxm": 1}, preset, profiles=[str(path)], slos=SLOS, text_prompts=True,
        precision=0.2,
    )  # fmt: skip
    best = found.best
    assert best is not None
    assert best.best is not None
    words = shlex.split(best.simulate_command(found))
    assert "--text-prompts" in words
    result = command(*words[1:], "--machines", 0)
    assert result.exit_code == 0, result.output
    trace = load_trace(preset).speed(best.best.speed)
    again = simulate(trace, TEXTS, text_prompts=True)
    assert best.best.outcome.summary == again.summary()
    told = f"{again.summary()['mean_ttft_ms']:.4g}"
    assert told.rstrip("0") in result.stdout
    plain = qsim.capacity(
        None, {"h200_sxm": 1}, preset, profiles=[str(path)], slos=SLOS, precision=0.2
    )
    assert plain.best is not None
    assert "--text-prompts" not in plain.best.simulate_command(plain)
    ids, texts = plain.best.rate_rps(plain.traffic), best.rate_rps(found.traffic)
    assert ids is not None
    assert texts is not None
    assert ids > texts


def test_a_curve() -> None:
    trace = traffic()
    found = qsim.curve([TEXTS], trace, rates=[4.0], slos=SLOS, text_prompts=True)
    (row,) = [r for r in found.rows() if r["rate_rps"] == pytest.approx(4.0, rel=0.01)]
    again = simulate(trace.speed(row["speed"]), TEXTS, text_prompts=True)
    assert row["mean_ttft_ms"] == again.summary()["mean_ttft_ms"]
    assert found.to_dict()["settings"]["text_prompts"] is True


def test_a_sweep_and_its_journal(tmp_path: Path) -> None:
    trace = traffic(60)
    journal = tmp_path / "runs.jsonl"

    def rows(**more: Any) -> Any:
        base = {"trace": trace, "profile": TEXTS, **more}
        return sweep(base, {"replicas": [1, 2]}, journal=journal, resume=True)

    ids, texts = rows().to_rows(), rows(text_prompts=True).to_rows()
    for n, a, b in zip((1, 2), ids, texts, strict=True):
        assert a["mean_ttft_ms"] == ttft_ms(simulate(trace, TEXTS, replicas=n))
        assert b["mean_ttft_ms"] == ttft_ms(simulate(trace, TEXTS, replicas=n, text_prompts=True))
    assert len(journal.read_text().splitlines()) == 4
    assert rows(text_prompts=True).to_rows() == texts
    assert len(journal.read_text().splitlines()) == 4
    # varied
    found = sweep({"trace": trace, "profile": TEXTS}, {"text_prompts": [True, False]})
    assert [r["mean_ttft_ms"] for r in found.to_rows()] == [
        texts[0]["mean_ttft_ms"],
        ids[0]["mean_ttft_ms"],
    ]
    assert found.notes == ()
    found = sweep({"trace": trace, "profile": PLAIN}, {"text_prompts": [True, False]})
    assert len({r["mean_ttft_ms"] for r in found.to_rows()}) == 1
    assert [UNTOLD in note for note in found.notes] == [True]
    assert PLAIN.id in found.notes[0]


def test_a_tuning(tmp_path: Path) -> None:
    trace = traffic(60)
    asked: dict[str, Any] = {
        "profiles": [TEXTS, PLAIN], "objectives": ["mean_ttft_ms", "energy"], "trials": 4,
        "batch": 2, "max_replicas": 2, "study": str(tmp_path / "t.journal"), "resume": True,
    }  # fmt: skip
    found = tune(trace, text_prompts=True, **asked)
    for trial in found.trials:
        pool = found.pools(trial)[0]
        profile = TEXTS if pool.profile == TEXTS.id else PLAIN
        again = simulate(
            trace, profile, replicas=pool.replicas, text_prompts=True,
            options=found.engine_options(trial), router=pool.router,
        )  # fmt: skip
        assert trial.figures["mean_ttft_ms"] == again.summary()["mean_ttft_ms"]
    assert any(PLAIN.id in note and UNTOLD in note for note in found.notes)
    with pytest.raises(ScenarioError, match="begun with another text_prompts"):
        tune(trace, **asked)


def test_a_schedule() -> None:
    trace = traffic(100)
    pool, slos = ServerPool(TEXTS, 1), parse_slos(["ttft:mean:1000"])
    ids, texts = (
        run_policy(
            RunTask(trace, (pool,), Constant((1,)), slos, 60.0, 60.0, text_prompts=are_texts)
        ).ratios[0]
        for are_texts in (False, True)
    )
    assert texts * 1000 == pytest.approx(ttft_ms(simulate(trace, TEXTS, text_prompts=True)))
    assert texts > ids + 0.02
    ids, texts = (
        run_window(
            WindowTask(trace, 0.0, 60.0, (pool,), (1,), slos, text_prompts=are_texts)
        ).ratios[0]
        for are_texts in (False, True)
    )
    assert texts > ids + 0.02
    told = {"slos": ["ttft:p90:100"], "window": "1min", "policies": (), "trials": 1}
    found = qsim.schedule(
        trace,
        profiles=[PLAIN],
        text_prompts=True,
        **{**told, "slos": SLOS},  # type: ignore[arg-type]
    )
    assert any(UNTOLD in note for note in found.notes)
    # tokenizing alone takes longer than this allows
    assert qsim.schedule(trace, profiles=[TEXTS], **told).counts  # type: ignore[arg-type]
    with pytest.raises(InfeasibleError):
        qsim.schedule(trace, profiles=[TEXTS], text_prompts=True, **told)  # type: ignore[arg-type]


def test_a_study(tmp_path: Path) -> None:
    paths = [str(tmp_path / "texts.json"), str(tmp_path / "plain.json")]
    TEXTS.save(paths[0])
    PLAIN.save(paths[1])
    asked = Scenario(
        traffic={"text_prompts": True},
        study={"profiles": paths, "levels": ["application"], "applications": ["code"]},
    )
    journal = tmp_path / "runs.jsonl"
    texts = study_for(asked, sizes=SMALL, journal=journal)
    assert "--text-prompts" in texts.command
    ids = study_for(
        asked.updated({"traffic.text_prompts": False}), sizes=SMALL, journal=journal, resume=True
    )
    assert "--text-prompts" not in ids.command
    for found, count in ((texts, 1), (ids, 0)):
        assert sum(PLAIN.id in n and UNTOLD in n for n in found.notes) == count
    pairs = [(a, b) for a, b in zip(texts.runs.values(), ids.runs.values(), strict=True)]
    assert pairs
    for a, b in pairs:
        assert "--text-prompts" in a.command
        later = (a.values["mean_ttft_ms"] or 0) > (b.values["mean_ttft_ms"] or 0)
        assert later == (a.profile == TEXTS.id)
