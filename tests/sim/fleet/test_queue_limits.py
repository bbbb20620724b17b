"""Servers that reject who comes while they have too much to do (HTTP 503)."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsim.errors import ScenarioError
from qsim.optimize.plan.planning import plan
from qsim.optimize.tune.tuning import tune
from qsim.sim.results.result import SimulationResult
from qsim.sim.results.slo import Slo, attainment
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces.trace import Trace
from tests.make_profile import constant_profile, make_profile
from tests.sim.engine.test_replica import same


def options(**limits: int) -> EngineOptions:
    return EngineOptions(vllm_version="0.33.0", **limits)


def crowd(n: int = 400, seed: int = 3) -> Trace:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(0.003, n))
    return Trace(arrival, rng.integers(1, 900, n), rng.choice([1, 20, 90], n))


def at_once(n: int) -> Trace:
    return Trace(np.arange(n) * 1e-6, np.full(n, 100), np.full(n, 50))


def test_a_full_server_rejects() -> None:
    result = simulate(at_once(10), constant_profile(10.0), options=options(max_num_queued_reqs=4))
    assert result.completed.tolist() == [True] * 4 + [False] * 6
    assert result.replica.tolist() == [0] * 4 + [-1] * 6
    assert np.isnan(result.ttft_ms[4:]).all()
    summary = result.summary()
    assert (summary["completed"], summary["failed"]) == (4, 6)
    assert summary["total_input_tokens"] == 400
    assert "6 requests were rejected (HTTP 503): max_num_queued_reqs is 4" in result.notes[-1]
    assert attainment(result, [Slo.parse("ttft:p99:100000")]) == 0.4


def test_prompt_tokens_count_in_full_until_the_first_token() -> None:
    # steps of 10 ms and 100 tokens: the four prompts have their first tokens one after the other
    load = Trace(
        np.array([0.0, 1e-6, 2e-6, 3e-6, 0.100]),
        np.array([100, 100, 100, 100, 100]),
        np.full(5, 50),
    )
    result = simulate(
        load,
        constant_profile(10.0),
        options=options(max_num_queued_tokens=300, max_num_batched_tokens=100, max_num_seqs=8),
    )
    # the fourth finds 300 tokens before it, the fifth none
    assert result.completed.tolist() == [True, True, True, False, True]
    assert "1 requests were rejected (HTTP 503): max_num_queued_tokens is 300" in result.notes[-1]


def test_a_seat_is_free_again_when_a_request_has_finished() -> None:
    load = Trace(np.array([0.0, 0.1, 2.0]), np.full(3, 10), np.full(3, 50))
    result = simulate(load, constant_profile(10.0), options=options(max_num_queued_reqs=1))
    assert result.completed.tolist() == [True, False, True]


@pytest.mark.parametrize("router", ["least-requests", "least-tokens", "power-of-two", "vllm"])
@pytest.mark.parametrize("limit", [{"max_num_queued_reqs": 9}, {"max_num_queued_tokens": 2500}])
def test_jumping_and_stepping_reject_the_same(router: str, limit: dict[str, int]) -> None:
    for profile in (make_profile(), make_profile(frontend=False)):
        for replicas in (1, 3):
            results = [
                simulate(crowd(), profile, replicas=replicas, router=router,
                         options=options(**limit), jump=jump)
                for jump in (True, False)
            ]  # fmt: skip
            same(*results)
            assert results[0].completed.tolist() == results[1].completed.tolist()
            assert 0 < results[0].completed.sum() < 400


def test_engines_behind_one_api_server_share_a_count() -> None:
    for router, taken in (("least-requests", 8), ("vllm", 4)):
        result = simulate(
            at_once(10),
            constant_profile(10.0),
            replicas=2,
            router=router,
            options=options(max_num_queued_reqs=4),
        )
        assert result.completed.sum() == taken


def test_no_more_are_in_a_server_than_it_takes() -> None:
    result: SimulationResult = simulate(
        crowd(), make_profile(frontend=False), options=options(max_num_queued_reqs=9)
    )
    done = result.completed
    begin = result.arrival_s[done]
    end = begin + result.e2el_ms[done] / 1e3
    most = max(int(((begin <= t) & (end > t)).sum()) for t in begin)
    assert most == 9


def test_a_stream_rejects_the_same(tmp_path: Path) -> None:
    load = crowd()
    parts = [load.take(np.arange(i, i + 100)) for i in range(0, 400, 100)]
    limit = options(max_num_queued_reqs=9)
    whole = simulate(load, make_profile(), options=limit)
    rows: list[np.ndarray] = []
    streamed = simulate_stream(
        parts, make_profile(), options=limit, rows=lambda columns: rows.append(columns["replica"])
    )
    assert np.concatenate(rows).tolist() == whole.replica.tolist()
    assert streamed.counts["failed"] == int((~whole.completed).sum())
    assert streamed.notes == whole.notes
    path = tmp_path / "requests.csv"
    whole.write_requests(path)
    assert [r["replica"] for r in csv.DictReader(path.open())].count("-1") == streamed.counts[
        "failed"
    ]


def test_a_server_that_takes_nobody() -> None:
    result = simulate(at_once(3), make_profile(), options=options(max_num_queued_reqs=0))
    assert result.completed.sum() == 0
    assert result.summary()["failed"] == 3
    assert result.summary()["p99_ttft_ms"] is None


def test_versions_without_limits_and_wrong_ones_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"max_num_queued_reqs is 4; vLLM 0\.28 has no"):
        simulate(
            at_once(1),
            make_profile(),
            options=EngineOptions(vllm_version="0.28", max_num_queued_reqs=4),
        )
    with pytest.raises(ScenarioError, match="max_num_queued_tokens is -1; must be a whole number"):
        simulate(at_once(1), make_profile(), options=options(max_num_queued_tokens=-1))


def test_who_sizes_fleets_refuses_them() -> None:
    limit = options(max_num_queued_reqs=4)
    slos = ["ttft:p99:1000"]
    with pytest.raises(ScenarioError, match="qsim plan looks for servers that take every request"):
        plan(at_once(2), slos=slos, profiles=[make_profile()], options=limit)
    with pytest.raises(ScenarioError, match="qsim tune looks for servers that take every request"):
        tune(at_once(2), slos=slos, profiles=[make_profile()], options=limit)
    with pytest.raises(ScenarioError, match="qsim plan looks for"):
        plan(
            at_once(2),
            slos=slos,
            profiles=[make_profile()],
            search=["max_num_queued_reqs=4,8"],
        )


def test_a_part_in_the_place_of_another_counts_its_own_tokens() -> None:
    """Clients who give up before their first token leave no tokens in the queue, part by part."""
    load = replace(crowd(300), timeout_s=np.full(300, 0.08))
    asked = options(max_num_queued_tokens=1500, max_num_seqs=4)
    whole = simulate(load, make_profile(), options=asked)
    parts = [load.take(np.arange(i, i + 10)) for i in range(0, 300, 10)]
    streamed = simulate_stream(parts, make_profile(), options=asked)
    assert streamed.counts == whole.counts
