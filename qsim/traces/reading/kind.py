"""What kind of file a table is in, and what its columns are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qsim.traces.reading.json_rows import first_objects
from qsim.traces.reading.parquet import MAGIC, parquet_columns
from qsim.traces.reading.source import Source
from qsim.traces.reading.table import dialect_of

__all__ = ["has_columns", "is_json", "is_parquet", "names_of"]


def is_parquet(source: Source) -> bool:
    """Whether a file is Parquet."""
    return not source.is_dir and source.head.startswith(MAGIC)


def is_json(source: Source) -> bool:
    """Whether a file begins as JSON does."""
    return not source.is_dir and source.head.lstrip()[:1] in (b"{", b"[")


def names_of(source: Source) -> list[str]:
    """The columns of a file: its header, Parquet's schema, or the paths of the first object."""
    if source.is_dir:
        return []
    if "names" not in source.__dict__:  # asked by one format after the other
        source.__dict__["names"] = _names_of(source)
    return list(source.__dict__["names"])


def has_columns(source: Source, columns: Iterable[str]) -> bool:
    """Whether a table, CSV or Parquet, has all of these columns, in any case."""
    if source.is_dir or is_json(source):
        return False
    return {c.lower() for c in columns} <= {n.lower() for n in names_of(source)}


def _names_of(source: Source) -> list[str]:
    if is_parquet(source):
        return [column.name for column in parquet_columns(source)]
    if is_json(source):
        # a value may be missing in some of them
        return list(dict.fromkeys(p for row in first_objects(source) for p in _paths(row)))
    return list(dialect_of(source.head).names)


def _paths(row: Mapping[str, Any], before: str = "", depth: int = 4) -> Iterator[str]:
    for key, value in row.items():
        path = f"{before}{key}"
        yield path
        if isinstance(value, dict) and depth:
            yield from _paths(value, f"{path}.", depth - 1)
