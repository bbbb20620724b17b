"""A trace in parts is the whole trace, row by row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import qsim.traces.reading.source
from qsim.errors import TraceError
from qsim.traces import load_trace, shape, write_trace
from qsim.traces.parts import TraceParts, is_large, open_parts
from qsim.traces.trace import Trace


def _whole(parts: TraceParts) -> tuple[list[np.ndarray], list[list[int]], int]:
    """Columns, prefix ids, and how many parts there were."""
    found = list(parts)
    columns = [
        np.concatenate([getattr(p, name) for p in found])
        for name in ("arrival_s", "prompt_tokens", "output_tokens")
    ]
    ids = [p.hash_ids[i].tolist() for p in found if p.hash_ids for i in range(len(p))]
    return columns, ids, len(found)


def _assert_same(parts: TraceParts, trace: Trace, at_least: int = 2) -> None:
    columns, ids, count = _whole(parts)
    assert count >= at_least
    for got, name in zip(columns, ("arrival_s", "prompt_tokens", "output_tokens"), strict=True):
        assert np.array_equal(got, getattr(trace, name)), name
    expected = trace.hash_ids
    assert ids == ([] if expected is None else [expected[i].tolist() for i in range(len(trace))])
    assert parts.skipped == trace.meta["skipped"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qsim.traces.reading.source, "CHUNK_BYTES", 1024)
    monkeypatch.setattr("qsim.traces.reading.table.BATCH_ROWS", 100)
    monkeypatch.setattr("qsim.traces.formats.mooncake._BATCH_ROWS", 100)


def _azure(path: Path) -> Path:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for i in range(700):
        seconds = f"{i // 60 % 60:02d}:{i % 60:02d}.{i * 1003 % 10**7:07d}"
        lines.append(f"2023-11-16 18:{seconds},{i % 97},{i % 31}")
    path.write_text("\n".join(lines) + "\n")
    return path


def _burstgpt(path: Path) -> Path:
    rows = [f"{5 + i},ChatGPT,{i % 50},{i % 9},{i},Conversation log" for i in range(600)]
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def _bench(path: Path) -> Path:
    data = {"start_times": [3.5, 2.25, 9.0], "input_lens": [5, 6, 7], "output_lens": [1, 2, 3]}
    path.write_text(json.dumps(data | {"errors": ["", "", ""]}))
    return path


def test_azure(tmp_path: Path) -> None:
    path = _azure(tmp_path / "azure.csv")
    whole = load_trace(path)
    assert whole.meta["skipped"]["no prompt token"] > 0
    _assert_same(open_parts(path), whole)


def test_gzip(tmp_path: Path) -> None:
    plain = _azure(tmp_path / "azure.csv")
    path = tmp_path / "azure.csv.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    parts = open_parts(path)
    assert parts.share(0) == 0.0
    _assert_same(parts, load_trace(path))
    assert parts.share(0) == 1.0


def test_burstgpt_with_a_filter(tmp_path: Path) -> None:
    path = f"{_burstgpt(tmp_path / 'b.csv')}:model=ChatGPT"
    _assert_same(open_parts(path), load_trace(path))
    nothing = f"{tmp_path / 'b.csv'}:model=GPT-4"
    with pytest.raises(TraceError, match=r"no request in it .*model is one of \['ChatGPT'\]"):
        list(open_parts(nothing))


def test_one_document_is_read_whole(tmp_path: Path) -> None:
    path = _bench(tmp_path / "bench.json")
    _assert_same(open_parts(path), load_trace(path), at_least=1)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl", ".jsonl.gz"])
def test_prefix_ids(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"trace{ending}"
    write_trace(load_trace("mooncake-conversation:requests=400,seed=2"), path)
    _assert_same(open_parts(path), load_trace(path))


def test_canonical_without_ids(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    write_trace(load_trace("azure-conv-2023:requests=900"), path)
    parts = open_parts(path)
    shares = [parts.share(0) for _ in parts]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] == 1
    _assert_same(open_parts(path), load_trace(path))


def test_presets() -> None:
    text = "azure-conv-2024-week:requests=150000,seed=3"
    parts = open_parts(text)
    _assert_same(parts, load_trace(text), at_least=3)
    assert parts.share(75_000) == 0.5


@pytest.mark.parametrize(
    "given",
    [
        {"start_s": 100.0},
        {"start_s": 100.5, "end_s": 320.25, "speed": 3.0},
        {"end_s": 50.0},
        {"speed": 0.7, "head": 333},
        {"head": 1},
        {"start_s": 20.0, "head": 10_000},
        {},
    ],
)
def test_shaped_parts_are_the_shaped_trace(tmp_path: Path, given: dict[str, float]) -> None:
    path = tmp_path / "trace.csv"
    write_trace(load_trace("azure-conv-2023:duration=400,rate=3"), path)
    expected = shape(load_trace(path), **given)  # type: ignore[arg-type]
    _assert_same(open_parts(path).shaped(**given), expected, at_least=1)  # type: ignore[arg-type]


def test_a_head_is_not_read_beyond_its_end(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    with path.open("w") as f:
        f.write("arrival_s,prompt_tokens,output_tokens\n")
        f.writelines(f"{i},1,1\n" for i in range(900_000))
        f.write("this is no request\n")
    assert sum(map(len, open_parts(path).shaped(head=20))) == 20
    assert sum(map(len, open_parts(path).shaped(end_s=1.0))) > 0
    with pytest.raises(TraceError, match="line 900002"):
        list(open_parts(path))


def test_what_is_wrong_is_told_as_for_a_whole_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n")
    with pytest.raises(TraceError, match="the file has no data row"):
        list(open_parts(path))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n5,1,1\n4,1,1\n")
    with pytest.raises(TraceError, match=r"line 3.*times must not go down"):
        list(open_parts(path))
    with pytest.raises(TraceError, match="no such file, and no preset"):
        open_parts(tmp_path / "nothing.csv")
    with pytest.raises(TraceError, match="a preset has none"):
        open_parts("azure-conv-2023", format="azure")
    path.write_text("arrival_s,prompt_tokens,output_tokens\n5,1,1\n7,1,1\n")
    with pytest.raises(TraceError, match=r"no request arrives in \[8 s, inf s\).* from 5 s to 7 s"):
        list(open_parts(path).shaped(start_s=8))
    for bad in ({"speed": 0.0}, {"head": 0}):
        with pytest.raises(TraceError, match=r"is 0\.0; must be|must be >= 1"):
            open_parts(path).shaped(**bad)  # type: ignore[arg-type]


def test_what_counts_as_large(tmp_path: Path) -> None:
    assert is_large("azure-conv-2024-week")
    assert not is_large("azure-conv-2024-week:hours=1")
    assert is_large("azure-conv-2024-week:requests=2000001")
    assert not is_large("azure-conv-2023:requests=1000000,rate=250")
    for ending, size in ((".csv", 128 << 20), (".csv.gz", 32 << 20)):
        path = tmp_path / f"trace{ending}"
        with path.open("wb") as f:
            f.truncate(size)
        assert not is_large(path)
        with path.open("ab") as f:
            f.write(b"\n")
        assert is_large(path)
    assert not is_large(tmp_path)
