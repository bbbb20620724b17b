"""NVIDIA Dynamo's request trace (``DYN_REQUEST_TRACE``): JSON lines of events.

Field names are those of ``RequestTraceRecord``, ``RequestTraceMetrics`` and
``RequestReplayMetrics`` in Dynamo's ``lib/llm/src/request_trace/types.rs`` (schema
``dynamo.request.trace.v1``; ``dynamo.agent.trace.v1`` before it); a line may wrap the record as
``event``. Times are read as its own replay does (``lib/data-gen/src/request_trace/load.rs``): a
request came at ``request_received_ms`` and ended ``total_time_ms`` later. A later request of a
session (``agent_context.session_id``; ``trajectory_id`` before) that began after the answer before
it waits for that answer, and comes as long after it as it did.
"""

from __future__ import annotations

from typing import Any

from qsim.checks import is_number
from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions
from qsim.traces.prefix_ids import most_ids, prefix_id
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json
from qsim.traces.reading.json_rows import first_object, lookup, objects
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

WHAT = "JSON lines of Dynamo's request trace (schema dynamo.request.trace.v1, request_end)"
PARAMS = {
    "turns": "wait, the default: a session's next request waits for the answer before it; open: "
    "all come at their recorded times",
}
_SCHEMAS = ("dynamo.request.trace.", "dynamo.agent.trace.")
_NAMES = ("request.request_received_ms", "request.replay.input_length", "request.output_tokens")


def _record(row: dict[str, Any]) -> dict[str, Any]:
    event = row.get("event")
    return event if isinstance(event, dict) else row


def recognise(source: Source) -> bool:
    """Whether the first line is of one of the schemas."""
    if not is_json(source):
        return False
    schema = _record(first_object(source)).get("schema")
    return isinstance(schema, str) and schema.startswith(_SCHEMAS)


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the requests (``request_end``) in order of their arrival; other events are counted."""
    waits = options.params.get("turns", "wait")
    if waits not in ("wait", "open"):
        raise TraceError(f"{source.path}: turns is {waits!r}; must be wait or open")
    found: list[tuple[float, str, dict[str, Any]]] = []
    requests = Collector(source, "dynamo", _NAMES, ticks_per_s=1000)
    for place, row in objects(source):
        record = _record(row)
        kind = record.get("event_type")
        if kind != "request_end":
            requests.skip(f"event {str(kind)[:40]}")
            continue
        found.append((_received_ms(requests, place, record), place, record))
    found.sort(key=lambda entry: entry[0])
    rows = 0
    ids: list[list[int]] = []
    before: dict[str, tuple[int, float]] = {}
    for received_ms, place, record in found:
        prompt = lookup(record, _NAMES[1])
        if prompt is None:
            prompt = lookup(record, "request.input_tokens")
        if not requests.add(place, received_ms, prompt, lookup(record, _NAMES[2])):
            continue
        ids.append(_ids(requests, place, record, int(prompt)))
        session = _session(record)
        if session is not None:
            last = before.get(session)
            if last is not None and waits == "wait" and received_ms >= last[1]:
                requests.builder.add_turn(rows, last[0], received_ms - last[1])
            end_ms = _end_ms(requests, place, record, received_ms)
            if last is None or end_ms >= last[1]:
                before[session] = (rows, end_ms)
        rows += 1
    if any(ids):
        for one in ids:
            requests.builder.add_hash_ids(one)
        requests.builder.columns["hash_ids"] = "request.replay.input_sequence_hashes"
    return requests.build()


def _session(record: dict[str, Any]) -> str | None:
    for name in ("trajectory_id", "session_id"):  # the first is one of several of a session
        value = lookup(record, f"agent_context.{name}")
        if isinstance(value, str) and value:
            return value
    return None


def _milliseconds(requests: Collector, place: str, record: dict[str, Any], path: str) -> Any:
    value = lookup(record, path)
    if value is None:
        return None
    if not is_number(value) or not 0 <= value < 1e15:
        raise requests.fail(place, 0, value, f"a number of milliseconds >= 0 ({path})")
    return value


def _received_ms(requests: Collector, place: str, record: dict[str, Any]) -> float:
    received = _milliseconds(requests, place, record, _NAMES[0])
    if received is None:
        end = _milliseconds(requests, place, record, "event_time_unix_ms")
        took = _milliseconds(requests, place, record, "request.total_time_ms")
        if end is None or took is None:
            raise requests.fail(
                place, 0, None, "a time (nor are event_time_unix_ms and request.total_time_ms)"
            )
        received = end - took
    return received  # type: ignore[no-any-return]


def _end_ms(requests: Collector, place: str, record: dict[str, Any], received_ms: float) -> float:
    took = _milliseconds(requests, place, record, "request.total_time_ms")
    if took is not None:
        return received_ms + float(took)
    end = _milliseconds(requests, place, record, "event_time_unix_ms")
    return max(received_ms, received_ms if end is None else float(end))


def _ids(requests: Collector, place: str, record: dict[str, Any], prompt: int) -> list[int]:
    replay = lookup(record, "request.replay")
    hashes = replay.get("input_sequence_hashes") if isinstance(replay, dict) else None
    if not hashes:
        return []
    where = f"{requests.source.path}, {place}"
    size = replay.get("trace_block_size")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 2**31:
        raise TraceError(f"{where}: trace_block_size is {size!r}; must be a whole number >= 1")
    expected = requests.builder.block_tokens
    if expected and size != expected:
        raise TraceError(
            f"{where}: trace_block_size is {size}, and {expected} in the requests before it; must "
            "be one size"
        )
    requests.builder.block_tokens = size
    if not isinstance(hashes, list):
        raise TraceError(f"{where}: input_sequence_hashes is no list")
    if len(hashes) > most_ids(prompt, size):
        raise TraceError(
            f"{where}: {len(hashes)} input_sequence_hashes for {prompt} prompt tokens are more "
            f"than one for each {size}"
        )
    try:
        return [prefix_id(one) for one in hashes]
    except TypeError as error:
        raise TraceError(f"{where}: input_sequence_hashes has {error}; must be hashes") from None
