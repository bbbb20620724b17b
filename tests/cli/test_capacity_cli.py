"""``qsim capacity`` and ``qsim curve``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import qsim as api
from qsim.cli._outputs import to_json
from qsim.cli.capacity import DEFAULT_TRACE
from qsim.optimize.capacity.layout import DEFAULT_TRAFFIC
from qsim.scenario import Scenario
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
        (
            ("capacity", "--gpus", "h100_sxm=1", "--think-time", "2", *LIMIT),
            "--think-time is 2, and rates are searched: ask for --users",
        ),
        (("curve", *LIMIT), "no fleet is given"),
        (("curve", "--profile", "x", "--rates", "1,b"), "--rates is '1,b'"),
        (("curve", "--profile", "x", "--csv", "c.txt"), "must end in .csv"),
    ],
)
def test_errors(args: tuple[str, ...], words: str) -> None:
    fails(qsim(*args), 2, words)


def test_a_scenario_gives_what_the_options_give(tmp_path: Path, profile: Path) -> None:
    scenario = {
        "traffic": {"trace": TRAFFIC, "think_time_s": 2.0},
        "slos": ["ttft:p90:400"],
        "capacity": {"gpus": {"h200_sxm": 1}, "profiles": [str(profile)], "users": True},
        "curve": {"profiles": [str(profile)], "rates": [2.0, 4.0]},
        "fleet": {"router": "random", "pools": [{"engine": {"max_num_seqs": 64}}]},
        "accounts": {"prices": {"h200_sxm": 2.0}},
    }
    path = tmp_path / "chat.yaml"
    path.write_text(json.dumps(scenario))
    shared = ("--router", "random", "--max-num-seqs", 64, "--price", "h200_sxm=2", *LIMIT)
    ways = {
        "capacity": (TRAFFIC, "--gpus", "h200_sxm=1", "--profile", profile, "--users",
                     "--think-time", 2, *shared),
        "curve": (TRAFFIC, "--profile", profile, "--rates", "2,4", *shared),
    }  # fmt: skip
    from_python = {"capacity": api.capacity, "curve": api.curve}
    for command, options in ways.items():
        drop = () if command == "capacity" else ("--set", "traffic.think_time_s=")
        saved = tmp_path / f"{command}.yaml"
        by_file = qsim(command, path, *drop, "--jobs", 1, "--json", "-", "--save-scenario", saved)
        by_options = qsim(command, *options, "--jobs", 1, "--json", "-")
        assert by_file.exit_code == 0, by_file.output
        assert by_options.exit_code == 0, by_options.output
        found, same = json.loads(by_file.stdout), json.loads(by_options.stdout)
        assert found.pop("scenario")["fleet"]["router"] == same.pop("scenario")["fleet"]["router"]
        assert found == same
        again = qsim(command, saved, "--jobs", 1, "--json", "-")
        assert json.loads(again.stdout) | {"scenario": 0} == found | {"scenario": 0}
        asked = Scenario.load(saved)
        told = json.loads(to_json(from_python[command](asked).to_dict()))
        assert told == found


def test_the_printed_command_of_users_gives_the_figures(tmp_path: Path, profile: Path) -> None:
    result = qsim("capacity", TRAFFIC, "--gpus", "h200_sxm=1", "--profile", profile, *LIMIT,
                  "--users", "--think-time", 1.5, "--jobs", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "the most users that 1 h200_sxm carry" in result.stdout
    command = next(t for t in result.stdout.splitlines() if t.startswith("its figures: "))
    again = qsim(*shlex.split(command.removeprefix("its figures: "))[1:], "--json", "-")
    assert again.exit_code == 0, again.output
    summary = json.loads(again.stdout)
    assert summary["slos_met"]
    assert f" {summary['scenario']['traffic']['concurrency']} users, " in result.stdout


def test_pools_are_the_fleets_of_a_curve(tmp_path: Path, profile: Path, slower: Path) -> None:
    pools = [{"profile": str(p), "replicas": 2} for p in (profile, slower)]
    path = tmp_path / "fleet.yaml"
    path.write_text(json.dumps({"traffic": {"trace": TRAFFIC}, "fleet": {"pools": pools}}))
    result = qsim("curve", path, "--rates", "3", "--jobs", 1, "--json", "-")
    assert result.exit_code == 0, result.output
    assert [f["replicas"] for f in json.loads(result.stdout)["fleets"]] == [2, 2]
    fails(qsim("curve", path, "--set", "fleet.pools.1.replicas=3"), 2, "have 2 and 3 replicas")


@pytest.mark.parametrize("command", ["plan", "tune", "capacity", "curve"])
def test_what_a_search_does_not_simulate_is_refused(
    tmp_path: Path, profile: Path, command: str
) -> None:
    path = tmp_path / "fleet.yaml"
    data = {"traffic": {"trace": TRAFFIC, "concurrency": 4}, "slos": ["ttft:p90:400"],
            "fleet": {"pools": [{"profile": str(profile)}]}}  # fmt: skip
    path.write_text(json.dumps(data))
    fails(qsim(command, path, "--jobs", 1), 2, f"traffic.concurrency is given, and {command} does")
