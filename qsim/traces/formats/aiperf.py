"""The records of an AIPerf run (``profile_export.jsonl``): one request a line."""

from __future__ import annotations

from typing import Any

from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.collect import Collector
from qsim.traces.reading.json_rows import first_object, lookup, objects
from qsim.traces.reading.mapped import is_json
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

__all__ = ["WHAT", "read", "recognise"]

WHAT = "JSON lines of aiperf profile (profile_export.jsonl: metadata, metrics)"
_TIME = "metadata.request_start_ns"
_PROMPT = "metrics.input_sequence_length"
_OUTPUT = "metrics.output_sequence_length"


def recognise(source: Source) -> bool:
    """Whether the first line has AIPerf's metadata and metrics."""
    if not is_json(source):
        return False
    row = first_object(source)
    return lookup(row, _TIME) is not None and "metrics" in row


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the requests of the profiling phase, in order of their start.

    Requests that failed or were cancelled are skipped and counted, as is the warm-up.
    """
    requests = Collector(source, "aiperf", (_TIME, _PROMPT, _OUTPUT), ticks_per_s=10**9)
    for place, row in objects(source):
        phase = lookup(row, "metadata.benchmark_phase")
        if phase not in (None, "profiling"):
            requests.skip(f"{phase} phase")
        elif row.get("error"):
            requests.skip("failed request")
        elif lookup(row, "metadata.was_cancelled"):
            requests.skip("cancelled request")
        else:
            requests.add(place, lookup(row, _TIME), _value(row, _PROMPT), _output(row))
    return requests.build()


def _value(row: Any, path: str) -> Any:
    found = lookup(row, path)
    return found.get("value") if isinstance(found, dict) else found


def _output(row: Any) -> Any:
    """All tokens that were generated, those of reasoning among them."""
    whole = _value(row, _OUTPUT)
    if whole is not None:
        return whole
    parts = [_value(row, f"metrics.{k}") for k in ("output_token_count", "reasoning_token_count")]
    known = [p for p in parts if isinstance(p, int | float)]
    return sum(known) if known else None
