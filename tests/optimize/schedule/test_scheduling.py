"""Schedules of small traces: against brute force, static plans, floors and limits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import yaml

import qsim
from qsim.errors import InfeasibleError, ScenarioError
from qsim.optimize.economics.carbon import CarbonSeries
from qsim.optimize.schedule.capacity import CapacityTask, measure_capacity
from qsim.optimize.schedule.export import cron_triggers, export_schedule
from qsim.optimize.schedule.problem import PoolChoice, labelled, parse_window
from qsim.optimize.schedule.result import Schedule
from qsim.optimize.schedule.scheduling import POLICIES, schedule
from qsim.optimize.schedule.tasks import RunTask, WindowTask, run_policy, run_window
from qsim.profiles.schema import Profile
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.fleet.policy import Constant
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.results.slo import parse_slos
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

# two seats: a server carries a few requests a second
SLOW = make_profile(model="llama-3.1-8b", method="bf16", decode_ms=30.0, max_num_seqs=2)
FAST = make_profile(model="llama-3.1-8b", method="fp8-w8a8", decode_ms=20.0, max_num_seqs=2)
SLOS = ["ttft:p90:400"]
QUICK = Lifecycle(start_s=20.0, stop_s=2.0)


def traffic(rates: list[float], window_s: float = 120.0, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    at = [
        k * window_s + np.sort(rng.uniform(0, window_s, round(r * window_s)))
        for k, r in enumerate(rates)
    ]
    n = sum(len(a) for a in at)
    return Trace(
        np.concatenate(at), rng.integers(200, 1500, n), rng.integers(2, 40, n), name="made-up"
    )


def solve(trace: Trace, **kwargs: object) -> Schedule:
    settings: dict[str, object] = {
        "slos": SLOS, "window": "2min", "policies": (), "trials": 1, "lifecycle": QUICK,
        "profiles": [FAST], "max_replicas": 4,
    }  # fmt: skip
    return schedule(trace, **{**settings, **kwargs})  # type: ignore[arg-type]


RATES = [1.0, 4.0, 6.0, 1.5]


@cache
def varied() -> Schedule:
    return solve(traffic(RATES), profiles=(SLOW, FAST), policies=POLICIES, trials=2, max_replicas=6)


@pytest.mark.slow
def test_every_policy_is_run_under_the_same_slos_and_the_timetable_is_the_cheapest() -> None:
    found = varied()
    names = [r.name for r in found.results]
    assert names[:2] == ["static bf16", "static fp8-w8a8"]
    assert names[2:] == ["reactive", "predictive", "consolidation", "mixed precision", "optimized"]
    n = len(found.problem.trace)
    for r in found.results:
        assert sum(r.run.requests) == n
        assert r.met == all(max(row) <= 1 for row in r.run.window_ratios)
        assert r.totals["energy_j"] == pytest.approx(sum(r.run.window_energy_j), rel=1e-3)
    assert found.best.met
    static = found.results[1]
    assert static.met
    assert found.saving("static fp8-w8a8") == pytest.approx(1 - found.best.value / static.value)
    assert found.best.value < static.value
    # quality of a mixed fleet is that of the requests as they were routed
    mixed = found.results[-2]
    assert mixed.quality is not None
    assert found.results[0].quality is not None
    assert found.results[1].quality is not None
    share = mixed.run.requests[0] / n
    want = share * 100 + (1 - share) * found.results[1].quality.mean_pct
    assert mixed.quality.mean_pct == pytest.approx(want)


def test_the_timetable_is_no_worse_than_any_other_by_brute_force() -> None:
    """All fleets in all windows are simulated; the best sequence costs what the search found."""
    trace = traffic(RATES)
    found = solve(trace)
    limits = parse_slos(SLOS)
    window_s = found.problem.window_s
    pool = replace(found.choices[0].pool, replicas=4)
    outcome = {
        (t, n): run_window(WindowTask(trace, t * window_s, window_s, (pool,), (n,), limits))
        for t in range(4)
        for n in range(1, 5)
    }
    start = found.problem.start_worth(found.choices[0], 0)
    best = min(
        sum(outcome[t, n].energy_j for t, n in enumerate(path))
        + start * sum(max(0, b - a) for a, b in itertools.pairwise(path))
        for path in itertools.product(range(1, 5), repeat=4)
        if all(outcome[t, n].met for t, n in enumerate(path))
    )
    path = [row[0] for row in found.counts]
    own = sum(outcome[t, n].energy_j for t, n in enumerate(path))
    own += start * sum(max(0, b - a) for a, b in itertools.pairwise(path))
    assert all(outcome[t, n].met for t, n in enumerate(path))
    assert own == pytest.approx(best)


def test_constant_traffic_gives_the_static_plan() -> None:
    trace = traffic([4.0, 4.0, 4.0])
    found = solve(trace, policies=("static",))
    static = found.results[0]
    servers = static.params["servers"]
    assert found.counts == ((servers,),) * 3
    assert found.best.run.starts == 0
    planned = qsim.plan(trace, profiles=[FAST], slos=SLOS, headroom=False)
    assert planned.best is not None
    assert servers == planned.best.replicas
    if found.pack == 0:
        assert found.best.value == pytest.approx(static.value)
    assert found.best.value <= static.value * (1 + 1e-9)


def test_pools_have_labels_of_their_own() -> None:
    def labels(*profiles: Profile) -> list[str]:
        pools = [ServerPool(p, 1, lifecycle=QUICK) for p in profiles]
        return [c.label for c in labelled([PoolChoice(p, None, None) for p in pools])]

    tp2 = replace(FAST, identity=replace(FAST.identity, tensor_parallel_size=2))
    h100 = replace(FAST, identity=replace(FAST.identity, gpu="h100_sxm"))
    other = replace(FAST, identity=replace(FAST.identity, model="qwen2.5-14b"))
    assert labels(SLOW, FAST) == ["bf16", "fp8-w8a8"]
    assert labels(FAST, tp2) == ["fp8-w8a8", "fp8-w8a8/tp2"]
    assert labels(FAST, h100) == ["h200_sxm/fp8-w8a8", "h100_sxm/fp8-w8a8"]
    assert labels(SLOW, other) == ["llama-3.1-8b/bf16", "qwen2.5-14b/fp8-w8a8"]
    assert labels(FAST, FAST, SLOW) == ["fp8-w8a8 (1)", "fp8-w8a8 (2)", "bf16"]


@pytest.mark.slow
def test_a_quality_floor_is_held_by_the_requests_as_routed() -> None:
    free = varied()
    assert free.best.quality is not None
    low = free.best.quality.low_pct
    floor = round((low + 100) / 2, 2)
    held = solve(traffic(RATES), profiles=(SLOW, FAST), min_quality=floor)
    assert held.best.quality is not None
    assert held.best.quality.low_pct >= floor - 0.05
    assert held.best.value >= free.best.value
    assert any(row[0] for row in held.counts)


@pytest.mark.slow
def test_what_cannot_be_done_says_what_binds() -> None:
    trace = traffic(RATES)
    with pytest.raises(InfeasibleError, match=r"window 240-360 s .*ttft:p90:400|too few"):
        solve(trace, max_replicas=1)
    with pytest.raises(InfeasibleError, match="max_gpus 1"):
        solve(trace, max_gpus=1)
    with pytest.raises(InfeasibleError, match="no number of servers helps"):
        solve(trace, slos=["ttft:p90:5"])
    with pytest.raises(InfeasibleError, match=r"min_quality is 99.99; .* below it"):
        solve(trace, min_quality=99.99)


def test_mistakes_are_named() -> None:
    trace = traffic([2.0])
    for kwargs, text in (
        ({"slos": []}, "no SLO"),
        ({"slos": ["itl:p99:50"]}, "itl"),
        ({"objective": "joy"}, "objective is 'joy'"),
        ({"policies": ("magic",)}, r"policies\[0\] is 'magic'"),
        ({"objective": "carbon"}, "needs a grid"),
        ({"forecast": "day-before"}, "needs a first day"),
        ({"forecast_margin": 0.0}, "forecast_margin"),
        ({"max_gpus": 0}, "max_gpus is 0"),
        ({"window": "90s"}, "whole number of minutes"),
    ):
        with pytest.raises(ScenarioError, match=text):
            solve(trace, **kwargs)
    assert parse_window("10min") == 600.0
    assert parse_window("1h") == 3600.0
    assert parse_window(900) == 900.0


def test_carbon_counts_each_window_with_its_own_intensity() -> None:
    grid = CarbonSeries((400.0,))
    trace = traffic([1.0, 4.0])
    found = solve(trace, objective="carbon", grid=grid, pue=1.5)
    energy = found.best.totals["energy_j"]
    assert energy is not None
    assert found.best.totals["gco2e"] == pytest.approx(energy / 3.6e6 * 1.5 * 400.0, rel=1e-3)
    assert found.best.value == found.best.totals["gco2e"]


@pytest.mark.slow
def test_owned_gpus_are_paid_for_and_draw_power_when_off() -> None:
    trace = traffic([1.0, 4.0])
    free = solve(trace)
    owned = solve(trace, owned_gpus=3, off_w=80.0)
    on_s = sum(v for k, v in owned.best.run.state_s[0].items() if k != "off")
    off_j = 80.0 * (3 * owned.best.run.end_s - on_s)
    energy = owned.best.totals["energy_j"]
    assert energy == pytest.approx(owned.best.run.energy_j + off_j)
    assert owned.best.totals["gpu_hours"] == pytest.approx(3 * 240 / 3600, rel=1e-3)
    assert energy is not None
    assert energy > (free.best.totals["energy_j"] or 0.0)


@pytest.mark.slow
def test_a_plan_from_the_day_before_is_run_on_the_next() -> None:
    one = traffic([1.0, 5.0])
    day = np.concatenate([one.arrival_s, one.arrival_s + 86_400.0])
    n = len(one)
    trace = Trace(day, np.tile(one.prompt_tokens, 2), np.tile(one.output_tokens, 2))
    found = solve(trace, forecast="day-before", policies=("predictive",))
    assert found.forecast == "day-before"
    assert found.problem.margin == 1.15
    assert sum(found.best.run.requests) == n
    assert sum(found.results[0].run.requests) == n
    assert len(found.counts) == found.problem.windows == 2


@pytest.mark.slow
def test_the_same_in_two_processes_and_after_an_interruption(tmp_path: object) -> None:
    trace = traffic([1.0, 4.0])
    where = f"{tmp_path}/study.log"
    kwargs = {"policies": ("static", "reactive"), "trials": 2}
    first = solve(trace, study=where, **kwargs).to_dict()
    again = solve(trace, study=where, resume=True, **kwargs).to_dict()
    two = solve(trace, jobs=2, **kwargs).to_dict()
    assert first == again == two


def test_window_and_whole_trace_agree() -> None:
    """A fleet that does not change: energies of the windows add up to that of the whole."""
    trace = traffic([1.0, 4.0])
    pool = ServerPool(FAST, 2)
    limits = parse_slos(SLOS)
    run = run_policy(RunTask(trace, (pool,), Constant((2,)), limits, 120.0, 240.0))
    parts = [run_window(WindowTask(trace, t * 120.0, 120.0, (pool,), (2,), limits)) for t in (0, 1)]
    for part, energy, ratios in zip(parts, run.window_energy_j, run.window_ratios, strict=True):
        assert part.energy_j == pytest.approx(energy, rel=0.02)
        assert part.ratios[0] == pytest.approx(ratios[0], rel=0.02)
    assert sum(run.window_energy_j) == pytest.approx(run.energy_j, rel=1e-3)
    empty = run_window(WindowTask(trace, 6000.0, 120.0, (pool,), (2,), limits))
    assert empty.met
    assert empty.energy_j == pytest.approx(2 * 120.0 * FAST.power.idle_w)


def test_capacity_is_where_the_slo_breaks() -> None:
    trace = traffic([10.0], 120.0)
    limits = parse_slos(SLOS)
    found = measure_capacity(CapacityTask(trace, ServerPool(FAST, 1), limits, 3))
    rate = len(trace) / trace.duration_s
    first = replace(trace, arrival_s=trace.arrival_s - trace.arrival_s[0])
    for rps, met in ((found.one_rps, True), (found.one_rps * 1.05, False)):
        assert limits[0].met(simulate(first.speed(rps / rate), FAST)) is met
    assert found.many_rps >= found.one_rps
    assert found.of(2) == pytest.approx(
        2 * (found.one_rps + (found.many_rps - found.one_rps) * 0.75)
    )
    assert list(found.loads_rps) == sorted(found.loads_rps)


def test_exports_say_what_the_timetable_says() -> None:
    found = varied()
    rows = [line.split(",") for line in found.to_csv().splitlines()]
    assert rows[0][:2] == ["start_s", "end_s"]
    assert [tuple(map(int, r[2:4])) for r in rows[1:]] == list(found.counts)
    text = export_schedule(found, "kubernetes", week_day=1)
    assert text is not None
    objects = list(yaml.safe_load_all(text))
    kinds = [o["kind"] for o in objects]
    used = sum(any(row[k] for row in found.counts) for k in range(2))
    assert kinds.count("Deployment") == kinds.count("ScaledObject") == used


def test_cron_triggers_give_back_the_timetable() -> None:
    column = [1, 1, 3, 2, 0, 1]  # 6 h each: a day and a half from Saturday on
    triggers = cron_triggers(column, 21_600.0, 105.0, 6, "Europe/Berlin")
    spans = []
    for t in triggers:
        assert t["metadata"]["timezone"] == "Europe/Berlin"
        level = int(t["metadata"]["desiredReplicas"])
        ends = []
        for key in ("start", "end"):
            minute, hour, _, _, day = t["metadata"][key].split()
            ends.append(((int(day) - 6) % 7 * 24 + int(hour)) * 60 + int(minute))
        spans.append((level, *ends))
    week = 7 * 1440
    for t in range(len(column)):
        middle = t * 360 + 180
        active = [n for n, a, b in spans if (middle - a) % week < (b - a) % week]
        assert max(active, default=0) == column[t]
    assert (3, 720 - 2, 1080) in spans
    with pytest.raises(ScenarioError, match="8 days"):
        cron_triggers([1] * 8, 86_400.0, 105.0, 0, "Etc/UTC")
