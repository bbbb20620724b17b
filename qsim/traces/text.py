"""Delimited text as columns of numbers, parsed with numpy a block of lines at a time.

A field that has the plain form (digits, digits with a point, an ISO time) is converted for all
rows at once; the others go through Python's own conversion one by one, so the result is always
what ``int``, ``float`` and exact decimal arithmetic would give.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from qsim.errors import TraceError
from qsim.traces.numbers import decimals, digits, parse_time_ns, times_ns
from qsim.traces.source import Source

__all__ = ["Rows", "header_of", "read_rows"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_PAD = 40  # bytes after the block, so that a look past the last field stays inside the buffer
_SEPARATOR = 0x1F  # stands for the commas of a block that has quoted fields


def header_of(head: bytes) -> list[str]:
    """The names in the first line of ``head``, stripped of blanks and quotes."""
    line = head.split(b"\n", 1)[0].decode("utf-8", "replace").strip("\r\n ")
    return [name.strip().strip('"').strip() for name in line.split(",")]


def read_rows(source: Source, *, header: bool = True) -> Iterator[Rows]:
    """The rows of a comma-separated file, a block at a time.

    Parameters
    ----------
    source : Source
        The file.
    header : bool
        Whether the first line holds the column names; otherwise they are ``"1"``, ``"2"``, ...

    Raises
    ------
    TraceError
        Naming the line if a row has a wrong number of fields.
    """
    names: list[str] | None = None
    line = 1
    for block in source.blocks():
        first_line = line
        line += block.count(b"\n")
        if names is None:
            names = header_of(block)
            if header:
                _, _, block = block.partition(b"\n")
                first_line += 1
            else:
                names = [str(i + 1) for i in range(len(names))]
        rows = _split(block, names, first_line, source)
        if len(rows):
            yield rows


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one block: where every field starts and ends.

    Attributes
    ----------
    buf : uint8 array
        The text, padded.
    starts, ends : int64 arrays, shape (rows, columns)
        Field ``c`` of row ``r`` is ``buf[starts[r, c]:ends[r, c]]``.
    line : int64 array, shape (rows,)
        Line numbers in the file, from 1.
    """

    buf: npt.NDArray[np.uint8]
    starts: IntArray
    ends: IntArray
    line: IntArray
    names: list[str]
    source: Source

    def __len__(self) -> int:
        return len(self.line)

    def take(self, index: IntArray | BoolArray) -> Rows:
        """Some of the rows."""
        return Rows(
            self.buf,
            self.starts[index],
            self.ends[index],
            self.line[index],
            self.names,
            self.source,
        )

    def text(self, row: int, column: int) -> str:
        """One field as it stands."""
        field = self.buf[self.starts[row, column] : self.ends[row, column]]
        return field.tobytes().decode("utf-8", "replace")

    def texts(self, column: int) -> list[str]:
        """One column as it stands."""
        return [self.text(row, column) for row in range(len(self))]

    def fail(self, row: int, column: int, value: object, expected: str) -> NoReturn:
        """Raise a TraceError that names file, line, column and value."""
        raise TraceError(
            f"{self.source.path}, line {int(self.line[row])}, column {self.names[column]!r}: "
            f"{value!r} is not {expected}"
        )

    def ints(self, column: int, what: str = "a whole number >= 0") -> IntArray:
        """One column of whole numbers."""
        start, width = self.starts[:, column], self.ends[:, column] - self.starts[:, column]
        value, plain = digits(self.buf, start, width, 18)
        for row in np.flatnonzero(~plain):
            text = self.text(int(row), column)
            try:
                number = float(text)
                if number != int(number) or not 0 <= number < 2**53 or "_" in text:
                    raise ValueError
            except (ValueError, OverflowError):
                self.fail(int(row), column, text, what)
            value[row] = int(number)
        return value

    def floats(self, column: int, what: str = "a finite number") -> FloatArray:
        """One column of decimal numbers, each the nearest float64."""
        start, width = self.starts[:, column], self.ends[:, column] - self.starts[:, column]
        value, plain = decimals(self.buf, start, width)
        rest = np.flatnonzero(~plain)
        if len(rest):
            value[rest] = self._long_floats(rest, column, what)
        return value

    def _long_floats(self, rows: IntArray, column: int, what: str) -> list[float]:
        raw = self.buf.tobytes()
        bounds = zip(
            self.starts[rows, column].tolist(), self.ends[rows, column].tolist(), strict=True
        )
        texts = [raw[a:b] for a, b in bounds]
        try:
            values = list(map(float, texts))
        except ValueError:
            values = [_float_or_nan(text) for text in texts]
        for row, text, value in zip(rows.tolist(), texts, values, strict=True):
            if not math.isfinite(value) or b"_" in text:
                self.fail(row, column, self.text(row, column), what)
        return values

    def times_ns(self, column: int) -> IntArray:
        """One column of dates with times, as nanoseconds from 1970-01-01 UTC.

        ``YYYY-MM-DD``, a blank or ``T``, ``HH:MM:SS``, a fraction of up to 9 digits if any, and
        ``Z`` or ``+HH:MM`` if any (UTC otherwise).
        """
        start, width = self.starts[:, column], self.ends[:, column] - self.starts[:, column]
        value, plain = times_ns(self.buf, start, width)
        for row in np.flatnonzero(~plain):
            text = self.text(int(row), column)
            parsed = parse_time_ns(text)
            if parsed is None:
                self.fail(
                    int(row), column, text, "a date and time like 2023-11-16 18:17:03.9799600"
                )
            value[row] = parsed
        return value


def _float_or_nan(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _split(block: bytes, names: Sequence[str], first_line: int, source: Source) -> Rows:
    separator = ord(",")
    if b'"' in block:
        block, separator = _unquote(block), _SEPARATOR
    if not block.endswith(b"\n"):
        block += b"\n"
    buf = np.frombuffer(block + b"\0" * _PAD, dtype=np.uint8)
    newline = np.flatnonzero(buf == ord("\n"))
    starts = np.concatenate([[0], newline[:-1] + 1])
    ends = newline - (buf[np.maximum(newline - 1, 0)] == ord("\r"))
    ends = np.maximum(ends, starts)
    line = first_line + np.arange(len(starts))
    full = ends > starts
    starts, ends, line = starts[full], ends[full], line[full]
    commas = np.flatnonzero(buf == separator)
    if not _well_placed(commas, starts, ends, len(names) - 1):
        counts = np.searchsorted(commas, ends) - np.searchsorted(commas, starts)
        wrong = counts != len(names) - 1
        row = int(np.argmax(wrong))
        text = bytes(block[starts[row] : ends[row]]).replace(b"\x1f", b",")
        shown = text[:120].decode("utf-8", "replace")
        raise TraceError(
            f"{source.path}, line {int(line[row])}: {int(counts[row]) + 1} fields, must be "
            f"{len(names)} ({', '.join(names)}); the line is {shown!r}"
        )
    inner = commas.reshape(len(starts), len(names) - 1)
    return Rows(
        buf,
        np.column_stack([starts, inner + 1]).astype(np.int64),
        np.column_stack([inner, ends]).astype(np.int64),
        line.astype(np.int64),
        list(names),
        source,
    )


def _well_placed(commas: IntArray, starts: IntArray, ends: IntArray, each: int) -> bool:
    """Whether every line has ``each`` of the commas."""
    if len(commas) != each * len(starts):
        return False
    if not each or not len(starts):
        return True
    inner = commas.reshape(len(starts), each)
    return bool((inner[:, 0] >= starts).all() and (inner[:, -1] < ends).all())


def _unquote(block: bytes) -> bytes:
    # A quoted field may hold commas; the csv module knows the rules. One output line for each
    # input line keeps the line numbers right.
    lines = block.decode("utf-8", "replace").splitlines()
    rows = ("\x1f".join(next(csv.reader([line]), [])) for line in lines)
    return "\n".join(rows).encode()
