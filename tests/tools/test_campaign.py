"""``tools/campaign.py``: several servers on one machine, packed as they become whole."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from qsim.calibrate.recordings.read import read_recording
from tests.calibrate.stub import HERE, MARK, STUB, none_left, script, stub_environment

SCRIPT = Path(__file__).parents[2] / "tools" / "campaign.py"


@pytest.fixture(scope="module", name="script")
def campaign() -> ModuleType:
    return script("campaign")


def run(tmp_path: Path, *args: str) -> tuple[int, str]:
    out, archive = tmp_path / "out", tmp_path / "packed.tgz"
    done = subprocess.run(
        [
            sys.executable, str(SCRIPT), "--out", str(out), "--pack", str(archive), "--gpus", "0,1",
            "--calibrate", shlex.join([sys.executable, str(HERE / "drive.py"), "run"]),
            "--more=--serve-command", f"--more={shlex.join(STUB)}", *args,
        ],
        env=stub_environment(**{MARK: str(out)}), capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert none_left(str(out)) == []
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_whole_is_in_the_archive(tmp_path: Path) -> None:
    servers = ["llama-3.1-8b:bf16", "llama-3.1-8b:fp8-w8a8", "qwen2.5-14b:bf16"]
    code, text = run(tmp_path, "--seconds", "1000", servers[0], servers[1])
    assert code == 0, text
    assert "all done; failed: none; not begun: none" in text
    names = ["llama-3.1-8b--bf16", "llama-3.1-8b--fp8-w8a8"]
    unpacked = tmp_path / "unpacked"
    with tarfile.open(tmp_path / "packed.tgz") as tar:
        tar.extractall(unpacked, filter="data")
    assert sorted(p.name for p in unpacked.iterdir() if p.is_dir()) == names
    for name in names:
        assert read_recording(unpacked / name).server.raw["token_balance"]
    # again: nothing is measured twice, and what cannot end in time is not begun
    code, text = run(tmp_path, "--seconds", "200", *servers)
    assert code == 0, text
    assert " on GPU " not in text
    assert "not begun: qwen2.5-14b--bf16" in text


def test_an_archive_that_lacks_a_recording_is_an_error(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    folder = out / "llama-3.1-8b--bf16"
    folder.mkdir(parents=True)
    (folder / "server.json").write_text("{}")
    (out / ".llama-3.1-8b--fp8-w8a8.1.x").mkdir()
    assert [p.name for p in script.whole(out)] == ["llama-3.1-8b--bf16"]
    archive = tmp_path / "a.tgz"
    with pytest.raises(RuntimeError, match=r"lacks llama-3\.1-8b--bf16"):
        script.pack(out, archive)
    assert not archive.exists()
    (folder / "steps.csv.gz").write_bytes(b"x")
    assert script.pack(out, archive) == 1
    assert os.path.getsize(archive) > 0


def test_servers_by_name(script: ModuleType) -> None:
    server = script.Server.parse("llama-3.1-70b:fp8-w8a8:tp2")
    assert server == script.Server("llama-3.1-70b", "fp8-w8a8", 2)
    assert server.name == "llama-3.1-70b--fp8-w8a8--tp2"
    assert script.Server.parse("llama-3.1-8b:bf16").name == "llama-3.1-8b--bf16"
    server = script.Server.parse("llama-3.1-70b:fp8-w8a8+kv-fp8:tp2:x1.5:check", 0.8)
    assert server == script.Server("llama-3.1-70b", "fp8-w8a8+kv-fp8", 2, pytest.approx(1.2), True)
    assert server.name == "llama-3.1-70b--fp8-w8a8+kv-fp8--tp2--check"
    for bad in ("8b", "8b:", ":bf16", "8b:bf16:2", "8b:bf16:tp0", "8b:bf16:x0", "8b:bf16:xx"):
        with pytest.raises(ValueError, match="MODEL:METHOD"):
            script.Server.parse(bad)


def test_a_bad_server_is_told(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["m:bf16:tp", "--gpus", "0", "--out", "x"])
    assert "'m:bf16:tp' is not MODEL:METHOD" in capsys.readouterr().err


@pytest.mark.slow
def test_servers_to_check_and_to_fit_get_their_own_options(tmp_path: Path) -> None:
    code, text = run(
        tmp_path, "llama-3.1-8b:bf16:check", "llama-3.1-8b:fp8-w8a8",
        "--fit-more=--seed", "--fit-more=3", "--check-more=--seed", "--check-more=4",
    )  # fmt: skip
    assert code == 0, text
    seen = {}
    for name in ("llama-3.1-8b--bf16--check", "llama-3.1-8b--fp8-w8a8"):
        recording = read_recording(tmp_path / "out" / name)
        seen[name] = (recording.server.raw["seed"], "pre" in {p.label for p in recording.phases})
    assert seen == {
        "llama-3.1-8b--bf16--check": (4, False), "llama-3.1-8b--fp8-w8a8": (3, True),
    }  # fmt: skip


def test_a_share_of_the_time_for_the_loads(script: ModuleType) -> None:
    whole = script.Server.parse("llama-3.1-70b:bf16")
    half = script.Server.parse("llama-3.1-70b:bf16", 0.5)
    assert half.budget_s == 0.5 * whole.budget_s
    assert half.start_s == whole.start_s
    # requests under way are waited for, so it saves less than the loads were cut by
    assert 0.5 * half.budget_s < whole.expected_s - half.expected_s < half.budget_s


@pytest.mark.slow
def test_a_server_that_starts_ahead_waits_for_its_turn(tmp_path: Path) -> None:
    servers = ["llama-3.1-8b:bf16", "llama-3.1-8b:fp8-w8a8", "llama-3.1-8b:int8-w8a8"]
    code, text = run(tmp_path, "--gpus", "0", "--ahead", *servers)
    assert code == 0, text
    assert "all done; failed: none; not begun: none" in text
    begun = [text.index(f"{s.replace(':', '--')} on GPU 0") for s in servers]
    ended = [text.index(f"{s.replace(':', '--')} ended") for s in servers]
    assert begun[1] < min(ended)  # before another was through
    assert begun[2] > min(ended)  # but not two of them
    spans, waited = [], 0
    for s in servers:
        folder = tmp_path / "out" / s.replace(":", "--")
        raw = read_recording(folder).server.raw
        phases = json.loads((folder / "phases.json").read_text())
        spans.append((raw["zero_s"] + phases[0]["start_s"], raw["zero_s"] + phases[-1]["end_s"]))
        waited += raw.get("waited_for_gpus_s", 0.0) > 0.5
        assert 0 <= raw["server_start_s"] < 10
    spans.sort()
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end < start  # never two at a time
    assert waited


def test_more_gpus_than_there_are(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["m:bf16:tp4", "--gpus", "0,1", "--out", "x"])
    assert "a server needs 4 GPUs, --gpus names 2" in capsys.readouterr().err
