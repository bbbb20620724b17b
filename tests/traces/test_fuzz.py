"""Whatever a file holds, it is a trace or a TraceError; never another exception."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qsim.errors import TraceError
from qsim.traces import load_trace
from qsim.traces.formats import FORMATS
from tests.traces.test_formats import (
    AZURE_2023,
    AZURE_2024,
    BAILIAN,
    BURSTGPT,
    BURSTGPT_SESSIONS,
    MOONCAKE,
    VLLM_BENCH,
)
from tests.traces.test_servegen import TABLE
from tests.traces.test_serving_logs import BLIS, DYNAMO, GENAI_PERF, VLLM_LOG, VLLM_LOG_OLD
from tests.traces.test_tools import (
    AIPERF,
    GUIDELLM,
    LITELLM,
    OPENAI,
    OTLP,
    OTLP_LINES,
    SGLANG,
    SHAREGPT,
    SPANS,
    SPLITWISE,
    VIDUR,
    VLLM_OLD,
)

SAMPLES = [AZURE_2023, AZURE_2024, BURSTGPT, BURSTGPT_SESSIONS, MOONCAKE, BAILIAN, VLLM_BENCH]
SAMPLES += [TABLE, "0,1.0,1.0,Gamma,1.0,1.0\n", "arrival_s,prompt_tokens,output_tokens\n0,1,1\n"]
SAMPLES += [
    "arrival_s,prompt_tokens,output_tokens,hash_ids,hash_block_tokens\n0,20,1,0 1,16\n1,5,1,,16\n"
]
SAMPLES += [AIPERF, GUIDELLM, LITELLM, OPENAI, OTLP, OTLP_LINES, SPANS, SPLITWISE, VIDUR, SHAREGPT]
SAMPLES += [json.dumps(SGLANG), json.dumps(VLLM_OLD)]
SAMPLES += [BLIS, DYNAMO, GENAI_PERF, VLLM_LOG, VLLM_LOG_OLD]
SAMPLES += [
    "time;isl;osl;hash_ids;session_id;delay_ms\n0,5;20;1;a b;s;\n1;5;1;;s;200\n",
    '[{"t": 1, "usage": {"prompt_tokens": 5, "completion_tokens": 6}, "created": 5}]',
    '{"session_id": "a", "timestamp": 0, "input_length": 8, "output_length": 1, "hash_ids": [1]}\n'
    '{"session_id": "a", "delay": 2, "input_length": 13, "output_length": 1, "hash_ids": null}\n',
]
PIECES = [b"", b"-", b"nan", b"1e999", b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"9" * 30, b"[]"]
PIECES += [b"{", b"null", b"0", b"-1", b"1e18", b"\x1f", b"PAR1", b"\x1f\x8b"]
PIECES += [
    b";",
    b"\t",
    b"'",
    b"[" * 2000,
    b"1e400",
    b"2024-05-10",
    b"\xe2\x80\xa8",
    b"BZh",
    b"PK\x03\x04",
]
PIECES += [
    b"true",
    b'"x"',
    b"18446744073709551616",
    b"-0.0",
    b"\xff\xfe",
    b"(\xb5/\xfd",
    b"\xfd7zXZ\x00",
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "f.dat"


def check(path: Path, data: bytes, format: str | None, columns: str | None = None) -> None:
    path.write_bytes(data)
    try:
        trace = load_trace(path, format=format, columns=columns)
    except TraceError as error:
        named = "f.dat" in str(error)
    else:
        named = len(trace) > 0
    assert named


@given(
    st.sampled_from(SAMPLES).map(str.encode),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES)), max_size=4),
    st.sampled_from([None, *(f.name for f in FORMATS)]),
)
@settings(max_examples=300)
def test_damaged_files(
    scratch: Path, data: bytes, edits: list[tuple[float, int, bytes]], format: str | None
) -> None:
    for place, width, piece in edits:
        at = int(place * len(data))
        data = data[:at] + piece + data[at + width :]
    check(scratch, data, format)


@given(st.binary(max_size=200), st.sampled_from([None, *(f.name for f in FORMATS)]))
@example(b"PAR1" + b"x" * 20, None)
@example(b"\x1f\x8b" + b"x" * 20, None)
@settings(max_examples=200)
def test_any_bytes(scratch: Path, data: bytes, format: str | None) -> None:
    check(scratch, data, format)


@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES)), max_size=3),
    st.sampled_from(["time", "t", "usage.prompt_tokens", "created", "hash_ids", "attributes"]),
    st.sampled_from(["", "[ms]", "[unix_ns]", "[iso]"]),
)
@settings(max_examples=150)
def test_damaged_tables_with_columns(
    scratch: Path, text: str, edits: list[tuple[float, int, bytes]], name: str, unit: str
) -> None:
    data = text.encode()
    for place, width, piece in edits:
        at = int(place * len(data))
        data = data[:at] + piece + data[at + width :]
    columns = f"arrival={name}{unit},prompt=usage.prompt_tokens,output=usage.completion_tokens"
    check(scratch, data, None, columns)
