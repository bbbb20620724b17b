"""Logs and traces of servers and simulators: vLLM's log, Dynamo, BLIS, GenAI-Perf."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import TraceError
from qsim.traces import load_trace
from tests.traces.test_tools import load_sample

PARAMS = (
    "SamplingParams(n=1, presence_penalty=0.0, repetition_penalty=1.0, temperature=0.7, top_p=0.95,"
    " seed=None, stop=['User: '], stop_token_ids=[], max_tokens={most}, min_tokens=0, "
    "logprobs=None, structured_outputs=None, extra_args=None)"
)


def received(at: str, name: str, most: int = 100, *, before: str = "(APIServer pid=9) ") -> str:
    return (
        f"{before}INFO {at} [logger.py:49] Received request {name}: "
        f"params: {PARAMS.format(most=most)}, lora_request: None.\n"
    )


def details(at: str, name: str, prompt: str, ids: object) -> str:
    return (
        f"(APIServer pid=9) DEBUG {at} [logger.py:40] Request {name} details: prompt: {prompt!r}, "
        f"prompt_token_ids: {ids}, prompt_embeds shape: None.\n"
    )


def generated(name: str, ids: object, output: str = "abc", stream: str = "") -> str:
    return (
        f"(APIServer pid=9) INFO 11-30 07:01:20 [logger.py:80] Generated response {name}{stream}: "
        f"output: {output!r}, output_token_ids: {ids}, finish_reason: stop\n"
    )


def old(at: str, name: str, prompt: str, ids: object, most: int = 16) -> str:
    return (
        f"INFO {at} [logger.py:39] Received request {name}: prompt: {prompt!r}, params: "
        f"{PARAMS.format(most=most)}, prompt_token_ids: {ids}, lora_request: None, "
        "prompt_adapter_request: None.\n"
    )


START = "(APIServer pid=9) INFO 11-30 07:01:00 [api_server.py:1] vLLM API server version 0.33.0\n"
VLLM_LOG = START + "".join(
    [
        details("11-30 07:01:10", "cmpl-a", 'It\'s: "prompt_token_ids: [1]"\n', [7] * 250),
        received("11-30 07:01:10", "cmpl-a"),
        '(APIServer pid=9) INFO:     10.0.0.1:5 - "POST /v1/completions HTTP/1.1" 200 OK\n',
        details("11-30 07:01:11", "chatcmpl-b", "hello\n", [7] * 256),
        received("11-30 07:01:11", "chatcmpl-b", 64),
        generated("chatcmpl-b", list(range(60)), "de", " (streaming delta)"),
        generated("chatcmpl-b", [1, 2, 3, 4], "f", " (streaming delta)"),
        generated("chatcmpl-b", None, "def", " (streaming complete)"),
        generated("cmpl-a", (5,) * 60),
    ]
)
VLLM_LOG_OLD = old("05-14 17:45:10", "cmpl-a-0", "x" * 900, [3] * 250) + old(
    "05-14 17:45:12", "cmpl-b-0", "y" * 900, [3] * 256
)

REPLAY = {"trace_block_size": 128, "input_length": 250, "input_sequence_hashes": [2**64 - 1, 7]}


def event(received_ms: int, output: int, took_ms: float, **others: Any) -> dict[str, Any]:
    replay = {**REPLAY, **others.pop("replay", {})}
    record: dict[str, Any] = {
        "schema": "dynamo.request.trace.v1", "event_type": "request_end",
        "event_time_unix_ms": received_ms + 5, "event_source": "dynamo",
        "request": {"request_id": str(received_ms), "model": "m", "output_tokens": output,
                    "request_received_ms": received_ms, "total_time_ms": took_ms,
                    "replay": replay},
    }  # fmt: skip
    return {**record, **others}


MS = 1_777_312_801_000
DYNAMO_ROWS = [
    event(MS + 500, 64, 100.0, replay={"input_length": 256, "input_sequence_hashes": [5, 6]}),
    event(MS, 60, 300.0),
    {"schema": "dynamo.request.trace.v1", "event_type": "tool_end", "event_time_unix_ms": MS,
     "tool": {"tool_call_id": "a", "tool_class": "search"}},
]  # fmt: skip
DYNAMO = "".join(json.dumps({"timestamp": i, "event": r}) + "\n" for i, r in enumerate(DYNAMO_ROWS))

BLIS_HEAD = (
    "request_id,client_id,tenant_id,slo_class,vllm_priority,session_id,round_index,prefix_group,"
    "prefix_length,streaming,input_tokens,output_tokens,text_tokens,image_tokens,audio_tokens,"
    "video_tokens,reason_ratio,model,deadline_us,server_input_tokens,arrival_time_us,send_time_us,"
    "first_chunk_time_us,last_chunk_time_us,num_chunks,status,error_message,finish_reason\n"
)


def blis(
    number: int, arrival: int, prompt: int, output: int, *, priority: int = 0, group: str = "",
    length: int = 0, server: int = 0, sent: int = 0, deadline: int = 0, status: str = "ok",
    session: str = "",
) -> str:  # fmt: skip
    return (
        f"{number},c,t,standard,{priority},{session},0,{group},{length},true,{prompt},{output},"
        f"{prompt},0,0,0,0,,{deadline},{server},{arrival},{sent},0,0,{output},{status},"
        '"no, ""error""",stop\n'
    )


BLIS = BLIS_HEAD + "".join(
    [
        blis(0, 1_000_000, 256, 64, priority=2),
        blis(1, 400_000, 218, 60, group="system", length=32, sent=500_000, deadline=2_500_000),
        blis(2, 1_000_000, 9, 9, status="timeout"),
    ]
)


def chunk(**choice: Any) -> str:
    return "data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}) + "\n\n"


def genai(start: int, prompt: str, *pieces: str, usage: dict[str, int] | None = None) -> Any:
    outputs = [chunk(delta={"role": "assistant"}), *(chunk(delta={"content": p}) for p in pieces)]
    if usage:
        outputs.append("data: " + json.dumps({"choices": [], "usage": usage}) + "\n\n")
    payload = {"messages": [{"role": "user", "content": prompt}], "model": "m", "stream": True}
    outputs.append("data: [DONE]\n\n")
    return {
        "timestamp": start,
        "request_inputs": {"payload": json.dumps(payload)},
        "response_timestamps": [start + i for i in range(len(outputs))],
        "response_outputs": [{"response": text} for text in outputs],
    }


def experiment(value: float, *requests: Any) -> dict[str, Any]:
    return {"experiment": {"mode": "concurrency", "value": value}, "requests": list(requests)}


NS = 1_759_813_207_532_900_363
GENAI_PERF = json.dumps(
    {"service_kind": "openai", "endpoint": "v1/chat/completions", "experiments": [experiment(
        10,
        genai(NS + 500_000_000, "z" * 1024, *("t" * 64)),
        genai(NS, "x", "y", usage={"prompt_tokens": 250, "completion_tokens": 60}),
        genai(NS, "x"),
    )]}
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "format", "skipped", "gap_s"),
    [
        (VLLM_LOG, "vllm-log", {}, 1.0),
        (VLLM_LOG_OLD + generated("cmpl-a", [1] * 60) + generated("cmpl-b", [1] * 64),
         "vllm-log", {}, 2.0),
        (DYNAMO, "dynamo", {"event tool_end": 1}, 0.5),
        (BLIS, "blis", {"status timeout": 1}, 0.5),
        (GENAI_PERF, "genai-perf", {"no output token": 1}, 0.5),
    ],
)  # fmt: skip
def test_samples(
    tmp_path: Path, text: str, format: str, skipped: dict[str, int], gap_s: float
) -> None:
    path = tmp_path / "sample"
    trace = load_sample(path, text, format, skipped, gap_s)
    assert {"arrival", "prompt", "output"} <= set(trace.meta["columns"])
    done = CliRunner().invoke(
        main, ["simulate", str(path), "--profile", "h200_sxm/llama-3.1-8b/fp8-w8a8"]
    )
    assert done.exit_code == 0, done.stderr


def test_what_a_log_of_vllm_cannot_tell(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text(START + received("11-30 07:01:10", "a", 40) + received("11-30 07:01:10", "b"))
    with pytest.raises(TraceError, match=r"line 2: .*how long the prompt is; .*DEBUG.*:prompt=N"):
        load_trace(path)
    with pytest.raises(TraceError, match=r"how long the answer was; .*:output=N or :output=max"):
        load_trace(f"{path}:prompt=300")
    trace = load_trace(f"{path}:prompt=300,output=max")
    assert trace.prompt_tokens.tolist() == [300, 300]
    assert trace.output_tokens.tolist() == [40, 100]
    assert trace.arrival_s.tolist() == [0.0, 0.0]
    assert any("whole seconds" in note for note in trace.meta["notes"])
    assert any("max_tokens" in note for note in trace.meta["notes"])
    assert load_trace(f"{path}:prompt=300,output=7").output_tokens.tolist() == [7, 7]
    path.write_text(START)
    with pytest.raises(TraceError, match="run vllm serve with --enable-log-requests"):
        load_trace(path)


def test_moments_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("".join(old(f"01-01 00:00:{s:02d}", f"r{s}-{i}", "", [1] * (1 + 8 * s + i))
                            for s in range(3) for i in range(8)))  # fmt: skip
    together = load_trace(f"{path}:output=5")
    assert together.arrival_s.tolist() == [float(s) for s in range(3) for _ in range(8)]
    spread = load_trace(f"{path}:output=5,spread=yes", seed=3)
    assert spread.prompt_tokens.tolist() == list(range(1, 25))  # in the order of the log
    begin = 0.0 - spread.arrival_s[0]
    assert len(set(spread.arrival_s.tolist())) == 24
    assert all(abs(b - a) < 1 for a, b in
               zip(together.arrival_s + begin, spread.arrival_s, strict=True))  # fmt: skip


def test_times_of_a_log_of_vllm(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    # a new year, of which the log does not tell the number
    path.write_text(old("12-31 23:59:59", "a", "", [1]) + old("01-01 00:00:01", "b", "", [1]))
    assert load_trace(f"{path}:output=5").arrival_s.tolist() == [0.0, 2.0]
    # the time of a container's runtime goes first
    stamps = ("2024-05-10T00:00:00.25Z stdout F ", "2024-05-10T02:00:01.000000001+02:00 stdout F ")
    path.write_text("".join(s + old("05-10 00:00:00", str(i), "", [1])
                            for i, s in enumerate(stamps)))  # fmt: skip
    trace = load_trace(f"{path}:output=5")
    assert trace.arrival_s.tolist() == [0.0, 0.750000001]
    assert "notes" not in trace.meta
    path.write_text("Received request a: params: SamplingParams(n=1), x\n")
    with pytest.raises(TraceError, match=r"line 1: no time like INFO"):
        load_trace(path)
    path.write_text(stamps[0] + old("05-10 00:00:00", "a", "", [1])
                    + old("05-10 00:00:01", "a", "", [1]))  # fmt: skip
    with pytest.raises(TraceError, match=r"line 2: no time like 2024.*as in the requests before"):
        load_trace(f"{path}:output=5")


def test_texts_of_a_log_are_counted_and_cut_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text(old("05-14 17:45:10", "a", "é\n" * 200, None))
    trace = load_trace(f"{path}:output=5")
    assert trace.prompt_tokens.tolist() == [100]
    assert any("4 characters each" in note for note in trace.meta["notes"])
    path.write_text(old("05-14 17:45:10", "a", "x" * 100, [1] * 100))
    with pytest.raises(TraceError, match=r"100 characters and as many tokens, so --max-log-len"):
        load_trace(f"{path}:output=5")
    pooled = "INFO 05-14 17:45:10 [logger.py:9] Received request e: params: PoolingParams(dims=1)\n"
    path.write_text(old("05-14 17:45:10", "a", "x" * 100, [1] * 10) + pooled)
    assert load_trace(f"{path}:output=5").meta["skipped"] == {"no generation (pooling)": 1}


def test_sessions_of_dynamo_wait(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    of = {"agent_context": {"session_id": "s"}}
    rows = [
        event(MS, 60, 300.0, **of),
        event(MS + 100, 60, 100.0, **of),  # beside the first one
        event(MS + 1500, 60, 10.0, **of),  # 1.2 s after the later answer
        event(MS + 1600, 60, 10.0),
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    trace = load_trace(path)
    assert trace.turns is not None
    assert trace.turns.previous.tolist() == [-1, -1, 0, -1]
    assert trace.turns.delay_s.tolist() == [0, 0, 1.2, 0]
    assert trace.hash_ids is not None
    assert trace.hash_ids.block_tokens == 128
    assert trace.hash_ids[0].tolist() == [-1, 7]
    assert load_trace(f"{path}:turns=open").turns is None
    path.write_text(
        "".join(
            json.dumps(r) + "\n"
            for r in (rows[0], event(MS, 6, 1.0, replay={"trace_block_size": 64}))
        )
    )
    with pytest.raises(TraceError, match="trace_block_size is 64, and 128 in the requests before"):
        load_trace(path)


def test_blis_keeps_priorities_deadlines_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(BLIS + blis(3, 1_500_000, 60, 5, group="system", length=40, server=95,
                                session="s"))  # fmt: skip
    trace = load_trace(path)
    assert trace.prompt_tokens.tolist() == [250, 256, 95]
    assert trace.priority is not None
    assert trace.timeout_s is not None
    assert trace.priority.tolist() == [0, 2, 0]
    assert trace.timeout_s.tolist() == [2.0, float("inf"), float("inf")]
    assert trace.hash_ids is not None
    assert trace.hash_ids.block_tokens == 16
    assert [len(trace.hash_ids[i]) for i in range(3)] == [2, 0, 2]
    assert trace.hash_ids[0].tolist() == trace.hash_ids[2].tolist()
    assert any("recorded times" in note for note in trace.meta["notes"])
    assert load_trace(f"{path}:warmup=1").meta["skipped"] == {"warm-up": 1, "status timeout": 1}
    path.write_text(BLIS_HEAD + blis(0, 5, 5, 5, deadline=4))
    with pytest.raises(TraceError, match=r"line 2, column 'deadline_us': '4' is not a moment"):
        load_trace(path)


def test_experiments_of_genai_perf(tmp_path: Path) -> None:
    path = tmp_path / "profile_export.json"
    triton = {
        "timestamp": 5,
        "request_inputs": {"text_input": "abcdefgh"},
        "response_timestamps": [6],
        "response_outputs": [{"text_output": "abcd" * 3}],
    }
    ids = {
        "timestamp": 5,
        "request_inputs": {"input_ids": [1, 2, 3]},
        "response_outputs": [{"output_ids": [4, 5]}, {"output_ids": 6}, {"output_ids": ""}],
    }
    report = {"experiments": [experiment(1, triton), experiment(2, ids)]}
    path.write_text(json.dumps(report))
    with pytest.raises(TraceError, match=r"2 experiments; .*2 \(concurrency 2\)"):
        load_trace(path)
    first, second = (load_trace(f"{path}:experiment={n}") for n in (1, 2))
    assert (first.prompt_tokens[0], first.output_tokens[0]) == (2, 3)
    assert (second.prompt_tokens[0], second.output_tokens[0]) == (3, 4)
    assert "notes" not in second.meta
    path.write_text(json.dumps({"input_config": {}, "input_sequence_length": {"avg": 5}}))
    with pytest.raises(TraceError, match=r"statistics of a run; .*profile_export\.json"):
        load_trace(path)
