"""Any table: CSV, Parquet or JSON objects with columns of known names, or named by --columns."""

from __future__ import annotations

from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Reading
from qsim.traces.reading.columns import find_columns
from qsim.traces.reading.kind import names_of
from qsim.traces.reading.mapped import read_mapped
from qsim.traces.reading.source import Source

__all__ = ["WHAT", "reading", "recognise"]

WHAT = (
    "CSV, Parquet, JSON lines or a JSON array with a time, prompt tokens and output tokens under "
    "usual names, or those that --columns gives"
)
_NEEDED = ("arrival", "prompt", "output")


def recognise(source: Source) -> bool:
    """Whether two of the three columns that are needed have usual names."""
    if source.is_dir:
        return False
    found = find_columns(names_of(source))
    return sum(role in found for role in _NEEDED) >= 2


def reading(source: Source, options: ReadOptions) -> Reading:
    """Read a table; rows without a prompt or output token are skipped and counted."""
    names = names_of(source)
    if not names:
        raise TraceError(
            f"{source.path}: no columns: it is neither CSV with a header, Parquet, nor JSON objects"
        )
    found = find_columns(names)
    # prefix ids and sessions of a table that names some columns are those that it names
    mapping = {**{k: v for k, v in found.items() if k in _NEEDED or not options.columns},
               **options.columns}  # fmt: skip
    return read_mapped(source, "table", mapping, sort=options.sort)
