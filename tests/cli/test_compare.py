"""``qsim compare`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.profiles.schema import Profile

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "measurements/closed-loop/llama-3.1-8b--fp8-w8a8--v0.33--2026-11-30"
RECORDING = ROOT / "recordings/llama-3.1-8b--bf16--v0.24--2026-11-30"
PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["compare", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def test_a_benchmark_beside_its_simulation(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    code, out, err = run(BENCH / "max-concurrency-8.json.gz", "--profile", PROFILE, "--no-explain",
                         "--vllm-version", "0.33", "--json", "-", "--picture", picture)  # fmt: skip
    assert code == 0, err
    data = json.loads(out)
    assert data["requests"] == len(data["of_requests"]) == 160
    assert data["error_percent"]["mean_ttft_ms"] == pytest.approx(
        (data["simulated"]["mean_ttft_ms"] / data["measured"]["mean_ttft_ms"] - 1) * 100, abs=0.01
    )
    assert picture.stat().st_size > 10_000


def test_a_benchmark_that_sent_texts() -> None:
    args = (
        BENCH / "max-concurrency-8.json.gz",
        "--profile",
        PROFILE,
        "--no-explain",
        "--json",
        "-",
    )
    found = []
    for more in ((), ("--token-prompts",), ("--text-prompts",)):
        code, out, err = run(*args, "--vllm-version", "0.33", *more)
        assert code == 0, err
        assert "token ids" not in err
        found.append(json.loads(out)["simulated"]["mean_ttft_ms"])
    assert found[0] == found[1] < found[2] - 0.5
    code, out, err = run(*args, "--vllm-version", "0.24", "--text-prompts")
    assert code == 0, err
    assert "prompts count as token ids: the profile does not tell how long" in err


def test_a_recording_is_explained_and_adapted(tmp_path: Path) -> None:
    out_path = tmp_path / "a.json"
    code, out, err = run(RECORDING, "--phase", "over40", "--adapt", out_path)
    assert code == 0, err
    assert "what would explain it" in out
    assert "all parts of the machine" in out
    adapted = Profile.load(out_path)
    assert adapted.adapted is not None
    assert adapted.adapted.loads == [f"{RECORDING.name}: over40"]
    assert adapted.id == "h200_sxm/llama-3.1-8b/bf16"


WRONG = [
    ((BENCH / "max-concurrency-8.json.gz",), "--profile is missing"),
    ((BENCH / "max-concurrency-8.json.gz", "--profile", PROFILE, "--phase", "x"), "--phase is for"),
    ((RECORDING,), "--phase is missing; llama-3.1-8b--bf16--v0.24--2026-11-30 has"),
    ((RECORDING, "--phase", "none"), "no phase 'none'"),
    ((RECORDING, "--phase", "mix80", "--energy-j", 5), "--energy-j is for"),
    ((RECORDING, "--phase", "mix80", "--text-prompts"), "--text-prompts is for"),
    ((RECORDING, "--phase", "mix80", "--max-num-seqs", 5), "--max-num-seqs: a recording"),
    ((ROOT / "none.json", "--profile", PROFILE), "no such file"),
]


@pytest.mark.parametrize(("args", "message"), WRONG)
def test_wrong_options_are_told(args: tuple[object, ...], message: str) -> None:
    code, _, err = run(*args)
    assert code == 2
    assert message in err


def test_nothing_is_written_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    code, _, err = run(RECORDING, "--phase", "mix80", "--adapt", tmp_path / "file" / "a.json")
    assert code == 1
    assert "--adapt" in err
