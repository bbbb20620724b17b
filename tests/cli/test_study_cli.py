"""``qsim study``: the folder it writes, scenario files, resuming, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from qsim.cli.study import JOURNAL
from tests.cli.helpers import fails, qsim, write

ARGS = ("--method", "bf16", "--method", "fp8-w8a8", "--gpu", "h200_sxm", "--level", "application",
        "--task", "maths", "--jobs", 1)  # fmt: skip
MODEL = ("--model", "llama-3.1-8b")


def test_a_folder_with_every_number(tmp_path: Path) -> None:
    out = tmp_path / "a" / "study"
    result = qsim("study", *MODEL, *ARGS, "--out", out)
    assert result.exit_code == 0, result.output
    assert "Which method on h200_sxm" in result.stdout
    data = json.loads((out / "study.json").read_text())
    assert data["schema"] == "qsim-study/1"
    assert data["methods"] == ["bf16", "fp8-w8a8"]
    assert len(data["levels"]["application"]) == 2
    assert not data["levels"]["workload"]
    names = {p.name for p in out.iterdir()}
    assert {"study.md", "application.csv", "decisions.csv", "runs.csv"} <= names
    assert JOURNAL not in names  # done
    with (out / "application.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, told in zip(rows, data["levels"]["application"], strict=True):
        assert row["method"] == told["method"]
        for figure, band in told["figures"].items():
            for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                text = row[figure + suffix]
                assert (None if text == "" else float(text)) == (band and band[end])
    page = (out / "study.md").read_text()
    for heading in ("## Findings", "## Which method", "## Application: tasks",
                    "## What it rests on"):  # fmt: skip
        assert heading in page
    for finding in data["findings"]:
        assert finding["statement"] in page


def test_its_command_and_its_scenario_make_it_again(tmp_path: Path) -> None:
    first, second, third = (tmp_path / n for n in ("one", "two", "three"))
    saved = tmp_path / "study.yaml"
    result = qsim("study", *MODEL, *ARGS, "--seed", 3, "--min-quality", 95, "--router",
                  "round-robin", "--price", "h200_sxm=9", "--out", first,
                  "--save-scenario", saved)  # fmt: skip
    assert result.exit_code == 0, result.output
    whole = json.loads((first / "study.json").read_text())
    import shlex

    words = shlex.split(whole["command"])
    assert words[:2] == ["qsim", "study"]
    assert words[-2:] == ["--out", "study"]
    assert words[words.index("--router") + 1] == "round-robin"
    again = qsim(*words[1:-1], second, "--jobs", 1)
    assert again.exit_code == 0, again.output
    assert json.loads((second / "study.json").read_text()) == whole
    of_file = qsim("study", saved, "--jobs", 1, "--out", third)
    assert of_file.exit_code == 0, of_file.output
    assert json.loads((third / "study.json").read_text()) == whole


def test_traffic_as_an_option_is_trace(tmp_path: Path) -> None:
    level = ("--level", "hardware", "--model", "llama-3.1-8b", "--gpu", "h200_sxm", "--gpu",
             "h100_sxm", "--method", "bf16", "--jobs", 1)  # fmt: skip
    for n, words in enumerate((("azure-code-2023",), ("--traffic", "azure-code-2023"))):
        result = qsim("study", *words, *level, "--out", tmp_path / str(n))
        assert result.exit_code == 0, result.output
    one, two = (json.loads((tmp_path / n / "study.json").read_text()) for n in "01")
    assert one == two
    assert one["traffic"] == "azure-code-2023"
    fails(qsim("study", "burstgpt", "--traffic", "azure-code-2023", *level, "--out", tmp_path),
          2, "TRACE and --traffic are both given")  # fmt: skip


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert qsim("study", *MODEL, *ARGS, "--out", out).exit_code == 0
    whole = (out / "study.json").read_bytes()
    from qsim.optimize.study.studying import study_for
    from qsim.scenario import Scenario

    scenario = Scenario.from_dict({"traffic": {"trace": "azure-conv-2023"}, "study": {
        "model": "llama-3.1-8b", "methods": ["bf16", "fp8-w8a8"], "gpus": ["h200_sxm"],
        "levels": ["application"], "applications": ["maths"],
    }})  # fmt: skip
    study_for(scenario, journal=out / JOURNAL)  # killed before it wrote anything
    fails(qsim("study", *MODEL, *ARGS, "--out", out), 2, "4 finished runs of a study", "--resume")
    result = qsim("study", *MODEL, *ARGS, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert (out / "study.json").read_bytes() == whole
    assert not (out / JOURNAL).exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ("neither a model nor a profile is given",)),
        (("--model", "llama-3.1-9b"), ("no profile of model 'llama-3.1-9b'", "llama-3.1-8b")),
        ((*MODEL, "--gpu", "b200"), ("gpu 'b200'",)),
        ((*MODEL, "--method", "fp7"), ("method 'fp7'",)),
        ((*MODEL, "--task", "chatt"), ("task 'chatt' is unknown", "chat")),
        ((*MODEL, "--level", "galaxy"), ("levels", "galaxy")),
        ((*MODEL, "--level", "workload", "--task", "chat"), ("which alone has tasks",)),
        ((*MODEL, "--speed", 2), ("traffic.speed is given",)),
        ((*MODEL, "--min-quality", 0.9), ("0.9", "90")),
        ((*MODEL, "--price", "h200_sxm=-1"), ("-1",)),
        (("azure-conv-2023:rate=3", *MODEL), ("study sets rate itself",)),
        (("nofile.csv", *MODEL), ("nofile.csv: no such file",)),
        ((*MODEL, "--gpu", "h200_sxm", "--max-num-seqs", 5000), ("max_num_seqs is 5000",)),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, args: tuple[object, ...], words: tuple[str, ...]
) -> None:
    fails(qsim("study", *args, "--jobs", 1, "--out", tmp_path / "s"), 2, *words)
    assert not list(tmp_path.rglob("*.json"))


def test_out_is_tried_before_the_work(tmp_path: Path) -> None:
    file = write(tmp_path / "file", "x")
    result = qsim("study", *MODEL, *ARGS, "--out", file)
    assert result.exit_code != 0
    assert "--out" in result.stderr
    fails(qsim("study", *MODEL, *ARGS, "--out", ""), 1, "--out is empty; give a folder")


def test_a_short_trace_of_ones_own_and_a_profile_of_ones_own(tmp_path: Path, profile: Path) -> None:
    rows = "\n".join(f"{i * 0.2:.1f},{100 + 7 * i},{5 + i % 9}" for i in range(40))
    trace = write(tmp_path / "t.csv", f"arrival_s,prompt_tokens,output_tokens\n{rows}\n")
    result = qsim("study", trace, "--profile", profile, "--level", "workload", "--jobs", 1,
                  "--out", tmp_path / "s")  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "s" / "study.json").read_text())
    rates = [r for r in data["levels"]["workload"] if r["axis"] == "rate"]
    assert rates
    assert all(r["figures"]["p99_ttft_ms"] is None for r in rates)  # 40 requests have no p99
    burst = write(tmp_path / "b.csv", "arrival_s,prompt_tokens,output_tokens\n0.0,10,5\n0.1,9,5\n")
    fails(qsim("study", burst, "--profile", profile, "--jobs", 1, "--out", tmp_path / "t"),
          2, "all requests arrive within a second")  # fmt: skip
