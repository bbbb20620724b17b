"""Options, a YAML file, a JSON file and --set say the same thing: the same bytes come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from qsim import EngineOptions, load_trace, simulate
from qsim.scenario import Scenario
from tests.cli.helpers import fails, qsim, write

SLOS = ["ttft:p99:900", "tpot:p99:90"]
ENGINE = {"max_num_seqs": 4, "enable_prefix_caching": False}
OPTIONS: list[object] = ["--slo", SLOS[0], "--slo", SLOS[1], "--max-num-seqs", 4,
                         "--no-enable-prefix-caching", "--seed", 3]  # fmt: skip


def one(trace: Path, profile: Path, **more: Any) -> dict[str, Any]:
    """A scenario of one pool."""
    pool = {"profile": str(profile), "engine": ENGINE}
    return {"traffic": {"trace": str(trace)}, "fleet": {"pools": [pool]}, "slos": SLOS, "seed": 3,
            **more}  # fmt: skip


def searched(trace: Path, profile: Path, command: str, section: dict[str, Any]) -> dict[str, Any]:
    """The same for a search, which names its candidates."""
    scenario = one(trace, profile)
    del scenario["fleet"]["pools"][0]["profile"]
    return {**scenario, command: {"profiles": [str(profile)], **section}}


def same(command: str, options: list[object], scenario: dict[str, Any], folder: Path) -> str:
    """What the command prints, if it is the same in every form."""
    path, other = folder / "s.yaml", folder / "s.json"
    path.write_text(yaml.safe_dump(scenario, sort_keys=False))
    other.write_text(json.dumps(scenario))
    ends: list[object] = [] if command == "sweep" else ["--json", "-"]
    if command != "simulate":
        ends += ["--jobs", 1]
    expected = qsim(command, *options, *ends)
    assert expected.exit_code == 0, expected.output
    saved = folder / "saved.yaml"
    for form in ([path], ["--scenario", path], [other]):
        found = qsim(command, *form, *ends, "--save-scenario", saved)
        assert found.exit_code == 0, found.output
        assert found.stdout_bytes == expected.stdout_bytes, form
        assert qsim(command, saved, *ends).stdout_bytes == expected.stdout_bytes
    python = Scenario(**scenario).to_dict(command)
    assert yaml.safe_load(saved.read_text()) == json.loads(json.dumps(python))
    return expected.stdout


def test_simulate(trace: Path, profile: Path, tmp_path: Path) -> None:
    scenario = one(trace, profile)
    scenario["traffic"] |= {"speed": 2, "head": 4}
    scenario["fleet"]["pools"][0]["replicas"] = 2
    scenario["fleet"]["router"] = "random"
    options = [trace, "--profile", profile, "--replicas", 2, "--router", "random", "--speed", 2,
               "--head", 4, *OPTIONS]  # fmt: skip
    data = json.loads(same("simulate", options, scenario, tmp_path))
    assert data["resolved"]["max_num_seqs"] == 4
    assert data["scenario"]["fleet"]["pools"][0]["engine"] == ENGINE


def test_text_prompts(trace: Path, tmp_path: Path) -> None:
    profile = "h200_sxm/llama-3.1-8b/fp8-w8a8"
    scenario = one(trace, profile)  # type: ignore[arg-type]
    options = [trace, "--profile", profile, *OPTIONS]
    ids = json.loads(same("simulate", [*options, "--token-prompts"], scenario, tmp_path))
    assert "text_prompts" not in {**ids["scenario"]["traffic"], **ids["resolved"]}
    scenario["traffic"]["text_prompts"] = True
    texts = json.loads(same("simulate", [*options, "--text-prompts"], scenario, tmp_path))
    assert texts["scenario"]["traffic"]["text_prompts"] is texts["resolved"]["text_prompts"] is True
    python = simulate(Scenario(**scenario))
    assert texts["mean_ttft_ms"] == python.summary()["mean_ttft_ms"] > ids["mean_ttft_ms"] + 0.3
    words = simulate(load_trace(str(trace)), profile, text_prompts=True, seed=3,
                     options=EngineOptions(**ENGINE))  # fmt: skip
    assert words.summary() == python.summary()
    # the command line goes before the file
    path = write(tmp_path / "texts.yaml", yaml.safe_dump(scenario))
    found = qsim("simulate", path, "--token-prompts", "--json", "-")
    assert json.loads(found.stdout)["mean_ttft_ms"] == ids["mean_ttft_ms"]
    # as an option by name in a flat file
    flat = write(
        tmp_path / "flat.yaml", f"trace: {trace}\nprofile: {profile}\ntext_prompts: true\n"
    )
    found = qsim("simulate", flat, "--json", "-")
    assert json.loads(found.stdout)["resolved"]["text_prompts"] is True


def test_plan(trace: Path, profile: Path, tmp_path: Path) -> None:
    section = {"search": {"max_num_batched_tokens": [2048, 4096]}, "sampler": "grid",
               "objective": "energy", "headroom": False}  # fmt: skip
    scenario = searched(trace, profile, "plan", section)
    scenario |= {"accounts": {"prices": {"h200_sxm": 3}, "region": "DEU"}, "goodput": ["ttft:999"]}
    scenario["traffic"]["growth"] = 2
    options = [trace, "--profile", profile, "--search", "max_num_batched_tokens=2048,4096",
               "--sampler", "grid", "--objective", "energy", "--no-headroom", "--price",
               "h200_sxm=3", "--region", "DEU", "--goodput", "ttft:999", "--growth", 2,
               *OPTIONS]  # fmt: skip
    same("plan", options, scenario, tmp_path)


def test_tune(trace: Path, profile: Path, tmp_path: Path) -> None:
    section = {"objectives": ["energy"], "constraints": ["gpus<=2"], "trials": 3, "batch": 2,
               "max_replicas": 2, "fix": {"router": "random"}}  # fmt: skip
    options = [trace, "--profile", profile, "--objective", "energy", "--constraint", "gpus<=2",
               "--trials", 3, "--batch", 2, "--max-replicas", 2, "--fix", "router=random",
               *OPTIONS]  # fmt: skip
    same("tune", options, searched(trace, profile, "tune", section), tmp_path)


def test_sweep(trace: Path, profile: Path, tmp_path: Path) -> None:
    scenario = one(trace, profile, sweep={"over": {"replicas": [1, 2], "growth": [1, 2]}})
    options = [trace, "--profile", profile, "--grid", "replicas=1,2", "--grid", "growth=1,2",
               *OPTIONS]  # fmt: skip
    same("sweep", options, scenario, tmp_path)


def test_schedule(profile: Path, tmp_path: Path) -> None:
    rows = "".join(f"{t * 6},{100 + t},5\n" for t in range(20))
    trace = write(tmp_path / "t.csv", f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    section = {"window": "1min", "max_replicas": 2, "policies": ["static"]}
    scenario = searched(trace, profile, "schedule", section)
    scenario["slos"] = ["ttft:mean:9000"]
    scenario["fleet"]["pools"][0]["lifecycle"] = {"start_s": 20}
    options = [trace, "--profile", profile, "--window", "1min", "--max-replicas", 2, "--policy",
               "static", "--start-s", 20, "--slo", "ttft:mean:9000", *OPTIONS[4:]]  # fmt: skip
    same("schedule", options, scenario, tmp_path)


def test_two_pools(trace: Path, profile: Path, slower: Path, tmp_path: Path) -> None:
    pools = [{"profile": str(profile), "replicas": 2, "engine": ENGINE},
             {"profile": str(slower), "name": "old", "engine": {"max_num_seqs": 2}}]  # fmt: skip
    for router in ("least-requests", "expected-finish"):
        scenario = {"traffic": {"trace": str(trace)}, "fleet": {"pools": pools, "router": router}}
        options = [trace, "--router", router, "--pool",
                   f"profile={profile},replicas=2,max-num-seqs=4,enable-prefix-caching=false",
                   "--pool", f"profile={slower},name=old,max-num-seqs=2"]  # fmt: skip
        data = json.loads(same("simulate", options, scenario, tmp_path))
        assert [p["pool"] for p in data["pools"]][1] == "old"


def test_options_and_set_go_before_the_file(trace: Path, profile: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", yaml.safe_dump(one(trace, profile)))
    found = qsim("simulate", path, "--max-num-seqs", 2, "--set", "fleet.pools.0.replicas=3",
                 "--set", "slos=", "--json", "-")  # fmt: skip
    data = json.loads(found.stdout)
    assert (data["resolved"]["max_num_seqs"], data["resolved"]["replicas"]) == (2, 3)
    assert data["slos"] == []
    assert data["resolved"]["enable_prefix_caching"] is False


@pytest.mark.parametrize(
    ("text", "args", "words"),
    [
        ("traffic: {trace: t.csv}\ntrace: x", (), "unknown field 'trace'; it belongs to traffic"),
        ("traffic: {trace: t.csv}", (), "neither --profile nor --pool is given"),
        ("fleet: {pools: [{profile: p.json}]}", (), "Missing argument 'TRACE'"),
        ("traffic: {trace: t.csv}\nfleet: {pools: [{profile: a}, {profile: b}]}",
         ("--replicas", "2"), "the scenario has 2 pools: say of which one"),
        ("traffic: {trace: t.csv}\nfleet: {pools: [{profile: a}]}\ngoodput: [ttft:5]", (),
         "goodput is given"),
        ("traffic: {trace: t.csv}", ("--set", "traffic.trase=a"), "did you mean trace"),
        ("traffic: {trace: t.csv}\ntraffic: {}", (), "comes twice"),
        ("traffic: {trace: &a t.csv, format: *a}", (), "alias"),
        ("traffic: " + "{a: " * 40 + "}" * 40, (), "nested deeper than 32"),
    ],
)  # fmt: skip
def test_what_is_wrong(tmp_path: Path, text: str, args: tuple[str, ...], words: str) -> None:
    result = qsim("simulate", write(tmp_path / "s.yaml", text), *args)
    fails(result, 2, words)


def test_a_trace_in_json_is_a_trace(tmp_path: Path, profile: Path) -> None:
    rows = [{"arrival_s": t / 2, "prompt_tokens": 100, "output_tokens": 5} for t in range(3)]
    path = write(tmp_path / "t.json", json.dumps(rows))
    assert qsim("simulate", path, "--profile", profile).exit_code == 0


def test_the_schema_is_printed(tmp_path: Path) -> None:
    found = qsim("schema")
    assert found.exit_code == 0
    assert json.loads(found.stdout) == Scenario.json_schema()
    assert qsim("schema", "--out", tmp_path / "s.json").exit_code == 0
    assert (tmp_path / "s.json").read_text() == found.stdout
