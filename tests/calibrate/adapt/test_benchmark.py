"""Results of benchmarks with the latencies of single requests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsim.calibrate.adapt.benchmark import read_benchmark, write_benchmark
from qsim.errors import TraceError

VLLM: dict[str, Any] = {
    "backend": "openai", "model_id": "m", "tokenizer_id": "m", "num_prompts": 3,
    "request_rate": "inf", "max_concurrency": 2, "duration": 2.0, "completed": 3,
    "input_lens": [100, 300, 200], "output_lens": [4, 1, 3], "start_times": [10.0, 10.5, 10.2],
    "ttfts": [0.1, 0.3, 0.2], "itls": [[0.01, 0.02, 0.03], [], [0.05, 0.05]],
    "errors": ["", "", ""],
}  # fmt: skip
SGLANG: dict[str, Any] = {
    "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": "inf",
    "max_concurrency": None, "input_lens": [100, 300], "output_lens": [4, 2],
    "ttfts": [0.1, 0.3], "itls": [[0.01, 0.02, 0.03], [0.5]], "errors": ["", ""],
}  # fmt: skip
GUIDELLM: dict[str, Any] = {
    "benchmarks": [
        {"requests": {"successful": [
            {"request_start_time": 5.5, "request_end_time": 6.5, "prompt_tokens": 20,
             "output_tokens": 8, "time_to_first_token_ms": 250.0, "request_latency": 1.0},
            {"request_start_time": 5.0, "request_end_time": 7.0, "prompt_tokens": 10,
             "output_tokens": 9, "time_to_first_token_ms": 500.0, "request_latency": 2.0},
        ], "incomplete": [], "errored": []}}
    ]
}  # fmt: skip


def aiperf(start: int, prompt: int, output: int, ttft: float, latency: float, unit: str) -> str:
    return json.dumps(
        {
            "metadata": {"request_start_ns": start, "benchmark_phase": "profiling"},
            "metrics": {
                "input_sequence_length": {"value": prompt, "unit": "tokens"},
                "output_sequence_length": {"value": output, "unit": "tokens"},
                "time_to_first_token": {"value": ttft, "unit": unit},
                "request_latency": {"value": latency, "unit": unit},
            },
            "error": None,
        }
    )


def written(folder: Path, data: object, name: str = "r.json") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data) + "\n")
    return path


def test_vllm_bench_in_order_of_sending(tmp_path: Path) -> None:
    load = read_benchmark(written(tmp_path, VLLM), energy_j=5.0)
    assert load.trace.arrival_s.tolist() == pytest.approx([0.0, 0.2, 0.5])
    assert load.trace.prompt_tokens.tolist() == [100, 200, 300]
    assert load.ttft_ms.tolist() == pytest.approx([100.0, 200.0, 300.0])
    assert load.e2el_ms.tolist() == pytest.approx([160.0, 300.0, 300.0])
    assert load.measured()["energy_j"] == 5.0


def test_vllm_bench_leaves_out_failed_requests(tmp_path: Path) -> None:
    data = {**VLLM, "errors": ["", "timeout", ""]}
    load = read_benchmark(written(tmp_path, data))
    assert load.ttft_ms.tolist() == pytest.approx([100.0, 200.0])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    load = read_benchmark(written(tmp_path, VLLM), energy_j=7.5)
    write_benchmark(load, tmp_path / "again.json")
    again = read_benchmark(tmp_path / "again.json")
    assert again.trace.arrival_s.tolist() == pytest.approx(load.trace.arrival_s.tolist())
    assert again.values().keys() == load.values().keys()
    for name, values in load.values().items():
        assert again.values()[name].tolist() == pytest.approx(values.tolist())
    assert again.energy_j == 7.5
    assert read_benchmark(tmp_path / "again.json", energy_j=8.0).energy_j == 8.0


@pytest.mark.parametrize("energy", [0, -1, "5", True, 1e300, [], {}])
def test_an_energy_that_is_none(tmp_path: Path, energy: object) -> None:
    with pytest.raises(TraceError, match="energy_j is"):
        read_benchmark(written(tmp_path, {**VLLM, "energy_j": energy}))


def test_sglang(tmp_path: Path) -> None:
    load = read_benchmark(written(tmp_path, SGLANG, "r.jsonl"))
    assert load.ttft_ms.tolist() == pytest.approx([100.0, 300.0])
    assert load.e2el_ms.tolist() == pytest.approx([160.0, 800.0])


def test_guidellm(tmp_path: Path) -> None:
    load = read_benchmark(written(tmp_path, json.dumps(GUIDELLM, indent=1)))
    assert load.trace.prompt_tokens.tolist() == [10, 20]
    assert load.ttft_ms.tolist() == pytest.approx([500.0, 250.0])
    assert load.e2el_ms.tolist() == pytest.approx([2000.0, 1000.0])


@pytest.mark.parametrize("unit", ["ms", "ns", "sec"])
def test_aiperf(tmp_path: Path, unit: str) -> None:
    by = {"ms": 1.0, "ns": 1e6, "sec": 1e-3}[unit]
    lines = [
        aiperf(2_000_000_000, 20, 5, 30 * by, 90 * by, unit),
        aiperf(1_000_000_000, 10, 4, 20 * by, 80 * by, unit),
    ]
    load = read_benchmark(written(tmp_path, "\n".join(lines) + "\n", "r.jsonl"))
    assert load.trace.prompt_tokens.tolist() == [10, 20]
    assert load.ttft_ms.tolist() == pytest.approx([20.0, 30.0])
    assert load.e2el_ms.tolist() == pytest.approx([80.0, 90.0])


@pytest.mark.parametrize("which", ["output", "prompt"])
def test_requests_without_a_token_are_skipped_and_counted(tmp_path: Path, which: str) -> None:
    at, key = (1, "output_lens") if which == "output" else (0, "input_lens")
    lens = [*VLLM[key]]
    lens[1] = 0
    # nothing is measured of them: no first token, and a latency that means nothing
    itls = [VLLM["itls"][0], None, VLLM["itls"][2]]
    data = {**VLLM, key: lens, "ttfts": [0.1, None, 0.2], "itls": itls}
    load = read_benchmark(written(tmp_path, data))
    assert load.ttft_ms.tolist() == pytest.approx([100.0, 200.0])
    assert f"no {which} token" in str(load.trace.meta)
    empty = {"request_start_time": 5.2, "prompt_tokens": 20, "output_tokens": 8,
             f"{which}_tokens": 0, "time_to_first_token_ms": None}  # fmt: skip
    runs = GUIDELLM["benchmarks"][0]["requests"]
    data = {"benchmarks": [{"requests": {**runs, "successful": [empty, *runs["successful"]]}}]}
    load = read_benchmark(written(tmp_path, json.dumps(data, indent=1)))
    assert load.trace.prompt_tokens.tolist() == [10, 20]
    assert f"no {which} token" in str(load.trace.meta)
    tokens = [20, 5]
    tokens[at] = 0
    none = json.loads(aiperf(500_000_000, tokens[0], tokens[1], 0, 0, "ms"))
    del none["metrics"]["time_to_first_token"]
    lines = [json.dumps(none), aiperf(1_000_000_000, 10, 4, 20, 80, "ms")]
    load = read_benchmark(written(tmp_path, "\n".join(lines) + "\n", "r.jsonl"))
    assert load.trace.prompt_tokens.tolist() == [10]
    assert f"no {which} token" in str(load.trace.meta)


WRONG = [
    ({"ttfts": None}, "no lists 'ttfts'"),
    ({"ttfts": [0.1, 0.2]}, "differ in length"),
    ({"itls": [[0.1]]}, "differ in length"),
    ({"ttfts": [0.1, "x", 0.2]}, "request 1: ttft is 'x'"),
    ({"ttfts": [0.1, -1, 0.2]}, "request 1: ttft is -1"),
    ({"ttfts": [0.1, True, 0.2]}, "request 1: ttft is True"),
    ({"itls": [[0.01], 3, [0.05]]}, "request 1: itls is 3"),
    ({"itls": [[1e300], [], [0.05]]}, "request 0: itl is 1e"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_result_is_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read_benchmark(written(tmp_path, {**VLLM, **change}))


def test_a_trace_has_no_latencies(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,10,5\n", "t.csv")
    with pytest.raises(TraceError, match="holds no latencies"):
        read_benchmark(path)
    with pytest.raises(TraceError, match="no such file"):
        read_benchmark(tmp_path / "none.json")


def test_a_real_result() -> None:
    root = Path(__file__).parents[3] / "measurements" / "closed-loop"
    path = root / "llama-3.1-8b--fp8-w8a8--v0.33--2026-11-30" / "max-concurrency-32.json.gz"
    load = read_benchmark(path)
    stated = json.loads(gzip.decompress(path.read_bytes()))
    assert len(load) == stated["completed"]
    assert np.mean(load.ttft_ms) == pytest.approx(stated["mean_ttft_ms"], rel=1e-6)
    assert load.measured()["mean_tpot_ms"] == pytest.approx(stated["mean_tpot_ms"], rel=0.002)
    assert load.measured()["median_tpot_ms"] == pytest.approx(stated["median_tpot_ms"], rel=0.002)
