"""qsim's own trace format: CSV or Parquet with ``arrival_s,prompt_tokens,output_tokens``.

``hash_ids`` (ids with blanks between them, or a JSON list) and ``hash_block_tokens`` (the prompt
tokens that an id stands for, the same in every row) may follow; other columns are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.errors import MissingExtraError, TraceError
from qsim.traces.build import Reading, TraceBuilder, read_whole
from qsim.traces.formats.options import ReadOptions
from qsim.traces.source import Source
from qsim.traces.text import Rows, header_of, read_rows
from qsim.traces.trace import Trace

__all__ = ["DEFAULT_BLOCK_TOKENS", "WHAT", "columns_of", "read", "reading", "recognise"]

WHAT = "CSV or Parquet with arrival_s,prompt_tokens,output_tokens[,hash_ids,hash_block_tokens]"
#: What an id stands for where the file does not say: Mooncake's block.
DEFAULT_BLOCK_TOKENS = 512
_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 1 << 16


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
    return read_whole(reading(source, options))


def reading(source: Source, options: ReadOptions) -> Reading:
    """The same, a block of the file at a time."""
    builder = TraceBuilder(source, "canonical", sort=options.sort, guess_unit=True)
    if source.head.startswith(_PARQUET_MAGIC):
        return builder, _parquet_steps(source, builder)
    return builder, _steps(source, builder)


def _steps(source: Source, builder: TraceBuilder) -> Iterator[None]:
    names = header_of(source.head)
    prompt_name = "input_tokens" if "prompt_tokens" not in names else "prompt_tokens"
    when, prompt, output = columns_of(source, names, ("arrival_s", prompt_name, "output_tokens"))
    hash_column = names.index("hash_ids") if "hash_ids" in names else None
    for rows in read_rows(source):
        arrival = rows.floats(when)
        prompt_tokens = _at_least_one(rows, prompt)
        output_tokens = _at_least_one(rows, output)
        builder.add(rows.line, arrival, prompt_tokens, output_tokens, column="arrival_s")
        if hash_column is not None:
            for row in range(len(rows)):
                builder.add_hash_ids(_ids(rows, row, hash_column))
            builder.block_tokens = _block_tokens(rows, names, builder.block_tokens)
        yield


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


def _parquet_steps(source: Source, builder: TraceBuilder) -> Iterator[None]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "reading a Parquet trace") from None
    try:
        with source.open() as stream:
            file = pq.ParquetFile(stream)
            names = list(file.schema_arrow.names)
            prompt_name = "input_tokens" if "prompt_tokens" not in names else "prompt_tokens"
            columns = ("arrival_s", prompt_name, "output_tokens")
            columns_of(source, names, columns)
            ids = [n for n in ("hash_ids", "hash_block_tokens") if n in names]
            before = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=[*columns, *ids]):
                _add_batch(source, builder, batch, columns, before)
                before += batch.num_rows
                yield
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{source.path}: not a readable Parquet file: {error}") from None


def _add_batch(
    source: Source, builder: TraceBuilder, batch: Any, columns: tuple[str, str, str], before: int
) -> None:
    """Add the rows of a batch, ``before`` rows into the file."""
    if not batch.num_rows:
        return
    values: list[npt.NDArray[Any]] = []
    for name, kind in zip(columns, (np.float64, np.int64, np.int64), strict=True):
        column = batch.column(name)
        if column.null_count:
            raise TraceError(
                f"{source.path}, column {name!r}: {column.null_count} values are missing"
            )
        try:
            values.append(np.asarray(column.to_numpy(zero_copy_only=False), dtype=kind))
        except (ValueError, TypeError):
            raise TraceError(
                f"{source.path}, column {name!r}: values of type {column.type} are not numbers"
            ) from None
    arrival, prompt, output = values
    for name, lengths in zip(columns[1:], (prompt, output), strict=True):
        if (lengths < 1).any():
            row = int(np.argmax(lengths < 1))
            raise TraceError(
                f"{source.path}, row {before + row + 1}, column {name!r}: {int(lengths[row])} is "
                "not a whole number >= 1"
            )
    number = np.arange(before + 1, before + 1 + len(arrival))
    builder.add(number, arrival, prompt, output, column="arrival_s", place="row")
    if "hash_ids" in batch.schema.names:
        builder.block_tokens = DEFAULT_BLOCK_TOKENS
        if "hash_block_tokens" in batch.schema.names:
            builder.block_tokens = int(batch.column("hash_block_tokens")[0].as_py())
        for one in batch.column("hash_ids").to_pylist():
            builder.add_hash_ids(one or [])
