"""Ranges over machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim import load_trace
from qsim.cli import main
from qsim.profiles.factors import FACTORS
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Adapted
from qsim.sim.fleet.pool import Pool
from qsim.sim.machines import FIGURES, machine_ranges
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


def test_simulate_shows_them(tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    args = ["simulate", "azure-conv-2023:duration=10,rate=4", "--profile",
            "h200_sxm/llama-3.1-8b/fp8-w8a8", "--machines", "8"]  # fmt: skip
    done = CliRunner().invoke(main, [*args, "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "on other machines, 90%" in done.stdout
    data = json.loads(out.read_text())
    low, high = data["machines"]["range_90"]["mean_e2el_ms"]
    assert low < high
    done = CliRunner().invoke(main, [*args, "--stream"])
    assert done.exit_code == 2
    assert "--machines" in done.stderr
