"""What docs/profile-format.md says of the API server's process is what its trace gives."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "measurements/api-server/llama-3.1-8b--fp8-w8a8--v0.33--2026-11-30.json.gz"

sys.path.insert(0, str(ROOT / "tools"))
import check_api_server as tool  # noqa: E402


def cells(text: str) -> dict[str, list[float]]:
    rows = re.findall(
        r"^\| (\w+) \| \d+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE
    )
    return {name: [float(x) for x in values] for name, *values in rows}


def test_the_trace_is_told_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(TRACE)]) == 0
    found = cells(capsys.readouterr().out)
    assert len(found) == 9
    for name, most, least in (
        ("mooncake", 0.075, 0.95), ("long", 0.075, 0.95),
        ("closed8", 0.105, 0.92), ("closed32", 0.105, 0.92), ("closed128", 0.105, 0.92),
    ):  # fmt: skip
        measured, predicted, correlation = found[name]
        assert predicted == pytest.approx(measured, rel=most)
        assert correlation >= least
    # the size decides: that of a host half as quick is far off
    assert tool.main([str(TRACE), "--size", "3.4"]) == 0
    twice = cells(capsys.readouterr().out)
    assert twice["closed128"][1] > 1.5 * twice["closed128"][0]


def test_twelve_long_prompts_at_once() -> None:
    requests = json.loads(gzip.decompress(TRACE.read_bytes()))["loads"]["long"]["requests"]
    burst = [(received, there) for received, there, prompt in requests if prompt == 16000][-12:]
    sent = min(received for received, _ in burst)
    assert round(min(there for _, there in burst) - sent) == 41
    assert round(max(there for _, there in burst) - sent) == 98


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.json.gz"
    path.write_bytes(gzip.compress(b"{}"))
    assert tool.main([str(path)]) == 2
    assert f"Error: {path}" in capsys.readouterr().err
    assert tool.main(["--bursts", str(tmp_path / "no recording")]) == 2


@pytest.mark.parametrize(("phase", "least", "most"), [("ladder", 201, 380), ("ctx8k", 29, 88)])
def test_a_burst_of_a_recording(phase: str, least: int, most: int) -> None:
    lines = tool.burst_lines(ROOT / "recordings/llama-3.1-8b--nvfp4-w4a16--v0.33--2026-11-30")
    (line,) = (x for x in lines if f" {phase}:" in x)
    begun, ready = (int(x) for x in re.findall(r"after (\d+) ms", line))
    assert least <= begun <= most
    assert ready == pytest.approx(begun, rel=0.1)
