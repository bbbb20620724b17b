"""Summaries, percentiles of weighted gaps, files, and errors of ``simulate``."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qsim
from qsim.errors import ProfileError, ScenarioError, TraceError
from qsim.sim.results.itl import Gaps
from qsim.sim.results.slo import Slo
from qsim.sim.results.summary import exact_percentiles
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.trace import Trace
from tests.make_profile import make_profile


def small_trace(n: int = 30, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(0.05, n)), rng.integers(1, 500, n), rng.integers(1, 30, n)
    )


@given(
    st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 9)), min_size=1, max_size=30),
    st.floats(0, 100),
)
def test_weighted_percentiles_are_those_of_the_repeated_values(pairs, q):
    ms, count = (np.array(x) for x in zip(*pairs, strict=True))
    gaps = Gaps.of(ms, count)
    assert gaps.percentile(q) == pytest.approx(np.percentile(np.repeat(ms, count), q))
    assert gaps.mean() == pytest.approx(np.repeat(ms, count).mean())


def test_the_summary_agrees_with_the_columns():
    result = qsim.simulate(small_trace(), make_profile())
    s = result.summary()
    done = result.completed
    assert s["completed"] == 30
    assert s["failed"] == 0
    assert s["total_input_tokens"] == result.prompt_tokens.sum()
    assert s["total_output_tokens"] == result.output_tokens[done].sum()
    assert s["mean_ttft_ms"] == pytest.approx(result.ttft_ms.mean())
    assert s["p99_e2el_ms"] == pytest.approx(np.percentile(result.e2el_ms, 99))
    several = result.output_tokens > 1
    tpot = (result.e2el_ms - result.ttft_ms)[several] / (result.output_tokens[several] - 1)
    assert s["median_tpot_ms"] == pytest.approx(np.median(tpot))
    end = (result.arrival_s + result.e2el_ms / 1000).max()
    assert s["duration"] == pytest.approx(end - result.arrival_s[0])
    assert s["output_throughput"] == pytest.approx(s["total_output_tokens"] / s["duration"])
    assert s["joules_per_output_token"] == pytest.approx(s["energy_j"] / s["total_output_tokens"])
    json.dumps(s, allow_nan=False)


def test_goodput_counts_requests_within_every_limit():
    result = qsim.simulate(small_trace(), make_profile())
    ttft = float(np.median(result.ttft_ms))
    slos = [Slo.parse(f"ttft:p99:{ttft}"), Slo.parse("tpot:mean:1000")]
    good = result.meets(slos)
    np.testing.assert_array_equal(good, result.ttft_ms <= ttft)
    assert result.summary(slos)["request_goodput"] == pytest.approx(good.sum() / result.duration_s)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_requests_can_be_written_and_read_back(tmp_path, ending):
    result = qsim.simulate(small_trace(), make_profile())
    path = tmp_path / f"requests{ending}"
    result.write_requests(path)
    if ending == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path).to_pydict()
    else:
        text = path.read_bytes()
        if ending.endswith(".gz"):
            text = gzip.decompress(text)
        lines = text.decode().splitlines()
        rows = [line.split(",") for line in lines[1:]]
        table = {
            name: [float(r[i]) if r[i] else float("nan") for r in rows]
            for i, name in enumerate(lines[0].split(","))
        }
    np.testing.assert_allclose(table["e2el_ms"], result.e2el_ms, rtol=0, atol=1e-9)
    np.testing.assert_allclose(table["tpot_ms"], result.tpot_ms, rtol=0, atol=1e-9)
    assert list(tmp_path.iterdir()) == [path]


def test_a_requests_file_of_another_kind_is_refused(tmp_path):
    result = qsim.simulate(small_trace(3), make_profile())
    with pytest.raises(ScenarioError, match=r"must end in \.csv, \.csv\.gz or \.parquet"):
        result.write_requests(tmp_path / "requests.xlsx")
    assert not list(tmp_path.iterdir())


def test_a_prompt_without_room_for_a_token_is_an_error_or_a_failure():
    trace = Trace(np.array([0.0, 1.0, 2.0]), np.array([10, 100, 99]), np.array([5, 5, 5]))
    options = EngineOptions(max_model_len=100)
    with pytest.raises(TraceError, match=r"request 1 is 100 \(1 of 3.*max_model_len 100"):
        qsim.simulate(trace, make_profile(), options=options)
    result = qsim.simulate(trace, make_profile(), options=options, too_long="reject")
    s = result.summary()
    assert (s["completed"], s["failed"], s["truncated"]) == (2, 1, 1)
    assert result.completed.tolist() == [True, False, True]
    assert result.output_tokens.tolist() == [5, 0, 1]
    assert np.isnan(result.ttft_ms[1])
    assert result.replica[1] == -1
    assert len(result.notes) == 2


def test_a_trace_of_nothing_but_too_long_prompts_is_an_error():
    trace = Trace(np.array([0.0]), np.array([100]), np.array([5]))
    with pytest.raises(TraceError, match="1 of 1 requests"):
        qsim.simulate(
            trace, make_profile(), options=EngineOptions(max_model_len=64), too_long="reject"
        )


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"replicas": 0}, ScenarioError, "replicas is 0; must be a whole number >= 1"),
        ({"replicas": 1.5}, ScenarioError, "replicas is 1.5"),
        ({"router": "nearest"}, ScenarioError, "router is 'nearest'"),
        ({"seed": -1}, ScenarioError, "seed is -1"),
        ({"too_long": "drop"}, ScenarioError, "too_long is 'drop'"),
        ({"options": EngineOptions(max_num_seqs=0)}, ScenarioError, "max_num_seqs is 0"),
        (
            {"options": EngineOptions(max_num_seqs=64, max_num_batched_tokens=32)},
            ScenarioError,
            "max_num_batched_tokens is 32; must be >= max_num_seqs 64",
        ),
        (
            {"options": EngineOptions(kv_cache_memory_bytes=1000)},
            ScenarioError,
            "kv_cache_memory_bytes is 1000; must be >= 4194304",
        ),
        (
            {"options": EngineOptions(max_model_len=10**6)},
            ScenarioError,
            "max_model_len is 1000000; the KV cache of 4096 blocks holds one sequence of at most",
        ),
        (
            {"options": EngineOptions(scheduling_policy="lifo")},
            ScenarioError,
            "scheduling_policy is 'lifo'",
        ),
    ],
)
def test_wrong_options_are_named(kwargs, error, message):
    with pytest.raises(error) as caught:
        qsim.simulate(small_trace(3), make_profile(), **kwargs)
    assert message in str(caught.value)


def test_an_unknown_profile_is_named():
    with pytest.raises(ProfileError, match="nothing/of/that"):
        qsim.simulate(small_trace(3), "nothing/of/that")


def test_kv_memory_sets_the_pool():
    profile = make_profile()
    block = profile.memory.kv_bytes_per_token * profile.memory.block_size
    config = EngineOptions(kv_cache_memory_bytes=100 * block + 7).resolve(profile)
    assert config.num_gpu_blocks == 100
    assert config.max_model_len == 99 * 16  # what 99 usable blocks hold


def test_less_kv_memory_means_longer_waits_and_preemptions():
    rng = np.random.default_rng(3)
    trace = Trace(np.zeros(80), rng.integers(100, 400, 80), rng.integers(100, 400, 80))
    runs = [
        qsim.simulate(trace, make_profile(), options=EngineOptions(num_gpu_blocks_override=blocks))
        for blocks in (4000, 300)
    ]
    assert runs[0].preemptions.sum() == 0
    assert runs[1].preemptions.sum() > 0
    assert runs[1].ttft_ms.mean() > 2 * runs[0].ttft_ms.mean()
    assert runs[1].completed.all()


def test_progress_ends_at_one():
    seen: list[float] = []
    qsim.simulate(small_trace(600), make_profile(), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 2


@given(
    st.lists(st.floats(0, 1e7), min_size=1, max_size=60),
    st.lists(st.floats(0, 100), min_size=1, max_size=5),
)
def test_percentiles_are_numpys_to_the_bit(values: list[float], qs: list[float]) -> None:
    column = np.array(values)
    for some in (qs, [0.0, 50.0, 90.0, 99.0, 99.9, 100.0]):
        assert exact_percentiles(column, some) == np.percentile(column, some).tolist()
