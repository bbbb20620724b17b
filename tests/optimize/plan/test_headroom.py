from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.optimize.plan.headroom import (
    MOST,
    Headroom,
    find_headroom,
    headroom_search,
    headroom_steps,
)
from qsim.optimize.plan.result import Plan
from qsim.optimize.search.drive import drive
from qsim.optimize.search.executor import SerialExecutor
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask
from qsim.report.text.plan import plan_text
from qsim.sim.results.slo import Slo, SloOutcome
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ("ttft:p99:400", "tpot:mean:9")


def traffic(n: int = 150) -> Trace:
    rng = np.random.default_rng(1)
    return Trace(
        np.cumsum(rng.exponential(1 / 60, n)),
        rng.integers(50, 2500, n),
        rng.integers(1, 150, n),
    )


def fleet(value_ms: float) -> FleetOutcome:
    slo = Slo.parse("ttft:p99:100")
    return FleetOutcome(1, {}, (SloOutcome(slo, value_ms),), None, {})


def search(guess: float, breaks_at: float) -> tuple[Headroom, list[float]]:
    """Run a search on a fleet that misses its SLO from ``breaks_at`` on."""
    speeds: list[float] = []
    steps = headroom_search(guess)
    speed = next(steps)
    while True:
        speeds.append(speed)
        try:
            speed = steps.send(fleet(200 if speed >= breaks_at else 50))
        except StopIteration as stop:
            return stop.value, speeds


@given(st.floats(0.1, 200), st.floats(1.0001, 63.9))
def test_the_break_is_found_to_two_percent(guess: float, breaks_at: float) -> None:
    found, speeds = search(guess, breaks_at)
    assert found.broken_speed is not None
    assert 1 <= found.speed < breaks_at <= found.broken_speed
    assert found.broken_speed / found.speed <= 1.02 + 1e-6
    assert found.simulations == len(speeds) == len(set(speeds)) <= 20


@given(st.floats(0.1, 200))
def test_what_never_breaks_is_tried_up_to_the_limit(guess: float) -> None:
    found, speeds = search(guess, np.inf)
    assert (found.speed, found.broken_speed) == (MOST, None)
    assert max(speeds) == MOST
    assert "still meets every SLO with arrivals 64 times as fast" in found.text()
    assert found.to_dict()["breaks_first"] is None


@pytest.fixture(scope="module")
def answer() -> Plan:
    return plan(traffic(), profiles=[make_profile(decode_ms=6.0)], slos=SLOS)


def test_the_fleet_carries_what_was_told_and_no_more(answer: Plan) -> None:
    spare, best = answer.headroom, answer.best
    assert spare is not None
    assert best is not None
    assert spare.broken_speed is not None
    assert (best.replicas or 0) > 1
    slos = [Slo.parse(s) for s in SLOS]
    for speed, holds in ((spare.speed, True), (spare.broken_speed, False)):
        run = simulate(
            traffic().speed(speed), make_profile(decode_ms=6.0), replicas=best.replicas or 1
        )
        assert all(s.met(run) for s in slos) == holds
    told = json.loads(json.dumps(answer.to_dict(), allow_nan=False))["headroom"]
    assert told["speed"] == spare.speed
    assert told["breaks_first"] in [m["slo"] for m in told["missed"]]
    text = " ".join(plan_text(answer).split())
    assert f"head-room: carries {(spare.speed - 1) * 100:.1f}% more traffic" in text


def test_the_same_from_two_processes(answer: Plan) -> None:
    profiles = [make_profile(decode_ms=6.0), make_profile(method="fp8-w8a8", decode_ms=50.0)]
    one, two = (plan(traffic(), profiles=profiles, slos=SLOS, jobs=j) for j in (1, 2))
    assert one.headroom == two.headroom == answer.headroom


def test_it_can_be_left_out_and_needs_a_fleet(answer: Plan) -> None:
    without = plan(traffic(), profiles=[make_profile(decode_ms=6.0)], slos=SLOS, headroom=False)
    assert without.headroom is None
    assert without.to_dict()["headroom"] is None
    assert "head-room" not in plan_text(without)
    assert without.candidates == answer.candidates
    assert replace(without, headroom=answer.headroom).to_dict() == answer.to_dict()
    nothing = plan(traffic(20), profiles=[make_profile()], slos=["tpot:p99:0.1"])
    assert nothing.headroom is None


class Recorder(SerialExecutor):
    """Runs tasks at once, and says that it could run several."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.speeds: list[float] = []

    def submit(self, fn, /, *args, **kwargs):
        self.speeds.append(1 / args[0].trace.duration_s)
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("replicas", [1, 3])
def test_looking_ahead_changes_no_answer(replicas: int) -> None:
    slos = tuple(Slo.parse(s) for s in SLOS)
    task = FleetTask(
        traffic().speed(0.2 * replicas), make_profile(decode_ms=6.0), replicas, slos,
        EngineOptions(), "least-requests", 0, "error",
    )  # fmt: skip
    one, two = Recorder(1), Recorder(2)
    alone, ahead = find_headroom(one, task), find_headroom(two, task)
    assert alone.to_dict() == ahead.to_dict()
    assert alone.broken_speed is not None
    assert len(one.speeds) == alone.simulations > 3
    assert set(one.speeds) < set(two.speeds), "it looked at no speed ahead"
    assert len(two.speeds) == len(set(two.speeds)), "a speed was simulated twice"
    slower = replace(task, trace=task.trace.speed(0.7))
    together = Recorder(2)
    both = drive(together, [headroom_steps(task), headroom_steps(slower)], ["", ""])
    assert [h.to_dict() for h in both] == [
        alone.to_dict(), find_headroom(Recorder(1), slower).to_dict()
    ]  # fmt: skip
    assert len(together.speeds) == sum(h.simulations for h in both), "one that nobody asked for"


@pytest.mark.parametrize("n", [1, 40])
def test_requests_that_all_arrive_at_once_have_no_headroom(n: int) -> None:
    trace = Trace(np.zeros(n), np.full(n, 200), np.full(n, 20))
    found = plan(trace, profiles=[make_profile()], slos=["ttft:mean:60000"])
    assert found.headroom == Headroom(1.0, None, None, 0)
    two = [make_profile(method=m) for m in ("fp8-w8a8", "int8-w8a8")]
    tied = plan(trace, profiles=two, slos=["ttft:mean:60000"])
    assert tied.headroom == found.headroom
    assert [c.carries for c in tied.candidates] == [1.0, 1.0]
    assert "head-room: not to be told, as all requests arrive at the same time" in " ".join(
        plan_text(found).split()
    )
