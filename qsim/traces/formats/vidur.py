"""Vidur's processed traces (CSV), as its trace-replay request generator reads them."""

from __future__ import annotations

from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Reading, read_whole
from qsim.traces.reading.columns import Column
from qsim.traces.reading.kind import has_columns
from qsim.traces.reading.mapped import read_mapped
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

__all__ = ["WHAT", "read", "reading", "recognise"]

WHAT = "CSV with arrived_at,num_prefill_tokens,num_decode_tokens (Vidur)"
_COLUMNS = {
    "arrival": Column("arrived_at", "s"),
    "prompt": Column("num_prefill_tokens"),
    "output": Column("num_decode_tokens"),
}


def recognise(source: Source) -> bool:
    """Whether Vidur's columns are there."""
    return has_columns(source, (column.name for column in _COLUMNS.values()))


def read(source: Source, options: ReadOptions) -> Trace:
    """Read a processed trace; times are seconds."""
    return read_whole(reading(source, options))


def reading(source: Source, options: ReadOptions) -> Reading:
    """The same, some rows at a time."""
    return read_mapped(source, "vidur", _COLUMNS, sort=options.sort)
