from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.optimize.plan.budget import Budget
from qsim.optimize.plan.result import Plan
from qsim.report.text.plan import plan_text
from qsim.sim.results.slo import Slo
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ("ttft:p99:400", "tpot:mean:9")
PROFILE = make_profile(decode_ms=6.0)


def traffic() -> Trace:
    rng = np.random.default_rng(1)
    return Trace(
        np.cumsum(rng.exponential(1 / 60, 300)),
        rng.integers(50, 2500, 300),
        rng.integers(1, 250, 300),
    )


def ask(**limits: Any) -> Plan:
    given: dict[str, Any] = {"slos": SLOS, "headroom": False, "profiles": [PROFILE], **limits}
    return plan(traffic(), **given)


@pytest.fixture(scope="module")
def free() -> Plan:
    answer = ask()
    assert answer.best is not None
    assert (answer.best.replicas or 0) > 2
    return answer


def test_a_budget_of_gpus_binds_at_the_size_of_the_smallest_fleet(free: Plan) -> None:
    n = free.best.gpus or 0  # type: ignore[union-attr]
    enough = ask(max_gpus=n)
    assert enough.best is not None
    assert enough.best.evaluations == free.best.evaluations  # type: ignore[union-attr]
    (short,) = ask(max_gpus=n - 1).candidates
    assert not short.feasible
    assert short.shortfall is not None
    assert (short.shortfall.constraint, short.shortfall.value) == ("max_gpus", n)
    assert short.shortfall.excess == pytest.approx(1 / (n - 1))
    fewer = simulate(traffic(), PROFILE, replicas=n - 1)
    missed = max((s for s in map(Slo.parse, SLOS)), key=lambda s: s.value(fewer) / s.limit_ms)
    assert f"needs {n} GPUs, " in short.reason
    assert f"over the limit of {n - 1} (--max-gpus); with {n - 1} {missed.metric}" in short.reason


def test_money_power_and_peak_power(free: Plan) -> None:
    best = free.best
    assert best is not None
    assert best.outcome is not None
    usd = best.usd_per_hour or 0
    mean_kw, peak_kw = (
        (best.metric("avg_power_w") or 0) / 1e3,
        (best.outcome.peak_power_w or 0) / 1e3,
    )
    assert peak_kw > mean_kw > 0
    for name, value in (
        ("max_usd_per_hour", usd), ("max_power_kw", mean_kw), ("max_peak_power_kw", peak_kw),
    ):  # fmt: skip
        assert ask(**{name: value}).best is not None, name
        (short,) = ask(**{name: value * 0.99}).candidates
        assert short.shortfall is not None
        assert short.shortfall.constraint == name
        assert short.shortfall.excess == pytest.approx(1 / 99)
        assert f"--{name.replace('_', '-')}" in short.reason


def test_peak_power_is_the_highest_bin_of_the_timeline(free: Plan) -> None:
    best = free.best
    assert best is not None
    power = simulate(traffic(), PROFILE, replicas=best.replicas or 1).timeline["power_w"]
    assert best.outcome is not None
    assert best.outcome.peak_power_w == power[:-1].max()


def test_the_nearest_miss_of_each_constraint_is_named() -> None:
    slow = replace(PROFILE, identity=replace(PROFILE.identity, method="fp8-w8a8"))
    slow = replace(slow, latency=make_profile(decode_ms=90.0).latency)
    answer = ask(profiles=[PROFILE, slow], max_gpus=2)
    assert answer.best is None
    assert [(k, c.profile) for k, c in answer.nearest_misses.items()] == sorted(
        ((c.shortfall.constraint, c.profile) for c in answer.candidates if c.shortfall),
        key=lambda m: next(
            c.shortfall.excess for c in answer.candidates if c.profile == m[1] and c.shortfall
        ),
    )
    assert "max_gpus: h200_sxm/toy-1b/bf16 needs " in answer.objection()
    assert "tpot:mean:9: h200_sxm/toy-1b/fp8-w8a8 tpot mean " in answer.objection()
    told = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert told["nearest_misses"]["max_gpus"] == PROFILE.id
    kinds = {c["profile"]: c["shortfall"]["constraint"] for c in told["candidates"]}
    assert kinds == {PROFILE.id: "max_gpus", slow.id: "tpot:mean:9"}


def test_goodput_alone_decides_the_size() -> None:
    answer = ask(slos=(), goodput=["ttft:300", "tpot:9"], min_goodput=0.95)
    best = answer.best
    assert best is not None
    assert best.outcome is not None
    sizes = {}
    for n in (best.replicas or 0, (best.replicas or 0) - 1):
        run = simulate(traffic(), PROFILE, replicas=n)
        tpot = np.nan_to_num(run.tpot_ms)
        sizes[n] = float(np.mean((run.ttft_ms <= 300) & (tpot <= 9)))
    enough, fewer = sizes.values()
    assert fewer < 0.95 <= enough
    assert best.outcome.goodput is not None
    assert best.outcome.goodput.share == enough
    text = plan_text(answer)
    assert "SLO goodput:ttft:300,tpot:9:0.95" in text
    assert f"{enough:.2%}" in text
    hopeless = ask(slos=(), goodput=["tpot:1"])
    assert "of requests that must be good even for requests served alone" in hopeless.objection()


def test_sizes_within_a_budget() -> None:
    assert Budget(max_gpus=7).largest(2, None) == 3
    assert Budget(max_usd_per_hour=12.0).largest(1, 4.0) == 3
    assert Budget(max_gpus=9, max_usd_per_hour=0.3).largest(1, 0.1) == 3
    assert Budget(max_power_kw=3).largest(1, 4.0) is None
    assert not Budget()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"max_gpus": 0}, "max_gpus is 0"),
        ({"max_gpus": 2.5}, "max_gpus is 2.5"),
        ({"max_power_kw": float("inf")}, "max_power_kw is inf"),
        ({"max_peak_power_kw": -1}, "max_peak_power_kw is -1"),
        ({"max_usd_per_hour": True}, "max_usd_per_hour is True"),
        ({"provider": "cheap"}, "provider is 'cheap'.*longtail"),
        ({"profiles": [make_profile(gpu="x")], "max_usd_per_hour": 3.0, "objective": "gpus"},
         "no price is known for gpu 'x'"),
    ],
)  # fmt: skip
def test_wrong_limits(limit: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        ask(**limit)
