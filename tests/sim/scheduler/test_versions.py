"""The rules that differ between releases of vLLM: who has which, and what each does."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from qsim.catalog.versions import (
    NEWEST,
    OLDEST,
    VersionRules,
    default_budget,
    graph_sizes,
    newer_than_known,
    parse_version,
    rules_of,
    version_notes,
)
from qsim.errors import ScenarioError
from qsim.sim.engine.timing import DECODE, PIECEWISE, Timing
from qsim.sim.replay import Arrival, Scenario
from qsim.sim.scheduler.config import EngineConfig, EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.load import load_trace
from tests.make_profile import make_profile
from tests.sim.scenarios import Driver
from tests.sim.scheduler.test_scheduler import compare_with_reference


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("0.24", (0, 24, 0)),
        ("0.24.0", (0, 24, 0)),
        ("v0.33.1", (0, 33, 1)),
        ("0.33.0rc2", (0, 33, 0)),
        ("0.33.1.dev12+g1a2b3c.cu130", (0, 33, 1)),
        ("0.29.0.post1", (0, 29, 0)),
        ("1.0.0", (1, 0, 0)),
    ],
)
def test_versions_are_read(text: str, release: tuple[int, int, int]) -> None:
    assert parse_version(text) == release


@pytest.mark.parametrize("text", ["", "33", "0.33.x", "latest", "0.24.0.1", "0.-1", None, 0.33])
def test_what_is_no_version_is_refused(text: object) -> None:
    with pytest.raises(ScenarioError, match="must be a version of vLLM"):
        parse_version(text)  # type: ignore[arg-type]


def test_older_versions_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"vllm_version is '0.9.2'; must be 0.24 or newer"):
        rules_of("0.9.2")


def has(version: str) -> set[str]:
    rules = rules_of(version)
    return {f.name for f in fields(VersionRules) if getattr(rules, f.name)}


def test_rules_come_one_after_the_other_and_stay() -> None:
    assert has("0.24.3") == set()
    assert has("0.25") == has("0.26.1") == {"balancer_rotates"}
    before: set[str] = set()
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        now = has(f"0.{minor}.0")
        assert before <= now
        before = now
    assert before == {f.name for f in fields(VersionRules)}
    assert has("0.33.0") - has("0.32.9") == {"pass_survives_self_preemption"}
    assert has("0.31") - has("0.30") == {
        "lone_request_uncapped",
        "max_num_active_seqs",
        "long_prefill_token_threshold_adaptive",
    }


def test_newer_versions_have_the_newest_rules_and_a_remark() -> None:
    assert rules_of("0.34") == rules_of("1.2.0") == rules_of("0.33.7")
    assert newer_than_known("0.33.7") is None
    assert "vLLM 0.34 is newer than 0.33" in str(newer_than_known("0.34"))


def items(version: str, arrivals: list[Arrival], **settings: object) -> list[object]:
    config = EngineConfig(vllm_version=version, **settings)  # type: ignore[arg-type]
    scenario = Scenario("directed", config, tuple(arrivals))
    compare_with_reference(scenario, {})
    return [(turn.items, turn.preempted) for turn in Driver(scenario).turns()]


def chunks(version: str, prompts: list[int], **settings: object) -> list[list[int]]:
    arrivals = [Arrival(0, f"r{i}", prompt, 1) for i, prompt in enumerate(prompts)]
    settings = {"num_gpu_blocks": 65, "max_model_len": 512, **settings}
    steps = items(version, arrivals, max_num_batched_tokens=128, async_scheduling=False, **settings)
    return [[n for _, n, _ in served] for served, _ in steps if served]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.24", [32, 32, 32, 4]), ("0.30.2", [32, 32, 32, 4]), ("0.31", [100]), ("0.33.0", [100])],
)
def test_a_lone_request_escapes_the_threshold(version: str, expected: list[int]) -> None:
    steps = chunks(version, [100], long_prefill_token_threshold=32)
    assert steps == [[n] for n in expected]


def test_two_requests_are_capped_until_one_of_them_is_left() -> None:
    steps = chunks("0.33.0", [100, 20], long_prefill_token_threshold=32)
    assert steps == [[32, 20], [68]]  # the second has finished when step 2 is scheduled


def test_an_adaptive_threshold_is_a_fair_share_of_the_budget() -> None:
    settings = {"long_prefill_token_threshold": 8, "long_prefill_token_threshold_adaptive": True}
    assert chunks("0.33.0", [90, 90, 90], **settings)[0] == [42, 42, 42]
    assert chunks("0.33.0", [90, 90, 90], long_prefill_token_threshold=8)[0] == [8, 8, 8]
    with pytest.raises(ScenarioError, match=r"vLLM 0\.30 has no such option, 0\.31"):
        chunks("0.30", [90], **settings)


def test_fewer_seats_may_be_taken_than_there_are() -> None:
    assert chunks("0.31", [5, 5, 5], max_num_seqs=4, max_num_active_seqs=2) == [[5, 5], [5]]
    with pytest.raises(ScenarioError, match="max_num_active_seqs is 5; must be <= max_num_seqs 4"):
        EngineConfig(vllm_version="0.31", max_num_seqs=4, max_num_active_seqs=5)
    with pytest.raises(ScenarioError, match="must be a whole number >= 1"):
        EngineConfig(vllm_version="0.31", max_num_active_seqs=0)


@pytest.mark.parametrize("version", ["0.24", "0.32.0", "0.33.0"])
def test_who_preempts_itself_ends_the_pass_or_not(version: str) -> None:
    arrivals = [
        Arrival(0, "low", 46, 5, priority=2),
        Arrival(1, "x", 31, 4),
        Arrival(1, "y", 30, 4),
    ]
    steps = items(
        version,
        arrivals,
        num_gpu_blocks=8,
        max_model_len=112,
        max_num_batched_tokens=128,
        async_scheduling=False,
        scheduling_policy="priority",
    )
    served, preempted = steps[3]  # type: ignore[misc]
    assert preempted == (0,)
    assert [index for index, _, _ in served] == ([1, 2] if version == "0.33.0" else [])


SIZES = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]


@pytest.mark.parametrize(
    ("version", "seats", "budget", "expected"),
    [
        # as vLLM's own VllmConfig._set_cudagraph_sizes gives them
        ("0.24.0", 1024, 8192, SIZES),
        ("0.33.0", 1024, 8192, SIZES),
        ("0.28.0", 20, 8192, [1, 2, 4, 8, 16, 24, 32, 40]),
        ("0.29.0", 20, 8192, [1, 2, 4, 8, 16, 20, 24, 32, 40]),
        ("0.33.0", 3, 8192, [1, 2, 3, 4]),
        ("0.24.0", 3, 8192, [1, 2, 4]),
        ("0.33.0", 500, 8192, sorted([*SIZES, 500])),
        ("0.33.0", 513, 8192, SIZES),
        ("0.24.0", 64, 100, [1, 2, 4, *range(8, 97, 8), 100]),
        ("0.33.0", 70, 100, sorted([1, 2, 4, *range(8, 97, 8), 70, 100])),
        ("0.33.0", 1, 8192, [1, 2]),
    ],
)
def test_captured_sizes(version: str, seats: int, budget: int, expected: list[int]) -> None:
    assert graph_sizes(SIZES, seats, budget, version) == expected


def test_a_server_without_graphs_captures_none() -> None:
    assert graph_sizes([], 20, 8192, "0.33.0") == []


def test_all_seats_decode_under_a_full_graph_since_0_29() -> None:
    profile = make_profile()
    for version, mode in (("0.28.0", PIECEWISE), ("0.29.0", DECODE)):
        config = EngineOptions(max_num_seqs=20, vllm_version=version).resolve(profile)
        assert Timing(profile, config).decode_mode[17:21] == [mode] * 4


def test_large_gpus_have_a_larger_default_since_0_28() -> None:
    assert default_budget(8192, "b200_sxm", "0.24.0", "0.33.0") == 16384
    assert default_budget(16384, "b200_sxm", "0.33.0", "0.24.0") == 8192
    assert default_budget(8192, "h200_sxm", "0.24.0", "0.33.0") == 8192
    assert default_budget(4096, "b200_sxm", "0.24.0", "0.33.0") == 4096  # not the default
    profile = make_profile(gpu="b300_sxm")
    assert EngineOptions(vllm_version="0.28").resolve(profile).max_num_batched_tokens == 16384
    given = EngineOptions(vllm_version="0.28", max_num_batched_tokens=4096)
    assert given.resolve(profile).max_num_batched_tokens == 4096


def test_the_profiles_version_is_the_default() -> None:
    profile = make_profile()
    assert EngineOptions().resolve(profile).vllm_version == "0.24"
    newer = replace(profile, identity=replace(profile.identity, vllm_version="0.33.0"))
    assert EngineOptions().resolve(newer).vllm_version == "0.33.0"
    assert EngineOptions(vllm_version="0.24").resolve(newer).vllm_version == "0.24"


@pytest.mark.parametrize("version", ["0.21.0", "unknown"])
def test_a_profile_of_a_version_that_is_not_known_is_refused(version: str) -> None:
    profile = make_profile()
    odd = replace(profile, identity=replace(profile.identity, vllm_version=version))
    for asked in (None, "0.33"):
        with pytest.raises(ScenarioError, match="vllm_version of h200_sxm/toy-1b/bf16 is"):
            EngineOptions(vllm_version=asked).resolve(odd)


def test_a_run_by_other_rules_than_the_profiles_says_so() -> None:
    assert version_notes("0.24.0", "0.24") == []
    (one,) = version_notes("0.24.0", "0.33.0")
    assert "those of the profile, of vLLM 0.24.0" in one
    assert "fewer blocks" in one
    assert "fewer blocks" not in version_notes("0.24.0", "0.28")[0]
    newer, other = version_notes("0.24.0", "0.40")
    assert "newer than 0.33" in newer
    assert "those of vLLM 0.40" in other
    result = simulate(
        load_trace("azure-conv-2023:duration=10,seed=1"),
        make_profile(),
        options=EngineOptions(vllm_version="0.33.0"),
    )
    assert result.scenario["vllm_version"] == "0.33.0"
    assert result.notes[-1].startswith("scheduling, routing and graph sizes are those of vLLM 0.33")
