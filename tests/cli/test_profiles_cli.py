from __future__ import annotations

import json
from pathlib import Path

from qsim.profiles.lookup import list_profiles
from qsim.profiles.schema import Profile
from tests.cli.helpers import fails, qsim

FP8 = "h200_sxm/llama-3.1-8b/fp8-w8a8"


def test_list_shows_every_profile_with_its_error_and_kv_tokens() -> None:
    result = qsim("profiles")
    assert result.exit_code == 0
    assert result.stdout == qsim("profiles", "list").stdout
    lines = result.stdout.splitlines()
    assert len([x for x in lines if "/" in x.split(" ")[0]]) == len(
        list_profiles(all_versions=True)
    )
    memory = Profile.load(next(e.path for e in list_profiles() if e.id == FP8)).memory
    (line,) = (x for x in lines if x.startswith(FP8 + " "))
    assert f"{(memory.num_gpu_blocks - 1) * memory.block_size:,}" in line
    assert "measured" in line
    stated = Profile.load(next(e.path for e in list_profiles() if e.id == FP8)).fit_error
    assert f"{stated['worst_mean']:.1f}" in line.split()
    assert f"{stated['worst_energy']:.1f}" in line.split()


def test_list_as_json() -> None:
    rows = json.loads(qsim("profiles", "list", "--json").stdout)
    assert [r["id"] for r in rows if "@" not in r["id"]] == [e.id for e in list_profiles()]
    assert len(rows) == len(list_profiles(all_versions=True))
    assert {r["id"]: r["vllm_version"] for r in rows}[f"{FP8}@0.24"] == "0.24.0"
    assert all(r["kv_tokens"] > 0 for r in rows)
    assert all(0 < r["error_percent"]["mean"] <= 40 for r in rows)
    assert {r["source"] for r in rows} == {"measured", "transferred"}


def test_show_for_people_and_as_json() -> None:
    text = qsim("profiles", "show", FP8).stdout
    for word in (FP8, "KV cache", "decode step", "power", "error"):
        assert word in text
    older = "h200_sxm/qwen2.5-14b/bf16"
    carried = qsim("profiles", "show", older, "--vllm-version", "0.33").stdout
    assert "measured under vLLM 0.24.0 and carried to 0.33" in carried
    data = json.loads(qsim("profiles", "show", FP8, "--json").stdout)
    assert data["id"] == FP8
    assert Profile.from_dict(data).id == FP8


def test_path_is_the_file() -> None:
    path = qsim("profiles", "path", FP8).stdout.strip()
    assert Profile.load(path).id == FP8
    assert json.loads(Path(path).read_text())["id"] == FP8


def test_show_takes_a_file(profile: Path) -> None:
    assert "h200_sxm/toy-1b/fp8-w8a8" in qsim("profiles", "show", profile).stdout


def test_an_unknown_profile_has_near_matches() -> None:
    for command in ("show", "path"):
        fails(qsim("profiles", command, "h200/llama-3.1-8b/fp8"), 2,
              "unknown profile 'h200/llama-3.1-8b/fp8'", f"did you mean '{FP8}'")  # fmt: skip
