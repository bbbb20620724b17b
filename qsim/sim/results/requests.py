"""The file of requests: one row a request, as CSV or Parquet, whole or part by part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import BoolArray, IntArray
from qsim.errors import MissingExtraError, ScenarioError
from qsim.files import atomic_path

#: the file's columns, in order; times from arrival
COLUMNS = (
    "request_id",
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "replica",
    "cached_tokens",
    "ttft_ms",
    "tpot_ms",
    "e2el_ms",
    "preemptions",
)
#: rows that are laid out at a time, which bounds the memory
_ROWS = 1 << 14
_DIGITS = 9  # behind the point: times are whole ps, so that of a ms they lose nothing

Columns = Mapping[str, npt.NDArray[Any]]
ByteArray = npt.NDArray[np.uint8]


#: takes the columns of the next requests, in order of arrival, and writes a row for each
RowWriter = Callable[[Columns], None]


@contextmanager
def request_writer(path: str | os.PathLike[str]) -> Iterator[RowWriter]:
    """A writer of rows to ``path``: .csv, .csv.gz or .parquet; whole or not at all.

    Raises
    ------
    ScenarioError
        If the ending is none of these.
    MissingExtraError
        For Parquet, if pyarrow is not installed.
    """
    target = Path(path)
    if target.suffix == ".parquet":
        with _parquet_writer(target) as write:
            yield write
        return
    if not target.name.endswith((".csv", ".csv.gz")):
        raise ScenarioError(
            f"requests file is {str(target)!r}; must end in .csv, .csv.gz or .parquet"
        )
    with atomic_path(target) as temporary, temporary.open("wb") as raw:
        stream: Any = raw
        if target.suffix == ".gz":
            import gzip

            # no name and no date in the header: the same run gives the same bytes
            stream = gzip.GzipFile("", "wb", 6, raw, mtime=0)
        stream.write((",".join(COLUMNS) + "\n").encode())

        def write_csv(columns: Columns) -> None:
            for start in range(0, len(columns["request_id"]), _ROWS):
                part = slice(start, start + _ROWS)
                stream.write(csv_rows([columns[n][part] for n in COLUMNS]))

        yield write_csv
        if stream is not raw:
            stream.close()


@contextmanager
def _parquet_writer(target: Path) -> Iterator[RowWriter]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as e:
        raise MissingExtraError("pyarrow", "parquet", "writing Parquet") from e
    writer: Any = None
    with atomic_path(target) as temporary:

        def write(columns: Columns) -> None:
            nonlocal writer
            table = pa.table({n: columns[n] for n in COLUMNS})
            if writer is None:
                writer = pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)

        try:
            yield write
        finally:
            if writer is not None:
                writer.close()


# ------------------------------------------------------------------ numbers as text, all at once


def csv_rows(columns: list[npt.NDArray[Any]]) -> bytes:
    """Rows of CSV: whole numbers, and decimals of up to nine digits with no zeros at the end.

    The bytes are those of ``str(int)`` and ``f"{x:.9f}"``; nan is an empty field.
    """
    n = len(columns[0])
    if not n:
        return b""
    fields: list[ByteArray] = []
    shown: list[BoolArray] = []
    separator = np.full((n, 1), ord(","), np.uint8)
    always = np.ones((n, 1), np.bool_)
    for column in columns:
        texts, mask = _decimals(column) if column.dtype.kind == "f" else _wholes(column)
        fields += [texts, separator]
        shown += [mask, always]
    fields[-1] = np.full((n, 1), ord("\n"), np.uint8)
    # the tables are by column; laid out by row once
    return np.concatenate(fields, axis=1)[np.concatenate(shown, axis=1)].tobytes()


def _wholes(values: npt.NDArray[Any]) -> tuple[ByteArray, BoolArray]:
    """Text, right-aligned, and which bytes of it are shown."""
    values = values.astype(np.int64, copy=False)
    size = np.abs(values)
    texts, mask = _digits(size, len(str(int(size.max()))))
    if (values < 0).any():
        sign = np.full((len(values), 1), ord("-"), np.uint8)
        texts = np.concatenate([sign, texts], axis=1)
        mask = np.concatenate([(values < 0)[:, None], mask], axis=1)
    return texts, mask


def _digits(values: IntArray, width: int) -> tuple[ByteArray, BoolArray]:
    """The decimal digits of whole numbers >= 0, and which of them are no leading zeros."""
    texts = np.empty((width, len(values)), np.uint8)  # by column: each is written in one go
    mask = np.empty((width, len(values)), np.bool_)
    rest = values.astype(np.uint32) if width <= 9 else values
    for k in range(width - 1, -1, -1):
        np.not_equal(rest, 0, out=mask[k])
        tenth = rest // 10
        np.subtract(rest, tenth * 10, out=texts[k], casting="unsafe")
        rest = tenth
    texts += ord("0")
    mask[-1] = True
    return texts.T, mask.T


def _decimals(values: npt.NDArray[Any]) -> tuple[ByteArray, BoolArray]:
    empty = np.isnan(values)
    scaled = np.where(empty, 0.0, values * 10.0**_DIGITS)
    if np.signbit(scaled).any() or (scaled >= 2.0**52).any():
        return _one_by_one(values)
    units = np.rint(scaled).astype(np.int64)
    # next to a tie the rounded product does not tell to which side the double is
    tie = np.abs(scaled - np.floor(scaled) - 0.5) <= scaled * 2.0**-52
    for i in np.flatnonzero(tie):
        units[i] = int(f"{values[i]:.{_DIGITS}f}".replace(".", ""))
    whole = units // 10**_DIGITS
    part = units - whole * 10**_DIGITS
    left, left_mask = _digits(whole, len(str(int(whole.max()))))
    right, _ = _digits(part, _DIGITS)
    # a digit behind the point is shown if it or one after it is not 0
    right_mask = np.empty((_DIGITS, len(values)), np.bool_)
    seen = np.zeros(len(values), np.bool_)
    for k in range(_DIGITS - 1, -1, -1):
        seen |= right[:, k] != ord("0")
        right_mask[k] = seen
    point = np.full((len(values), 1), ord("."), np.uint8)
    texts = np.concatenate([left, point, right], axis=1)
    mask = np.concatenate([left_mask, seen[:, None], right_mask.T], axis=1)
    if empty.any():
        mask[empty] = False
    return texts, mask


def _one_by_one(values: npt.NDArray[Any]) -> tuple[ByteArray, BoolArray]:
    texts = [
        b"" if v != v else f"{v:.{_DIGITS}f}".rstrip("0").rstrip(".").encode()
        for v in values.tolist()
    ]
    width = max(1, max(map(len, texts)))
    table = np.array(texts, f"S{width}").view(np.uint8).reshape(len(texts), width)
    return table, table != 0
