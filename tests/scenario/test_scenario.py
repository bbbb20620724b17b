from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest

import qsim
from qsim.cli import main
from qsim.documents import parse_yaml
from qsim.errors import ScenarioError
from qsim.optimize.plan import candidate
from qsim.optimize.schedule import problem, scheduling
from qsim.optimize.search.study import SAMPLERS
from qsim.scenario import Scenario
from qsim.scenario.names import place_of
from qsim.scenario.paths import parse_set
from qsim.scenario.searches import PlanSection, Policy, ScheduleSection, TuneSection
from qsim.scenario.sections import Engine, Lifetimes, PoolSection
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.scheduler.config import ENGINE
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"
TWO: dict[str, Any] = {
    "fleet": {
        "pools": [
            {"profile": PROFILE, "replicas": 2},
            {"name": "big", "profile": "a100_sxm/llama-3.1-8b/int8-w8a8"},
        ]
    }
}


def literals(section: Any, name: str) -> set[str]:
    """The words that a field may be."""
    hint = section.model_fields[name].annotation
    hints = [hint, *get_args(hint)]
    return {w for h in hints for w in get_args(h) if isinstance(w, str)}


def test_names_and_defaults_are_those_of_the_simulator() -> None:
    assert set(Engine.model_fields) == set(ENGINE)
    assert Lifetimes().lifecycle() == Lifecycle()
    assert literals(PlanSection, "objective") == set(candidate.OBJECTIVES)
    assert literals(ScheduleSection, "objective") == set(problem.OBJECTIVES)
    assert get_args(Policy) == scheduling.POLICIES
    assert literals(PlanSection, "sampler") == literals(TuneSection, "sampler") == set(SAMPLERS)


@pytest.mark.parametrize(
    "command", ["simulate", "plan", "tune", "schedule", "sweep", "capacity", "curve"]
)
def test_every_option_that_decides_a_result_has_a_place_and_its_default(command: str) -> None:
    """What an option is by default is what a scenario without it says."""
    import click

    from qsim.cli._scenario import _RENAMED

    # where results go, how the work is done; and what is told beside the answer
    beside = {
        "json_path",
        "csv_path",
        "trials_path",
        "requests_path",
        "steps_path",
        "out",
        "timeline_path",
        "report_path",
        "picture_path",
        "exports",
        "autoscaler",
        "gpus_per_host",
        "fail_on_slo",
        "progress",
        "jobs",
        "dask",
        "study",
        "study_path",
        "study_name",
        "resume",
        "importance",
        "week_day",
        "timezone",
        "scenario",
        "assignments",
        "save_scenario",
        "pool_texts",
        "failure_texts",
        "autoscale_text",
        "mtbf_s",
        "repair_s",
        "retries",
        "machines",
    }  # fleet.failures; fmt: skip
    found = main.get_command(click.Context(main), command)
    assert found is not None
    plain = Scenario.from_dict({"fleet": {"pools": [{}]}}).resolved()
    for param in found.params:
        name = _RENAMED.get(str(param.name), str(param.name))
        place = place_of(command, name)
        assert (place is None) == (param.name in beside), param.name
        default = param.get_default(click.Context(found))
        if param.name == "trace":  # one that the command takes where nobody gives any
            continue
        if place == ("accounts", "pue"):  # that the command shows as 1, and takes for 1
            continue
        if place is None or default is None or default == () or "UNSET" in repr(default):
            continue
        node: Any = plain
        for step in place:
            node = node[max(step, 0) if isinstance(step, int) else step]
        assert node == default, place


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"traffik": 1}, "f: unknown field 'traffik'; did you mean traffic?"),
        ({"speed": 2}, "f: unknown field 'speed'; it belongs to traffic.speed"),
        ({"max_num_seqs": 2}, "it belongs to fleet.pools.0.engine.max_num_seqs"),
        ({"traffic": {"spead": 2}}, "f: traffic: unknown field 'spead'; did you mean speed"),
        ({"traffic": {"speed": "x"}}, "f: traffic.speed is 'x'; must be a number"),
        ({"traffic": {"growth": float("nan")}}, "traffic.growth is nan; must be a number, finite"),
        ({"traffic": 3}, "f: traffic is 3; must be an object"),
        ({"traffic": {"trace": 5}}, "f: traffic.trace is 5; must be a file or a preset"),
        ({"fleet": {"pools": [{"replicas": 0}]}}, "fleet.pools[0].replicas is 0; must be a whole"),
        ({"fleet": {"pools": [{"replicas": True}]}}, "fleet.pools[0].replicas is True"),
        ({"fleet": {"pools": {}}}, "f: fleet.pools is {}; must be a list"),
        ({"fleet": {"pools": [{}] * 65}}, "fleet.pools is a list of 65; must be a list of"),
        (
            {"fleet": {"pools": [{"engine": {"vllm_version": 0.3}}]}},
            "fleet.pools[0].engine.vllm_version is 0.3; must be a text of 1 to 1000 characters, "
            "without control characters: write it in quotes",
        ),
        (
            {"fleet": {"pools": [{"engine": {"max_num_sqs": 1}}]}},
            "fleet.pools[0].engine: unknown field 'max_num_sqs'; did you mean max_num_seqs",
        ),
        (
            {"fleet": {"pools": [{"engine": {"max_num_seqs": "8q"}}]}},
            "engine.max_num_seqs is '8q'; must be a whole number >= 1 and <= 131072 (thousands",
        ),
        (
            {"fleet": {"pools": [{"profile": "a", "model": "b"}]}},
            "fleet.pools[0] gives both profile and model",
        ),
        ({"seed": -1}, "f: seed is -1; must be a whole number >= 0"),
        ({"slos": "ttft:p99:5"}, "f: slos is 'ttft:p99:5'; must be a list"),
        ({"plan": {"objective": "x"}}, "plan.objective is 'x'; must be one of cost, energy, gpus"),
        ({"schedule": {"policies": ["a"]}}, "schedule.policies[0] is 'a'; must be one of static"),
        ({"accounts": {"region": [1]}}, "accounts.region is [1]; must be a country"),
        ({"accounts": {"prices": {"a\n": 1}}}, "accounts.prices"),
        ({"plan": {"search": 3}}, "plan.search is 3; must be names with values"),
        ([1], "f: holds [1]; must be a mapping of the sections traffic, fleet"),
        ("x", "must be a mapping"),
    ],
)
def test_what_is_wrong_is_told_on_one_line(data: Any, message: str) -> None:
    with pytest.raises(ScenarioError) as e:
        Scenario.from_dict(data, "f")
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_python_takes_sections_and_tells_what_is_wrong() -> None:
    assert Scenario(**TWO).fleet.pools[1].name == "big"
    made: dict[str, Any] = {"pools": [PoolSection(profile=PROFILE)]}
    assert Scenario(fleet=made).fleet.pools[0].replicas == 1
    with pytest.raises(ScenarioError, match=r"fleet.pools\[0\].replicas is 0"):
        Scenario(fleet={"pools": [{"replicas": 0}]})
    with pytest.raises(ScenarioError, match=r"it belongs to traffic\.trace"):
        Scenario(trace="x.csv")


def test_nothing_is_as_good_as_left_out() -> None:
    text = (
        "traffic:\nfleet:\n  pools:\n  - profile: a\n    engine:\nslos:\ntune: {fix: {router: }}\n"
    )
    scenario = Scenario.from_dict(parse_yaml(text, "f"))
    assert scenario.given() == {
        "fleet": {"pools": [{"profile": "a"}]}, "tune": {"fix": {"router": None}}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "at", "value"),
    [
        ("fleet.pools.0.replicas=4", ("fleet", "pools", 0, "replicas"), 4),
        ("fleet.pools[1].replicas=4", ("fleet", "pools", 1, "replicas"), 4),
        ("fleet.pools.big.replicas=4", ("fleet", "pools", 1, "replicas"), 4),
        (f"fleet.pools.{PROFILE}.replicas=4", ("fleet", "pools", 0, "replicas"), 4),
        ("fleet.pools.2.profile=x.json", ("fleet", "pools", 2, "profile"), "x.json"),
        ("fleet.pools.big.engine.max_num_seqs=8k", ("fleet", "pools", 1, "engine"),
         {"max_num_seqs": "8k"}),
        ("fleet.pools.0.engine.vllm_version=0.30", ("fleet", "pools", 0, "engine"),
         {"vllm_version": "0.30"}),
        ("traffic.trace=azure-conv-2023:rate=2,duration=5", ("traffic", "trace"),
         "azure-conv-2023:rate=2,duration=5"),
        ("traffic.sort=true", ("traffic", "sort"), True),
        ("slos=[ttft:p99:500]", ("slos",), ["ttft:p99:500"]),
        ("accounts.prices.h200_sxm=3", ("accounts", "prices"), {"h200_sxm": 3}),
        ("sweep.over.trace.rate=[1, 2]", ("sweep", "over"), {"trace.rate": [1, 2]}),
        ("accounts.region=DEU", ("accounts", "region"), "DEU"),
        ("accounts.region=400", ("accounts", "region"), 400),
    ],
)  # fmt: skip
def test_set(text: str, at: tuple[Any, ...], value: Any) -> None:
    data = Scenario(**TWO).given()
    parse_set(data, text, Scenario)
    Scenario.from_dict(data)
    node: Any = data
    for step in at:
        node = node[step]
    assert node == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("replicas=4", "replicas leads nowhere: unknown field 'replicas'; it belongs to fleet.p"),
        ("fleet.pool.0.replicas=4", "fleet: unknown field 'pool'; did you mean pools?"),
        (
            "fleet.pools.0.replica=4",
            "pools.0: unknown field 'replica'; did you mean replicas",
        ),
        ("fleet.pools.small.replicas=4", "no pool 'small'; known"),
        ("fleet.pools.7.replicas=4", "there are 2 pools; must be a number <= 2"),
        ("fleet.pools.0=4", "is a pool; give one of its fields"),
        ("seed.x=4", "seed has no fields"),
        ("seed", "does not parse; write PATH=VALUE"),
        ("=4", "does not parse"),
        ("seed=[", "not YAML"),
        ("x" * 20_000 + "=1", "does not parse"),
    ],
)
def test_wrong_set(text: str, message: str) -> None:
    with pytest.raises(ScenarioError) as e:
        parse_set(Scenario(**TWO).given(), text, Scenario)
    assert message in str(e.value)


def test_two_pools_of_one_name_are_told_apart_by_number() -> None:
    same = Scenario(fleet={"pools": [{"profile": PROFILE}, {"profile": PROFILE}]})
    with pytest.raises(ScenarioError, match="several pools are called"):
        same.updated({f"fleet.pools.{PROFILE}.replicas": 2})
    assert same.updated({"fleet.pools.1.replicas": 2}).fleet.pools[1].replicas == 2


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    scenario = Scenario(
        **TWO,
        traffic={"trace": "a.csv", "speed": 2, "peak_hour": True},
        slos=["ttft:p99:500"],
        accounts={"prices": {"h200_sxm": 3}, "region": "NOR"},
        plan={"search": ["max_num_seqs=2,4"], "headroom": False},
        sweep={"over": {"max_num_seqs": [2, 4]}},
        seed=7,
    )
    for command in ("simulate", "plan", "sweep"):
        path = tmp_path / "s.yaml"
        path.write_text(scenario.to_yaml(command))
        again = Scenario.load(path)
        assert again.to_dict(command) == scenario.to_dict(command)
        assert again.resolved() == {
            **scenario.resolved(),
            "plan": {**scenario.resolved()["plan"], "search": {"max_num_seqs": "2,4"}},
            "sweep": {"over": {"max_num_seqs": "2,4"}},
        }
    other = tmp_path / "s.json"
    other.write_text(json.dumps(scenario.to_dict()))
    assert Scenario.load(other).to_dict() == scenario.to_dict()


def test_text_prompts_are_saved_where_they_are_texts(tmp_path: Path) -> None:
    texts = Scenario(**TWO, traffic={"trace": "a.csv", "text_prompts": True})
    path = tmp_path / "s.yaml"
    path.write_text(texts.to_yaml())
    assert "\n  text_prompts: true\n" in path.read_text()
    assert Scenario.load(path).traffic.text_prompts is True
    for ids in (Scenario(**TWO), texts.updated({"traffic.text_prompts": False})):
        assert ids.traffic.text_prompts is False
        assert "text_prompts" not in ids.to_yaml()
    with pytest.raises(ScenarioError, match=r"traffic\.text_prompts is 2; must be true or false"):
        Scenario(traffic={"text_prompts": 2})


def test_the_schema_takes_what_is_taken_and_refuses_what_is_refused() -> None:
    schema = Scenario.json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    full = Scenario(**TWO, traffic={"trace": "a.csv"}, plan={"search": {"router": None}})
    for command in ("simulate", "plan", "tune", "schedule", "sweep"):
        validator.validate(full.to_dict(command))
    validator.validate({"fleet": {"pools": [{"engine": {"max_num_seqs": "8k"}}]}})
    for wrong in ({"traffik": 1}, {"fleet": {"pools": [{"replicas": 0}]}},
                  {"plan": {"objective": "x"}}, {"seed": "x"},
                  {"fleet": {"pools": [{"engine": {"max_num_seqs": 0}}]}}):  # fmt: skip
        assert not validator.is_valid(wrong), wrong
    assert schema["$defs"]["Traffic"]["properties"]["trace"]["description"].startswith("File or")


def traffic() -> Trace:
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.exponential(1 / 30, 40))
    return Trace(arrivals, rng.integers(100, 3000, 40), rng.integers(1, 60, 40), name="traffic")


def test_a_scenario_and_keyword_arguments_are_the_same() -> None:
    options = qsim.EngineOptions(max_num_seqs=4)
    servers = {"profile": make_profile(), "replicas": 2, "engine": {"max_num_seqs": 4}}
    common: dict[str, Any] = {"traffic": {"trace": traffic()}, "slos": ["ttft:p99:900"], "seed": 3}
    scenario = Scenario(**common, fleet={"pools": [servers], "router": "random"})
    one = qsim.simulate(traffic(), make_profile(), replicas=2, options=options, router="random",
                        seed=3)  # fmt: skip
    assert qsim.simulate(scenario).summary() == one.summary()
    plan = qsim.plan(traffic(), profiles=[make_profile()], slos=["ttft:p99:900"], seed=3,
                     router="random", options=options, headroom=False, replications=0)  # fmt: skip
    asked = scenario.updated({"plan.headroom": False, "plan.replications": 0})
    assert qsim.plan(asked).to_dict() == plan.to_dict()
    with pytest.raises(TypeError, match="the scenario says all"):
        qsim.plan(asked, objective="gpus")
    with pytest.raises(TypeError, match="did you mean objective"):
        qsim.plan(traffic(), objectiv="gpus")  # type: ignore[call-arg]


def test_traffic_means_the_same_everywhere() -> None:
    """Growth and peak hour are those of a plan in a simulation too."""
    scenario = Scenario(
        traffic={"trace": traffic(), "growth": 2}, fleet={"pools": [{"profile": make_profile()}]}
    )
    expected = qsim.simulate(traffic().speed(2.0), make_profile())
    assert qsim.simulate(scenario).summary() == expected.summary()
    with pytest.raises(ScenarioError, match="less than the hour"):
        qsim.simulate(scenario.updated({"traffic.peak_hour": True}))
