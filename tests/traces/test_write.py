"""Writers: exact round trips, whole files or none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import TraceError
from qsim.traces import HashIds, Trace, load_trace, write_trace
from qsim.traces.write import write_chunks
from tests.traces.strategies import traces

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("write")


def same(a: Trace, b: Trace) -> bool:
    columns = all(
        getattr(a, c).tobytes() == getattr(b, c).tobytes()
        for c in ("arrival_s", "prompt_tokens", "output_tokens")
    )
    for c in ("priority", "timeout_s"):
        one, other = getattr(a, c), getattr(b, c)
        if one is None or other is None:
            columns = columns and one is other
        else:
            columns = columns and one.tobytes() == other.tobytes()
    if a.hash_ids is None or b.hash_ids is None:
        return columns and a.hash_ids is b.hash_ids
    return (
        columns
        and a.hash_ids.values.tolist() == b.hash_ids.values.tolist()
        and a.hash_ids.offsets.tolist() == b.hash_ids.offsets.tolist()
        and a.hash_ids.block_tokens == b.hash_ids.block_tokens
    )


@given(trace=traces(block_tokens=16), ending=st.sampled_from([".csv", ".csv.gz", ".parquet"]))
def test_csv_and_parquet_give_back_the_same_trace(scratch: Path, trace: Trace, ending: str) -> None:
    path = scratch / f"t{ending}"
    write_trace(trace, path)
    assert same(load_trace(path), trace)


@given(trace=traces(with_ids=True))
def test_mooncake_gives_back_all_but_fractions_of_a_millisecond(
    scratch: Path, trace: Trace
) -> None:
    if trace.hash_ids is not None and len(trace.hash_ids.values) == 0:
        return  # a file without any id reads back as a trace without ids
    if trace.arrival_s[0] >= 1e6:
        return  # milliseconds that read as seconds of a Unix time
    path = scratch / "t.jsonl.gz"
    write_trace(trace, path)
    back = load_trace(f"{path}:block=512")
    assert np.abs(back.arrival_s - trace.arrival_s).max() <= 0.5e-3 + 1e-9
    assert back.hash_ids is not None
    assert trace.hash_ids is not None
    assert back.hash_ids.values.tolist() == trace.hash_ids.values.tolist()
    assert back.prompt_tokens.tolist() == trace.prompt_tokens.tolist()
    for column, missing in (("priority", 0), ("timeout_s", np.inf)):
        values, read = getattr(trace, column), getattr(back, column)
        if values is None or (values == missing).all():
            assert read is None
        else:
            assert read.tolist() == values.tolist()


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_chunks_write_what_the_whole_writes(tmp_path: Path, ending: str) -> None:
    ids = HashIds.from_lists([[1], [], [2, 3], [4]], 512)
    whole = Trace(np.arange(4.0), np.arange(600, 604), np.arange(2, 6), hash_ids=ids)
    parts = [whole.take(np.array([0, 1])), whole.take(np.array([2, 3]))]
    path = tmp_path / f"t{ending}"
    assert write_chunks(iter(parts), path) == 4
    assert same(load_trace(path), whole)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_the_same_trace_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    trace = load_trace("azure-conv-2023:requests=50")
    for name in "ab":
        write_trace(trace, tmp_path / f"{name}{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_timed_trace_gives_every_request_ids_of_its_own(tmp_path: Path) -> None:
    trace = Trace(np.array([0.25, 1.5]), np.array([513, 512]), np.array([1, 2]))
    path = tmp_path / "t.jsonl"
    write_trace(trace, path, format="timed-trace")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["hash_ids"] for row in lines] == [[0, 1], [2]]
    assert [row["timestamp"] for row in lines] == [0.25, 1.5]
    back = load_trace(f"{path}:block=512", format="timed-trace")
    assert back.arrival_s.tolist() == [0.25, 1.5]
    assert back.hash_ids is not None
    assert back.hash_ids.block_tokens == 512


def test_what_mooncakes_format_cannot_hold(tmp_path: Path) -> None:
    plain = Trace(np.array([0.0]), np.array([1]), np.array([1]))
    with pytest.raises(TraceError, match="needs prefix ids"):
        write_trace(plain, tmp_path / "t.jsonl")
    ids = HashIds.from_lists([[1]], 16)
    with pytest.raises(TraceError, match="16-token blocks"):
        write_trace(Trace(*columns(plain), hash_ids=ids), tmp_path / "t.jsonl")
    assert list(tmp_path.iterdir()) == []


def columns(
    t: Trace,
) -> tuple[
    np.ndarray[tuple[int], np.dtype[np.float64]],
    np.ndarray[tuple[int], np.dtype[np.int64]],
    np.ndarray[tuple[int], np.dtype[np.int64]],
]:
    return t.arrival_s, t.prompt_tokens, t.output_tokens  # type: ignore[return-value]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("precious")

    def broken() -> object:
        yield Trace(np.array([0.0]), np.array([1]), np.array([1]))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_chunks(broken(), path)  # type: ignore[arg-type]
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("t.txt", None, "the ending does not say what to write"),
        ("t.csv", "xml", "format is 'xml'; must be one of csv, parquet"),
    ],
)
def test_the_format_must_be_known(
    tmp_path: Path, name: str, format: str | None, message: str
) -> None:
    trace = Trace(np.array([0.0]), np.array([1]), np.array([1]))
    with pytest.raises(TraceError, match=message):
        write_trace(trace, tmp_path / name, format=format)


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no request to write"):
        write_chunks([], tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prompt_tokens", [0], "row 1, column 'prompt_tokens': '0' is not a whole number >= 1"),
        (
            "output_tokens",
            [None],
            "column 'output_tokens': values of type .*NULL.* are not numbers",
        ),
        ("arrival_s", ["x"], "row 1, column 'arrival_s': 'x' is not a finite number"),
        ("arrival_s", [-1.0], "row 1, column 'arrival_s': -1.0 is negative"),
        ("arrival_s", [float("nan")], "row 1, column 'arrival_s': 'nan' is not a finite number"),
    ],
)
def test_bad_parquet(tmp_path: Path, column: str, value: list[object], message: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good: dict[str, list[object]] = {"arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [1]}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(good | {column: value}), path)
    with pytest.raises(TraceError, match=message):
        load_trace(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(TraceError, match="not a readable Parquet file"):
        load_trace(path)
