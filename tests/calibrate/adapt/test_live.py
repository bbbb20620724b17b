"""What docs/adapt.md says of a real server is what its measurements give."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qsim.calibrate.adapt.adapting import errors_percent
from qsim.calibrate.adapt.benchmark import read_benchmark
from qsim.profiles.factors import Factors, apply
from qsim.profiles.lookup import load_profile
from qsim.sim.scheduler.config import EngineOptions

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "measurements/adapt/llama-3.1-8b--fp8-w8a8--v0.33--2026-11-30"
#: as ``tools/adapt_check.py --live`` finds them, which takes half a minute of a core
FACTORS = Factors(2.022, 1.185, 2.137, 1.005, 1.008, 1.075, 1.001, 1.028, 1.004)
IDLE_W = 117.8


@pytest.mark.parametrize(("name", "traffic"), [("Azure", "azure_conv"), ("Mooncake", "mooncake")])
def test_the_table_of_a_real_server(name: str, traffic: str) -> None:
    server = json.loads((FOLDER / "server.json").read_text())
    options = EngineOptions(max_model_len=server["max_model_len"], enable_prefix_caching=False)
    load = read_benchmark(FOLDER / "slices" / f"{traffic}.json", options)
    load = replace(load, num_gpu_blocks=server["num_gpu_blocks"])
    profile = load_profile(server["profile"], server["vllm_version"])
    base = replace(profile, power=replace(profile.power, idle_w=IDLE_W))
    both = [errors_percent(load, p) for p in (profile, apply(base, FACTORS))]
    text = (ROOT / "docs" / "adapt.md").read_text()
    for row, metric in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("E2EL", "e2el_ms")):
        found = re.search(rf"^\| {name}, {row}[^|]*\|(.*)\|$", text, re.MULTILINE)
        assert found
        said = [float(x) for x in re.findall(r"[-+][\d.]+", found[1])]
        got = [e[f"{s}_{metric}"] for e in both for s in ("mean", "median")]
        assert said == pytest.approx(got, abs=0.8)
