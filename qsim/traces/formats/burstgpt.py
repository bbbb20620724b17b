"""The BurstGPT traces (CSV), version 1 and the later ones with sessions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qsim.traces.build import Reading, TraceBuilder, read_whole
from qsim.traces.formats.canonical import columns_of
from qsim.traces.formats.options import ReadOptions
from qsim.traces.source import Source
from qsim.traces.text import header_of, read_rows
from qsim.traces.trace import Trace

__all__ = ["PARAMS", "WHAT", "read", "reading", "recognise"]

WHAT = "CSV with Timestamp,Model,Request tokens,Response tokens,... (BurstGPT)"
PARAMS = {
    "model": "keep the rows of this model (ChatGPT or GPT-4)",
    "log": "keep the rows of this kind (api or conversation)",
}
_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
FAILED = "failed request: response of 0 tokens"


def recognise(source: Source) -> bool:
    """Whether the first line names BurstGPT's columns."""
    return not source.is_dir and set(_COLUMNS) <= set(header_of(source.head))


def read(source: Source, options: ReadOptions) -> Trace:
    """Read a BurstGPT trace; times count from the first request that is kept.

    A response of 0 tokens is a failure: the row is skipped and counted.
    """
    return read_whole(reading(source, options))


def reading(source: Source, options: ReadOptions) -> Reading:
    """The same, a block of the file at a time."""
    names = header_of(source.head)
    when, request, response = columns_of(source, names, _COLUMNS)
    filters = []
    for key, column_name in (("model", "Model"), ("log", "Log Type")):
        if key in options.params:
            (column,) = columns_of(source, names, (column_name,))
            filters.append((key, column, options.params[key].lower()))
    seen: dict[str, set[str]] = {key: set() for key, _, _ in filters}
    builder = TraceBuilder(source, "burstgpt", sort=options.sort, absolute=True, guess_unit=True)
    builder.hint = lambda: "; ".join(f"{key} is one of {sorted(seen[key])}" for key in seen)
    columns = when, request, response
    return builder, _steps(source, options, builder, columns, filters, seen)


def _steps(
    source: Source,
    options: ReadOptions,
    builder: TraceBuilder,
    columns: tuple[int, int, int],
    filters: list[tuple[str, int, str]],
    seen: dict[str, set[str]],
) -> Iterator[None]:
    when, request, response = columns
    for all_rows in read_rows(source):
        rows = all_rows
        for key, column, wanted in filters:
            texts = rows.texts(column)
            seen[key].update(texts[:1000])
            keep = [i for i, text in enumerate(texts) if text.lower().startswith(wanted)]
            builder.skip(f"not {key}={options.params[key]}", len(texts) - len(keep))
            rows = rows.take(np.array(keep, np.int64))
        times, prompt, output = rows.floats(when), rows.ints(request), rows.ints(response)
        failed, empty = output <= 0, (prompt <= 0) & (output > 0)
        builder.skip(FAILED, int(failed.sum()))
        builder.skip("no prompt token", int(empty.sum()))
        kept = ~(failed | empty)
        builder.add(rows.line[kept], times[kept], prompt[kept], output[kept], column="Timestamp")
        yield
