"""``plan --survive N``: the limits hold with any N servers down, as searched, told and exported."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import yaml

from qsim.errors import ScenarioError
from qsim.optimize.deploy.export import export_plan
from qsim.optimize.plan.result import Plan
from qsim.optimize.search.fleet_outcome import DownGoal, NoneLeft
from qsim.optimize.search.fleet_task import FleetTask, TaskPool, run_fleet
from qsim.report.text.plan import plan_rows, plan_text
from qsim.sim.results.slo import Slo
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ("ttft:p95:400", "tpot:mean:9")


def traffic(n: int = 200, rate: float = 60.0, seed: int = 1) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        rng.integers(50, 2500, n),
        rng.integers(1, 250, n),
        name="traffic",
    )


def survivor(count: int, **more: object) -> Plan:
    made = [make_profile(method="fp8-w8a8", decode_ms=4.0)]
    return plan(traffic(), profiles=made, slos=SLOS, survive=count, replications=0, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain() -> Plan:
    return survivor(0)


@pytest.fixture(scope="module")
def one_down() -> Plan:
    return survivor(1)


@pytest.mark.parametrize("count", [1, 2])
def test_a_fleet_without_n_servers_meets_the_limits_and_one_smaller_does_not(
    count: int, plain: Plan
) -> None:
    best, needed = survivor(count, headroom=False).best, plain.best
    assert best is not None
    assert needed is not None
    assert best.replicas
    assert best.replicas - count == needed.replicas, "equal servers: what is left is the smallest"
    profile = make_profile(method="fp8-w8a8", decode_ms=4.0)
    left = simulate(traffic(), profile, replicas=best.replicas - count)
    assert all(Slo.parse(s).met(left) for s in SLOS)
    fewer = simulate(traffic(), profile, replicas=best.replicas - count - 1)
    assert not all(Slo.parse(s).met(fewer) for s in SLOS)
    assert best.spare_gpus == count
    whole = simulate(traffic(), profile, replicas=best.replicas)
    assert best.metric("energy_j") == whole.energy_j, "figures are of the whole fleet"


def test_what_it_costs_is_told(one_down: Plan, plain: Plan) -> None:
    best, before = one_down.best, plain.best
    assert best is not None
    assert before is not None
    assert best.usd_per_hour
    assert before.usd_per_hour
    assert best.spare_usd_per_hour == pytest.approx(best.usd_per_hour - before.usd_per_hour)
    heads, rows = plan_rows(one_down)
    row = dict(zip(heads, rows[0], strict=True))
    assert row["spare\nGPUs"] == "1"
    assert row["spare\nUSD/h"] == f"{best.spare_usd_per_hour:,.2f}"
    assert "spare\nGPUs" not in plan_rows(plain)[0]
    text = " ".join(plan_text(one_down).split())
    assert "any 1 of which may be down" in text
    assert f"surviving costs {best.spare_usd_per_hour:.2f} USD/h more" in text
    data = json.loads(json.dumps(one_down.to_dict(), allow_nan=False))
    assert data["settings"]["survive"] == 1
    told = data["candidates"][0]
    assert told["spare_gpus"] == 1
    assert told["survive"][0]["replicas"] == best.replicas - 1
    assert told["survive"][0]["met"] is True
    assert set(told["survive"][0]["values_ms"]) == set(SLOS)
    before_too = plain.to_dict()
    assert "survive" not in before_too["settings"]
    assert "spare_gpus" not in before_too["candidates"][0]


def test_headroom_is_that_with_servers_down(one_down: Plan, plain: Plan) -> None:
    assert one_down.headroom is not None
    assert plain.headroom is not None
    assert one_down.headroom.speed == pytest.approx(plain.headroom.speed, rel=0.05)
    assert "with 1 server down" in one_down.headroom.text()


def test_the_whole_number_is_exported(one_down: Plan) -> None:
    best = one_down.best
    assert best is not None
    objects = list(yaml.safe_load_all(export_plan(one_down, "kubernetes") or ""))
    deployment = next(o for o in objects if o["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == best.replicas
    assert (export_plan(one_down, "vllm") or "").count("vllm serve") == best.replicas


def test_searched_settings_survive_too() -> None:
    found = survivor(1, headroom=False, search=["max_num_seqs=8,32"], sampler="grid", trials=2).best
    assert found is not None
    assert found.outcome is not None
    assert [d.met for d in found.outcome.degraded] == [True]


def test_no_fleet_is_as_large_as_what_is_down() -> None:
    with pytest.raises(ScenarioError, match="survive is 4; must be below max_replicas, 4"):
        survivor(4, max_replicas=4)
    nothing = survivor(3, max_replicas=4)
    assert nothing.best is None, "one server is too few"
    assert "with 3 servers down" in nothing.candidates[0].reason


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_gpus": 2}, "max_gpus 2 has more than 2 servers"),
        ({"max_usd_per_hour": 4.0}, "max_usd_per_hour 4 has more than 1 server:"),
        ({"stock": {"h200_sxm": 2}}, "stock h200_sxm=2 has more than 2 servers"),
        (
            {"stock": {"h200_sxm": 1, "a100_sxm": 1}},
            "stock h200_sxm=1, stock a100_sxm=1 has more than 2 servers",
        ),
        (
            {"stock": {"h200_sxm": 9, "a100_sxm": 9}, "max_gpus": 1},
            "stock h200_sxm=9, stock a100_sxm=9, max_gpus 1 has more than 1 server:",
        ),
    ],
)
def test_limits_that_leave_no_server_are_refused_without_a_search(
    limits: dict[str, Any], words: str
) -> None:
    made = [make_profile(decode_ms=4.0), make_profile(gpu="a100_sxm", decode_ms=7.0)]
    if "stock" not in limits or "a100_sxm" not in limits["stock"]:
        made.pop()
    texts: list[str] = []
    with pytest.raises(ScenarioError, match=words):
        plan(
            traffic(), profiles=made, slos=SLOS, survive=2,
            prices={p.identity.gpu: 4.0 for p in made},
            progress=lambda share, text: texts.append(text), **limits,
        )  # fmt: skip
    assert texts == [], "nothing was simulated"


def test_a_candidate_that_no_limit_leaves_a_server_is_not_searched() -> None:
    made = [make_profile(decode_ms=4.0), make_profile(gpu="a100_sxm", decode_ms=7.0)]
    found = plan(
        traffic(), profiles=made, slos=SLOS, survive=1, prices={"h200_sxm": 9.0, "a100_sxm": 0.1},
        max_usd_per_hour=10.0, headroom=False, replications=0,
    )  # fmt: skip
    by = {c.gpu: c for c in found.candidates}
    assert by["a100_sxm"].feasible
    assert by["h200_sxm"].outcome is None
    assert by["h200_sxm"].reason == (
        "no server is left with 1 down: max_usd_per_hour 10 allows 1 server (--survive)"
    )
    json.dumps(found.to_dict(), allow_nan=False)


def test_every_way_to_lose_servers_of_a_mixed_fleet_is_tried() -> None:
    fast, slow = make_profile(decode_ms=3.0), make_profile(method="bf16", decode_ms=5.0)
    options = EngineOptions()
    task = FleetTask(
        traffic(60), fast, 2, (Slo.parse("ttft:p50:9000"),), options, "least-requests", 0, "error",
        allow_backlog=True, beside=(TaskPool(slow, 1, options),), weight=2.0, survive=2,
    )  # fmt: skip
    outcome = run_fleet(task)
    assert sorted(d.sizes for d in outcome.degraded) == [(0, 1), (1, 0)]
    assert outcome.met
    assert outcome.sizes == (2, 1)
    alone = next(d.outcome for d in outcome.degraded if d.sizes == (0, 1))
    assert alone is not None
    plain = run_fleet(FleetTask(
        traffic(60), slow, 1, task.slos, options, "least-requests", 0, "error"
    ))  # fmt: skip
    assert alone.summary["energy_j"] == plain.summary["energy_j"], "one pool is the plain case"
    none = run_fleet(FleetTask(
        traffic(60), slow, 1, task.slos, options, "least-requests", 0, "error", survive=1
    ))  # fmt: skip
    assert isinstance(none.binding, NoneLeft)
    assert not none.met


def test_the_goal_that_binds_says_what_is_down() -> None:
    profile = make_profile(decode_ms=4.0)
    task = FleetTask(
        traffic(), profile, 2, (Slo.parse("ttft:p95:1"),), EngineOptions(), "least-requests", 0,
        "error", allow_backlog=True, survive=1,
    )  # fmt: skip
    binding = run_fleet(task).binding
    assert isinstance(binding, DownGoal)
    assert binding.sentence().endswith("with 1 server down")
