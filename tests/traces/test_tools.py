"""Results of other tools and logs of calls: a recorded sample each, made anew by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from qsim.cli import main
from qsim.errors import MissingExtraError, TraceError
from qsim.traces import Trace, load_trace
from qsim.traces.reading.columns import Column, find_columns, parse_columns, unit_of


def load_sample(path: Path, text: str, format: str, skipped: dict[str, int], gap_s: float) -> Trace:
    """Read one of the samples, which all hold the same two requests."""
    path.write_text(text)
    trace = load_trace(path)
    assert trace.meta["format"] == format
    assert trace.meta["skipped"] == skipped
    assert trace.prompt_tokens.tolist() == [250, 256]
    assert trace.output_tokens.tolist() == [60, 64]
    assert trace.arrival_s.tolist() == [0.0, gap_s]
    return trace


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def guidellm(*runs: dict[str, Any]) -> str:
    return json.dumps({"metadata": {"version": 2}, "benchmarks": list(runs)})


def run(rate: float, *requests: dict[str, Any], **others: Any) -> dict[str, Any]:
    groups = {"successful": list(requests), "incomplete": [], "errored": [], **others}
    return {"config": {"strategy": {"type_": "constant", "rate": rate}}, "requests": groups}


def request(start: float, prompt: int, output: int) -> dict[str, Any]:
    return {"request_id": str(start), "request_start_time": start, "request_end_time": start + 1,
            "prompt_tokens": prompt, "output_tokens": output}  # fmt: skip


def aiperf(start_ns: int, prompt: int, output: int, **others: Any) -> dict[str, Any]:
    metrics = {
        "input_sequence_length": {"value": prompt, "unit": "tokens"},
        "output_sequence_length": {"value": output, "unit": "tokens"},
        "inter_chunk_latency": {"value": [4.9, 5.3], "unit": "ms"},
    }
    metadata = {"session_num": 1, "request_start_ns": start_ns, "benchmark_phase": "profiling",
                "was_cancelled": False, **others.pop("metadata", {})}  # fmt: skip
    return {"metadata": metadata, "metrics": metrics, "error": None} | others


NS = 1_759_813_207_532_900_363
GUIDELLM = guidellm(run(2.0, request(1.7e9 + 0.5, 256, 64), request(1.7e9, 250, 60),
                        errored=[{"request_start_time": 1.7e9}]))  # fmt: skip
AIPERF = lines(
    aiperf(NS - 10**9, 9, 9, metadata={"benchmark_phase": "warmup"}),
    aiperf(NS + 500_000_000, 256, 64),
    aiperf(NS, 250, 60),
    aiperf(NS, 9, 9, error={"code": 500, "type": "Error", "message": "x"}),
    aiperf(NS, 9, 9, metadata={"was_cancelled": True}),
)
SGLANG: dict[str, Any] = {
    "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": 4.0,
    "max_concurrency": None, "duration": 1.2, "completed": 3, "total_input_tokens": 600,
    "input_lens": [100, 200, 300], "output_lens": [10, 20, 0], "ttfts": [0.05, 0.06, 0.0],
    "itls": [[0.01] * 9, [0.01] * 19, []], "generated_texts": ["", "", ""],
    "errors": ["", "", "Timeout"],
}  # fmt: skip
VLLM_OLD: dict[str, Any] = {
    "date": "20250101-000000", "backend": "vllm", "model_id": "m", "tokenizer_id": "m",
    "num_prompts": 4, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 2,
    "input_lens": [10, 20, 30, 40], "output_lens": [2, 2, 2, 2],
    "ttfts": [0.5, 1.0, 0.5, 0.5], "itls": [[0.5], [1.0], [0.5], [0.5]], "errors": ["", "", "", ""],
}  # fmt: skip
VIDUR = (
    ",arrived_at,num_prefill_tokens,num_decode_tokens,pd_ratio\n"
    "0,0.0,250,60,4.1\n1,0.5,256,64,4.0\n"
)
SPLITWISE = (
    "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,0.0,1,250,60\n1,2,0,0.5,1,256,64\n"
)
OPENAI = lines(
    {"id": "a", "object": "chat.completion", "created": 1700000001, "model": "m",
     "usage": {"prompt_tokens": 256, "completion_tokens": 64, "total_tokens": 320}},
    {"id": "b", "created": 1700000000, "model": "m",
     "usage": {"prompt_tokens": 250, "completion_tokens": 60, "total_tokens": 310}},
    {"id": "c", "created": 1700000000, "error": {"message": "x"}},
)  # fmt: skip
OPENAI_BATCH = lines(
    {"custom_id": "a", "response": {"status_code": 200, "body": {
        "created": 1700000000, "usage": {"prompt_tokens": 250, "completion_tokens": 60}}}},
    {"custom_id": "b", "response": {"status_code": 200, "body": {
        "created": 1700000001, "usage": {"prompt_tokens": 256, "completion_tokens": 64}}}},
)  # fmt: skip
RESPONSES = lines(
    {"object": "response", "created_at": 1700000000.0,
     "usage": {"input_tokens": 250, "output_tokens": 60}},
    {"object": "response", "created_at": 1700000000.5,
     "usage": {"input_tokens": 256, "output_tokens": 64}},
)  # fmt: skip
LITELLM = json.dumps(
    [
        {"request_id": "b", "call_type": "acompletion", "startTime": "2024-05-10T00:00:00.500Z",
         "endTime": "2024-05-10T00:00:09Z", "prompt_tokens": 256, "completion_tokens": 64},
        {"request_id": "a", "call_type": "acompletion", "startTime": "2024-05-10T00:00:00.000Z",
         "endTime": "2024-05-10T00:00:02Z", "prompt_tokens": 250, "completion_tokens": 60},
    ],
    indent=1,
)  # fmt: skip


def attributes(**values: Any) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"stringValue": v} if isinstance(v, str) else {"intValue": str(v)}}
        for key, v in values.items()
    ]


def span(start_ns: int, **values: Any) -> dict[str, Any]:
    return {"traceId": "a", "spanId": "b", "name": "chat m", "kind": 3,
            "startTimeUnixNano": str(start_ns), "endTimeUnixNano": str(start_ns + 10**9),
            "attributes": attributes(**values)}  # fmt: skip


def export(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": attributes(**{"service.name": "x"})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


USAGE = {"prompt": "gen_ai.usage.input_tokens", "output": "gen_ai.usage.output_tokens"}
OLD_USAGE = {"prompt": "gen_ai.usage.prompt_tokens", "output": "gen_ai.usage.completion_tokens"}
CALLS = [
    span(NS + 500_000_000, **{USAGE["prompt"]: 256, USAGE["output"]: 64,
                              "gen_ai.operation.name": "chat"}),
    span(NS, **{OLD_USAGE["prompt"]: 250, OLD_USAGE["output"]: 60}),
    span(NS, **{USAGE["prompt"]: 506, USAGE["output"]: 124,
                "gen_ai.operation.name": "invoke_agent"}),
    span(NS, **{"http.route": "/v1"}),
]  # fmt: skip
OTLP = json.dumps(export(*CALLS))
OTLP_LINES = lines(export(CALLS[0]), export(*CALLS[1:]))
SPANS = lines(
    {"name": "chat m", "start_time": "2024-05-10T00:00:00.500000Z",
     "attributes": {USAGE["prompt"]: 256, USAGE["output"]: 64}},
    {"name": "chat m", "start_time": "2024-05-10T00:00:00.000000Z",
     "attributes": {USAGE["prompt"]: 250, USAGE["output"]: 60}},
)  # fmt: skip
SHAREGPT = json.dumps(
    [
        {"id": "a", "conversations": [{"from": "human", "value": "x" * 400},
                                      {"from": "gpt", "value": "y" * 80},
                                      {"from": "human", "value": "z"}]},
        {"id": "b", "conversations": [{"from": "human", "value": "x"}]},
        {"id": "c", "conversations": [{"from": "human", "value": "x"},
                                      {"from": "gpt", "value": "y" * 20}]},
    ]
)  # fmt: skip

SPANS_LEFT = {"span around calls, or no generation": 1, "span without tokens": 1}
SAMPLES = {
    "otel": OTLP,
    "guidellm": GUIDELLM,
    "aiperf": AIPERF,
    "vidur": VIDUR,
    "splitwise": SPLITWISE,
    "openai-log": OPENAI,
}


@pytest.mark.parametrize(
    ("text", "format", "skipped", "gap_s"),
    [
        (GUIDELLM, "guidellm", {"errored request": 1}, 0.5),
        (json.dumps(json.loads(GUIDELLM), indent=2), "guidellm", {"errored request": 1}, 0.5),
        (AIPERF, "aiperf", {"warmup phase": 1, "failed request": 1, "cancelled request": 1}, 0.5),
        (VIDUR, "vidur", {}, 0.5),
        (SPLITWISE, "splitwise", {}, 0.5),
        (OPENAI, "openai-log", {"no usage: a call that failed": 1}, 1.0),
        (OPENAI_BATCH, "openai-log", {}, 1.0),
        (RESPONSES, "openai-log", {}, 0.5),
        (LITELLM, "openai-log", {}, 0.5),
        (OTLP, "otel", SPANS_LEFT, 0.5),
        (OTLP_LINES, "otel", SPANS_LEFT, 0.5),
        (SPANS, "otel", {}, 0.5),
    ],
)
def test_samples(
    tmp_path: Path, text: str, format: str, skipped: dict[str, int], gap_s: float
) -> None:
    path = tmp_path / "sample"
    trace = load_sample(path, text, format, skipped, gap_s)
    assert set(trace.meta["columns"]) == {"arrival", "prompt", "output"}
    assert load_trace(path, format=format).arrival_s.tolist() == trace.arrival_s.tolist()


def test_a_run_is_not_named_by_thousands_of_digits(tmp_path: Path) -> None:
    path = tmp_path / "sample"
    digits = "9" * 5000
    for text, key in ((GUIDELLM, "benchmark"), (json.dumps(VLLM_OLD), "run")):
        path.write_text(text)
        with pytest.raises(TraceError, match=rf"{key} is '99.*; must be one of 1 \("):
            load_trace(f"{path}:{key}={digits}")
    path.write_text('{"timestamp": 0, "input_length": 6, "output_length": 5, "hash_ids": [0]}\n')
    with pytest.raises(TraceError, match=r"block is '99.*; must be a whole number >= 1"):
        load_trace(f"{path}:block={digits}")


@pytest.mark.parametrize(
    "text", [AIPERF, OPENAI, OPENAI_BATCH, RESPONSES, LITELLM, OTLP, OTLP_LINES, SPANS, GUIDELLM]
)
def test_json_may_be_laid_out_in_any_way(tmp_path: Path, text: str) -> None:
    """As jq does: objects over several lines, one after the other; or ending in blank lines."""
    path = tmp_path / "sample"
    path.write_text(text)
    expected = load_trace(path)
    parsed = [json.loads(text)] if text[0] == "[" or text.count("\n") == 0 else [
        json.loads(line) for line in text.splitlines() if line.startswith("{")
    ]  # fmt: skip
    if text == LITELLM:
        parsed = json.loads(text)
    for written in (
        "\n".join(json.dumps(one, indent=2) for one in parsed),
        "".join(json.dumps(one, indent=1) for one in parsed) + "\n\n",
        "\n\n" + "\r\n".join(json.dumps(one) for one in parsed) + "\r\n\n \n",
        "\ufeff" + "\n".join(json.dumps(one, ensure_ascii=False) for one in parsed),
    ):
        path.write_text(written, encoding="utf-8", newline="")
        trace = load_trace(path)
        assert trace.meta["format"] == expected.meta["format"]
        assert trace.meta["skipped"] == expected.meta["skipped"]
        assert trace.arrival_s.tolist() == expected.arrival_s.tolist()
        assert trace.prompt_tokens.tolist() == expected.prompt_tokens.tolist()
    path.write_text("\n".join(json.dumps(one) for one in parsed), encoding="utf-16")
    with pytest.raises(TraceError, match="the text is UTF-16; convert it"):
        load_trace(path)


def test_the_first_lines_may_be_calls_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    failed = {"id": "c", "created": 1699999999, "usage": None, "error": {"message": "x"}}
    path.write_text(lines(failed, failed) + OPENAI)
    trace = load_trace(path)
    assert trace.prompt_tokens.tolist() == [250, 256]
    assert trace.meta["skipped"] == {"no usage: a call that failed": 3}
    route = {"name": "POST", "start_time": "2024-05-10T00:00:00Z",
             "attributes": {"http.route": "/v1"}}  # fmt: skip
    path.write_text(lines(route) + SPANS)
    assert load_trace(path).meta["skipped"] == {"span without tokens": 1}
    path.write_text(lines({"t": 0, "in": None}, {"t": 0, "usage": {"p": 5, "c": 6}}))
    asked = "arrival=t[s],prompt=usage.p,output=usage.c"
    with pytest.raises(TraceError, match=r"line 1, column 'usage\.p'"):
        load_trace(path, columns=asked)


def test_cached_tokens_are_part_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "log"
    anthropic = {"input_tokens": 7, "cache_read_input_tokens": 100,
                 "cache_creation_input_tokens": 3, "output_tokens": 8}  # fmt: skip
    path.write_text(lines({"created_at": "2024-05-10T00:00:00Z", "usage": anthropic}))
    trace = load_trace(path)
    assert trace.prompt_tokens.tolist() == [110]
    assert any("as Anthropic counts" in note for note in trace.meta["notes"])
    openai = {"prompt_tokens": 110, "completion_tokens": 8,
              "prompt_tokens_details": {"cached_tokens": 100}}  # fmt: skip
    path.write_text(lines({"created_at": 1700000000.5, "usage": openai}))
    assert load_trace(path).prompt_tokens.tolist() == [110]
    none = {"input_tokens": 7, "cache_read_input_tokens": None, "output_tokens": 8}
    path.write_text(lines({"created_at": 1700000000.5, "usage": none}))
    assert load_trace(path).prompt_tokens.tolist() == [7]


def test_a_name_that_two_columns_have(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("timestamp,prompt_tokens,prompt_tokens,completion_tokens\n0,1,2,3\n")
    with pytest.raises(TraceError, match="2 columns are called 'prompt_tokens'"):
        load_trace(path)
    path.write_text("timestamp,x,x,prompt_tokens,completion_tokens\n0,1,2,3,4\n")
    assert load_trace(path).prompt_tokens.tolist() == [3]


def test_numbers_of_tokens_as_texts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    usage = {"prompt_tokens": "250", "completion_tokens": "60"}
    path.write_text(lines({"created": 1700000000, "usage": usage}))
    assert load_trace(path).prompt_tokens.tolist() == [250]
    path.write_text(lines({"created": 1700000000, "usage": usage | {"prompt_tokens": "2e3"}}))
    with pytest.raises(TraceError, match="'2e3' is not a whole number of tokens"):
        load_trace(path)


def test_times_of_aiperf_are_exact_to_a_nanosecond(tmp_path: Path) -> None:
    path = tmp_path / "profile_export.jsonl"
    path.write_text(lines(aiperf(NS, 5, 5), aiperf(NS + 1, 5, 5)))
    assert load_trace(path).arrival_s.tolist() == [0.0, 1e-9]


def test_one_of_several_runs_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(guidellm(run(1.0, request(0.0, 5, 5)), run(2.0, request(9.0, 6, 6))))
    with pytest.raises(TraceError, match=r"2 runs; .*:benchmark=N.*2 \(constant 2/s\)"):
        load_trace(path)
    assert load_trace(f"{path}:benchmark=2").prompt_tokens.tolist() == [6]
    with pytest.raises(TraceError, match="benchmark is '3'"):
        load_trace(f"{path}:benchmark=3")
    path.write_text(lines(VLLM_OLD, VLLM_OLD | {"request_rate": 5.0, "input_lens": [1, 2, 3, 4]}))
    with pytest.raises(TraceError, match=r"--append-result.*:run=N.*2 \(request_rate 5\.0\)"):
        load_trace(path)
    assert load_trace(f"{path}:run=2").prompt_tokens.tolist() == [1, 2, 3, 4]


def test_sglang_is_sent_at_its_rate(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    many = {k: (v * 1000 if isinstance(v, list) else v) for k, v in SGLANG.items()}
    path.write_text(lines(many))
    trace = load_trace(path)
    assert trace.meta["format"] == "sglang-bench"
    assert trace.meta["skipped"] == {"failed request": 1000}
    assert "Poisson arrivals at its request_rate of 4/s" in trace.meta["notes"][0]
    assert trace.duration_s == pytest.approx(3000 / 4, rel=0.1)
    assert load_trace(path, seed=1).arrival_s[-1] != trace.arrival_s[-1]
    path.write_text(lines({k: v for k, v in SGLANG.items() if k != "input_lens"}))
    with pytest.raises(TraceError, match=r"no list 'input_lens'; run .*--output-details"):
        load_trace(path)
    path.write_text(lines(SGLANG | {"request_rate": None}))
    with pytest.raises(TraceError, match="neither start_times nor a request_rate"):
        load_trace(path)


def test_an_old_vllm_result_is_sent_as_its_concurrency_allowed(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(VLLM_OLD))
    trace = load_trace(path)
    assert trace.meta["format"] == "vllm-bench"
    # two at once: the first is done after 1 s, the second after 2 s, the third after 1 + 1 s
    assert trace.arrival_s.tolist() == [0.0, 0.0, 1.0, 2.0]
    assert "at most 2 at a time" in trace.meta["notes"][0]
    path.write_text(json.dumps(VLLM_OLD | {"max_concurrency": None}))
    assert load_trace(path).arrival_s.tolist() == [0.0] * 4


def test_times_of_a_log_tell_their_unit(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for ticks in (1, 1000, 10**6, 10**9):
        usage = {"prompt_tokens": 5, "total_tokens": 11}
        stamps = (1700000001 * ticks, 1700000000 * ticks)
        path.write_text(lines(*({"created_at": t, "usage": usage} for t in stamps)))
        trace = load_trace(path)
        assert trace.arrival_s.tolist() == [0.0, 1.0]
        assert trace.output_tokens.tolist() == [6, 6]
        whole = any("whole seconds" in note for note in trace.meta["notes"])
        assert whole == (ticks == 1)


def test_offline_jobs_of_servegen(tmp_path: Path) -> None:
    path = tmp_path / "trace_d.jsonl"
    path.write_text(
        lines(*({"request_id": i, "type": "text", "input_length": 61 + i, "output_length": 2370,
                 "duration": 14000} for i in range(3)))
    )  # fmt: skip
    trace = load_trace(path)
    assert trace.meta["format"] == "servegen-offline"
    assert trace.arrival_s.tolist() == [0.0] * 3
    assert "at the start" in trace.meta["notes"][0]
    path.write_text(
        lines(*({"request_id": i, "type": "text", "input_length": 446, "hash_ids": list(range(28))}
                for i in range(2)))
    )  # fmt: skip
    with pytest.raises(TraceError, match=r"line 1: no 'output_length'.*:output=N"):
        load_trace(path)
    told = load_trace(f"{path}:output=50")
    assert told.output_tokens.tolist() == [50, 50]
    assert told.hash_ids is not None
    assert told.hash_ids.block_tokens == 16


def test_mooncake_in_an_array(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    row = {"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}
    path.write_text(json.dumps([row, row | {"timestamp": 1500}], indent=1))
    trace = load_trace(path)
    assert trace.meta["format"] == "mooncake"
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    path.write_text(json.dumps([row, row | {"hash_ids": [14695981039346656037, 2]}]))
    trace = load_trace(path)
    assert trace.hash_ids is not None
    assert trace.hash_ids[1].tolist() == [14695981039346656037 - 2**64, 2]
    path.write_text(json.dumps([row, row | {"input_length": 20.5}]))
    with pytest.raises(TraceError, match=r"item 2, column 'input_length': '20\.5'"):
        load_trace(path)


def test_agentic_rows_of_dynamo_wait_for_others(tmp_path: Path) -> None:
    path = tmp_path / "agentic.jsonl"
    rows = [
        {"request_id": "a", "session_id": "s", "timestamp": 0.0, "input_tokens": 600,
         "output_tokens": 5, "hash_ids": [1, 2], "prefix_reset": True},
        {"request_id": "b", "created_time": 50.0, "input_length": 600, "output_length": 5,
         "hash_ids": None},
        {"request_id": "c", "session_id": "s", "wait_for": ["a", "b"], "delay_ms": 20,
         "tool_wait_ms": 400.5, "input_length": 600, "output_length": 5, "hash_ids": [1, 3]},
        {"request_id": "d", "session_id": "s", "delay": 10, "input_length": 600,
         "output_length": 5, "hash_ids": []},
    ]  # fmt: skip
    path.write_text(lines(*rows))
    trace = load_trace(path)
    assert trace.meta["format"] == "mooncake"
    assert trace.turns is not None
    assert trace.turns.previous.tolist() == [-1, -1, 1, 2]
    assert trace.turns.delay_s.tolist() == [0, 0, 0.4205, 0.01]
    assert trace.arrival_s.tolist() == [0.0, 0.05, 0.4705, 0.4805]
    assert any("several answers" in note for note in trace.meta["notes"])
    path.write_text(lines(rows[0], rows[2] | {"wait_for": ["x"]}))
    with pytest.raises(TraceError, match=r"line 2, column 'wait_for'.*request_ids of rows above"):
        load_trace(path)


def test_seconds_that_nothing_tells_are_questioned(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for step, asked in ((0.0001, True), (0.5, False), (300_000, True)):
        path.write_text("ts,isl,osl\n" + "".join(f"{i * step},5,5\n" for i in range(10)))
        assert any("read as seconds" in n for n in load_trace(path).meta.get("notes", [])) == asked
        told = load_trace(path, columns="arrival=ts[s],prompt=isl,output=osl")
        assert "notes" not in told.meta


def test_conversations_need_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(SHAREGPT)
    with pytest.raises(TraceError, match=":rate=RPS"):
        load_trace(path)
    trace = load_trace(f"{path}:rate=5")
    assert trace.prompt_tokens.tolist() == [100, 1]
    assert trace.output_tokens.tolist() == [20, 5]
    assert trace.meta["skipped"] == {"conversation of less than two turns": 1}
    assert "4 characters" in trace.meta["notes"][1]
    assert load_trace(f"{path}:rate=5,chars=2").prompt_tokens.tolist() == [200, 1]
    with pytest.raises(TraceError, match="rate is '-1'"):
        load_trace(f"{path}:rate=-1")
    with pytest.raises((TraceError, MissingExtraError), match="tokenizer"):
        load_trace(f"{path}:rate=5,tokenizer={tmp_path}/none.json")


# ------------------------------------------------------------------ any table


@pytest.mark.parametrize(
    ("text", "columns", "arrivals"),
    [
        ("time,input_tokens,completionTokens\n1,5,6\n3,5,6\n", None, [1.0, 3.0]),
        ("Arrival Time (ms),Prompt Len,Output Len\n1000,5,6\n3000,5,6\n", None, [1.0, 3.0]),
        ("start_time_us,isl,osl\n1000000,5,6\n3000000,5,6\n", None, [1.0, 3.0]),
        ("ts,isl,osl\n2024-05-10T02:00:00+02:00,5,6\n2024-05-10 00:00:02Z,5,6\n", None, [0.0, 2.0]),
        ("ts,isl,osl\n1700000000123,5,6\n1700000002123,5,6\n", None, [0.0, 2.0]),
        (
            "x,y,z\n1000,5,6\n3000,5,6\n",
            "arrival=x[ms],prompt=y,output=z",
            [1.0, 3.0],
        ),
        (
            "x,y,z\n1000,5,6\n3000,5,6\n",
            "arrival=x[unix_ms],prompt=y,output=z",
            [0.0, 2.0],
        ),
        (
            '{"a": {"b": 7}, "usage": {"in": 5, "out.x": 6}}\n'
            '{"a": {"b": 9}, "usage": {"in": "5", "out.x": 6.0}}\n',
            "arrival=a.b, prompt=usage.in, output=usage.out.x",
            [7.0, 9.0],
        ),
        (
            '[{"t": "2024-05-10", "p": 5, "o": 6}, {"t": "2024-05-10T00:00:02", "p": 5, "o": 6}]',
            "arrival=t[iso],prompt=p,output=o",
            [0.0, 2.0],
        ),
        (
            "t,p,o,s,d\n0,5,6,a,\n9,5,6,b,\n,5,6,a,1500\n",
            "arrival=t,prompt=p,output=o,session=s,delay=d[ms]",
            [0.0, 1.5, 9.0],
        ),
    ],
)
def test_any_table(tmp_path: Path, text: str, columns: str | None, arrivals: list[float]) -> None:
    path = tmp_path / "t.dat"
    path.write_text(text)
    trace = load_trace(path, columns=columns)
    assert trace.meta["format"] == "table"
    assert trace.arrival_s.tolist() == arrivals
    assert set(trace.prompt_tokens.tolist()) == {5}
    assert set(trace.output_tokens.tolist()) == {6}
    assert (trace.turns is not None) == ("delay" in (columns or ""))


def test_columns_of_structs_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    usage = [
        {"prompt_tokens": 5, "completion_tokens": 6},
        {"prompt_tokens": 7, "completion_tokens": 8},
    ]
    pq.write_table(pa.table({"created": [1700000000, 1700000003], "usage": usage}), path)
    assert load_trace(path).prompt_tokens.tolist() == [5, 7]
    trace = load_trace(
        path,
        columns="arrival=created[unix_s],prompt=usage.prompt_tokens,output=usage.completion_tokens",
    )
    assert trace.arrival_s.tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("arrival", "'arrival' is not ROLE=COLUMN"),
        ("when=x", "'when' is unknown; must be one of arrival, prompt"),
        ("arrival=x,arrival=y", "arrival is given twice"),
        ("arrival=x[fortnights]", "unit of arrival is 'fortnights'; must be one of s, ms"),
        ("prompt=x[s]", "unit of prompt is 's'; must be left out"),
        ("arrival=q,prompt=y,output=z", "no column 'q'.*the columns are x, y, z"),
        ("arrival=x,prompt=y", r"tells tokens of its answer; .*--columns output=COLUMN.*x, y, z"),
    ],
)
def test_what_is_wrong_with_columns_is_told(tmp_path: Path, columns: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y,z\n0,1,1\n")
    with pytest.raises(TraceError, match=message):
        load_trace(path, columns=columns)


def test_columns_are_for_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(VIDUR)
    with pytest.raises(TraceError, match="leave one of them out"):
        load_trace(path, columns="arrival=x", format="vidur")
    with pytest.raises(TraceError, match="a preset has no columns"):
        load_trace("azure-conv-2023", columns="arrival=x")


def test_names_and_their_units() -> None:
    assert find_columns(["Start-Time (ms)", "Prompt Tokens", "outputTokens"]) == {
        "arrival": Column("Start-Time (ms)", "ms"),
        "prompt": Column("Prompt Tokens"),
        "output": Column("outputTokens"),
    }
    units = {"arrival_s": "s", "startNanos": "ns", "t_us": "us", "Elapsed Seconds": "s"}
    assert {name: unit_of(name) for name in units} == units
    assert [unit_of(name) for name in ("tokens", "s", "timestamps", "created")] == [None] * 4
    assert parse_columns("arrival=a b.c[unix_ns]") == {"arrival": Column("a b.c", "unix_ns", True)}


def test_info_says_how_it_understood_each_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Begin;In;Out\n1700000000123;5;6\n1700000001123;7;8\n")
    asked = ["traces", "info", str(path), "--columns", "arrival=Begin,prompt=In,output=Out"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.stderr
    assert "columns     arrival: Begin (Unix time in ms), prompt: In, output: Out" in done.stdout
    told = json.loads(CliRunner().invoke(main, [*asked, "--json"]).stdout)
    assert told["columns"]["prompt"] == "In"
    for stream in ("--stream", "--no-stream"):
        run_ = CliRunner().invoke(
            main, ["simulate", *asked[2:], "--profile", "h200_sxm/llama-3.1-8b/fp8-w8a8", stream]
        )
        assert run_.exit_code == 0, run_.stderr
        assert "2 completed" in run_.stdout


@given(st.text(max_size=30))
def test_any_columns_are_columns_or_an_error(text: str) -> None:
    try:
        found = parse_columns(text)
    except TraceError:
        return
    assert found


def test_a_trace_of_the_tools_simulates(tmp_path: Path) -> None:
    for name, text in SAMPLES.items():
        path = tmp_path / name
        path.write_text(text)
        run_ = CliRunner().invoke(
            main, ["simulate", str(path), "--profile", "h200_sxm/llama-3.1-8b/fp8-w8a8"]
        )
        assert run_.exit_code == 0, (name, run_.stderr)
        assert np.isfinite(load_trace(path).duration_s)
