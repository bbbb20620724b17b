"""What each server did, and whether one is hot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qsim
from qsim.report.text.simulation import servers_table
from qsim.sim.fleet.failures import Failure, Failures
from qsim.sim.fleet.pool import Pool
from qsim.sim.results.servers import hot_sentence, hot_spots
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces.trace import HashIds, Trace
from tests.cli.helpers import qsim as run
from tests.make_profile import make_profile


def pinned(n: int, share: float, rate: float = 20.0) -> Trace:
    """Prompts of 64 tokens, a share of which begins with the same text."""
    rng = np.random.default_rng(5)
    same = rng.random(n) < share
    ids = [[1, 2, 3, 4] if s else [100 + 4 * i + k for k in range(4)] for i, s in enumerate(same)]
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        np.full(n, 64),
        rng.integers(8, 24, n),
        hash_ids=HashIds.from_lists(ids, 16),
    )


def rows_of(*loads: float, pool: str | None = None, on_s: float = 10.0) -> list[dict[str, Any]]:
    return [
        {"replica": i, **({} if pool is None else {"pool": pool}), "requests": 200, "on_s": on_s,
         "input_tokens": round(1000 * x), "output_tokens": 0, "cached_tokens": 0, "busy_s": x,
         "utilisation": x / max(on_s, 1e-9), "peak_kv_usage": 0.5}
        for i, x in enumerate(loads)
    ]  # fmt: skip


def test_the_rows_add_up_to_the_run():
    trace = pinned(600, 0.5)
    result = qsim.simulate(trace, make_profile(), replicas=3, router="prefix-affinity")
    streamed = simulate_stream([trace], make_profile(), replicas=3, router="prefix-affinity")
    for found in (result, streamed):
        rows = found.replica_stats
        for name in ("input_tokens", "output_tokens", "cached_tokens"):
            assert sum(r[name] for r in rows) == found.counts[name]
        assert sum(r["requests"] for r in rows) == found.counts["completed"]
        for r in rows:
            assert r["on_s"] == pytest.approx(found.duration_s)
            assert r["utilisation"] == pytest.approx(r["busy_s"] / r["on_s"])
    assert result.replica_stats == streamed.replica_stats
    assert result.cached_tokens.sum() > 0


def test_a_server_that_has_nearly_all_is_hot_and_named():
    trace = pinned(1000, 0.9)
    router = "prefix-affinity:balance_abs_threshold=1e9"
    result = qsim.simulate(trace, make_profile(), replicas=4, router=router)
    found = result.summary()["hot_spots"]
    counts = np.bincount(result.replica, minlength=4)
    assert found["hot"]
    assert found["hottest"] == int(counts.argmax())
    assert found["largest_over_mean"]["requests"] == pytest.approx(counts.max() / 250)
    assert f"server {found['hottest']} is hot: it had" in hot_sentence(found, result.replica_stats)
    even = qsim.simulate(trace, make_profile(), replicas=4).summary()["hot_spots"]
    assert not even["hot"]
    assert hot_sentence(even, result.replica_stats) == ""
    assert even["largest_over_mean"]["requests"] < 1.1


def test_the_ratio_is_to_the_mean_of_the_pool():
    rows = rows_of(1.0, 1.0, 2.0)
    found = hot_spots(rows)
    assert found is not None
    assert found["largest_over_mean"] == {
        "requests": 1.0, "tokens": 1.5, "utilisation": 1.5, "peak_kv_usage": 1.0,
    }  # fmt: skip
    assert (found["hottest"], found["hot"]) == (2, True)
    slow = [{**r, "replica": 3 + i} for i, r in enumerate(rows_of(9.0, 9.0, pool="b"))]
    mixed = hot_spots([{**r, "pool": "a"} for r in rows_of(1.0, 1.0)] + slow)
    assert mixed is not None
    assert mixed["largest_over_mean"]["tokens"] == 1.0  # each pool has its own mean
    assert not mixed["hot"]
    few = hot_spots([{**r, "requests": 20} for r in rows])
    assert few is not None
    assert not few["hot"]
    assert hot_spots(rows[:1]) is None


def test_a_server_that_was_down_makes_no_other_one_hot():
    trace = pinned(1500, 0.0, rate=30.0)
    down = Failures([Failure(1.0, 40.0, 0)])
    result = qsim.simulate(trace, pools=[Pool(make_profile(), 3)], failures=down)
    found = result.summary()["hot_spots"]
    assert result.replica_stats[0]["on_s"] < 5.0
    assert not found["hot"]
    assert found["largest_over_mean"]["tokens"] < 1.3


def test_nothing_is_nothing():
    idle = hot_spots(rows_of(0.0, 0.0, on_s=0.0))
    assert idle is not None
    assert idle["largest_over_mean"]["tokens"] is None
    assert not idle["hot"]
    trace = Trace(np.array([0.0]), np.array([9]), np.array([3]))
    summary = qsim.simulate(trace, make_profile(), replicas=3).summary()
    assert "0" in servers_table(summary["replicas"], summary["hot_spots"])
    json.dumps(summary, allow_nan=False)


def test_of_many_servers_the_table_has_those_with_the_most(tmp_path: Path) -> None:
    rows = rows_of(*range(1, 41))
    found = hot_spots(rows)
    assert found is not None
    lines = servers_table(rows, found).splitlines()
    assert [line.split()[0] for line in lines[3:14]] == [str(i) for i in range(39, 28, -1)]
    assert lines[14].strip() == "29 others"
    assert lines[15].startswith("largest / mean")


def test_the_command_shows_servers_of_a_fleet_and_not_of_one(tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    make_profile().save(profile)
    trace = "azure-conv-2023:requests=60"
    text = run("simulate", trace, "--profile", profile, "--replicas", 2).output
    assert "largest / mean" in text
    assert "largest / mean" not in run("simulate", trace, "--profile", profile).output
