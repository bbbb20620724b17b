"""Ranges over machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qsim import load_trace
from qsim.cli import main
from qsim.profiles.factors import FACTORS
from qsim.profiles.lookup import list_profiles, load_profile
from qsim.profiles.schema import Adapted, Profile
from qsim.sim.fleet.pool import Pool
from qsim.sim.machines import (
    _DESIGN,
    FIGURES,
    _directions,
    expected_machines,
    machine_ranges,
    quick_ranges,
)
from qsim.sim.results.machine_ranges import MachineRanges
from qsim.sim.simulate import simulate

TRACE = load_trace("azure-conv-2023:duration=20,rate=6,seed=2")
PROFILE = load_profile("h200_sxm/llama-3.1-8b/fp8-w8a8", "0.24")


def test_ranges_are_wide_and_repeat() -> None:
    ranges = machine_ranges(TRACE, [Pool(PROFILE)], 16)
    assert set(ranges) == set(FIGURES)
    assert ranges == machine_ranges(TRACE, [Pool(PROFILE)], 16)
    for low, high in ranges.values():
        assert 0 < low < high
    low, high = ranges["median_ttft_ms"]
    # hosts are known to differ by more than GPUs
    tpot = ranges["median_tpot_ms"]
    assert high / low > tpot[1] / tpot[0] > 1.01


def test_of_an_adapted_profile_they_are_its_own() -> None:
    sure = {n: [1.0, 1.0, 1.0] for n in FACTORS}
    a = Adapted("p", [], ["a load"], sure)
    plain = simulate(TRACE, PROFILE).summary(())
    ranges = machine_ranges(TRACE, [Pool(replace(PROFILE, adapted=a))], 8)
    for name in ("mean_tpot_ms", "mean_e2el_ms", "energy_j"):
        assert ranges[name] == pytest.approx((plain[name], plain[name]), rel=0.002)
    wide = {**sure, "memory": [1.0, 0.9, 1.1]}
    ranges = machine_ranges(TRACE, [Pool(replace(PROFILE, adapted=replace(a, factors=wide)))], 16)
    low, high = ranges["mean_tpot_ms"]
    assert high / low > 1.05


def adapted(**intervals: list[float]) -> Profile:
    """A profile whose machine is known but for some factors."""
    factors = {n: intervals.get(n, [1.0, 1.0, 1.0]) for n in FACTORS}
    return replace(PROFILE, adapted=Adapted("p", [], ["a load"], factors))


def test_quick_ranges_of_a_machine_that_is_known_are_narrow() -> None:
    found = quick_ranges(TRACE, [Pool(adapted())])
    assert found.adapted
    assert not found.stretch
    assert set(found.ratios) == set(FIGURES)
    for name in ("mean_tpot_ms", "mean_e2el_ms", "energy_j"):
        assert found.ratios[name] == pytest.approx((1.0, 1.0), rel=0.002)


def test_quick_ranges_are_the_interval_of_what_is_proportional_to_a_factor() -> None:
    # power that comes with work is proportional to nothing else but what idle GPUs draw
    idle = replace(PROFILE.power, idle_w=1e-9, busy_w=0.0)
    profile = replace(adapted(work_power=[1.0, 0.8, 1.25]), power=idle)
    low, high = quick_ranges(TRACE, [Pool(profile)]).ratios["energy_j"]
    assert (low, high) == pytest.approx((0.8, 1.25), rel=0.01)
    profile = adapted(work_power=[1.0, 1.1, 1.3])  # one that was kept as it is
    assert quick_ranges(TRACE, [Pool(profile)]).ratios["energy_j"][0] > 1.0


def test_quick_ranges_are_about_those_of_drawn_machines() -> None:
    drawn = machine_ranges(TRACE, [Pool(PROFILE)], 60)
    plain = simulate(TRACE, PROFILE).summary(())
    quick = quick_ranges(TRACE, [Pool(PROFILE)]).of(plain)
    for name in ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "median_e2el_ms", "energy_j"):
        width = drawn[name][1] - drawn[name][0]
        assert quick[name][0] == pytest.approx(drawn[name][0], abs=0.4 * width), name
        assert quick[name][1] == pytest.approx(drawn[name][1], abs=0.4 * width), name


def test_quick_ranges_of_long_traffic_are_from_its_busiest_stretch() -> None:
    trace = load_trace("azure-conv-2023:duration=400,rate=5,seed=2")
    found = quick_ranges(trace, [Pool(PROFILE)], statistics=[("ttft", "p95")])
    assert found.stretch
    # two requests are in the fleet at a time: few of them tell
    assert found.requests == 200 < len(trace)
    assert "p95_ttft_ms" in found.ratios
    assert found.of({"p95_ttft_ms": None, "energy_j": 2.0, "gpus": 1}).keys() == {"energy_j"}


def test_quick_ranges_of_a_fleet_that_is_full_are_from_a_long_stretch() -> None:
    trace = load_trace("azure-conv-2023:duration=90,rate=25,seed=2")
    found = quick_ranges(trace, [Pool(PROFILE)])
    assert found.requests == 1000 < len(trace)
    # between the two, so many that the fleet's filling up is a small part
    busy = load_trace("azure-conv-2023:duration=200,rate=10,seed=2")
    seen = simulate(busy, PROFILE)
    inside = seen.e2el_ms.sum() / 1000 / seen.duration_s
    found = quick_ranges(busy, [Pool(PROFILE)])
    assert 15 * inside < found.requests < 60 * inside
    assert 300 < found.requests < 1000
    few = quick_ranges(load_trace("azure-conv-2023:duration=9,rate=8,seed=2"), [Pool(PROFILE)])
    assert not few.stretch


def test_the_machines_of_quick_ranges_have_the_variance_that_is_known() -> None:
    """Of every factor of time, and of the power that this traffic draws."""
    n = len(_DESIGN)
    assert np.array_equal(_DESIGN.T @ _DESIGN, n * np.eye(7))
    assert not _DESIGN.sum(axis=0).any()
    covariance = expected_machines(PROFILE).covariance
    shares = np.array([0.3, 0.5, 0.2])
    machines = _DESIGN @ _directions(covariance, shares)
    seen = machines.T @ machines / n
    assert seen[:6, :6] == pytest.approx(covariance[:6, :6], rel=1e-9, abs=1e-12)
    assert seen[6:, :6] == pytest.approx(covariance[6:, :6], rel=1e-9, abs=1e-12)
    assert shares @ seen[6:, 6:] @ shares == pytest.approx(
        shares @ covariance[6:, 6:] @ shares, rel=1e-9
    )


def test_what_was_not_measured_is_less_sure() -> None:
    name = next(e.name for e in list_profiles() if "a100" in e.name)
    profile = load_profile(name)
    assert profile.transfer is not None
    sure = replace(profile, transfer=None)
    wide, narrow = (quick_ranges(TRACE, [Pool(p)]).ratios["mean_tpot_ms"] for p in (profile, sure))
    assert wide[1] / wide[0] > narrow[1] / narrow[0]


ARGS = ["simulate", "azure-conv-2023:duration=10,rate=4", "--profile",
        "h200_sxm/llama-3.1-8b/fp8-w8a8"]  # fmt: skip


@pytest.mark.parametrize("more", [[], ["--machines", "8"]])
def test_simulate_shows_them(tmp_path: Path, more: list[str]) -> None:
    out = tmp_path / "s.json"
    slos = ["--slo", "tpot:p95:50", "--slo", "ttft:mean:38"]
    done = CliRunner().invoke(main, [*ARGS, *more, *slos, "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "90%: what the figures may be on your machine" in done.stdout
    assert done.stdout.count("\n   90% ") == 4
    data = json.loads(out.read_text())
    ranges = data["machines"]["range_90"]
    assert ranges["mean_e2el_ms"][0] < ranges["mean_e2el_ms"][1]
    assert ranges["p95_tpot_ms"][0] > 1
    ttft = data["slos"][1]
    if ttft["met"] and ranges["mean_ttft_ms"][1] > 38:
        assert "ttft:mean:38 may be missed on your machine: up to" in done.stdout
    assert "tpot:p95:50 may be missed" not in done.stdout


def test_simulate_without_them(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*ARGS, "--machines", "0", "--json", "-"])
    assert done.exit_code == 0, done.output
    assert "machines" not in json.loads(done.stdout)
    done = CliRunner().invoke(main, [*ARGS, "--machines", "7"])
    assert done.exit_code == 2
    assert "--machines is 7; must be 8 or more, or 0 for none" in done.stderr
    done = CliRunner().invoke(main, [*ARGS, "--machines", "8", "--stream"])
    assert done.exit_code == 2
    assert "--machines" in done.stderr
    done = CliRunner().invoke(main, [*ARGS, "--stream"])
    assert done.exit_code == 0, done.output
    assert "no ranges over machines" in done.stderr


@pytest.mark.parametrize(
    ("ratio", "said"), [((0.9, 1.2), False), ((1.05, 1.3), True), ((0.8, 0.9), True)]
)
def test_a_figure_outside_of_its_range_is_explained(ratio: tuple[float, float], said: bool) -> None:
    ranges = MachineRanges({"mean_ttft_ms": ratio}, 1000, stretch=True, adapted=False)
    assert ("outside it: the measured machine is faster or slower" in ranges.told()) is said
