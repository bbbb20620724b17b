"""The records of an AIPerf run (``profile_export.jsonl``): one request a line."""

from __future__ import annotations

from typing import Any

from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json
from qsim.traces.reading.json_rows import first_object, lookup, objects
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

WHAT = "JSON lines of aiperf profile (profile_export.jsonl: metadata, metrics)"
TIME = "metadata.request_start_ns"
_PROMPT, _OUTPUT = "input_sequence_length", "output_sequence_length"


def recognise(source: Source) -> bool:
    """Whether the first line has AIPerf's metadata and metrics."""
    if not is_json(source):
        return False
    row = first_object(source)
    return lookup(row, TIME) is not None and "metrics" in row


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the requests of the profiling phase, in order of their start.

    Requests that failed or were cancelled are skipped and counted, as is the warm-up.
    """
    names = (TIME, f"metrics.{_PROMPT}", f"metrics.{_OUTPUT}")
    requests = Collector(source, "aiperf", names, ticks_per_s=10**9)
    for place, row in objects(source):
        reason = left_out(row)
        if reason is not None:
            requests.skip(reason)
        else:
            requests.add(place, lookup(row, TIME), prompt_tokens(row), output_tokens(row))
    return requests.build()


def left_out(row: dict[str, Any]) -> str | None:
    """Why a record is no request of the benchmark that was answered whole; None if it is one."""
    phase = lookup(row, "metadata.benchmark_phase")
    if phase not in (None, "profiling"):
        return f"{phase} phase"
    if row.get("error"):
        return "failed request"
    return "cancelled request" if lookup(row, "metadata.was_cancelled") else None


def metric(row: Any, name: str) -> Any:
    """The value of one of a record's metrics, without its unit; None where it is not told."""
    found = lookup(row, f"metrics.{name}")
    return found.get("value") if isinstance(found, dict) else found


def prompt_tokens(row: Any) -> Any:
    """Tokens of the prompt; None where they are not told."""
    return metric(row, _PROMPT)


def output_tokens(row: Any) -> Any:
    """All tokens that were generated, those of reasoning among them; None where not told."""
    whole = metric(row, _OUTPUT)
    if whole is not None:
        return whole
    parts = [metric(row, name) for name in ("output_token_count", "reasoning_token_count")]
    known = [p for p in parts if isinstance(p, int | float)]
    return sum(known) if known else None
