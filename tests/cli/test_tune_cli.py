from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.helpers import fails, qsim


@pytest.fixture
def tune(trace: Path, profile: Path, slower: Path) -> list[object]:
    return [
        "tune", trace, "--profile", profile, "--profile", slower, "--jobs", 1, "--trials", 30,
        "--search", "replicas=1:3", "--no-progress",
    ]  # fmt: skip


def with_trials(tune: list[object], trials: int) -> list[object]:
    """The command with another number of trials."""
    at = tune.index("--trials") + 1
    return [*tune[:at], trials, *tune[at + 1 :]]


def test_the_table_has_the_front_and_the_picked_point(tune: list[object]) -> None:
    result = qsim(*tune, "--pick", "min cost", "--constraint", "p99_ttft_ms<=2000")
    assert result.exit_code == 0, result.output
    assert "objectives: p99_e2el_ms min, joules_per_output_token min, usd_per_hour min" in (
        result.stdout
    )
    assert "nsga2, 30 trials" in result.stdout
    starred = [line for line in result.stdout.splitlines() if line.startswith("*  ")]
    assert len(starred) == 1
    assert " 4.00 " in starred[0]
    assert "* picked by min usd_per_hour: 1 replica of h200_sxm/toy-1b/" in result.stdout or (
        "* picked by min cost: 1 replica of h200_sxm/toy-1b/" in result.stdout
    )
    assert "vllm serve path/to/toy-1b-" in result.stdout
    assert "importance of the decisions" in result.stdout


@pytest.mark.slow
def test_csv_json_and_picture_agree(tune: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = qsim(
        *tune, "--csv", out / "front.csv", "--trials-csv", out / "trials.csv",
        "--json", out / "tune.json", "--picture", out / "front.svg",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads((out / "tune.json").read_text())
    rows = list(csv.DictReader((out / "front.csv").open()))
    assert [int(r["trial"]) for r in rows] == [p["trial"] for p in data["front"]]
    assert [float(r["p99_e2el_ms"]) for r in rows] == [p["p99_e2el_ms"] for p in data["front"]]
    trials = list(csv.DictReader((out / "trials.csv").open()))
    assert len(trials) == len(data["trials"]) == 30
    marked = [t["trial"] for t in trials if t["on_front"] == "True"]
    assert sorted(marked, key=int) == sorted((r["trial"] for r in rows), key=int)
    assert data["picked"] == {"how": "knee", "trial": data["picked"]["trial"]}
    assert data["picked"]["trial"] in {p["trial"] for p in data["front"]}
    assert data["scenario"]["tune"]["trials"] == 30
    assert "<svg" in (out / "front.svg").read_text()
    again = qsim(*tune, "--json", "-")
    same = json.loads(again.stdout)
    assert same["front"] == data["front"]
    assert same["trials"] == data["trials"]
    front = qsim(*tune, "--csv", "-")
    assert list(csv.DictReader(io.StringIO(front.stdout))) == rows


@pytest.mark.parametrize("objectives", [["energy"], ["energy", "cost"]])
def test_pictures_of_one_and_two_objectives(
    tune: list[object], objectives: list[str], tmp_path: Path
) -> None:
    chosen = [w for o in objectives for w in ("--objective", o)]
    result = qsim(*tune, *chosen, "--picture", tmp_path / "front.png", "--slo", "ttft:p99:100")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_exported_scenario_gives_the_figures_again(
    tune: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsim.traces.parts.LARGE_BYTES", 1)  # which would be streamed
    scenario, answer = tmp_path / "fleet.yaml", tmp_path / "tune.json"
    result = qsim(
        *tune, "--growth", 2, "--slo", "ttft:p99:3000", "--pick", "min energy",
        "--export", f"scenario={scenario}", "--export", f"vllm={tmp_path}/serve.sh",
        "--export", f"scenario={tmp_path}/fleets/", "--json", answer,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads(answer.read_text())
    picked = next(p for p in data["front"] if p["trial"] == data["picked"]["trial"])
    assert (
        yaml.safe_load(scenario.read_text())["fleet"]["pools"][0]["replicas"]
        == (picked["replicas"])
    )
    command, _, saved = (tmp_path / "fleets" / "scenario.yaml").read_text().partition("\n")
    assert command == f"# qsim simulate {tmp_path}/fleets/scenario.yaml"
    assert saved == scenario.read_text().partition("\n")[2]
    again = qsim("simulate", "--scenario", scenario, "--json", "-")
    assert again.exit_code == 0, again.output
    summary = json.loads(again.stdout)
    for name in ("energy_j", "p99_ttft_ms", "p99_e2el_ms", "joules_per_output_token"):
        assert summary[name] == picked[name]
    assert picked["serve_command"].split()[2] in (tmp_path / "serve.sh").read_text()
    manifests = qsim(*tune, "--export", "kubernetes")
    assert {d["kind"] for d in yaml.safe_load_all(manifests.stdout)} >= {"Deployment", "Service"}


def test_nothing_feasible_exits_with_3_and_says_what_binds(tune: list[object]) -> None:
    result = qsim(*tune, "--slo", "ttft:p99:1")
    assert result.exit_code == 3
    assert "p99_ttft_ms<=1 is met by none of" in " ".join(result.stdout.split())
    assert "p99_ttft_ms<=1 is met by none of" in result.stderr
    nothing = qsim(*tune, "--pick", "quality>=101")
    assert nothing.exit_code == 3
    assert "quality>=101" in nothing.stderr


def test_prices_come_from_a_file(tune: list[object], tmp_path: Path) -> None:
    prices = tmp_path / "prices.csv"
    prices.write_text("gpu,usd_per_hour\nh200_sxm,1.25\n")
    result = qsim(*with_trials(tune, 4), "--prices", prices, "--csv", "-")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert all(float(r["usd_per_hour"]) == 1.25 * int(r["replicas"]) for r in rows)


def test_a_transferred_profile_is_picked_with_a_warning(trace: Path) -> None:
    result = qsim("tune", trace, "--model", "llama-3.1-8b", "--gpu", "h100_sxm", "--method", "bf16",
                  "--search", "tensor_parallel_size=1", "--trials", 3, "--jobs", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "h100_sxm/llama-3.1-8b/bf16 is transferred, not measured" in text


def test_wrong_options_end_with_2(tune: list[object], tmp_path: Path) -> None:
    fails(qsim(*tune, "--pick", "best"), 2, "--pick", "ends too early")
    study = ["--study", tmp_path / "never.journal"]
    for how, word in (
        ("min p99_ttftms", "did you mean"),
        ("goodput>=3", "goodput was not measured"),
        ("p95_itl_ms<=3", "p95_itl_ms was not measured"),
        ("quality>=1, max method", "method is no number"),
    ):
        fails(qsim(*tune, *study, "--pick", how), 2, word)
    fails(qsim(*tune, *study, "--constraint", "gpus=2"), 2, "must be <= or >=")
    fails(qsim(*tune, *study, "--constraint", "method<=2"), 2, "method")
    fails(qsim(*tune, *study, "--goodput", "ttft:500"), 2, "--goodput")
    fails(qsim(*tune, *study, "--set", "goodput=[ttft:500]"), 2, "goodput is given")
    fails(qsim(*tune, *study, "--export", "helm"), 2, "helm")
    fails(qsim(*tune, *study, "--json", tmp_path), 1, "--json", "is a folder")
    assert not (tmp_path / "never.journal").exists(), "refused before the study"
    fails(qsim(*tune, "--objective", "speed"), 2, "speed")
    fails(qsim(*tune, "--resume"), 2, "--study")
    fails(qsim(*tune, "--csv", "-", "--json", "-"), 2, "stdout")
    fails(qsim(*tune, "--picture", tmp_path / "x.gif"), 2, "--picture")


@pytest.mark.slow
def test_a_scenario_holds_the_tuning(tune: list[object], tmp_path: Path) -> None:
    saved = tmp_path / "tune.yaml"
    more = ["--sampler", "tpe", "--fix", "max_num_seqs=64", "--constraint", "gpus<=2"]
    first = qsim(*tune, *more, "--save-scenario", saved)
    assert first.exit_code == 0, first.output
    held = yaml.safe_load(saved.read_text())
    assert held["tune"]["fix"] == {"max_num_seqs": "64"}
    assert "study" not in held
    assert "jobs" not in held
    again = qsim("tune", "--scenario", saved, "--jobs", 1, "--no-progress")
    assert again.stdout == first.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_tells_what_is_done_and_leaves_a_study_that_goes_on(
    tune: list[object], tmp_path: Path, number: int
) -> None:
    json_path, trials = tmp_path / "tune.json", tmp_path / "trials.csv"
    words = [str(w) for w in with_trials(tune, 60) if w != "--no-progress"]
    words[words.index("--jobs") + 1] = "2"
    study = ["--study", str(tmp_path / "study.journal"),
             "--json", str(json_path), "--trials-csv", str(trials)]  # fmt: skip
    command = [sys.executable, "-c", "from qsim.cli import main; main()", *words, *study]
    # its own process group: a terminal sends Ctrl-C to all of it
    process = subprocess.Popen(
        [*command, "--progress"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if " of 60 trials" in line:
            os.killpg(process.pid, number)
            break
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, (out, err)
    # what was done is not lost
    done = re.search(r"not finished: (\d+ of 60 trials)", out)
    assert done, out
    count = int(done[1].split()[0])
    assert 0 < count < 60
    assert "vllm serve" in out
    assert "importance" not in out
    assert json.loads(json_path.read_text())["unfinished"] == done[1]
    assert len(trials.read_text().splitlines()) == count + 1
    assert "go on with the same command and --resume" in err
    assert "Traceback" not in err
    rest = subprocess.run(
        [*command, "--no-progress", "--resume"], capture_output=True, text=True, check=True
    )
    whole = qsim(*with_trials(tune, 60))
    assert rest.stdout == whole.stdout


def test_importances_are_bounded_and_optional(
    tune: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = qsim(*tune)
    out = tmp_path / "tune.json"
    without = qsim(*tune, "--no-importance", "--json", out)
    assert without.exit_code == 0, without.output
    head, heading, _ = whole.stdout.partition("\nimportance of the decisions")
    assert heading
    assert without.stdout == head
    assert json.loads(out.read_text())["importances"] == []
    # Ctrl-C while they are worked out: all the rest is told and written
    from qsim.optimize.tune import result as tune_result

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_result, "importances", interrupted)
    result = qsim(*tune, "--json", out)
    assert result.exit_code == 130
    assert result.stdout == head
    assert json.loads(out.read_text())["front"]


def test_the_answer_is_told_whatever_cannot_be_written(
    tune: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = qsim(*tune)
    from qsim import files

    written = files.write_bytes

    def full(path: object, data: bytes) -> None:
        if str(path).endswith(("front.csv", "tune.json")):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written(path, data)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "write_bytes", full)
    paths = {n: tmp_path / n for n in ("front.csv", "trials.csv", "tune.json", "serve.sh")}
    result = qsim(*tune, "--csv", paths["front.csv"], "--trials-csv", paths["trials.csv"],
                  "--json", paths["tune.json"],
                  "--export", f"vllm={paths['serve.sh']}")  # fmt: skip
    assert result.exit_code == 1
    assert result.stdout == whole.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: not written: --csv No space left on device")
    for name, path in paths.items():
        assert (str(path) in last) != path.exists(), name
