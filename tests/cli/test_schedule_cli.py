"""``qsim schedule`` on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from qsim.profiles.schema import Transfer
from tests.cli.helpers import fails, qsim, write
from tests.make_profile import make_profile

WINDOW = ("--window", "1min", "--start-s", "10", "--stop-s", "1", "--trials", "1", "--jobs", "1")


@pytest.fixture
def traffic(tmp_path: Path) -> Path:
    """A minute of little, one of much, one of little."""
    rng = np.random.default_rng(0)
    at = np.concatenate(
        [k * 60 + np.sort(rng.uniform(0, 60, n)) for k, n in enumerate((30, 240, 30))]
    )
    rows = "".join(f"{t:.6f},{300},{20}\n" for t in at)
    return write(tmp_path / "day.csv", f"arrival_s,prompt_tokens,output_tokens\n{rows}")


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """Two seats: 4 or 5 requests a second."""
    path = tmp_path / "server.json"
    make_profile(model="llama-3.1-8b", method="fp8-w8a8", decode_ms=20.0, max_num_seqs=2).save(path)
    return path


def test_table_files_and_picture(traffic: Path, server: Path, tmp_path: Path) -> None:
    out, picture, table = tmp_path / "s.json", tmp_path / "s.svg", tmp_path / "s.csv"
    result = qsim(
        "schedule", traffic, "--profile", server, "--slo", "ttft:p90:400", *WINDOW,
        "--policy", "static", "--policy", "reactive", "--json", out, "--picture", picture,
        "--export", f"csv={table}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for text in ("static fp8-w8a8", "reactive", "optimized", "timetable", "1 00:01 - 1 00:02"):
        assert text in result.stdout
    data = json.loads(out.read_text())
    assert data["schema"] == "qsim-schedule/1"
    counts = [w["servers"][0] for w in data["schedule"]["windows"]]
    assert counts[1] > counts[0]
    assert [int(r.split(",")[2]) for r in table.read_text().splitlines()[1:]] == counts
    assert data["scenario"]["schedule"]["window"] == "1min"
    assert picture.read_text().startswith("<?xml")
    optimized = data["policies"][-1]
    assert sum(optimized["requests"].values()) == 300
    assert optimized["starts"] >= counts[1] - counts[0]


def transferred(path: Path, gpu: str, method: str = "fp8-w8a8") -> Path:
    profile = make_profile(gpu=gpu, model="llama-3.1-8b", method=method, decode_ms=20.0,
                           max_num_seqs=2)  # fmt: skip
    moved = Transfer(["h200_sxm/llama-3.1-8b/bf16"], ["tables 1"], {"decode": 10.0})
    replace(profile, transfer=moved, identity=replace(profile.identity, source="transferred")).save(
        path
    )
    return path


def test_pools_are_told_apart_by_what_differs(traffic: Path, server: Path, tmp_path: Path) -> None:
    other = transferred(tmp_path / "other.json", "a100_sxm")
    run = ("schedule", traffic, "--profile", server, "--slo", "ttft:p90:400", *WINDOW,
           "--policy", "static")  # fmt: skip
    result = qsim(*run, "--profile", other, "--json", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    heads = [line.split() for line in result.stdout.splitlines()]
    assert ["static", "h200_sxm/fp8-w8a8"] in [w[:2] for w in heads]
    assert ["static", "~a100_sxm/fp8-w8a8"] in [w[:2] for w in heads]
    assert "~ before a pool: its profile is transferred from other measurements" in result.stdout
    data = json.loads((tmp_path / "s.json").read_text())
    names = [p["policy"] for p in data["policies"]]
    assert sorted(names) == ["optimized", "static a100_sxm/fp8-w8a8", "static h200_sxm/fp8-w8a8"]
    assert set(data["savings"]) == set(names) - {"optimized"}
    # each pool of the timetable comes with its command, marked alike
    for pool in ("h200_sxm/fp8-w8a8", "~a100_sxm/fp8-w8a8"):
        in_timetable = any(w and pool in w and "static" not in w for w in heads)
        assert in_timetable == (f"Start each server of {pool}, on its own GPUs" in result.stdout)
    assert "  vllm serve RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic " in result.stdout
    # where the GPU is the same, the method says it all
    same = transferred(tmp_path / "same.json", "h200_sxm", "int8-w8a8")
    both = qsim(*run, "--profile", same).stdout
    assert "static fp8-w8a8 " in both
    assert "static ~int8-w8a8 " in both


def test_kubernetes_to_stdout(traffic: Path, server: Path) -> None:
    result = qsim(
        "schedule", traffic, "--profile", server, "--slo", "ttft:p90:400", *WINDOW,
        "--policy", "none", "--export", "kubernetes", "--week-day", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    objects = {o["kind"]: o for o in yaml.safe_load_all(result.stdout)}
    assert set(objects) == {"Deployment", "Service", "ScaledObject"}
    trigger = objects["ScaledObject"]["spec"]["triggers"][0]
    assert trigger["type"] == "cron"
    assert trigger["metadata"]["end"] == "2 0 * * 1"


def test_what_cannot_be_done(traffic: Path, server: Path) -> None:
    run = ("schedule", traffic, "--profile", server, *WINDOW, "--policy", "none")
    fails(qsim(*run, "--slo", "ttft:p90:400", "--max-replicas", "1"), 3, "window 60-120 s")
    fails(qsim(*run, "--slo", "ttft:p90:1"), 3, "no number of servers helps")
    fails(qsim(*run), 2, "no SLO is given")
    odd = [w if w != "1min" else "7s" for w in run]
    fails(qsim(*odd, "--slo", "ttft:p90:400"), 2, "whole number of minutes")
    fails(qsim(*run, "--slo", "ttft:p90:400", "--export", "magic"), 2, "csv, kubernetes")
    both = ("--carbon-series", "x.csv", "--region", "DEU")
    fails(qsim(*run, "--slo", "ttft:p90:400", *both), 2, "drop one")
