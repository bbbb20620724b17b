from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from qsim.optimize.sweep import sweeping as module
from tests.cli.helpers import fails, qsim, write


def test_a_row_a_run_on_stdout(trace: Path, profile: Path, slower: Path) -> None:
    result = qsim(
        "sweep", trace, "--grid", f"profile={profile},{slower}", "--grid", "replicas=1:2",
        "--slo", "ttft:p99:500", "--jobs", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(r["profile"], r["replicas"]) for r in rows] == [
        (str(p), n) for p in (profile, slower) for n in "12"
    ]
    single = qsim("simulate", trace, "--profile", slower, "--replicas", 2, "--json", "-")
    assert float(rows[3]["p99_ttft_ms"]) == json.loads(single.stdout)["p99_ttft_ms"]
    assert float(rows[3]["attainment"]) <= 1


def test_over_a_scenario_file(trace: Path, profile: Path, tmp_path: Path) -> None:
    chat = write(
        tmp_path / "chat.yaml",
        f"trace: {trace}\nprofile: {profile}\nmax_num_seqs: 16\nslo: ['ttft:p99:500']\n",
    )
    out = tmp_path / "rows.json"
    first = qsim("sweep", chat, "--grid", "growth=1,2", "--out", out, "--jobs", 1)
    assert first.exit_code == 0, first.output
    assert first.stdout == ""
    data = json.loads(out.read_text())
    assert data["settings"]["base"]["fleet"]["pools"][0]["engine"] == {"max_num_seqs": 16}
    assert data["settings"]["slos"] == ["ttft:p99:500"]
    assert len(data["rows"]) == 2
    saved = tmp_path / "sweep.yaml"
    again = qsim("sweep", "--scenario", chat, "--grid", "growth=1,2", "--lhs", 3, "--jobs", 1,
                 "--save-scenario", saved)  # fmt: skip
    assert again.exit_code == 0, again.output
    assert qsim("sweep", saved, "--jobs", 1).stdout == again.stdout


def test_ctrl_c_and_resume(
    trace: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.csv"
    command = ["sweep", trace, "--profile", profile, "--grid", "replicas=1:4", "--out", out,
               "--jobs", 1]  # fmt: skip
    measure, calls = module.measure_fleet, [0]

    def interrupted(task: object) -> object:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return measure(task)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "measure_fleet", interrupted)
        result = qsim(*command)
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    assert not out.exists()
    kept = tmp_path / "rows.csv.rows.jsonl"
    assert len(kept.read_text().splitlines()) == 2
    assert qsim(*command, "--resume").exit_code == 0
    assert not kept.exists()
    resumed = out.read_text()
    assert qsim(*command).exit_code == 0
    assert out.read_text() == resumed


def test_wrong_options(trace: Path, profile: Path) -> None:
    sweep = ["sweep", trace, "--profile", profile, "--jobs", 1]
    fails(qsim(*sweep, "--grid", "replicas"), 2, "--grid", "does not parse")
    fails(qsim(*sweep, "--grid", "replicas=1", "--out", "x.xlsx"), 2, "--out")
    fails(qsim(*sweep, "--grid", "replicas=1", "--resume"), 2, "--out FILE")
    fails(qsim(*sweep), 2, "nothing to decide")
    some = qsim(*sweep, "--grid", "num_gpu_blocks_override=2,900")
    assert some.exit_code == 0
    assert "1 of 2 runs failed, such as run 0" in some.stderr
