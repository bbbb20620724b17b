"""A fleet that finishes less than arrives misses its SLOs, wherever fleets are judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.optimize.plan.detail import FEW, LITTLE, DetailWanted, fleet_sensitivity
from qsim.optimize.plan.headroom import find_headroom
from qsim.optimize.plan.planning import plan
from qsim.optimize.schedule.capacity import CapacityTask, measure_capacity
from qsim.optimize.schedule.scheduling import schedule
from qsim.optimize.schedule.tasks import WindowTask, run_window
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.fleet_task import FleetTask, run_fleet
from qsim.optimize.search.measures import measure_fleet
from qsim.optimize.sweep.sweeping import sweep
from qsim.optimize.tune.tuning import tune
from qsim.report.text.plan import plan_text
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.results.slo import parse_slos
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

PROFILE = make_profile(decode_ms=15.0)
OPTIONS = EngineOptions(max_num_seqs=8)
LOOSE = "ttft:p95:60000"
NO_DETAIL = DetailWanted(replications=0)


def traffic(rate: float, duration_s: float = 12.0, outputs: int = 20, seed: int = 3) -> Trace:
    """Poisson arrivals; a server with eight seats finishes about 20 a second."""
    rng = np.random.default_rng(seed)
    n = round(rate * duration_s)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        rng.integers(50, 300, n),
        rng.integers(outputs // 2, outputs * 3 // 2, n),
    )


def task(trace: Trace, replicas: int = 1, **changed: object) -> FleetTask:
    base = FleetTask(
        trace, PROFILE, replicas, parse_slos([LOOSE]), OPTIONS, "least-requests", 0, "error"
    )
    return replace(base, **changed)


@pytest.fixture(scope="module")
def finished_rps() -> float:
    """What one server finishes of too much."""
    load = task(traffic(80.0, 60.0)).simulate().load
    assert load.finished_rps is not None
    return load.finished_rps


@pytest.fixture(scope="module")
def short(finished_rps: float) -> Trace:
    """Twelve seconds of 1.7 times as much as a server finishes."""
    return traffic(1.7 * finished_rps)


def test_a_plan_takes_the_fleet_that_keeps_up_whatever_the_length(
    short: Trace, finished_rps: float
) -> None:
    one = run_fleet(task(short))
    assert all(s.met for s in one.slos), "the SLO alone would take one server"
    assert not one.met
    assert str(one.binding.slo) == "backlog"
    assert one.binding.ratio == pytest.approx(1.7, rel=0.15)
    for trace in (short, traffic(1.7 * finished_rps, 60.0)):
        arguments = {"profiles": [PROFILE], "options": OPTIONS, "slos": [LOOSE]}
        found = plan(trace, **arguments, headroom=False, detail=NO_DETAIL)
        assert found.best is not None
        assert found.best.replicas == 2
        told = found.to_dict()["candidates"][0]
        assert told["load"]["verdict"] == "sustained"
        assert [e["load"] for e in told["evaluations"]] == ["overloaded", "sustained"]
        allowed = plan(trace, **arguments, headroom=False, detail=NO_DETAIL, allow_backlog=True)
        assert allowed.best is not None
        assert allowed.best.replicas == 1
        assert "overloaded" in " ".join(plan_text(allowed).split())
    small = plan(short, **arguments, max_replicas=1, headroom=False, detail=NO_DETAIL)
    assert small.best is None
    assert "overloaded: " in small.candidates[0].reason
    assert "backlog" in small.nearest_misses


def test_head_room_ends_where_the_fleet_stops_keeping_up(short: Trace, finished_rps: float) -> None:
    with open_executor(1) as executor:
        room = find_headroom(executor, task(short, 2))
        assert room.broken is not None
        assert str(room.broken.binding.slo) == "backlog"
        assert 1.0 <= room.speed < 1.4
        assert "overloaded" in room.text()
        free = find_headroom(executor, task(short, 2, allow_backlog=True))
        assert free.speed > 2 * room.speed


def test_sensitivity_looks_at_the_backlog_of_fleets_that_missed_before(short: Trace) -> None:
    tight = task(short, 2, slos=parse_slos(["ttft:p95:1500"]))
    with open_executor(1) as executor:
        known = [run_fleet(replace(tight, replicas=n)) for n in (1, 2)]
        limit = known[0].slos[0].value_ms * 0.9
        tight = replace(tight, slos=parse_slos([f"ttft:p95:{limit}"]))
        known = [run_fleet(replace(tight, replicas=n)) for n in (1, 2)]
        found = fleet_sensitivity(executor, tight, known, 8)
    looser = next(s for s in found if s.factor > 1)
    assert looser.replicas == 2  # the SLO would take one server


def test_a_burst_is_judged_by_its_slos_alone() -> None:
    batch = Trace(np.zeros(200), np.full(200, 100), np.full(200, 20))
    found = run_fleet(task(batch))
    assert found.load is not None
    assert found.load.verdict == "burst"
    assert found.met


def test_sweep_and_tune_tell_and_exclude_overload(short: Trace) -> None:
    base = {"trace": short, "profile": PROFILE, "max_num_seqs": 8}
    rows = sweep(base, {"replicas": [1, 2]}, slos=[LOOSE]).to_rows()
    assert [r["slos_met"] for r in rows] == [False, True]
    assert rows[0]["overload"] == pytest.approx(1 - 1 / 1.7, abs=0.1)
    assert rows[1]["overload"] == 0.0
    assert rows[0]["finished_rps"] > 0
    allowed = sweep({**base, "allow_backlog": True}, {"replicas": [1]}, slos=[LOOSE]).to_rows()
    assert allowed[0]["slos_met"] is True
    assert allowed[0]["overload"] == rows[0]["overload"]
    settings = {"profiles": [PROFILE], "options": OPTIONS, "objectives": ["cost", "latency"],
                "search": ["replicas=1:3"], "sampler": "grid", "slos": [LOOSE]}  # fmt: skip
    found = tune(short, **settings)
    assert {t.params["replicas"]: t.feasible for t in found.trials} == {1: False, 2: True, 3: True}
    assert "overload<=0" in found.to_dict()["constraints"]
    assert all(t.feasible for t in tune(short, **settings, allow_backlog=True).trials)


def test_measures_are_numbers(short: Trace) -> None:
    figures = measure_fleet(task(short))
    assert 0.2 < (figures["overload"] or 0) < 0.7


def test_a_schedule_counts_only_what_servers_finish(short: Trace, finished_rps: float) -> None:
    pool = ServerPool(PROFILE, 4, options=OPTIONS)
    slos = parse_slos([LOOSE])
    capacity = measure_capacity(CapacityTask(short, pool, slos, 1))
    assert capacity.one_rps == pytest.approx(finished_rps, rel=0.2)
    free = measure_capacity(CapacityTask(short, pool, slos, 1, allow_backlog=True))
    assert free.one_rps > 1.5 * capacity.one_rps
    window = traffic(1.7 * finished_rps, 60.0)
    job = WindowTask(window, 0.0, 60.0, (pool,), (1,), slos)
    crowded, enough = run_window(job), run_window(replace(job, counts=(2,)))
    assert all(r <= 1 for r in crowded.ratios)
    assert crowded.overload > 0.2
    assert not crowded.met
    assert enough.met
    assert run_window(replace(job, allow_backlog=True)).met


@pytest.mark.parametrize("slo", ["tpot:p99:0.001", "itl:mean:5"])
def test_nothing_to_judge_is_refused_before_the_search(slo: str) -> None:
    single = Trace(np.arange(300.0), np.full(300, 100), np.ones(300, int))
    with pytest.raises(ScenarioError, match="nothing to judge"):
        plan(single, profiles=[PROFILE], slos=[slo])
    with pytest.raises(ScenarioError, match="nothing to judge"):
        tune(single, profiles=[PROFILE], slos=[slo], trials=2)
    if not slo.startswith("itl"):
        with pytest.raises(ScenarioError, match="nothing to judge"):
            schedule(single, profiles=[PROFILE], slos=[slo], window="1min")
        with pytest.raises(ScenarioError, match="nothing to judge"):
            plan(single, profiles=[PROFILE], goodput=["tpot:5"])
    rows = sweep({"trace": single, "profile": PROFILE}, {"replicas": [1]}, slos=[slo]).to_rows()
    assert (rows[0]["slos_met"], rows[0]["attainment"]) == (False, None)


def test_a_plan_says_that_requests_are_too_few_for_its_percentile() -> None:
    for n, few in ((100, True), (320, False)):
        trace = traffic(5.0, n / 5.0)
        found = plan(trace, profiles=[PROFILE], slos=["ttft:p99:1e5"], headroom=False)
        text = " ".join(plan_text(found).split())
        assert ("not enough requests to judge ttft:p99:100000" in text) == few
        told = found.to_dict()["candidates"][0]["slos"][0]
        assert told["met"] is (None if few else True)
    tuned = tune(traffic(5.0, 20.0), profiles=[PROFILE], slos=["ttft:p99:1e5"], trials=3)
    assert "299 are needed" in tuned.notes[0]


def _tied(**arguments: object) -> object:
    """Two methods that both take two GPUs; the first has less energy, the second more room."""
    lean = make_profile(method="fp8-w8a8", decode_ms=14.0)
    lean = replace(lean, power=replace(lean.power, busy_w=lean.power.idle_w + 10))
    quick = make_profile(method="int8-w8a8", decode_ms=12.0)
    return plan(
        traffic(34.0, 30.0), profiles=[lean, quick], options=OPTIONS,
        slos=["ttft:p95:400", "tpot:p95:40"], **arguments,
    )  # fmt: skip


def test_ties_go_to_the_fleet_with_more_room() -> None:
    found = _tied(detail=NO_DETAIL)
    first, second = found.candidates
    assert first.usd_per_hour == second.usd_per_hour
    assert first.metric("energy_j") > second.metric("energy_j")
    assert first.method == "int8-w8a8"
    assert first.carries > second.carries
    assert found.tie.decided_by == "headroom"
    assert found.headroom.speed == first.carries
    text = " ".join(plan_text(found).split())
    assert "head-room decided: int8-w8a8 carries" in text
    assert "times the traffic against fp8-w8a8 carries" in text
    quick = _tied(detail=NO_DETAIL, headroom=False)
    assert quick.best.method == "int8-w8a8"
    assert quick.best.carries is None  # nothing faster was simulated, so that nobody knows
    ratios = [c.outcome.binding.ratio for c in quick.candidates]
    assert ratios[0] < ratios[1]
    text = " ".join(plan_text(quick).split())
    assert (
        f"the distance to the limits decided: int8-w8a8 takes {ratios[0]:.1%} of its nearest limit "
        f"against fp8-w8a8 takes {ratios[1]:.1%} of its nearest limit (order: cost, confidence, "
        "the distance to the limits, energy"
    ) in text
    assert "head-room" not in text


def test_a_plan_shows_its_confidence_without_being_asked() -> None:
    found = _tied()
    assert found.detail.confidence is not None
    assert len(found.detail.confidence.runs) == FEW
    assert found.candidates[0].replications == (found.detail.confidence.met, FEW)
    text = plan_text(found)
    assert f"of {FEW} replications" in text
    assert "why not" not in text
    assert _tied(detail=NO_DETAIL, headroom=False).detail is None
    many = Trace(np.zeros(LITTLE + 1), np.full(LITTLE + 1, 20), np.ones(LITTLE + 1, int))
    large = plan(many, profiles=[PROFILE], slos=["ttft:p99:1e9"], headroom=False)
    assert large.detail is None
