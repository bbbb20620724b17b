"""qsim's own trace format: CSV or Parquet with ``arrival_s,prompt_tokens,output_tokens``.

``hash_ids`` (ids with blanks between them, or a JSON list) and ``hash_block_tokens`` (the prompt
tokens that an id stands for, the same in every row) may follow; other columns are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.errors import MissingExtraError, TraceError
from qsim.traces.build import TraceBuilder
from qsim.traces.formats.options import ReadOptions
from qsim.traces.source import Source
from qsim.traces.text import Rows, header_of, read_rows
from qsim.traces.trace import Trace

__all__ = ["DEFAULT_BLOCK_TOKENS", "WHAT", "columns_of", "read", "recognise"]

WHAT = "CSV or Parquet with arrival_s,prompt_tokens,output_tokens[,hash_ids,hash_block_tokens]"
#: What an id stands for where the file does not say: Mooncake's block.
DEFAULT_BLOCK_TOKENS = 512
_PARQUET_MAGIC = b"PAR1"


def recognise(source: Source) -> bool:
    """Whether the file is Parquet, or the first line names the columns."""
    if source.is_dir:
        return False
    if source.head.startswith(_PARQUET_MAGIC):
        return True
    names = set(header_of(source.head))
    return "arrival_s" in names and bool(names & {"prompt_tokens", "input_tokens"})


def columns_of(source: Source, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The positions of the wanted columns.

    Raises
    ------
    TraceError
        If one is missing.
    """
    missing = [name for name in wanted if name not in names]
    if missing:
        raise TraceError(
            f"{source.path}, line 1: no column {missing[0]!r}; the columns are {', '.join(names)}"
        )
    return [list(names).index(name) for name in wanted]


def read(source: Source, options: ReadOptions) -> Trace:
    """Read a canonical trace; lengths must be >= 1."""
    if source.head.startswith(_PARQUET_MAGIC):
        return _read_parquet(source, options)
    names = header_of(source.head)
    prompt_name = "input_tokens" if "prompt_tokens" not in names else "prompt_tokens"
    when, prompt, output = columns_of(source, names, ("arrival_s", prompt_name, "output_tokens"))
    hash_column = names.index("hash_ids") if "hash_ids" in names else None
    block_tokens = 0
    builder = TraceBuilder(source, "canonical", sort=options.sort)
    for rows in read_rows(source):
        arrival = rows.floats(when)
        prompt_tokens = _at_least_one(rows, prompt)
        output_tokens = _at_least_one(rows, output)
        builder.add(rows.line, arrival, prompt_tokens, output_tokens, column="arrival_s")
        if hash_column is not None:
            for row in range(len(rows)):
                builder.add_hash_ids(_ids(rows, row, hash_column))
            block_tokens = _block_tokens(rows, names, block_tokens)
    return builder.build(block_tokens=block_tokens)


def _at_least_one(rows: Rows, column: int) -> npt.NDArray[np.int64]:
    values = rows.ints(column, "a whole number >= 1")
    if (values < 1).any():
        row = int(np.argmax(values < 1))
        rows.fail(row, column, rows.text(row, column), "a whole number >= 1")
    return values


def _ids(rows: Rows, row: int, column: int) -> list[int]:
    text = rows.text(row, column)
    try:
        return [int(part) for part in text.strip("[] ").replace(",", " ").split()]
    except ValueError:
        rows.fail(row, column, text, "a list of whole numbers with blanks between them")


def _block_tokens(rows: Rows, names: Sequence[str], before: int) -> int:
    if "hash_block_tokens" not in names:
        return DEFAULT_BLOCK_TOKENS
    column = list(names).index("hash_block_tokens")
    values = _at_least_one(rows, column)
    expected = before or int(values[0])
    if (values != expected).any():
        row = int(np.argmax(values != expected))
        rows.fail(row, column, int(values[row]), f"{expected}, as in the rows above")
    return expected


def _read_parquet(source: Source, options: ReadOptions) -> Trace:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "reading a Parquet trace") from None
    try:
        with source.open() as stream:
            table = pq.read_table(stream)
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{source.path}: not a readable Parquet file: {error}") from None
    names = list(table.column_names)
    prompt_name = "input_tokens" if "prompt_tokens" not in names else "prompt_tokens"
    columns = ("arrival_s", prompt_name, "output_tokens")
    columns_of(source, names, columns)
    values: list[npt.NDArray[Any]] = []
    for name, kind in zip(columns, (np.float64, np.int64, np.int64), strict=True):
        column = table.column(name)
        if column.null_count:
            raise TraceError(
                f"{source.path}, column {name!r}: {column.null_count} values are missing"
            )
        try:
            values.append(np.asarray(column.to_numpy(), dtype=kind))
        except (ValueError, TypeError):
            raise TraceError(
                f"{source.path}, column {name!r}: values of type {column.type} are not numbers"
            ) from None
    arrival, prompt, output = values
    for name, lengths in zip(columns[1:], (prompt, output), strict=True):
        if (lengths < 1).any():
            row = int(np.argmax(lengths < 1))
            raise TraceError(
                f"{source.path}, row {row + 1}, column {name!r}: {int(lengths[row])} is not a "
                "whole number >= 1"
            )
    row_number = np.arange(1, len(arrival) + 1)
    builder = TraceBuilder(source, "canonical", sort=options.sort)
    builder.add(row_number, arrival, prompt, output, column="arrival_s", place="row")
    block_tokens = 0
    if "hash_ids" in names and len(arrival):
        ids = table.column("hash_ids").combine_chunks()
        block_tokens = DEFAULT_BLOCK_TOKENS
        if "hash_block_tokens" in names:
            block_tokens = int(table.column("hash_block_tokens")[0].as_py())
        for one in ids.to_pylist():
            builder.add_hash_ids(one or [])
    return builder.build(block_tokens=block_tokens)
