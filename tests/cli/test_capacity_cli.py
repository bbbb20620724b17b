"""``qsim capacity`` and ``qsim curve``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from qsim.cli.capacity import DEFAULT_TRACE
from qsim.optimize.capacity.capacity import DEFAULT_TRAFFIC
from tests.cli.helpers import fails, qsim

TRAFFIC = "azure-conv-2023:requests=400"
LIMIT = ("--slo", "ttft:p90:400")


def test_the_same_default() -> None:
    assert DEFAULT_TRACE == DEFAULT_TRAFFIC


def test_the_printed_command_gives_the_figures(tmp_path: Path, profile: Path, slower: Path) -> None:
    data = tmp_path / "capacity.json"
    result = qsim("capacity", TRAFFIC, "--gpus", "h200_sxm=2", "--profile", profile, "--profile",
                  slower, *LIMIT, "--jobs", 1, "--json", data, "--max-num-seqs", 64)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "best: h200_sxm/toy-1b/fp8-w8a8 x 2" in result.stdout
    rows = [r for r in result.stdout.splitlines() if r.startswith("h200_sxm/toy-1b/")]
    assert all(("~" in r) == ("/bf16 " not in r) for r in rows), "nothing is published of toy-1b"
    assert "~ quality estimated: " in result.stdout
    best = json.loads(data.read_text())["layouts"][0]
    command = next(t for t in result.stdout.splitlines() if t.startswith("its figures: "))
    words = shlex.split(command.removeprefix("its figures: "))
    again = qsim(*words[1:], "--json", "-")
    assert again.exit_code == 0, again.output
    summary = json.loads(again.stdout)
    for key in ("p99_ttft_ms", "output_throughput", "energy_j", "duration"):
        assert summary[key] == best["summary"][key]
    assert summary["slos_met"]


def test_equal_for_any_number_of_jobs(profile: Path, slower: Path) -> None:
    args = ("capacity", TRAFFIC, "--gpus", "h200_sxm=1", "--profile", profile, "--profile", slower,
            *LIMIT, "--json", "-", "--jobs")  # fmt: skip
    one, two = qsim(*args, 1), qsim(*args, 2)
    assert one.exit_code == 0, one.stderr
    assert one.stdout_bytes == two.stdout_bytes


def test_a_curve_as_table_csv_and_picture(tmp_path: Path, profile: Path, slower: Path) -> None:
    table, picture = tmp_path / "curve.csv", tmp_path / "curve.svg"
    result = qsim("curve", TRAFFIC, "--profile", profile, "--profile", slower, *LIMIT,
                  "--jobs", 1, "--csv", table, "--picture", picture)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.count(" knee ") == 2
    assert table.read_text().startswith("fleet,profile,replicas,gpus,speed,rate_rps,met,")
    assert picture.read_text().count("requests/s") >= 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("capacity", *LIMIT, "--model", "llama-3.1-8b"), "no GPUs are given"),
        (("capacity", "--gpus", "h100_sxm", *LIMIT), "--gpus is 'h100_sxm'; must be GPU=N"),
        (("capacity", "--gpus", "h100_sxm=1", "--gpus", "h100_sxm=2", *LIMIT), "twice"),
        (("capacity", "--gpus", "h100_sxm=" + "9" * 30, *LIMIT), "that many GPUs"),
        (("capacity", TRAFFIC, "--speed", "2", "--gpus", "h100_sxm=1", *LIMIT), "--speed is what"),
        (("curve", *LIMIT), "no fleet is given"),
        (("curve", "--profile", "x", "--rates", "1,b"), "--rates is '1,b'"),
        (("curve", "--profile", "x", "--csv", "c.txt"), "must end in .csv"),
    ],
)
def test_errors(args: tuple[str, ...], words: str) -> None:
    fails(qsim(*args), 2, words)
