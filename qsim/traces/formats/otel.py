"""Spans of OpenTelemetry with the GenAI conventions: OTLP as JSON, and one span a line.

OTLP's JSON is what the collector's file exporter writes (an export a line) and what OTLP/HTTP
carries; a span a line, with plain attributes, is what SDKs' console exporters write. vLLM's own
spans use the older names of the attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json
from qsim.traces.reading.json_rows import first_objects, objects
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

WHAT = "OpenTelemetry GenAI spans (JSON: OTLP, or a span a line) with gen_ai.usage.* tokens"
#: the present names of the attributes, and those before version 1.27 of the conventions
_PROMPT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens",
           "llm.token_count.prompt")  # fmt: skip
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens",
           "llm.usage.completion_tokens", "llm.token_count.completion")  # fmt: skip
#: spans around calls of a model: their tokens are the sums of those
_AROUND = ("invoke_agent", "create_agent", "execute_tool", "invoke_workflow", "embeddings")
_START = "startTimeUnixNano"


def recognise(source: Source) -> bool:
    """Whether it is an export of spans, or one of the first is a span with GenAI attributes."""
    if not is_json(source):
        return False
    for row in first_objects(source):
        if "resourceSpans" in row or "resource_spans" in row:
            return True
        attributes = row.get("attributes")
        if isinstance(attributes, dict) and any(k in attributes for k in (*_PROMPT, *_OUTPUT)):
            return True
    return False


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the spans of calls in order of their start; others are skipped and counted."""
    requests = Collector(source, "otel", (_START, _PROMPT[0], _OUTPUT[0]), ticks_per_s=10**9)
    for place, start, attributes in _spans(source):
        prompt, output = (_first(attributes, names) for names in (_PROMPT, _OUTPUT))
        if attributes.get("gen_ai.operation.name") in _AROUND:
            requests.skip("span around calls, or no generation")
        elif prompt is None:
            requests.skip("span without tokens")
        else:
            requests.add(place, start, prompt, 0 if output is None else output)
    return requests.build()


def _first(attributes: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((attributes[n] for n in names if attributes.get(n) is not None), None)


def _spans(source: Source) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Place, start and attributes of every span."""
    for place, row in objects(source):
        exports = row.get("resourceSpans", row.get("resource_spans"))
        if exports is None:
            attributes = row.get("attributes")
            start = row.get("start_time", row.get("startTime", row.get(_START)))
            yield place, _nanoseconds(start), attributes if isinstance(attributes, dict) else {}
            continue
        number = 0
        for scope in _each(exports, "scopeSpans", "scope_spans", "instrumentationLibrarySpans"):
            for span in _each([scope], "spans"):
                number += 1
                start = span.get(_START, span.get("start_time_unix_nano"))
                found = {
                    a["key"]: _value(a.get("value"))
                    for a in _each([span], "attributes")
                    if isinstance(a.get("key"), str)
                }
                yield f"{place}, span {number}", _nanoseconds(start), found


def _each(rows: Any, *names: str) -> Iterator[dict[str, Any]]:
    """The objects in the lists of any of these names."""
    for row in rows if isinstance(rows, list) else []:
        for name in names:
            found = row.get(name) if isinstance(row, dict) else None
            if isinstance(found, list):
                yield from (one for one in found if isinstance(one, dict))


def _value(value: Any) -> Any:
    """The value of an attribute: OTLP writes 64-bit numbers as texts."""
    if not isinstance(value, dict):
        return value
    if "intValue" in value or "int_value" in value:
        text: Any = value.get("intValue", value.get("int_value"))
        try:
            return int(text)
        except (TypeError, ValueError):
            return text
    return next(iter(value.values()), None)


def _nanoseconds(value: Any) -> Any:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value)
    return value
