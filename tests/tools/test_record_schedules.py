"""The tool that records schedules of vLLM: drawing and comparing, and what runs without vLLM."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qsim.sim.replay import load_scenario, parse_scenario

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "record_schedules"
RECORDED = ROOT / "tests" / "sim" / "golden" / "vllm-0.33.0"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOL))
    spec = importlib.util.spec_from_file_location(name, TOOL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("version", ["0.24.0", "0.33.0"])
def test_drawn_scenarios_are_valid_and_the_same_again(version: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        result = run("draw.py", tmp_path / folder, "--version", version, "--count", 60)
        assert result.returncode == 0, result.stderr
    files = sorted((tmp_path / "a").glob("*.json"))
    assert len(files) == 60
    scenarios = [load_scenario(path) for path in files]
    assert all(s.config.vllm_version == version for s in scenarios)
    assert {s.config.async_scheduling for s in scenarios} == {True, False}
    assert {s.config.scheduling_policy for s in scenarios} == {"fcfs", "priority"}
    assert any(s.config.max_num_active_seqs for s in scenarios) == (version == "0.33.0")
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_recording_that_is_reproduced_and_one_that_is_not(tmp_path: Path) -> None:
    path = RECORDED / "prefix-7-56.json"
    good = run("compare.py", path, "--others", "0.24.0")
    assert good.returncode == 0
    assert good.stdout.startswith("1 of 1 recordings exact (")
    assert "0 of 1 would be others under vLLM 0.24.0" in good.stdout
    data = json.loads(path.read_text())
    data["expected"]["steps"][3]["free_blocks"] += 1
    (tmp_path / "wrong.json").write_text(json.dumps(data))
    del data["expected"]["steps"][3:]
    (tmp_path / "short.json").write_text(json.dumps(data))
    bad = run("compare.py", tmp_path, path)
    assert bad.returncode == 1
    assert bad.stdout.endswith("1 of 3 recordings exact (" + bad.stdout.rsplit("(", 1)[1])
    assert bad.stdout.count("  vLLM {") == 1
    assert bad.stdout.count("  vLLM None") == 1


def test_prompts_share_what_their_hash_ids_say(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = module("record", monkeypatch).Prompts(4)
    a = prompts.tokens({"prompt_tokens": 10, "hash_ids": [7, 8]})
    b = prompts.tokens({"prompt_tokens": 9, "hash_ids": [7, 9]})
    c = prompts.tokens({"prompt_tokens": 9})
    assert [len(x) for x in (a, b, c)] == [10, 9, 9]
    assert a[:4] == b[:4]
    assert not set(a[4:]) & set(b[4:])
    assert not set(c) & set(a + b)


def test_what_is_written_is_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads((RECORDED / "threshold-7-223.json").read_text())
    out = tmp_path / "written.json"
    module("record", monkeypatch).write(out, data["scenario"], data["expected"]["steps"])
    assert json.loads(out.read_text()) == data
    assert out.read_bytes() == (RECORDED / "threshold-7-223.json").read_bytes()
    assert parse_scenario(data["scenario"]) == load_scenario(out)


def test_a_python_without_vllm_is_told_so(tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    result = run("record.py", tmp_path / "out", RECORDED / "prefix-7-56.json")
    assert result.returncode != 0
    assert "run this with the Python that has it" in result.stderr
    assert "Traceback" not in result.stderr
