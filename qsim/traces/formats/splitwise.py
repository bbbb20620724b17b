"""The traces of splitwise-sim (CSV), as its request generator writes them."""

from __future__ import annotations

from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Reading, read_whole
from qsim.traces.reading.columns import Column
from qsim.traces.reading.kind import has_columns
from qsim.traces.reading.mapped import read_mapped
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

__all__ = ["WHAT", "read", "reading", "recognise"]

WHAT = "CSV with request_id,...,arrival_timestamp,batch_size,prompt_size,token_size (splitwise-sim)"
_COLUMNS = {
    "arrival": Column("arrival_timestamp", "s"),
    "prompt": Column("prompt_size"),
    "output": Column("token_size"),
}


def recognise(source: Source) -> bool:
    """Whether splitwise-sim's columns are there."""
    return has_columns(source, (column.name for column in _COLUMNS.values()))


def read(source: Source, options: ReadOptions) -> Trace:
    """Read a trace; times are seconds."""
    return read_whole(reading(source, options))


def reading(source: Source, options: ReadOptions) -> Reading:
    """The same, some rows at a time."""
    return read_mapped(source, "splitwise", _COLUMNS, sort=options.sort)
