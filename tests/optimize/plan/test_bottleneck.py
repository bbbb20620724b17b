from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qsim.optimize.plan.bottleneck import busiest_requests, time_shares
from qsim.optimize.plan.result import behind_best
from qsim.optimize.plan.what_if import changes_of, what_if
from qsim.optimize.search.executor import SerialExecutor
from qsim.optimize.search.fleet_task import FleetTask
from qsim.profiles.schema import Profile
from qsim.report.text.plan import why_not_best
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import constant_profile, make_profile
from tests.optimize.plan.plain import plan

SLOS = (Slo.parse("ttft:p99:400"), Slo.parse("tpot:p99:12"))


def traffic(n: int = 200, rate: float = 60.0) -> Trace:
    rng = np.random.default_rng(1)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        rng.integers(50, 2500, n),
        rng.integers(1, 150, n),
    )


def task(profile: Profile, trace: Trace | None = None, **options: Any) -> FleetTask:
    return FleetTask(
        traffic() if trace is None else trace, profile, 2, SLOS, EngineOptions(**options),
        "round-robin", 0, "error",
    )  # fmt: skip


def test_one_request_in_constant_steps_of_a_synchronous_engine() -> None:
    trace = Trace(np.array([0.0, 1.0]), np.array([100, 100]), np.array([11, 11]))
    fleet = replace(task(constant_profile(10.0), trace, async_scheduling=False), replicas=1)
    shares = time_shares(fleet)
    # 110 ms of steps, idle to 1 s, 110 ms again: one step of each is prefill, ten are decode
    total = 1.11
    assert shares.time["decode"] == pytest.approx(0.2 / total)
    assert shares.time["prefill"] == pytest.approx(0.02 / total)
    assert shares.time["idle"] == pytest.approx(0.89 / total)
    assert shares.time["host"] == shares.time["power_cap"] == 0
    assert sum(shares.waiting.values()) == 0


@pytest.mark.parametrize(
    "profile",
    [make_profile(), make_profile(throttle=0.5), make_profile(launch_ms=5.0, decode_ms=1.0)],
    ids=["plain", "capped", "host-bound"],
)
def test_shares_are_all_of_the_time_and_the_busy_time_is_the_meters(profile: Profile) -> None:
    shares = time_shares(task(profile))
    assert sum(shares.time.values()) == pytest.approx(1.0)
    assert all(v >= 0 for v in shares.time.values())
    run = simulate(traffic(), profile, replicas=2, router="round-robin")
    busy = sum(r["busy_s"] for r in run.replica_stats) / (2 * run.duration_s)
    on_gpu = shares.time["prefill"] + shares.time["decode"] + shares.time["power_cap"]
    # where the GPU waits for a launch, its span is the meter's busy time and the host's account
    assert on_gpu <= busy + 1e-9
    assert busy <= on_gpu + shares.time["host"] + 1e-9


def test_each_limit_shows_up_in_its_account() -> None:
    plain = time_shares(task(make_profile()))
    assert plain.time["power_cap"] == 0
    capped = time_shares(task(make_profile(throttle=0.5)))
    assert capped.time["power_cap"] > 0.05
    slow_host = time_shares(task(make_profile(launch_ms=8.0, decode_ms=1.0)))
    assert slow_host.time["host"] > 0.3 > plain.time["host"]
    long_prompts = Trace(np.arange(50) * 0.1, np.full(50, 6000), np.full(50, 2))
    assert time_shares(task(make_profile(), long_prompts)).largest == "prefill"
    long_answers = Trace(np.arange(50) * 0.1, np.full(50, 20), np.full(50, 200))
    assert time_shares(task(make_profile(), long_answers)).largest == "decode"


def test_what_requests_wait_for() -> None:
    seats = time_shares(task(make_profile(), max_num_seqs=2))
    assert seats.waiting["seats"] > 0.5
    assert seats.waiting["kv_memory"] == 0
    blocks = time_shares(task(make_profile(num_gpu_blocks=340)))
    assert blocks.waiting["kv_memory"] > 0.2
    assert blocks.waiting["seats"] == 0
    assert blocks.preemptions > 0
    tokens = time_shares(task(make_profile(), max_num_batched_tokens=256, max_num_seqs=256))
    assert tokens.waiting["token_budget"] > 0.2
    assert "for max_num_seqs (as many ran)" in " ".join(seats.text())


def test_the_busiest_requests_of_a_long_trace() -> None:
    at = np.concatenate([np.arange(100) * 1.0, 100 + np.arange(50) * 0.1, 110 + np.arange(9) * 2.0])
    trace = Trace(at, np.full(159, 10), np.full(159, 10))
    part = busiest_requests(trace, 50)
    assert len(part) == 50
    spans = [at[i + 49] - at[i] for i in range(len(at) - 49)]
    assert part.duration_s == min(spans)
    assert busiest_requests(trace, 159) is trace


def test_changes_are_ordered_by_what_they_do_and_each_is_a_simulation() -> None:
    profile = make_profile(decode_ms=6.0, throttle=0.3, num_gpu_blocks=700)
    fleet = task(profile, max_num_seqs=8)
    other = task(make_profile(method="fp8-w8a8", decode_ms=3.0))
    changes = changes_of(fleet, other)
    names = [c.name for c in changes]
    assert "max_num_seqs 16" in names
    assert "no power cap" in names
    found = what_if(SerialExecutor(), fleet, changes, 1.1)
    assert [e.name for e in found.effects] == [
        e.name for e in sorted(found.effects, key=lambda e: e.ratio)
    ]
    assert {e.name for e in found.effects} == set(names)
    for change in changes:
        run = simulate(
            traffic().speed(1.1), change.task.profile, replicas=change.task.replicas,
            router="round-robin", options=change.task.options,
        )  # fmt: skip
        effect = next(e for e in found.effects if e.name == change.name)
        assert effect.ratio == max(s.value(run) / s.limit_ms for s in SLOS)
    more = next(e for e in found.effects if e.name == "one replica more")
    assert more.ratio < found.before.ratio
    assert found.to_dict()["most_helpful"] == found.effects[0].name


def test_changes_that_do_not_suit_are_left_out() -> None:
    names = [c.name for c in changes_of(task(make_profile()))]
    assert "no power cap" not in names
    assert not any("GPUs" in n for n in names)
    two = make_profile()
    wide = replace(two, identity=replace(two.identity, tensor_parallel_size=4))
    assert not any("GPUs" in c.name for c in changes_of(task(two), task(wide)))


def test_losers_say_by_how_much_and_why_they_are_not_smaller() -> None:
    made = [make_profile(decode_ms=4.0), make_profile(method="fp8-w8a8", decode_ms=9.0)]
    answer = plan(traffic(), profiles=made, slos=SLOS, headroom=False)
    best, second = answer.candidates
    assert second.feasible
    assert (second.replicas or 0) > (best.replicas or 0)
    assert behind_best(answer.best, answer.objective, best) is None
    found = behind_best(answer.best, answer.objective, second)
    assert found is not None
    assert found["ratio"] == (second.replicas or 0) / (best.replicas or 1)
    fewer = simulate(traffic(), made[1], replicas=(second.replicas or 0) - 1)
    missed = max(SLOS, key=lambda s: s.value(fewer) / s.limit_ms)
    assert found["binding"] == str(missed)
    assert f"with {(second.replicas or 0) - 1} replicas {missed.metric}" in why_not_best(
        answer, second
    )
