"""Statistics: closed forms, an independent definition of prefix hits, and the published table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from qsim.traces import Trace, load_trace, trace_statistics
from qsim.traces.statistics import prefix_hit_blocks
from tests.traces.strategies import traces

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"


def regular(n: int, gap_s: float) -> Trace:
    return Trace(np.arange(n) * gap_s, np.full(n, 100), np.full(n, 7))


def test_evenly_spaced_arrivals() -> None:
    s = trace_statistics(regular(1201, 0.5))
    assert s["requests"] == 1201
    assert s["duration_s"] == 600.0
    assert s["mean_rps"] == 1201 / 600
    assert s["iat_cv"] == 0.0
    assert s["iat_cv_within_60s_median"] == 0.0
    assert s["peak_count_1s"] == 2
    assert s["prompt_tokens_mean"] == s["prompt_tokens_p99.9"] == 100.0
    assert s["prompt_tokens_logstd"] == pytest.approx(0.0, abs=1e-12)
    assert s["log_length_corr"] is None


def test_batches_have_a_fano_factor_of_their_size() -> None:
    # k requests at once in every tenth second: counts are k or 0, so variance/mean = k * 0.9
    times = np.repeat(np.arange(0, 1000, 10.0), 5)
    s = trace_statistics(Trace(np.append(times, 999.0), np.full(501, 3), np.full(501, 3)))
    assert s["count_fano_1s"] == pytest.approx(4.5, rel=0.01)
    assert s["peak_count_1s"] == 5


def test_poisson_has_cv_and_fano_of_one() -> None:
    times = np.cumsum(np.random.default_rng(0).exponential(0.1, 50_000))
    s = trace_statistics(Trace(times, np.full(50_000, 3), np.full(50_000, 3)))
    for key in ("iat_cv", "iat_cv_within_60s_median", "count_fano_1s"):
        assert s[key] == pytest.approx(1.0, abs=0.05)


def test_gaps_belong_to_the_window_in_which_they_end() -> None:
    # 20 gaps of 1 s, then one of 100 s that opens a window of 20 gaps of 1 s
    first = np.arange(0.0, 21.0)
    second = 120.0 + np.arange(0.0, 20.0)
    s = trace_statistics(Trace(np.concatenate([first, second]), np.ones(41), np.ones(41)))
    gaps = np.array([100.0] + [1.0] * 19)
    assert s["iat_cv_within_60s_median"] == pytest.approx(gaps.std() / gaps.mean() / 2)


def test_one_request_alone_has_no_gaps_and_is_json() -> None:
    s = trace_statistics(regular(1, 1.0))
    assert s["mean_rps"] is s["iat_cv"] is s["count_fano_60s"] is None
    json.dumps(s, allow_nan=False)


@given(traces())
def test_statistics_are_always_json(trace: Trace) -> None:
    json.dumps(trace_statistics(trace), allow_nan=False)


@given(traces(with_ids=True))
def test_prefix_hits_are_the_leading_ids_seen_before(trace: Trace) -> None:
    ids = trace.hash_ids
    assert ids is not None
    seen: set[int] = set()
    for i, hits in enumerate(prefix_hit_blocks(ids).tolist()):
        own = ids[i].tolist()
        expected = next((k for k, one in enumerate(own) if one not in seen), len(own))
        assert hits == expected
        seen.update(own)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/traces is not there")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("azure_2023_code", "azure_2023_code.csv.gz"),
        ("azure_2023_conv", "azure_2023_conv.csv.gz"),
        ("mooncake_conversation", "mooncake_conversation.jsonl.gz"),
        ("mooncake_synthetic", "mooncake_synthetic.jsonl.gz"),
    ],
)
def test_the_published_table_is_reproduced(name: str, file: str) -> None:
    with (SHARED / "trace_stats.csv").open() as f:
        (row,) = (r for r in csv.DictReader(f) if r["trace"] == name)
    s = trace_statistics(load_trace(SHARED / file))
    renamed = {
        "log_in_out_corr": "log_length_corr",
        "prefix_block_hit_rate_infinite_cache": "prefix_block_hit_rate",
        "unique_blocks_512": "unique_prefix_blocks",
    }
    checked = 0
    for key, text in row.items():
        if key in ("trace", "in_zeros", "out_zeros") or text == "":
            continue
        own = renamed.get(key, key)
        own = own.replace("in_", "prompt_tokens_", 1) if key.startswith("in_") else own
        own = own.replace("out_", "output_tokens_", 1) if key.startswith("out_") else own
        decimals = len(text.partition(".")[2])
        assert s[own] == pytest.approx(float(text), abs=0.51 * 10**-decimals), key
        checked += 1
    assert checked >= 43
