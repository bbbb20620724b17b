"""What docs/adapt.md says of a real server is what its measurements give."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qsim.calibrate.adapt.adapting import errors_percent
from qsim.calibrate.adapt.benchmark import read_benchmark
from qsim.profiles.lookup import load_profile
from qsim.sim.scheduler.config import EngineOptions

ROOT = Path(__file__).parents[3]
MEASURED = ROOT / "measurements"
#: ``clients/<server>/adapted.profile.json`` is what ``tools/adapt_check.py --live`` finds
SERVERS = [f"llama-3.1-8b--fp8-w8a8--v0.33--2026-11-{day}" for day in ("30", "30b", "30c")]


def errors(name: str, traffic: str) -> list[dict[str, float]]:
    """Of the shipped profile and of the adapted one."""
    folder = MEASURED / "adapt" / name
    server = json.loads((folder / "server.json").read_text())
    options = EngineOptions(max_model_len=server["max_model_len"], enable_prefix_caching=False)
    load = read_benchmark(folder / "slices" / f"{traffic}.json", options)
    load = replace(load, num_gpu_blocks=server["num_gpu_blocks"])
    shipped = load_profile(server["profile"], server["vllm_version"])
    adapted = load_profile(str(MEASURED / "clients" / name / "adapted.profile.json"))
    return [errors_percent(load, p) for p in (shipped, adapted)]


@pytest.mark.parametrize(("name", "traffic"), [("Azure", "azure_conv"), ("Mooncake", "mooncake")])
def test_the_table_of_real_servers(name: str, traffic: str) -> None:
    both = [e for server in SERVERS for e in errors(server, traffic)]
    text = (ROOT / "docs" / "adapt.md").read_text()
    for row, metric in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("E2EL", "e2el_ms")):
        found = re.search(rf"^\| {name}, {row}[^|]*\|(.*)\|$", text, re.MULTILINE)
        assert found
        said = [float(x) for x in re.findall(r"[-+]?[\d.]+(?=%)", found[1])]
        got = [e[f"{s}_{metric}"] for e in both for s in ("mean", "median")]
        assert said == pytest.approx(got, abs=0.3)
    found = re.search(rf"^\| {name}, energy[^|]*\|(.*)\|$", text, re.MULTILINE)
    assert found
    said = [float(x) for x in re.findall(r"[-+]?[\d.]+(?=%)", found[1])]
    assert said == pytest.approx([e["energy_j"] for e in both], abs=0.3)
