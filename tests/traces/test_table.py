"""Columns of CSV: the same numbers as Python's own conversions, and clear errors."""

from __future__ import annotations

import gzip
import json
import re
from datetime import UTC, datetime
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import TraceError
from qsim.traces import load_trace
from qsim.traces.reading import source as source_module
from qsim.traces.reading import table as table_module
from qsim.traces.reading.source import Source
from qsim.traces.reading.table import Kind, Rows, dialect_of, read_csv
from qsim.traces.reading.times import parse_time_ns


def rows_of(path: Path, text: str | bytes, *kinds: Kind) -> Rows:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (rows,) = read_csv(Source(path), list(enumerate(kinds or ("number", "number"))))
    return rows


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text") / "t.csv"


DECIMALS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(0, 10**9, places=7, allow_nan=False).map(str),
    st.integers(0, 10**18).map(str),
    st.sampled_from(["0", ".5", "5.", "007", "1e3", "-0.25", "+3", "123456789012345678901234"]),
)


@given(st.lists(DECIMALS, min_size=1))
def test_decimals_are_the_nearest_float(scratch: Path, texts: list[str]) -> None:
    rows = rows_of(scratch, "a,b\n" + "".join(f"{t},1\n" for t in texts))
    assert rows.floats(0).tolist() == [float(t) for t in texts]


@given(st.lists(st.integers(0, 2**53 - 1), min_size=1), st.booleans())
def test_whole_numbers(scratch: Path, numbers: list[int], crlf: bool) -> None:
    end = "\r\n" if crlf else "\n"
    rows = rows_of(scratch, f"a,b{end}" + "".join(f"x,{n}{end}" for n in numbers))
    assert rows.ints(1).tolist() == numbers


@given(
    st.lists(
        st.tuples(
            st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)),
            st.integers(0, 999_999_999),
            st.integers(0, 9),
            st.sampled_from([" ", "T"]),
            st.sampled_from(["", "Z", "+00:00"]),
        ),
        min_size=1,
    )
)
def test_times_are_exact(scratch: Path, parts: list[tuple[datetime, int, int, str, str]]) -> None:
    texts, expected = [], []
    for moment, nanoseconds, digits, separator, zone in parts:
        fraction = f"{nanoseconds:09d}"[:digits]
        texts.append(
            moment.strftime(f"%Y-%m-%d{separator}%H:%M:%S") + ("." + fraction) * bool(digits) + zone
        )
        seconds = int(moment.replace(microsecond=0, tzinfo=UTC).timestamp())
        expected.append(seconds * 10**9 + int(fraction.ljust(9, "0") or 0))
    rows = rows_of(scratch, "t,b\n" + "".join(f"{t},1\n" for t in texts), "date")
    assert rows.dates_ns(0).tolist() == expected
    assert [parse_time_ns(t) for t in texts] == expected


def test_other_zones_are_converted(scratch: Path) -> None:
    texts = ["2024-05-10 02:00:00.5+02:00", "2024-05-09T19:00:00,500-0500", "2024/05/10 00:00:00.5"]
    texts += ["2024-05-10T05:30:00.5+05:30", "2024-05-09 23:00:00.5 -01", "2024-05-10T00:00:00.5z"]
    rows = rows_of(scratch, "t;b\n" + "".join(f"{t};1\n" for t in texts), "date")
    expected = 1715299200500000000
    assert rows.dates_ns(0).tolist() == [expected] * len(texts)
    assert [parse_time_ns(t) for t in texts] == [expected] * len(texts)
    short = rows_of(scratch, "t,b\n2023-11-16 18:17,1\n2023-11-16,1\n", "date")
    assert short.dates_ns(0).tolist() == [1700158620000000000, 1700092800000000000]


@pytest.mark.parametrize(
    "bad",
    [
        "2023-13-01 00:00:00",
        "2023-02-29 00:00:00",
        "2023-11-16 24:00:00",
        "2023-11-16 18:17:60",
        "2023-11-16 18:17:03 Europe/Berlin",
        "1500-01-01 00:00:00",
        "2300-01-01 00:00:00",
        "2023-11-16 18:17:03.",
        "2023-11-16 18:17:03.1234567891",
        "2023-11-16 18:17:03.5+0x:00",
        "yesterday",
        "",
    ],
)
def test_bad_times_name_line_column_and_value(tmp_path: Path, bad: str) -> None:
    rows = rows_of(tmp_path / "x.csv", f"when,b\n2023-11-16 18:17:03.9,1\n{bad},1\n", "date")
    assert parse_time_ns(bad) is None
    pattern = f"x.csv, line 3, column 'when': {re.escape(repr(bad))} is not a date and time"
    with pytest.raises(TraceError, match=pattern):
        rows.dates_ns(0)


@pytest.mark.parametrize("bad", ["", "x", "1.5", "nan", "inf", "1e400", "--1", "1_000", "-5"])
def test_bad_whole_numbers_name_line_column_and_value(tmp_path: Path, bad: str) -> None:
    rows = rows_of(tmp_path / "x.csv", f"a,b\n1,2\n\n3,{bad}\n")
    with pytest.raises(TraceError, match=rf"x.csv, line 4, column 'b': {re.escape(repr(bad))} is"):
        rows.ints(1)


@pytest.mark.parametrize("bad", ["", "1.2.3", "nan", "inf", "1e999", "1,", "1_0.5"])
def test_bad_decimals_are_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(TraceError, match="line 2"):
        rows_of(tmp_path / "x.csv", f"a,b\n{bad},2\n").floats(0)


def test_a_wrong_number_of_fields_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"line 3: 2 fields, must be 3 \(a, b, c\).*'4,5'"):
        rows_of(tmp_path / "x.csv", "a,b,c\n1,2,3\n4,5\n")


@pytest.mark.parametrize("named", [True, False])
def test_a_duckdb_whose_core_has_another_name_reads_the_same(
    named: bool, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def import_other(name: str) -> Any:
        asked.append(name)
        if name == "_duckdb":
            if not named:
                raise ImportError(name)
            return ModuleType(name)  # with nothing in it
        return import_module(name)

    monkeypatch.setattr(table_module, "import_module", import_other)
    rows = rows_of(scratch, "a,b\n1,2.5\n3,x\n")
    assert rows.values == [[1.0, 3.0], [2.5, None]]
    assert asked == ["_duckdb", "duckdb"]


def test_quoted_fields_may_hold_commas(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "x.csv", 'a,b\n"[1, 2]",5\n7,"6"\n', "text", "number")
    assert rows.texts(0) == ["[1, 2]", "7"]
    assert rows.ints(1).tolist() == [5, 6]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert list(dialect_of(Source(path).head).names) == ["a", "b"]
    (rows,) = read_csv(Source(path), [(0, "number"), (1, "number")])
    assert rows.names == ["a", "b"]
    assert rows.ints(0).tolist() == [1]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64])
def test_chunks_of_any_size_give_the_same_rows_and_line_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(source_module, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr("qsim.traces.reading.table.BATCH_ROWS", 7)
    path = tmp_path / "x.csv.gz"
    text = "a,b\r\n" + "".join(f"{i},{i * i}\r\n" for i in range(50)) + "\u00e9\u2028,x\r\n"
    path.write_bytes(gzip.compress(text.encode()))
    parts = list(read_csv(Source(path), [(0, "text"), (1, "number")]))
    assert len(parts) == 8
    assert np.concatenate([p.ints(1) for p in parts[:7]]).tolist() == [i * i for i in range(49)]
    assert [p.place(int(n)) for p in parts for n in p.number] == [f"line {i}" for i in range(2, 53)]
    assert parts[-1].texts(0)[-1] == "\u00e9\u2028"


def test_damaged_gzip_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:-20])
    with pytest.raises(TraceError, match="damaged or cut off"):
        list(read_csv(Source(path), [(0, "number")]))


@given(st.integers(0, 10**15), st.integers(0, 22))
def test_short_decimals_are_exact_to_half_an_ulp(scratch: Path, digits: int, places: int) -> None:
    text = f"{digits:023d}"
    text = f"{text[: 23 - places]}.{text[23 - places :]}".strip("0") or "0"
    value = float(rows_of(scratch, f"a,b\n{text},1\n").floats(0)[0]) if text != "." else 0.0
    exact = Fraction(digits, 10**places)
    assert abs(Fraction(value) - exact) <= Fraction(np.spacing(value)) / 2


def test_priorities_and_timeouts_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,isl,osl,tier,wait_ms\n0,5,6,1,500\n1,7,8,,\n2,7,8,-2,inf\n")
    trace = load_trace(
        path, columns="arrival=time,prompt=isl,output=osl,priority=tier,timeout=wait_ms"
    )
    assert trace.priority is not None
    assert trace.timeout_s is not None
    assert trace.priority.tolist() == [1, 0, -2]
    assert trace.timeout_s.tolist() == [0.5, float("inf"), float("inf")]
    assert trace.meta["columns"]["timeout"] == "wait_ms (ms)"
    for bad, message in (
        ("gold", "line 2, column 'tier': 'gold' is not a whole number"),
        ("1.5", "'1.5' is not a whole number"),
        ("9e99", "'9e99' is not a whole number"),
    ):
        path.write_text(f"time,isl,osl,tier\n0,5,6,{bad}\n")
        with pytest.raises(TraceError, match=message):
            load_trace(path, columns="arrival=time,prompt=isl,output=osl,priority=tier")
    path.write_text("time,isl,osl,wait\n0,5,6,1\n1,5,6,0\n")
    with pytest.raises(TraceError, match="line 3, column 'wait': '0' is not a time > 0"):
        load_trace(path, columns="arrival=time,prompt=isl,output=osl,timeout=wait[s]")


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_usual_name_with_other_values_is_left_out_and_told(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t.{ending}"
    if ending == "csv":
        path.write_text("time,isl,osl,priority\n0,5,6,high\n1,7,8,low\n")
    elif ending == "json":
        rows = [{"time": i, "isl": 5, "osl": 6, "priority": "high"} for i in range(2)]
        path.write_text(json.dumps(rows))
    else:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        values = {"time": [0.0, 1.0], "isl": [5, 7], "osl": [6, 8], "priority": ["high", "low"]}
        pq.write_table(pa.table(values), path)
    trace = load_trace(path)
    assert trace.priority is None
    assert "column 'priority' is not read as priority: it holds no numbers" in trace.meta["notes"]
    assert "priority" not in trace.meta["columns"]
