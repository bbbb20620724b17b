"""The Azure LLM inference traces of 2023, 2024 and 2025 (CSV or Parquet with dates)."""

from __future__ import annotations

from qsim.traces.formats import canonical
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Reading
from qsim.traces.reading.columns import Column
from qsim.traces.reading.kind import has_columns, names_of
from qsim.traces.reading.mapped import read_mapped
from qsim.traces.reading.source import Source

__all__ = ["WHAT", "reading", "recognise"]

WHAT = "CSV with TIMESTAMP,ContextTokens,GeneratedTokens (Azure LLM inference 2023, 2024, 2025)"
_COLUMNS = {
    "arrival": Column("TIMESTAMP"),
    "prompt": Column("ContextTokens"),
    "output": Column("GeneratedTokens"),
}


def recognise(source: Source) -> bool:
    """Whether Azure's columns are there."""
    return has_columns(source, (column.name for column in _COLUMNS.values()))


def reading(source: Source, options: ReadOptions) -> Reading:
    """Read an Azure trace; times count from the first request, exact to 1 ns.

    The reduced form (``arrival_s,input_tokens,output_tokens``) is accepted too. A row without a
    prompt or output token is no request that an engine can serve; it is skipped and counted.
    """
    names = {name.lower() for name in names_of(source)}
    if "timestamp" not in names and "arrival_s" in names:
        return canonical.reading(source, options)
    return read_mapped(source, "azure", _COLUMNS, sort=options.sort, absolute=True)
