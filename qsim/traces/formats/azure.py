"""The Azure LLM inference traces of 2023, 2024 and 2025 (CSV with dates)."""

from __future__ import annotations

from collections.abc import Iterator

from qsim.traces.build import Reading, TraceBuilder, read_whole
from qsim.traces.formats import canonical
from qsim.traces.formats.options import ReadOptions
from qsim.traces.source import Source
from qsim.traces.text import header_of, read_rows
from qsim.traces.trace import Trace

__all__ = ["WHAT", "read", "reading", "recognise"]

WHAT = "CSV with TIMESTAMP,ContextTokens,GeneratedTokens (Azure LLM inference 2023, 2024, 2025)"
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def recognise(source: Source) -> bool:
    """Whether the first line names Azure's columns."""
    return not source.is_dir and set(_COLUMNS) <= set(header_of(source.head))


def read(source: Source, options: ReadOptions) -> Trace:
    """Read an Azure trace; times count from the first request, exact to 1 ns.

    The reduced form (``arrival_s,input_tokens,output_tokens``) is accepted too. A row without a
    prompt or output token is no request that an engine can serve; it is skipped and counted.
    """
    return read_whole(reading(source, options))


def reading(source: Source, options: ReadOptions) -> Reading:
    """The same, a block of the file at a time."""
    names = header_of(source.head)
    if "TIMESTAMP" not in names and "arrival_s" in names:
        return canonical.reading(source, options)
    when, context, generated = canonical.columns_of(source, names, _COLUMNS)
    builder = TraceBuilder(
        source, "azure", sort=options.sort, absolute=True, ticks_per_s=1_000_000_000
    )
    return builder, _steps(source, builder, when, context, generated)


def _steps(
    source: Source, builder: TraceBuilder, when: int, context: int, generated: int
) -> Iterator[None]:
    for rows in read_rows(source):
        times = rows.times_ns(when)
        prompt, output = rows.ints(context), rows.ints(generated)
        keep = (prompt > 0) & (output > 0)
        if not keep.all():
            builder.skip("no prompt token", int((prompt <= 0).sum()))
            builder.skip("no output token", int(((output <= 0) & (prompt > 0)).sum()))
            times, prompt, output = times[keep], prompt[keep], output[keep]
        builder.add(rows.line[keep], times, prompt, output, column="TIMESTAMP")
        yield
