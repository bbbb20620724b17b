"""Rows of a table, CSV or Parquet, read by DuckDB some at a time.

The file is decompressed here and handed to DuckDB through a pipe, so that every compression,
damage and size is treated alike; DuckDB splits it into fields and converts them. It tells the line
of a row that it cannot split; for a value that it cannot convert, the line is looked up afterwards
by reading the file once more.
"""

from __future__ import annotations

import csv
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Literal, NoReturn

import numpy as np

from qsim.arrays import BoolArray, FloatArray, IntArray
from qsim.errors import TraceError
from qsim.traces.reading.source import Source
from qsim.traces.reading.times import date_parts_sql, date_sql

#: how a column is converted: to a number, to a number that may not have a decimal comma (1,000 may
#: be a thousand), to nanoseconds since 1970, to a whole number of up to 64 bits, or not at all
Kind = Literal["number", "count", "date", "stamp", "text"]

BATCH_ROWS = 1 << 16
#: of a row of CSV: the prefix ids of a million tokens in blocks of 16 need a megabyte
MOST_ROW_BYTES = 2 << 20
_DELIMITERS = (",", ";", "\t", "|")
_WIDE = 2.0**53


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written: its delimiter, and the names in its first line."""

    delimiter: str
    names: tuple[str, ...]


def dialect_of(head: bytes) -> Dialect:
    """The delimiter and the names of the first line: what splits it into most fields.

    Without a line break in the head, it has no names.
    """
    line, end, _ = head.replace(b"\r\n", b"\n").replace(b"\r", b"\n").partition(b"\n")
    if not end and len(head) >= 1 << 16:
        return Dialect(",", ())
    text = line.decode("utf-8", "replace").replace("\0", "")
    best = Dialect(",", ())
    for delimiter in _DELIMITERS:
        try:
            fields = next(csv.reader([text], delimiter=delimiter), [])
        except csv.Error:
            continue
        if len(fields) > len(best.names):
            best = Dialect(delimiter, tuple(f.strip().strip('"').strip() for f in fields))
    return best


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a table: the columns that were asked for."""

    #: which rows of the file they are, from 0; the header is none
    number: IntArray
    #: by column, in the order in which they were asked for; None where a value is missing or cannot
    #: be converted
    values: list[Any]
    #: of these columns
    names: Sequence[str]
    #: the place of a row, such as ``line 7``, and the text of one of these columns there
    locate: Callable[[int, int], tuple[str, str]]
    source: Source

    def __len__(self) -> int:
        return len(self.number)

    def place(self, number: int) -> str:
        """Where the row of this number stands, such as ``line 7``."""
        return self.locate(number, 0)[0]

    def take(self, index: IntArray | BoolArray) -> Rows:
        """Some of the rows."""
        if index.dtype == np.bool_:
            index = np.flatnonzero(index)
        at = index.tolist()
        values = [[column[i] for i in at] for column in self.values]
        return replace(self, number=self.number[index], values=values)

    def fail(self, row: int, column: int, expected: str, value: object = None) -> NoReturn:
        """Raise a TraceError that names file, line, column and value."""
        place, text = self.locate(int(self.number[row]), column)
        shown = text[:200] if value is None else value
        raise TraceError(
            f"{self.source.path}, {place}, column {self.names[column]!r}: {shown!r} is not "
            f"{expected}"
        )

    def texts(self, column: int) -> list[str]:
        """One column as it stands; an empty field is an empty text."""
        return ["" if value is None else str(value) for value in self.values[column]]

    def floats(self, column: int, what: str = "a finite number") -> FloatArray:
        """One column of decimal numbers, each the nearest float64."""
        values = np.array(self.values[column], np.float64)
        good = np.isfinite(values)
        if not good.all():
            self.fail(int(np.argmin(good)), column, what)
        return values

    def ints(self, column: int, what: str = "a whole number >= 0", least: int = 0) -> IntArray:
        """One column of whole numbers below 2**53."""
        values = np.array(self.values[column], np.float64)
        good = (values >= least) & (values < _WIDE) & (np.floor(values) == values)
        if not good.all():
            self.fail(int(np.argmin(good)), column, what)
        return values.astype(np.int64)

    def whole(self, column: int, what: str) -> IntArray:
        """One column of nanoseconds, or of other whole numbers of 64 bits."""
        values = self.values[column]
        if None in values:
            self.fail(values.index(None), column, what)
        return np.array(values, np.int64)

    def dates_ns(self, column: int) -> IntArray:
        """One column of dates with times, as nanoseconds from 1970-01-01 UTC."""
        return self.whole(column, "a date and time like 2023-11-16 18:17:03.9799600")


def expression(column: str, kind: Kind, *, decimal_comma: bool) -> str:
    """SQL that converts a column of texts; NULL for what cannot be."""
    if kind == "text":
        return column
    if kind == "date":
        return date_sql(column)
    if kind == "stamp":
        return (
            f"CASE WHEN regexp_full_match({column}, '\\s*-?\\d{{1,19}}\\s*') "
            f"THEN TRY_CAST({column} AS BIGINT) END"
        )
    text = f"replace({column}, ',', '.')" if decimal_comma else column
    # DuckDB reads 1_000 as a thousand; nothing that writes traces does
    return f"CASE WHEN NOT contains({column}, '_') THEN TRY_CAST({text} AS DOUBLE) END"


def read_csv(
    source: Source,
    wanted: Sequence[tuple[int, Kind]],
    *,
    dialect: Dialect | None = None,
    header: bool = True,
) -> Iterator[Rows]:
    """Columns of a CSV file by their positions, some rows at a time.

    The dialect is told by the first line unless it is given; ``header`` says whether that holds
    names.

    Raises
    ------
    TraceError
        Naming the line if a row has a wrong number of fields, or cannot be split.
    """
    dialect = dialect or dialect_of(source.head)
    names = dialect.names if header else tuple(str(i + 1) for i in range(len(dialect.names)))
    if not names:
        raise source.long_line(1, 1 << 16)
    locate = partial(_locate, source, dialect, header, [at for at, _ in wanted])
    if header and (plain := _plain_columns(source, dialect, wanted)) is not None:
        if plain[0]:
            number = np.arange(len(plain[0]))
            yield Rows(number, plain, [names[at] for at, _ in wanted], locate, source)
        return
    # other delimiters come from programs that write a decimal comma
    comma = dialect.delimiter != ","
    select = ", ".join(
        expression(f"c{at}", kind, decimal_comma=comma and kind == "number") for at, kind in wanted
    )
    columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(len(names)))
    with _Pipe(source) as pipe:
        dates = [f", {date_parts_sql(f'c{i}', f'c{i}')}" for i, kind in wanted if kind == "date"]
        query = (
            f"SELECT {select} FROM (SELECT *{''.join(dates)} FROM read_csv('{pipe.path}', "
            f"auto_detect=false, header={str(header).lower()}, delim='{dialect.delimiter}', "
            f"quote='\"', escape='\"', "
            f"columns={{{columns}}}, max_line_size={MOST_ROW_BYTES}, "
            f"buffer_size={2 * MOST_ROW_BYTES}))"
        )
        explain = partial(_unreadable, source, dialect, names)
        yield from query_rows(query, [names[at] for at, _ in wanted], locate, source, explain, pipe)


def query_rows(
    query: str,
    names: Sequence[str],
    locate: Callable[[int, int], tuple[str, str]],
    source: Source,
    explain: Callable[[Exception], TraceError],
    pipe: _Pipe | None = None,
) -> Iterator[Rows]:
    """What a query finds, some rows at a time; ``explain`` says what an error of it means."""
    first = 0
    for rows in run_query(query, explain, pipe):
        number = np.arange(first, first + len(rows))
        first += len(rows)
        yield Rows(number, [list(c) for c in zip(*rows, strict=True)], names, locate, source)


#: a number that any reader takes for the same: digits, and a point with digits behind it
_CELL = rb"[0-9]{1,15}+(?:\.[0-9]{1,15}+)?+"


def _plain_columns(
    source: Source, dialect: Dialect, wanted: Sequence[tuple[int, Kind]]
) -> list[list[float]] | None:
    """The columns of a small file of nothing but plain numbers with commas; None of any other.

    Opening a database takes as long as a short simulation.
    """
    if dialect.delimiter != "," or not {kind for _, kind in wanted} <= {"number", "count"}:
        return None
    chunks = source.chunks()
    data = next(chunks, b"")
    header, _, body = data.partition(b"\n")
    if b'"' in header or next(chunks, None) is not None:
        return None
    if body and not body.endswith(b"\n"):
        body += b"\n"
    fields = len(dialect.names)
    line = _CELL + b"(?:," + _CELL + b"){%d}" % (fields - 1)
    # no second way to read a line: nothing to remember for going back
    if not re.fullmatch(b"(?:" + line + b"\n)*+", body):
        return None
    cells = body.decode("ascii").replace("\n", ",").split(",")[:-1]
    return [list(map(float, cells[at::fields])) for at, _ in wanted]


def _duckdb() -> Any:
    """DuckDB without its Python layer (data frames, expressions), which takes as long to import."""
    try:
        core = import_module("_duckdb")
        _ = core.connect, core.Error
    except (ImportError, AttributeError):  # not every version has it under this name
        core = import_module("duckdb")
    return core


def run_query(
    query: str, explain: Callable[[Exception], TraceError], pipe: _Pipe | None = None
) -> Iterator[list[tuple[Any, ...]]]:
    duckdb = _duckdb()
    # one thread: rows stay in order, and memory does not grow with the cores
    connection = duckdb.connect(config={"threads": 1})
    try:
        connection.execute("SET enable_progress_bar = false")
        cursor = connection.execute(query)
        while rows := cursor.fetchmany(BATCH_ROWS):
            yield rows
    except duckdb.Error as error:
        if pipe is not None:
            pipe.check()
        raise explain(error) from None
    finally:
        connection.close()
    if pipe is not None:
        pipe.check()


class _Pipe:
    """Feeds a file, decompressed, to whoever opens ``path``; from a thread of its own."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._read, self._write = os.pipe()
        self.path = f"/dev/fd/{self._read}"
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="qsim-trace", daemon=True)

    def __enter__(self) -> _Pipe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        os.close(self._read)
        self._thread.join()

    def check(self) -> None:
        """Raise what went wrong in reading the file."""
        self._stopped.set()
        if self._error is not None:
            raise self._error

    def _feed(self) -> None:
        try:
            with os.fdopen(self._write, "wb", buffering=0) as out:
                since = line = 0
                for chunk in self._source.chunks():
                    # DuckDB does not stop at a row that never ends: it takes it all, for nothing
                    last = chunk.rfind(b"\n")
                    longest = since + (chunk.find(b"\n") if last >= 0 else len(chunk))
                    if longest > MOST_ROW_BYTES:
                        raise self._source.long_line(line + 1, MOST_ROW_BYTES)
                    since = since + len(chunk) if last < 0 else len(chunk) - last - 1
                    line += chunk.count(b"\n")
                    if b"\r" in chunk:
                        chunk = chunk.replace(b"\r", b"\n")  # line ends of old
                    if not chunk.isascii():
                        chunk = _as_utf8(chunk)
                    view = memoryview(chunk)
                    while view and not self._stopped.is_set():
                        view = view[out.write(view) :]
                    if self._stopped.is_set():
                        return
        except BrokenPipeError:
            pass  # nobody reads on
        except BaseException as error:
            self._error = error


def _as_utf8(chunk: bytes) -> bytes:
    """The chunk with what is no UTF-8 replaced; characters cut at its ends are left as they are."""
    try:
        chunk.decode("utf-8")
        return chunk
    except UnicodeDecodeError:
        lead = 0
        while lead < min(3, len(chunk)) and chunk[lead] & 0xC0 == 0x80:
            lead += 1
        tail = len(chunk)
        for back in range(1, min(4, len(chunk) - lead) + 1):
            if chunk[-back] & 0xC0 == 0xC0:
                tail = len(chunk) - back
                break
        middle = chunk[lead:tail].decode("utf-8", "replace").encode()
        return chunk[:lead] + middle + chunk[tail:]


def _records(source: Source, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file with the lines that they begin at; slowly, for messages."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        lines = (line.replace("\0", "") for line in _text_lines(source))
        reader = csv.reader(lines, delimiter=dialect.delimiter)
        line = 1
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _text_lines(source: Source) -> Iterator[str]:
    rest = b""
    for chunk in source.chunks():
        *lines, rest = (rest + chunk.replace(b"\r", b"\n")).split(b"\n")
        yield from ((line + b"\n").decode("utf-8", "replace") for line in lines)
    if rest:
        yield rest.decode("utf-8", "replace")


def _locate(
    source: Source, dialect: Dialect, header: bool, at: Sequence[int], number: int, column: int
) -> tuple[str, str]:
    wanted = number + header
    try:
        for i, (line, record) in enumerate(_records(source, dialect)):
            if i == wanted:
                return f"line {line}", record[at[column]] if at[column] < len(record) else ""
    except csv.Error:
        pass
    return f"row {number + 1}", ""


def _unreadable(
    source: Source, dialect: Dialect, names: Sequence[str], error: Exception
) -> TraceError:
    """What is wrong with a file that DuckDB could not split."""
    try:
        for line, record in _records(source, dialect):
            if len(record) != len(names):
                shown = dialect.delimiter.join(record)[:120]
                return TraceError(
                    f"{source.path}, line {line}: {len(record)} fields, must be {len(names)} "
                    f"({', '.join(names)[:300]}); the line is {shown!r}"
                )
    except (csv.Error, TraceError):
        pass
    said = str(error)
    at = re.search(r"CSV Error on Line: (\d+)", said)
    place = f", line {at.group(1)}" if at else ""
    if "unterminated quote" in said:
        return TraceError(f"{source.path}{place}: a quote that is opened there is never closed")
    first = next((x for x in said.splitlines() if x and "Line:" not in x), said)
    return TraceError(f"{source.path}{place}: not readable as CSV: {first[:200]}")
