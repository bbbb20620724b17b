"""The BurstGPT traces (CSV), version 1 and the later ones with sessions."""

from __future__ import annotations

from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Reading
from qsim.traces.reading.columns import Column
from qsim.traces.reading.kind import has_columns
from qsim.traces.reading.mapped import read_mapped
from qsim.traces.reading.source import Source

__all__ = ["PARAMS", "WHAT", "reading", "recognise"]

WHAT = "CSV with Timestamp,Model,Request tokens,Response tokens,... (BurstGPT)"
PARAMS = {
    "model": "keep the rows of this model (ChatGPT or GPT-4)",
    "log": "keep the rows of this kind (api or conversation)",
}
_COLUMNS = {
    "arrival": Column("Timestamp", "s"),
    "prompt": Column("Request tokens"),
    "output": Column("Response tokens"),
}
_FILTERS = (("model", "Model"), ("log", "Log Type"))
FAILED = "failed request: response of 0 tokens"


def recognise(source: Source) -> bool:
    """Whether BurstGPT's columns are there."""
    return has_columns(source, (column.name for column in _COLUMNS.values()))


def reading(source: Source, options: ReadOptions) -> Reading:
    """Read a BurstGPT trace; times count from the first request that is kept.

    A response of 0 tokens is a failure: the row is skipped and counted.
    """
    params = options.params
    filters = [
        (column, params[key].lower(), f"{key}={params[key]}")
        for key, column in _FILTERS
        if key in params
    ]
    return read_mapped(
        source,
        "burstgpt",
        _COLUMNS,
        sort=options.sort,
        absolute=True,
        zero=FAILED,
        filters=filters,
    )
