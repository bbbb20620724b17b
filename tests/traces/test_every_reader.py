"""Whatever requests there are, every format that holds them gives them back."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.traces import load_trace
from qsim.traces.formats import FORMATS
from tests.traces.test_serving_logs import BLIS_HEAD, blis, event, genai, old
from tests.traces.test_tools import aiperf, export, request, run, span

#: requests in order: ticks from the first one, prompt and output tokens
Requests = list[tuple[int, int, int]]
START_S = 1_700_000_000


@dataclass(frozen=True)
class Form:
    """How requests are written in a format, and how long a tick is there."""

    ticks_per_s: int
    write: Callable[[Requests], str]
    params: str = ""


def iso(ms: int, offset_h: int = 0) -> str:
    moment = datetime(2024, 2, 28, 23, 59, tzinfo=UTC) + timedelta(milliseconds=ms, hours=offset_h)
    zone = "Z" if not offset_h else f"{offset_h:+03d}:00"
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + zone


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def csv(head: str, rows: list[str]) -> str:
    return "\n".join([head, *rows]) + "\n"


def usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def vllm_bench(requests: Requests) -> str:
    times, prompts, outputs = zip(*requests, strict=True)
    return json.dumps(
        {"date": "x", "endpoint_type": "openai", "input_lens": list(prompts),
         "output_lens": list(outputs), "start_times": [5000 + t / 8 for t in times],
         "errors": [""] * len(times)}
    )  # fmt: skip


FORMS = {
    "canonical": Form(8, lambda r: csv("arrival_s,prompt_tokens,output_tokens",
                                       [f"{t / 8},{p},{o}" for t, p, o in r])),
    "azure": Form(1000, lambda r: csv(
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        [f"{iso(t).replace('T', ' ')[:-1]}0,{p},{o}" for t, p, o in r])),
    "burstgpt": Form(1, lambda r: csv(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        [f"{5 + t},GPT-4,{p},{o},{p + o},API log" for t, p, o in r])),
    "mooncake": Form(1000, lambda r: jsonl(
        [{"timestamp": t, "input_length": p, "output_length": o, "hash_ids": []}
         for t, p, o in r])),
    "bailian": Form(8, lambda r: jsonl(
        [{"chat_id": i, "parent_chat_id": -1, "timestamp": t / 8, "input_length": p,
          "output_length": o, "type": "text", "turn": 1, "hash_ids": []}
         for i, (t, p, o) in enumerate(r)])),
    "servegen-offline": Form(1, lambda r: jsonl(
        [{"request_id": i, "input_length": p, "output_length": o}
         for i, (t, p, o) in enumerate(r)])),
    "vllm-bench": Form(8, vllm_bench),
    "guidellm": Form(8, lambda r: json.dumps({"benchmarks": [run(
        1.0, *(request(START_S + t / 8, p, o) for t, p, o in r))]})),
    "aiperf": Form(10**9, lambda r: jsonl([aiperf(START_S * 10**9 + t, p, o) for t, p, o in r])),
    "genai-perf": Form(10**9, lambda r: json.dumps({"experiments": [{
        "experiment": {"mode": "request_rate", "value": 1.0},
        "requests": [genai(START_S * 10**9 + t, "x", "y", usage=usage(p, o)) for t, p, o in r],
    }]})),
    "dynamo": Form(1000, lambda r: jsonl(
        [event(START_S * 1000 + t, o, 5.0, replay={"input_length": p, "input_sequence_hashes": []})
         for t, p, o in r])),
    "vidur": Form(8, lambda r: csv(",arrived_at,num_prefill_tokens,num_decode_tokens",
                                   [f"{i},{t / 8},{p},{o}" for i, (t, p, o) in enumerate(r)])),
    "splitwise": Form(8, lambda r: csv(
        "request_id,arrival_timestamp,batch_size,prompt_size,token_size",
        [f"{i},{t / 8},1,{p},{o}" for i, (t, p, o) in enumerate(r)])),
    "blis": Form(10**6, lambda r: BLIS_HEAD + "".join(
        blis(i, 7 + t, p, o) for i, (t, p, o) in enumerate(r))),
    "vllm-log": Form(1, lambda r: "".join(
        old((datetime(2024, 12, 31) + timedelta(seconds=t)).strftime("%m-%d %H:%M:%S"), str(i),
            "", [7] * p, o) for i, (t, p, o) in enumerate(r)), ":output=max"),
    "otel": Form(10**9, lambda r: jsonl([export(span(
        START_S * 10**9 + t, **{"gen_ai.usage.input_tokens": p, "gen_ai.usage.output_tokens": o}))
        for t, p, o in r])),
    "openai-log": Form(1, lambda r: jsonl(
        [{"id": "a", "created": START_S + t, "usage": usage(p, o)} for t, p, o in r])),
    "table": Form(1000, lambda r: csv(
        "when;model;tokens in;tokens_out", [f'{iso(t, 2)};"a;b";{p};{o}' for t, p, o in r]
    ).replace("when", "datetime")),
}  # fmt: skip
PACKED = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def requests_of(ticks_per_s: int, longest: int) -> st.SearchStrategy[Requests]:
    """In order of arrival, the first at 0; up to a day later."""
    one = st.tuples(
        st.integers(0, 86_000 * ticks_per_s), st.integers(1, longest), st.integers(1, longest)
    )
    return st.lists(one, min_size=1, max_size=8).map(
        lambda found: [
            (t - min(found)[0], p, o) for t, p, o in sorted(found, key=lambda entry: entry[0])
        ]
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.mark.parametrize("name", FORMS)
@given(data=st.data())
@settings(max_examples=25)
def test_requests_come_back(scratch: Path, name: str, data: st.DataObject) -> None:
    form = FORMS[name]
    longest = 300 if name == "vllm-log" else 10**6
    requests = data.draw(requests_of(form.ticks_per_s, longest))
    text = form.write(requests)
    if data.draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    if data.draw(st.booleans()):
        text = "\ufeff" + text
    packing = data.draw(st.sampled_from(sorted(PACKED)))
    path = scratch / "file"
    path.write_bytes(PACKED[packing](text.encode()))
    trace = load_trace(f"{path}{form.params}")
    assert trace.meta["format"] == name
    # how each column was understood
    told = trace.meta["columns"]
    assert list(told)[:3] == ["arrival", "prompt", "output"]
    assert not any(text.startswith((" ", "(")) for text in told.values())
    assert told["arrival"].endswith(")") or name == "servegen-offline"
    if name == "servegen-offline":
        assert set(trace.arrival_s.tolist()) == {0.0}
    else:
        gaps = trace.arrival_s - trace.arrival_s[0]
        expected = np.array([t for t, _, _ in requests]) / form.ticks_per_s
        assert gaps.tolist() == pytest.approx(expected.tolist(), abs=1e-9, rel=1e-12)
    assert trace.prompt_tokens.tolist() == [p for _, p, _ in requests]
    assert trace.output_tokens.tolist() == [o for _, _, o in requests]


def test_no_format_is_left_out() -> None:
    drawn_or_asked_for = {"timed-trace", "sglang-bench", "sharegpt", "servegen"}
    assert set(FORMS) | drawn_or_asked_for == {one.name for one in FORMATS}
