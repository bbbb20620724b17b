"""``--vllm-version`` and the options that come with a version."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli.helpers import fails, qsim, write


def resolved(trace: Path, profile: Path, *options: object) -> dict[str, object]:
    result = qsim("simulate", trace, "--profile", profile, *options, "--json", "-")
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)["resolved"]
    return found


def test_the_version_reaches_the_engine(trace: Path, profile: Path) -> None:
    assert resolved(trace, profile)["vllm_version"] == "0.24"
    found = resolved(
        trace, profile, "--vllm-version", "0.33", "--max-num-active-seqs", 7,
        "--long-prefill-token-threshold", 64, "--long-prefill-token-threshold-adaptive",
        "--max-num-queued-reqs", 9, "--max-num-queued-tokens", "8k",
    )  # fmt: skip
    names = ("vllm_version", "max_num_active_seqs", "long_prefill_token_threshold_adaptive",
             "max_num_queued_reqs", "max_num_queued_tokens")  # fmt: skip
    assert [found[name] for name in names] == ["0.33", 7, True, 9, 8000]


@pytest.mark.parametrize("command", ["simulate", "plan", "tune", "sweep", "schedule"])
@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.23", ["vllm_version is '0.23'", "must be 0.24 or newer"]),
        ("newest", ["vllm_version is 'newest'", "must be a version of vLLM"]),
    ],
)
def test_what_is_no_version_is_refused(
    command: str, version: str, words: list[str], trace: Path, profile: Path
) -> None:
    fails(qsim(command, trace, "--profile", profile, "--vllm-version", version), 2, *words)


def test_a_newer_version_is_said(trace: Path, profile: Path) -> None:
    for command in ("simulate", "plan"):
        slo = ("--slo", "ttft:p99:60000")
        result = qsim(command, trace, "--profile", profile, "--vllm-version", "0.99", *slo)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("vLLM 0.99 is newer than 0.33") == 1


def test_a_scenario_file_may_name_it(trace: Path, profile: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml",
        f"trace: {trace}\nprofile: {profile}\nvllm_version: '0.30'\nmax_num_queued_reqs: 100\n",
    )
    saved = tmp_path / "saved.yaml"
    first = qsim("simulate", "--scenario", path, "--json", "-", "--save-scenario", saved)
    assert json.loads(first.stdout)["resolved"]["vllm_version"] == "0.30"
    assert qsim("simulate", "--scenario", saved, "--json", "-").stdout == first.stdout
    unquoted = write(tmp_path / "b.yaml", path.read_text().replace("'0.30'", "0.30"))
    fails(qsim("simulate", "--scenario", unquoted), 2, "'0.3'", "quotes: '0.30'")


def test_versions_beside_each_other(trace: Path, profile: Path) -> None:
    result = qsim(
        "sweep", trace, "--profile", profile, "--grid", "vllm_version=0.24,0.30", "--grid",
        "max_num_seqs=3,64", "--jobs", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [r["vllm_version"] for r in rows] == ["0.24", "0.24", "0.30", "0.30"]
    assert all(float(r["completed"]) == 5 for r in rows if "completed" in r)


def test_a_plan_exports_what_it_simulated(trace: Path, profile: Path) -> None:
    command = ["plan", trace, "--profile", profile, "--slo", "ttft:p99:60000", "--jobs", 1,
               "--vllm-version", "0.33.0", "--max-num-active-seqs", 4]  # fmt: skip
    script = qsim(*command, "--export", "vllm")
    assert script.exit_code == 0, script.output
    assert "# vLLM 0.33.0: 1 server as simulated" in script.stdout
    assert "--max-num-active-seqs 4" in script.stdout
    assert "vllm-version" not in script.stdout
    manifest = qsim(*command, "--export", "kubernetes")
    assert "vllm/vllm-openai:v0.33.0" in manifest.stdout
    older = qsim(*command[:-4], "--max-num-active-seqs", 4)
    fails(older, 2, "max_num_active_seqs is 4; vLLM 0.24 has no such option")


def test_queue_limits_are_refused_where_all_are_to_be_served(trace: Path, profile: Path) -> None:
    for command in ("plan", "tune"):
        result = qsim(command, trace, "--profile", profile, "--slo", "ttft:p99:60000",
                      "--vllm-version", "0.33", "--max-num-queued-reqs", 3)  # fmt: skip
        fails(result, 2, f"max_num_queued_reqs is given; qsim {command} looks for servers")
