from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.optimize.plan.confidence import replicate
from qsim.optimize.plan.detail import DetailWanted, fleet_sensitivity
from qsim.optimize.plan.planning import plan
from qsim.optimize.plan.resample import Resample
from qsim.optimize.plan.what_if import (
    scaled_host,
    scaled_memory,
    scaled_times,
    stated_sigma,
    without_power_cap,
)
from qsim.optimize.search.executor import SerialExecutor
from qsim.optimize.search.fleet_task import FleetTask, run_fleet
from qsim.profiles.factors import FACTORS, Factors, apply
from qsim.profiles.schema import Adapted, Profile
from qsim.report.text.plan import plan_text
from qsim.sim.results.goodput import Goodput
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

SLOS = (Slo.parse("ttft:p99:400"), Slo.parse("tpot:mean:9"))
EXACT = make_profile(decode_ms=6.0)
UNSURE = replace(EXACT, fit_error={"worst_mean": 8.0, "worst_p99": 12.0})


def traffic() -> Trace:
    rng = np.random.default_rng(1)
    return Trace(
        np.cumsum(rng.exponential(1 / 60, 300)),
        rng.integers(50, 2500, 300),
        rng.integers(1, 150, 300),
    )


@dataclass(frozen=True)
class Same:
    """No other traffic."""

    def draw(self, seed: int) -> Trace:
        return traffic()

    def text(self) -> str:
        return "the same trace"


def task(profile: Profile = EXACT, replicas: int = 3, **more: Any) -> FleetTask:
    base = FleetTask(traffic(), profile, replicas, SLOS, EngineOptions(), "round-robin", 0, "error")
    return replace(base, **more)


def test_all_times_scaled_is_the_same_run_in_slow_motion() -> None:
    slow = scaled_times(EXACT, 1.5)
    trace = traffic()
    stretched = replace(trace, arrival_s=trace.arrival_s * 1.5)
    one, other = simulate(trace, EXACT), simulate(stretched, slow)
    gap = EXACT.host.gpu_gap_ms  # stays
    assert gap < 0.01
    assert other.ttft_ms == pytest.approx(one.ttft_ms * 1.5, rel=0.02)
    assert other.tpot_ms[one.output_tokens > 5] == pytest.approx(
        one.tpot_ms[one.output_tokens > 5] * 1.5, rel=0.02
    )
    assert scaled_times(EXACT, 1.0) == EXACT
    assert scaled_host(EXACT, 1.0) == EXACT
    assert scaled_host(EXACT, 0.5).latency == EXACT.latency
    # how full a step makes the queue of launches is no time
    full = make_profile(launch_queue=(1.3, 0.1))
    for changed in (scaled_host(full, 0.5), scaled_times(full, 1.5)):
        assert changed.host.launch_eager_queue == [1.3, 0.1]
        assert changed.host.launch_eager_ms != full.host.launch_eager_ms


def test_without_a_power_cap_nothing_slows_down() -> None:
    capped = make_profile(throttle=0.5)
    free = without_power_cap(capped)
    assert simulate(traffic(), free).duration_s < simulate(traffic(), capped).duration_s
    assert simulate(traffic(), free).duration_s == simulate(traffic(), make_profile()).duration_s


def test_replications_that_change_nothing_agree_with_the_plan() -> None:
    outcome = run_fleet(task())
    found = replicate(SerialExecutor(), task(), Same(), 3, machines=False)
    assert found.sigma == 0
    assert found.met == (3 if outcome.met else 0)
    for run in found.runs:
        assert run.goals == {str(g.slo): g.ratio for g in outcome.goals}
    assert "states no error" in found.text()[-1]


def test_each_replication_is_what_a_simulation_of_it_says() -> None:
    resampling = Resample(traffic())
    fleet = task(UNSURE, 3, router="power-of-two")
    found = replicate(SerialExecutor(), fleet, resampling, 8, machines=False)
    assert found.sigma == stated_sigma(UNSURE) == 0.08
    assert 0 < found.met < 8, "some must be met and some missed"
    assert len({r.factor for r in found.runs}) == 8
    for run in found.runs:
        assert run.kv_factor == 1
        again = simulate(
            resampling.draw(run.number), scaled_times(UNSURE, run.factor), replicas=3,
            router="power-of-two", seed=run.number,
        )  # fmt: skip
        assert run.met == all(s.met(again) for s in SLOS)
    assert sum(found.missed().values()) >= 8 - found.met
    behind_best = {r.number: r for r in found.runs if not r.met}
    assert {r.number for r in found.exact} == {n for n, r in behind_best.items() if r.factor > 1}
    assert all(r.factor == 1 for r in found.exact)
    assert [r.number for r in found.more] == [r.number for r in found.runs]
    assert {r.replicas for r in found.more} == {4}
    assert f"3 replicas meet every SLO in {found.met} of 8 replications" in found.text()[0]
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_wider_error_is_drawn_wider() -> None:
    wide = replace(UNSURE, fit_error={"worst_mean": 16.0})
    narrow_runs, wide_runs = (
        replicate(SerialExecutor(), task(p), Same(), 4, machines=False).runs for p in (UNSURE, wide)
    )
    for a, b in zip(narrow_runs, wide_runs, strict=True):
        assert b.factor - 1 == pytest.approx(2 * (a.factor - 1))


def test_a_transferred_profile_is_unsure_of_its_memory_too() -> None:
    from qsim.profiles.schema import Transfer

    transfer = Transfer(["h200_sxm/toy-1b/bf16"], ["a table"], {"decode": 20.0, "kv_tokens": 40.0})
    identity = replace(UNSURE.identity, source="transferred")
    guessed = replace(
        make_profile(num_gpu_blocks=400), transfer=transfer, identity=identity,
        fit_error={"worst_mean": 20.0},
    )  # fmt: skip
    resampling = Resample(traffic())
    found = replicate(SerialExecutor(), task(guessed, 3), resampling, 6, machines=False)
    assert (found.sigma, found.kv_sigma) == (0.2, 0.4)
    for run in found.runs:
        profile = scaled_memory(scaled_times(guessed, run.factor), run.kv_factor)
        assert profile.memory.num_gpu_blocks == max(2, round(400 * max(0.1, run.kv_factor)))
        trace = resampling.draw(run.number)
        if trace.prompt_tokens.max() >= (profile.memory.num_gpu_blocks - 1) * 16:
            assert not run.met, "a prompt that does not fit is no run that meets the SLOs"
            continue
        again = simulate(trace, profile, replicas=3, router="round-robin", seed=run.number)
        assert run.met == all(s.met(again) for s in SLOS)
    assert "of the transferred profile times 1 + e, e of 20.0%" in found.text()[0]
    answer = plan(traffic(), profiles=[guessed], slos=["ttft:p99:5000"], headroom=False)
    text = " ".join(plan_text(answer).split())
    assert "* ~bf16" in text
    assert "~ before a profile: not measured itself, but transferred" in text
    assert "h200_sxm/toy-1b/bf16 is transferred, not measured" in text
    measured = plan(traffic(), profiles=[UNSURE], slos=["ttft:p99:5000"], headroom=False)
    assert "transferred" not in plan_text(measured)


@pytest.mark.parametrize("count", [0, 2.5, True])
def test_wrong_counts(count: Any) -> None:
    with pytest.raises(ScenarioError, match="replications is"):
        replicate(SerialExecutor(), task(), Same(), count)


def test_sensitivity_is_what_a_plan_with_the_other_limit_finds() -> None:
    answer = plan(traffic(), profiles=[EXACT], slos=SLOS, headroom=False)
    best = answer.best
    assert best is not None
    fleet = task(replicas=best.replicas or 0, router="least-requests")
    found = fleet_sensitivity(SerialExecutor(), fleet, best.evaluations, 128)
    assert [(s.goal, s.factor) for s in found] == [(str(s), f) for s in SLOS for f in (0.8, 1.2)]
    for s in found:
        slos = [
            replace(o, limit_ms=o.limit_ms * (s.factor if str(o) == s.goal else 1)) for o in SLOS
        ]
        other = plan(traffic(), profiles=[EXACT], slos=slos, headroom=False).best
        assert s.replicas == (other.replicas if other else None), s
    assert len({s.replicas for s in found}) > 1


def test_sensitivity_of_a_goodput_changes_its_limits() -> None:
    goal = Goodput((("ttft", 300.0), ("tpot", 9.0)), 0.95)
    fleet = task(replicas=3, slos=(), goodput=goal, router="least-requests")
    tight, loose = fleet_sensitivity(SerialExecutor(), fleet, (), 128)
    for s in (tight, loose):
        limits = [f"{m}:{ms * s.factor}" for m, ms in goal.limits]
        other = plan(
            traffic(), profiles=[EXACT], goodput=limits, min_goodput=0.95, headroom=False
        ).best
        assert s.replicas == (other.replicas if other else None)


def test_a_plan_tells_its_detail_the_same_from_two_processes() -> None:
    wanted = DetailWanted(replications=4, sensitivity=True, bottlenecks=True)
    answers = [
        plan(traffic(), profiles=[UNSURE], slos=SLOS, headroom=False, detail=wanted, jobs=j)
        for j in (1, 2)
    ]
    one, two = (json.dumps(a.to_dict(), allow_nan=False) for a in answers)
    assert one == two
    detail = answers[0].detail
    assert detail is not None
    assert detail.confidence is not None
    assert detail.sensitivity
    assert detail.shares is not None
    assert detail.changes is not None
    none = plan(traffic(), profiles=[UNSURE], slos=["tpot:p99:0.1"], detail=wanted)
    assert none.detail is None


#: prefills of its machine are known by a quarter
WIDE = [1.0, math.exp(-1.645 * 0.25), math.exp(1.645 * 0.25)]
DOUBTFUL = replace(
    EXACT,
    adapted=Adapted(
        "p", [], ["a load"],
        {n: WIDE if n == "compute" else [1.0, 1.0, 1.0] for n in FACTORS},
    ),
)  # fmt: skip


def sure(share: float, **more: Any) -> Any:
    given: dict[str, Any] = {"profiles": [DOUBTFUL], "slos": SLOS, "headroom": False, **more}
    return plan(traffic(), detail=DetailWanted(replications=8, min_confidence=share), **given)


def test_the_fleet_grows_until_enough_replications_meet_the_limits() -> None:
    plain = plan(traffic(), profiles=[DOUBTFUL], slos=SLOS, headroom=False).best
    assert plain is not None
    n = plain.replicas or 0
    resampling = Resample(traffic())
    fleet = task(DOUBTFUL, n, router="least-requests")
    sizes = range(n, n + 4)
    met = [
        replicate(SerialExecutor(), replace(fleet, replicas=k), resampling, 8).met for k in sizes
    ]
    assert met[0] < 8, "there must be something to do"
    enough = next(k for k, m in zip(sizes, met, strict=True) if m >= 8)
    answer = sure(1.0)
    best = answer.best
    assert (best.replicas, best.grown_from) == (enough, n)
    assert answer.detail.confidence.met == 8
    assert (
        best.outcome.summary
        == run_fleet(replace(fleet, replicas=enough, router="least-requests")).summary
    )
    easy = sure(max(met[0], 1) / 8)
    if met[0]:
        assert (easy.best.replicas, easy.best.grown_from) == (n, None)


def test_growing_past_another_candidate_changes_the_best() -> None:
    plain = plan(traffic(), profiles=[DOUBTFUL], slos=SLOS, headroom=False).best
    n = plain.replicas or 0 if plain else 0
    certain = make_profile(method="fp8-w8a8", gpu="h100_sxm", decode_ms=2.0)
    other = plan(traffic(), profiles=[certain], slos=SLOS, headroom=False).best
    k = other.replicas or 0 if other else 0
    prices = {"h200_sxm": 1.0, "h100_sxm": (n + 0.5) / k}  # between n and n + 1 of the first
    answer = sure(1.0, profiles=[DOUBTFUL, certain], prices=prices)
    assert answer.best.profile == certain.id
    assert answer.candidates[1].grown_from == n
    assert answer.detail.confidence.runs[0].replicas == k


def test_too_sure_for_the_budget() -> None:
    plain = plan(traffic(), profiles=[DOUBTFUL], slos=SLOS, headroom=False).best
    n = plain.replicas or 0 if plain else 0
    for limit in ({"max_gpus": n}, {"max_replicas": n}):
        (short,) = sure(1.0, **limit).candidates
        assert not short.feasible
        assert f"{n} replicas meet every SLO in " in short.reason
        assert short.shortfall.constraint == (
            "max_gpus" if "max_gpus" in limit else "min_confidence"
        )


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"min_confidence": 0.9}, "replications is 0"),
        ({"min_confidence": 1.1, "replications": 5}, "min_confidence is 1.1"),
        ({"min_confidence": True, "replications": 5}, "min_confidence is True"),
    ],
)
def test_wrong_confidence(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        DetailWanted(**wanted)


@pytest.mark.parametrize(
    ("slo", "judged", "says"),
    [
        ("ttft:p99:60000", 3, "replicas meet every SLO in 3 of 3 replications"),
        ("ttft:p99.9:60000", 0, "replicas are within every limit in 3 of 3 replications"),
    ],
)
def test_replications_of_too_few_requests_do_not_meet_an_slo(
    slo: str, judged: int, says: str
) -> None:
    found = replicate(SerialExecutor(), task(slos=(Slo.parse(slo),)), Same(), 3)
    text = " ".join(found.text())
    assert (found.met, found.judged, found.to_dict()["judged"]) == (3, judged, judged)
    assert says in text
    assert ("3 of the 3 had too few requests to judge every SLO" in text) == (not judged)


def test_replications_are_on_machines_as_known_ones_differ() -> None:
    fleet = task(UNSURE, 3)
    found = replicate(SerialExecutor(), fleet, Same(), 4)
    assert (found.machines, found.sigma) == ("known", 0.0)
    assert all(r.factor == 1 for r in found.runs)
    assert len({r.machine for r in found.runs}) == 4
    for run in found.runs:
        again = simulate(
            traffic(), apply(UNSURE, run.machine), replicas=3, router="round-robin", seed=run.number
        )
        ttft = again.statistic("ttft", "p99")
        assert run.goals["ttft:p99:400"] == pytest.approx(ttft / 400)
    assert "on machines drawn as known ones differ" in found.text()[0]
    assert found.to_dict()["runs"][0]["machine"]["memory"] > 0
    assert all(r.machine == Factors() for r in found.exact)
    known = {n: [1.0, 1.0, 1.0] for n in FACTORS}
    adapted = replace(UNSURE, adapted=Adapted("p", [], ["a load"], known))
    found = replicate(SerialExecutor(), task(adapted, 3), Same(), 2)
    assert found.machines == "adapted"
    for run in found.runs:
        assert run.machine.values() == pytest.approx([1.0] * len(FACTORS), abs=0.001)


def test_the_best_fleet_shows_what_it_may_be_on_another_machine() -> None:
    close = (Slo.parse("ttft:p99:400"), Slo.parse("tpot:p95:9"))
    answer = plan(traffic(), profiles=[EXACT], slos=close, headroom=False)
    ranges = answer.range_90
    assert {"p99_ttft_ms", "p95_tpot_ms", "joules_per_output_token"} <= ranges.keys()
    assert answer.to_dict()["machines"]["range_90"] == ranges
    text = " ".join(plan_text(answer).split())
    assert "machine: on yours it may have (90%) TTFT p99" in text
    missed = [str(s) for s in close if ranges[f"{s.statistic}_{s.metric}_ms"][1] > s.limit_ms]
    for slo in map(str, close):
        assert (slo in text.partition("machine:")[2].partition("may be missed")[0]) == (
            slo in missed
        )
