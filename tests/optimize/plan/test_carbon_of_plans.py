from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.optimize.plan.detail import DetailWanted
from qsim.profiles.schema import Profile
from qsim.report.text.plan import plan_text
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.plan.plain import plan

SLOS = ["ttft:p99:5000"]


def steady(n: int = 40) -> Trace:
    return Trace(np.arange(n) * 0.1, np.full(n, 200), np.full(n, 20))


def hungry(profile: Profile, factor: float) -> Profile:
    return replace(profile, power=replace(profile.power, idle_w=profile.power.idle_w * factor))


def on(gpu: str, factor: float = 1.0, method: str = "bf16") -> Profile:
    return hungry(make_profile(gpu=gpu, method=method), factor)


def test_carbon_is_energy_times_intensity_times_pue() -> None:
    answer = plan(steady(), profiles=[make_profile()], slos=SLOS, region=400, pue=1.5)
    (c,) = json.loads(json.dumps(answer.to_dict(), allow_nan=False))["candidates"]
    grams = c["energy_j"] / 3.6e6 * 400 * 1.5
    assert c["gco2e"] == pytest.approx(grams)
    assert c["gco2e_per_hour"] == pytest.approx(grams / c["duration"] * 3600)
    assert c["gco2e_per_1k_output_tokens"] == pytest.approx(grams / (40 * 20) * 1000)
    assert answer.to_dict()["carbon"]["gco2e_per_kwh"] == 400
    text = " ".join(plan_text(answer).split())
    assert "400.0 gCO2e per kWh, given; PUE 1.5; energy of the GPUs only" in text


def test_without_a_region_there_is_no_carbon() -> None:
    answer = plan(steady(), profiles=[make_profile()], slos=SLOS)
    assert answer.to_dict()["carbon"] is None
    assert answer.to_dict()["candidates"][0]["gco2e"] is None
    assert "CO2" not in plan_text(answer)


def test_the_objective_carbon_prefers_less_of_it_to_less_rent() -> None:
    made = [on("h200_sxm", 1.0), on("a100_sxm", 3.0)]
    prices = {"h200_sxm": 9.0, "a100_sxm": 1.0}
    given: dict[str, Any] = {"profiles": made, "slos": SLOS, "prices": prices, "region": "DEU"}
    by_cost = plan(steady(), objective="cost", **given)
    by_carbon = plan(steady(), objective="carbon", **given)
    assert by_cost.best is not None
    assert by_carbon.best is not None
    assert by_cost.best.gpu == "a100_sxm"
    assert by_carbon.best.gpu == "h200_sxm"
    assert (by_carbon.best.gco2e or 0) < (by_cost.best.gco2e or 0)
    assert by_carbon.to_dict()["order"] == [
        "carbon", "confidence", "headroom", "cost", "energy", "gpus", "name",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": "carbon"}, "objective carbon needs a region"),
        ({"region": "Germny"}, "did you mean 'DEU'"),
        ({"region": -1}, "carbon intensity is -1"),
        ({"region": 400, "pue": 0.99}, "pue is 0.99; must be a finite number >= 1"),
        ({"region": 400, "pue": float("nan")}, "pue is nan"),
        ({"pue": 1.1}, "no region is given"),
    ],
)
def test_wrong_carbon(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        plan(steady(), profiles=[make_profile()], slos=SLOS, **change)


#: neither replications nor head-room set these apart: they differ in power alone
AS_SURE: dict[str, Any] = {"detail": DetailWanted(replications=0)}


def test_of_equal_rent_energy_decides_and_is_named() -> None:
    made = [on("h200_sxm", 2.0, "bf16"), on("h200_sxm", 1.0, "fp8-w8a8")]
    answer = plan(steady(), profiles=made, slos=SLOS, **AS_SURE)
    assert [c.method for c in answer.candidates] == ["fp8-w8a8", "bf16"]
    assert answer.tie is not None
    assert answer.tie.decided_by == "energy"
    assert answer.to_dict()["tie"]["profiles"] == [c.profile for c in answer.candidates]
    text = " ".join(plan_text(answer).split())
    assert "tie: 2 fleets are equal in cost; energy decided (order: cost, confidence," in text


def test_of_equal_gpus_cost_decides_before_energy() -> None:
    made = [on("h200_sxm", 1.0), on("a100_sxm", 2.0)]
    answer = plan(
        steady(), profiles=made, slos=SLOS, objective="gpus",
        prices={"h200_sxm": 2.0, "a100_sxm": 1.0}, **AS_SURE,
    )  # fmt: skip
    assert answer.best is not None
    assert answer.best.gpu == "a100_sxm"
    assert answer.tie is not None
    assert answer.tie.decided_by == "cost"


def test_equal_in_all_the_name_decides() -> None:
    made = [on("h200_sxm", method="fp8-w8a8"), on("h200_sxm", method="bf16")]
    answer = plan(steady(), profiles=made, slos=SLOS)
    assert [c.method for c in answer.candidates] == ["bf16", "fp8-w8a8"]
    assert answer.tie is not None
    assert answer.tie.decided_by == "name"
    assert "their names decided" in " ".join(plan_text(answer).split())


def test_a_best_fleet_that_stands_alone_is_no_tie() -> None:
    answer = plan(
        steady(), profiles=[on("h200_sxm"), on("a100_sxm")], slos=SLOS,
        prices={"h200_sxm": 2.0, "a100_sxm": 1.0},
    )  # fmt: skip
    assert answer.tie is None
    assert answer.to_dict()["tie"] is None
    assert "tie:" not in plan_text(answer)
