"""Recorded schedules, reproduced record by record; and the replay command."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from qsim.errors import ScenarioError
from qsim.sim.replay import Scenario, load_scenario, main, parse_scenario, replay

OURS = Path(__file__).parent / "golden"
# Recordings of the real scheduler: optional folders of developers, beside the checkout. The
# scenarios do not name the version that ran them.
SHARED = Path(__file__).parents[3] / "shared" / "golden"
REAL = {"0.24.0": SHARED / "dev", "0.33.0": SHARED / "vllm-0.33"}
FILES = [(None, path) for path in sorted(OURS.rglob("*.json"))] + [
    (version, path) for version, folder in REAL.items() for path in sorted(folder.glob("*.json"))
]
IDS = [f"{version or path.parent.name}-{path.stem}" for version, path in FILES]
every_recording = pytest.mark.parametrize(("version", "path"), FILES, ids=IDS)


def load(path: Path, version: str | None) -> Scenario:
    """A recorded scenario, with the version that ran it if it does not name one itself."""
    scenario = load_scenario(path)
    if version is not None:
        config = dataclasses.replace(scenario.config, vllm_version=version)
        scenario = dataclasses.replace(scenario, config=config)
    return scenario


def check(scenario: Scenario, path: Path) -> None:
    expected = json.loads(path.read_text())["expected"]["steps"]
    steps = replay(scenario)
    for record, wanted in zip(steps, expected, strict=False):
        assert record == wanted
    assert len(steps) == len(expected)


@every_recording
def test_schedule_is_reproduced(version: str | None, path: Path) -> None:
    check(load(path, version), path)


def test_versions_differ_in_recordings() -> None:
    # else the recordings of the newer one would prove nothing about its rules
    folder = REAL["0.33.0"]
    if not folder.is_dir():
        pytest.skip(f"no recordings of the real scheduler in {folder}")
    differing = [
        path.stem
        for path in sorted(folder.glob("*.json"))
        if replay(load(path, "0.24.0")) != replay(load(path, "0.33.0"))
    ]
    assert differing == [
        "g3_priority_shift_async",
        "g4_priority_cached_victim_sync",
        "g5_priority_async",
    ]


@pytest.mark.parametrize("version", REAL)
def test_recordings_of_the_real_scheduler_are_there(version: str) -> None:
    folder = REAL[version]
    if not folder.is_dir():
        pytest.skip(f"no recordings of the real scheduler in {folder}: ours only")
    assert len(list(folder.glob("*.json"))) >= 33


def test_our_recordings_are_there() -> None:
    assert len(list(OURS.glob("*.json"))) == 7
    for version, count in (("0.24.0", 7), ("0.33.0", 12)):
        real = sorted((OURS / f"vllm-{version}").glob("*.json"))
        assert len(real) == count
        assert {load_scenario(path).config.vllm_version for path in real} == {version}


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("threshold-7-150", "0.30.0"),  # a lone request escapes the threshold
        ("threshold-7-187", "0.30.0"),
        ("threshold-7-223", "0.30.0"),
        ("tight-priority-7-41", "0.32.0"),  # who preempts itself does not end the pass
    ],
)
def test_a_recording_tells_its_version_from_the_one_before(name: str, before: str) -> None:
    path = OURS / "vllm-0.33.0" / f"{name}.json"
    scenario = load_scenario(path)
    config = dataclasses.replace(scenario.config, vllm_version=before)
    older = replay(dataclasses.replace(scenario, config=config))
    assert older != json.loads(path.read_text())["expected"]["steps"]


@pytest.fixture
def scenario() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((OURS / "batching_async.json").read_text())["scenario"]
    return copy.deepcopy(data)


def test_command_prints_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    path = OURS / "limits_bursts_async.json"
    assert main([str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())["expected"]


def test_command_reads_a_bare_scenario(
    scenario: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bare.json"
    path.write_text(json.dumps(scenario))
    assert main([str(path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((OURS / "batching_async.json").read_text())["expected"]


def test_a_scenario_without_arrivals_has_no_steps(scenario: dict[str, Any]) -> None:
    assert replay(parse_scenario({**scenario, "arrivals": []})) == []


def test_a_far_arrival_takes_no_time(scenario: dict[str, Any]) -> None:
    last = {"turn": 10**12, "id": "late", "prompt_tokens": 3, "output_tokens": 1}
    steps = replay(parse_scenario({**scenario, "arrivals": [last]}))
    assert [record["turn"] - 10**12 for record in steps] == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("", "not JSON"),
        ("[]", r"the data is \[\]; must be an object"),
        ('{"config": {}}', "config.max_num_batched_tokens is missing"),
    ],
)
def test_command_refuses_a_bad_file(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert str(path) in captured.err
    with pytest.raises(ScenarioError, match=message):
        load_scenario(path)


def test_command_needs_one_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "field", "value", "message"),
    [
        ("config", "max_num_seqs", 0, "config.max_num_seqs is 0; must be a whole number >= 1"),
        ("config", "block_size", True, "config.block_size is True; must be a whole number"),
        ("config", "async_scheduling", 1, "config.async_scheduling is 1; must be true or false"),
        ("config", "policy", "lifo", "config.policy is 'lifo'; must be one of fcfs, priority"),
        ("config", "watermark", 0.1, "config: unknown field 'watermark'"),
        ("config", "vllm_version", 0.33, "config.vllm_version is 0.33; must be a text"),
        ("config", "vllm_version", "0.23.1", "config.vllm_version is '0.23.1'; must be 0.24 or "),
        ("config", "max_num_active_seqs", 2, "config.max_num_active_seqs is 2; vLLM 0.24 has no"),
        ("arrival", "turn", -1, r"arrivals\[3\].turn is -1; must be a whole number >= 0"),
        ("arrival", "turn", 0, r"arrivals\[3\].turn is 0; must be >= \d+, the turn of"),
        ("arrival", "id", 5, r"arrivals\[3\].id is 5; must be a text"),
        ("arrival", "id", "q0", r"arrivals\[3\].id is 'q0'; must be unique"),
        ("arrival", "prompt_tokens", 256, r"arrivals\[3\].prompt_tokens is 256; must be < max_mod"),
        ("arrival", "output_tokens", 0, r"arrivals\[3\].output_tokens is 0; must be a whole"),
        ("arrival", "priority", 2, r"arrivals\[3\].priority is 2; must be 0 under policy 'fcfs'"),
        ("arrival", "priority", "x", r"arrivals\[3\].priority is 'x'; must be a whole number"),
        ("arrival", "hash_ids", ["a"], r"arrivals\[3\].hash_ids\[0\] is 'a'; must be a whole"),
        ("arrival", "hash_ids", [1] * 20, r"arrivals\[3\].hash_ids has 20 ids; must be <= \d"),
        ("scenario", "arrivals", {}, r"arrivals is \{\}; must be a list"),
        ("scenario", "name", 3, "name is 3; must be a text"),
        ("scenario", "seed", 3, "unknown field 'seed'"),
    ],
)
def test_a_bad_field_is_named(
    scenario: dict[str, Any], where: str, field: str, value: object, message: str
) -> None:
    places = {
        "scenario": scenario,
        "config": scenario["config"],
        "arrival": scenario["arrivals"][3],
    }
    places[where][field] = value
    with pytest.raises(ScenarioError, match=message):
        parse_scenario(scenario)


def test_a_newer_version_has_the_newest_rules_and_a_remark(
    scenario: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for version in ("0.33.0", "0.41.2"):
        scenario["config"]["vllm_version"] = version
        path = tmp_path / f"{version}.json"
        path.write_text(json.dumps(scenario))
        assert main([str(path)]) == 0
        printed.append(capsys.readouterr())
    assert printed[0].out == printed[1].out
    assert printed[0].err == ""
    assert "Note: vLLM 0.41.2 is newer than 0.33" in printed[1].err


def test_a_missing_field_is_named(scenario: dict[str, Any]) -> None:
    del scenario["arrivals"][2]["output_tokens"]
    with pytest.raises(ScenarioError, match=r"arrivals\[2\].output_tokens is missing"):
        parse_scenario(scenario)


def test_the_documented_examples_work(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "scheduler.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(python, {})
    assert capsys.readouterr().out.splitlines() == ["[(40, 0)] 0 []", "[] 1 []", "[] 1 [0]"]
    (scenario,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert len(replay(parse_scenario(json.loads(scenario)))) == 12
