"""One reader a format: what it reads, what it skips, what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from qsim.errors import TraceError
from qsim.traces import load_trace

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"

AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319600,3180,8\r\n"
    "2023-11-16 18:17:04.0781490,110,27"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:01+00:00,2399,6\n"
    "2024-05-10T00:00:01.5Z,76,15\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,0,1087,API log\n"
    "118,GPT-4,417,276,693,API log\n"
)
BURSTGPT_SESSIONS = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log\n"
    "19440161.5,,2,ChatGPT,36,29,65,API log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
    '{"timestamp": 27, "input_length": 500, "output_length": 6, "hash_ids": [0]}\n'
)
BAILIAN = (
    '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, '
    '"output_length": 5, "type": "text", "turn": 1, "hash_ids": [3, 4]}\n'
)
VLLM_BENCH = json.dumps(
    {
        "date": "20261120-120000",
        "endpoint_type": "openai",
        "completed": 2,
        "total_input_tokens": 30,
        "start_times": [1000.5, 1000.25, 1001.0, 1002.0],
        "input_lens": [10, 20, 30, 40],
        "output_lens": [1, 2, 0, 4],
        "errors": ["", "", "", "Timeout"],
    }
)


def write(tmp_path: Path, text: str, name: str = "a.dat", *, zipped: bool = False) -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("text", "format", "rows"),
    [
        (AZURE_2023, "azure", [(0.0, 4808, 10), (0.052, 3180, 8), (0.098189, 110, 27)]),
        (AZURE_2024, "azure", [(0.0, 2162, 5), (0.99007, 2399, 6), (1.49007, 76, 15)]),
        (BURSTGPT, "burstgpt", [(0.0, 472, 18), (113.0, 417, 276)]),
        (BURSTGPT_SESSIONS, "burstgpt", [(0.0, 906, 446), (51.5, 36, 29)]),
        (MOONCAKE, "mooncake", [(0.0, 600, 5), (0.027, 500, 6)]),
        (BAILIAN, "bailian", [(0.5, 20, 5)]),
        (VLLM_BENCH, "vllm-bench", [(0.0, 20, 2), (0.25, 10, 1)]),
        ("arrival_s,prompt_tokens,output_tokens\n3.25,7,8\n", "canonical", [(3.25, 7, 8)]),
        ("arrival_s,input_tokens,output_tokens\n0.0,374,44\n", "canonical", [(0.0, 374, 44)]),
        (
            "note,output_tokens,prompt_tokens,arrival_s\nx,1,2,3\n",
            "canonical",
            [(3.0, 2, 1)],
        ),
    ],
)
def test_every_format_is_recognised_by_content(
    tmp_path: Path, text: str, format: str, rows: list[tuple[float, int, int]], zipped: bool
) -> None:
    path = write(tmp_path, text, zipped=zipped)
    trace = load_trace(path)
    assert trace.meta["format"] == format
    found = zip(
        trace.arrival_s.tolist(),
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
        strict=True,
    )
    assert list(found) == rows
    forced = load_trace(path, format=format)
    assert forced.arrival_s.tolist() == trace.arrival_s.tolist()


def test_what_is_skipped_is_counted(tmp_path: Path) -> None:
    burst = load_trace(write(tmp_path, BURSTGPT))
    assert burst.meta["skipped"] == {"failed request: response of 0 tokens": 1}
    bench = load_trace(write(tmp_path, VLLM_BENCH))
    assert bench.meta["skipped"] == {"failed request": 1, "no output token": 1}
    azure = load_trace(write(tmp_path, AZURE_2024 + "2024-05-10 00:00:02+00:00,9,0\n"))
    assert azure.meta["skipped"] == {"no output token": 1}
    assert len(azure) == 3


def test_azure_arrivals_are_exact_over_a_week(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-12 00:00:00.0000001,1,1\n2024-05-18 23:59:59.9999999,1,1\n"
    )
    assert load_trace(write(tmp_path, text)).arrival_s.tolist() == [0.0, 604799.9999998]


def test_hash_ids_are_kept_with_their_block_size(tmp_path: Path) -> None:
    ids = load_trace(write(tmp_path, MOONCAKE)).hash_ids
    assert ids is not None
    assert (ids.block_tokens, ids.values.tolist(), ids.offsets.tolist()) == (
        512,
        [0, 1, 0],
        [0, 2, 3],
    )
    bailian = load_trace(write(tmp_path, BAILIAN)).hash_ids
    assert bailian is not None
    assert bailian.block_tokens == 16
    timed = load_trace(f"{write(tmp_path, MOONCAKE)}:block=64", format="timed-trace")
    assert timed.hash_ids is not None
    assert timed.hash_ids.block_tokens == 64
    assert timed.arrival_s.tolist() == [0.0, 27.0]


@pytest.mark.parametrize("form", ["0 1", '"[0, 1]"'])
def test_canonical_hash_ids(tmp_path: Path, form: str) -> None:
    text = (
        "arrival_s,prompt_tokens,output_tokens,hash_ids,hash_block_tokens\n"
        f"0,20,1,{form},16\n1,5,1,,16\n"
    )
    ids = load_trace(write(tmp_path, text)).hash_ids
    assert ids is not None
    assert [ids[0].tolist(), ids[1].tolist(), ids.block_tokens] == [[0, 1], [], 16]


def test_burstgpt_rows_can_be_filtered(tmp_path: Path) -> None:
    path = write(tmp_path, BURSTGPT)
    assert load_trace(f"{path}:model=GPT-4").prompt_tokens.tolist() == [417]
    assert load_trace(f"{path}:log=api").prompt_tokens.tolist() == [417]
    with pytest.raises(TraceError, match=r"no request in it.*model is one of.*ChatGPT"):
        load_trace(f"{path}:model=Llama")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AZURE_2023.replace("3180", "31x0"), "line 3, column 'ContextTokens': '31x0' is not"),
        (AZURE_2023.replace("18:17:04.0319600", "18h17"), "line 3, column 'TIMESTAMP'"),
        (AZURE_2023.replace(",110,27", ",110"), "line 4: 2 fields, must be 3"),
        (BURSTGPT.replace("118", "soon"), "line 4, column 'Timestamp': 'soon'"),
        (MOONCAKE.replace("500", "-5"), "line 2, column 'input_length': '-5' is not"),
        (MOONCAKE.replace("500", "5.5"), "line 2, column 'input_length': '5.5' is not"),
        (MOONCAKE.replace('"timestamp": 27, ', ""), "line 2, column 'timestamp'|no 'timestamp'"),
        (MOONCAKE.replace("[0]", "[null]"), "line 2, column 'hash_ids'"),
        (MOONCAKE + "{oops\n", "line 3: '{oops' is not JSON"),
        (MOONCAKE + "[1]\n", "line 3: .* is not a JSON object"),
        (VLLM_BENCH.replace("[10, 20, 30, 40]", "[10, 20, 30]"), "lists of different lengths"),
        (VLLM_BENCH.replace("[10, 20", '["ten", 20'), "request 0, column 'input_lens': 'ten'"),
        (VLLM_BENCH.replace('"input_lens"', '"lens"'), "no list 'input_lens'.*--save-detailed"),
        (VLLM_BENCH + "\n" + VLLM_BENCH, "--append-result"),
        ("arrival_s,prompt_tokens,output_tokens\n0,0,1\n", "line 2, column 'prompt_tokens': '0'"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,1,1\n", "column 'arrival_s': 'nan' is not"),
        (
            "arrival_s,prompt_tokens\n0,1\n",
            r"no column tells tokens of its answer.*--columns output",
        ),
    ],
)
def test_a_malformed_row_names_file_line_column_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        load_trace(write(tmp_path, text, "broken.csv"))
    assert "broken.csv" in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
@pytest.mark.parametrize("zipped", [False, True])
def test_an_empty_file_is_an_error(tmp_path: Path, text: str, zipped: bool) -> None:
    with pytest.raises(TraceError, match="the file is empty"):
        load_trace(write(tmp_path, text, zipped=zipped))


@pytest.mark.parametrize(
    "text",
    [AZURE_2023.split("\r\n")[0], "arrival_s,prompt_tokens,output_tokens\n\n"],
)
def test_a_file_without_rows_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match="no request in it; the file has no data row"):
        load_trace(write(tmp_path, text))


def test_nothing_left_after_skipping_is_an_error(tmp_path: Path) -> None:
    text = "\n".join(BURSTGPT.split("\n")[i] for i in (0, 2)) + "\n"
    with pytest.raises(TraceError, match=r"no request in it \(1 rows skipped: failed request"):
        load_trace(write(tmp_path, text))


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"it begins 'a;b'.*mooncake: JSON lines"):
        load_trace(write(tmp_path, "a;b\n1;2\n"))
    with pytest.raises(TraceError, match="format is 'csv'; must be one of canonical, azure"):
        load_trace(write(tmp_path, AZURE_2023), format="csv")


def test_a_forced_format_that_does_not_fit_says_which_column_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        TraceError, match=r"no column 'ContextTokens' for .*the columns are Timestamp"
    ):
        load_trace(write(tmp_path, BURSTGPT), format="azure")


@pytest.mark.parametrize(
    ("text", "message", "arrivals"),
    [
        (
            "arrival_s,prompt_tokens,output_tokens\n5,1,1\n2.5,2,2\n",
            "line 3, column 'arrival_s': arrives 2.5 s before",
            [2.5, 5.0],
        ),
        (
            "arrival_s,prompt_tokens,output_tokens\n-1,1,1\n2,2,2\n",
            "line 2, column 'arrival_s': -1.0 is negative",
            [0.0, 3.0],
        ),
        (
            AZURE_2024 + "2024-05-09 23:59:59+00:00,9,9\n",
            "line 5, column 'TIMESTAMP': arrives 2.5 s before",
            [0.0, 1.00993, 2.0, 2.5],
        ),
        (
            MOONCAKE.replace('"timestamp": 0', '"timestamp": 100'),
            "line 2, column 'timestamp': arrives 0.073 s before",
            [0.027, 0.1],
        ),
        (
            MOONCAKE.replace('"timestamp": 0', '"timestamp": -3'),
            "line 1, column 'timestamp': -3 is negative",
            [0.0, 0.03],
        ),
    ],
)
def test_unsorted_and_negative_times_say_what_to_do(
    tmp_path: Path, text: str, message: str, arrivals: list[float]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TraceError, match=message + r".*--sort \(sort=True\)"):
        load_trace(path)
    assert load_trace(path, sort=True).arrival_s.tolist() == arrivals


def test_order_is_checked_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsim.traces.reading.table.BATCH_ROWS", 7)
    rows = "".join(f"{t},1,1\n" for t in [*range(20), 3, *range(20, 30)])
    with pytest.raises(TraceError, match="line 22, column 'arrival_s': arrives 16 s before"):
        load_trace(write(tmp_path, "arrival_s,prompt_tokens,output_tokens\n" + rows))


def test_sorting_moves_hash_ids_with_their_requests(tmp_path: Path) -> None:
    text = MOONCAKE.replace('"timestamp": 0', '"timestamp": 100')
    trace = load_trace(write(tmp_path, text), sort=True)
    assert trace.hash_ids is not None
    assert trace.hash_ids[0].tolist() == [0]
    assert trace.hash_ids[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-trace", "no such file, and no preset of that name"),
        ("azure-conv-2032", "did you mean 'azure-conv-2023'"),
        ("azure-conv-2023:rate", "no such file"),
        ("azure-conv-2023:rate=5,speed", "'speed' is not key=value"),
        ("azure-conv-2023:rate=5,rate=6", "rate is given twice"),
        ("azure-conv-2023:colour=red", "parameter 'colour' is unknown; the parameters are"),
        ("azure-conv-2023:rate=fast", "rate is 'fast'; must be a number"),
        ("azure-conv-2023:requests=1.5", "requests is '1.5'; must be a whole number"),
        ("azure-conv-2023:seed=-1", "seed is '-1'; must be >= 0"),
        ("azure-conv-2024-week:day=8", "day is '8'; must be from 1 to 7"),
        ("azure-conv-2024-week:day=2,hours=3", "day and hours are both given"),
    ],
)
def test_a_bad_source_says_what_is_wrong(source: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load_trace(source)


def test_a_preset_takes_no_format() -> None:
    with pytest.raises(TraceError, match="a preset has none"):
        load_trace("azure-conv-2023", format="azure")


def test_a_file_takes_only_the_parameters_of_its_format(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"parameter 'rate' is unknown for the format azure"):
        load_trace(f"{write(tmp_path, AZURE_2023)}:rate=5")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/traces is not there")
@pytest.mark.parametrize(
    ("name", "requests", "duration_s"),
    [
        ("azure_2023_conv.csv.gz", 19366, 3501.721937),
        ("azure_2023_code.csv.gz", 8819, 3435.948056),
        ("mooncake_conversation.jsonl.gz", 12031, 3536.999),
        ("mooncake_synthetic.jsonl.gz", 3993, 1022.025),
        ("burstgpt_head_sample.csv", 24, 1606.0),
    ],
)
def test_the_real_traces_are_read_whole(name: str, requests: int, duration_s: float) -> None:
    trace = load_trace(SHARED / name)
    assert len(trace) == requests
    assert trace.duration_s == pytest.approx(duration_s, abs=1e-7)
    assert trace.name == name


def test_a_trace_of_one_request_at_zero_is_fine(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,1,1\n"))
    assert len(trace) == 1
    assert trace.duration_s == 0.0
    assert np.isfinite(trace.arrival_s).all()
