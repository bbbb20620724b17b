"""Columns of a Parquet file, read by DuckDB some rows at a time."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from qsim.errors import MissingExtraError, TraceError
from qsim.traces.reading.source import Source
from qsim.traces.reading.table import Kind, Rows, expression, query_rows, run_query
from qsim.traces.reading.times import TICKS_PER_S, date_parts_sql

MAGIC = b"PAR1"
_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL",
            "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")  # fmt: skip


@dataclass(frozen=True)
class ParquetColumn:
    """A column, or a field within a struct, with DuckDB's name of its type."""

    path: str
    type: str

    @property
    def sql(self) -> str:
        """How SQL calls it."""
        return ".".join('"' + part.replace('"', '""') + '"' for part in self.path.split("\0"))

    @property
    def name(self) -> str:
        """How people call it: ``usage.prompt_tokens``."""
        return self.path.replace("\0", ".")

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.type.partition("(")[0] in _NUMBERS

    @property
    def is_date(self) -> bool:
        """Whether it holds dates or moments."""
        return self.type.startswith("TIMESTAMP") or self.type == "DATE"


@contextmanager
def _opened(source: Source) -> Iterator[str]:
    """A path by which DuckDB reads the file, whatever signs are in its name."""
    if source.packing:
        raise TraceError(
            f"{source.path}: a Parquet file within {source.packing}; unpack it and give the file"
        )
    try:
        number = os.open(source.path, os.O_RDONLY)
    except OSError as error:
        raise TraceError(f"{source.path}: cannot be opened: {error.strerror}") from None
    try:
        yield f"/dev/fd/{number}"
    finally:
        os.close(number)


def _unreadable(source: Source, error: Exception) -> TraceError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TraceError(f"{source.path}: not a readable Parquet file: {first[:200]}")


def _all(source: Source, query: str) -> list[tuple[Any, ...]]:
    return [row for rows in run_query(query, partial(_unreadable, source)) for row in rows]


def parquet_columns(source: Source) -> list[ParquetColumn]:
    """The columns, and behind them the fields of structs.

    Raises
    ------
    TraceError
        If it is not a readable Parquet file.
    """
    with _opened(source) as path:
        described = _all(source, f"SELECT column_name, column_type FROM (DESCRIBE FROM "
                                 f"read_parquet('{path}'))")  # fmt: skip
        found = [ParquetColumn(name, type_) for name, type_, *_ in described]
        for column in list(found):
            if column.type.startswith("STRUCT("):
                fields = _all(
                    source,
                    f"SELECT column_name, column_type FROM (DESCRIBE SELECT UNNEST({column.sql}) "
                    f"FROM read_parquet('{path}'))",
                )
                found += [ParquetColumn(f"{column.path}\0{name}", t) for name, t, *_ in fields]
    return found


def duration_ticks_per_s(source: Source, column: ParquetColumn) -> int | None:
    """The unit of an Arrow duration, which Parquet stores as whole numbers; None if it is none.

    Raises
    ------
    MissingExtraError
        If pyarrow, which can tell, is needed and not installed.
    """
    if column.type != "BIGINT":
        return None
    with _opened(source) as path:
        found = _all(
            source,
            f"SELECT value FROM parquet_kv_metadata('{path}') WHERE key = 'ARROW:schema'::BLOB",
        )
    if not found or b"\0" in column.path.encode():
        return None
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError(
            "pyarrow", "parquet", f"{source.path}: telling whole numbers from durations"
        ) from None
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(bytes(found[0][0]))))
        kind = schema.field(column.path).type
    except (pa.ArrowException, KeyError, ValueError):
        return None
    return TICKS_PER_S[kind.unit] if pa.types.is_duration(kind) else None


def read_parquet(source: Source, wanted: Sequence[tuple[ParquetColumn, Kind]]) -> Iterator[Rows]:
    """Columns of a Parquet file, some rows at a time.

    Raises
    ------
    TraceError
        If it is not a readable Parquet file, or a column's type cannot be what is wanted.
    """
    select: list[str] = []
    texts: list[str] = []
    for i, (column, kind) in enumerate(wanted):
        name = f"c{i}"
        texts.append(f"{column.sql} AS {name}")
        if kind == "text" or (kind == "stamp" and column.type.endswith("INT")):
            select.append(name)
        elif column.type == "VARCHAR":
            select.append(expression(name, kind, decimal_comma=False))
            if kind == "date":
                texts.append(date_parts_sql(column.sql, name))
        elif kind == "date" and column.is_date:
            select.append(f"epoch_ns({name})")
        elif kind in ("number", "count", "stamp") and column.is_number:
            select.append(f"CAST({name} AS DOUBLE)")
        else:
            raise TraceError(
                f"{source.path}, column {column.name!r}: values of type {column.type} are not "
                f"{'dates' if kind == 'date' else 'numbers'}"
            )
    columns = [column for column, _ in wanted]
    with _opened(source) as path:
        query = (
            f"SELECT {', '.join(select)} FROM "
            f"(SELECT {', '.join(texts)} FROM read_parquet('{path}'))"
        )
        yield from query_rows(
            query, [c.name for c in columns], partial(_locate, source, columns), source,
            partial(_unreadable, source),
        )  # fmt: skip


def _locate(
    source: Source, columns: Sequence[ParquetColumn], number: int, column: int
) -> tuple[str, str]:
    with _opened(source) as path:
        found = _all(
            source,
            f"SELECT {columns[column].sql} FROM read_parquet('{path}') LIMIT 1 OFFSET {number}",
        )
    value = found[0][0] if found else None
    return f"row {number + 1}", "nothing" if value is None else str(value)
