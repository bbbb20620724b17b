"""CSV: of others, read with bounds (line, cell, rows, what gzip may unpack to), and our own."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qsim.bounds import shown
from qsim.errors import QsimError

__all__ = ["csv_lines", "rows_csv"]

#: longest line, bytes; the csv module itself refuses a cell of more than 131,072 characters
MAX_LINE = 1 << 20
#: most that one file may unpack to, bytes
MAX_BYTES = 2 << 30
MAX_ROWS = 1_000_000


def csv_lines(
    path: str | os.PathLike[str], error: type[QsimError], *, most_rows: int = MAX_ROWS
) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, gzip or not, with the number of each one's last line.

    Parameters
    ----------
    path : str or path
    error : type
        Class of the error.
    most_rows : int

    Raises
    ------
    QsimError
        (of the class ``error``) if the file cannot be read, is no CSV in UTF-8, or has a line
        longer than 1 MiB, a cell longer than 131,072 characters, more than ``most_rows`` rows or
        more than 2 GiB.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b" or name.endswith(".gz")
            stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            reader = csv.reader(_lines(stream, name, error))
            for count, cells in enumerate(reader):
                if count > most_rows:
                    raise error(f"{name}: has more than {most_rows} rows")
                yield reader.line_num, cells
    except FileNotFoundError:
        raise error(f"cannot read {name}: no such file") from None
    except UnicodeDecodeError as e:
        raise error(f"{name}: is not UTF-8 ({e.reason})") from None
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as e:
        reason = getattr(e, "strerror", None) or e
        raise error(f"cannot read {name}: {shown(str(reason), 200)[1:-1]}") from None


def _lines(stream: Any, name: str, error: type[QsimError]) -> Iterator[str]:
    total = number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        total += len(line)
        if len(line) > MAX_LINE:
            raise error(f"{name}: line {number} is longer than {MAX_LINE >> 20} MiB")
        if total > MAX_BYTES:
            raise error(f"{name}: unpacks to more than {MAX_BYTES >> 30} GiB")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def rows_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a column a name; empty where there is no value."""
    out = io.StringIO()
    names = list(dict.fromkeys(n for row in rows for n in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
