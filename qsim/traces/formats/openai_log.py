"""Logs of OpenAI-compatible calls: responses with their usage, and LiteLLM's spend logs.

A response says when it was created (Unix time in s); a line may also wrap it (``response``), or
give the time of the request beside it.
"""

from __future__ import annotations

from typing import Any

from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json
from qsim.traces.reading.json_rows import first_objects, lookup, lookup_first, objects
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

WHAT = "JSON lines of OpenAI responses (created, usage) or LiteLLM spend logs (startTime, ...)"
#: where a line has the response, its usage and its time; the most exact time first
_BODIES = ("", "response", "response.body", "body")
_TIMES = ("startTime", "start_time", "request_time", "created_at", "created")
_PROMPTS = ("prompt_tokens", "input_tokens")
#: of Anthropic's usage, beside input_tokens; OpenAI's prompt_tokens have the cached ones in them
_CACHE = ("cache_read_input_tokens", "cache_creation_input_tokens")
_OUTPUTS = ("completion_tokens", "output_tokens")


def _paths(path: str, names: tuple[str, ...]) -> list[str]:
    return [f"{path}.{name}" if path else name for name in names]


def _within(row: Any, path: str, names: tuple[str, ...]) -> Any:
    return lookup_first(row, _paths(path, names))


def _usage(row: dict[str, Any]) -> str | None:
    """Where the tokens are: the path of ``usage``, or of what has them itself."""
    for body in _BODIES:
        for path in (f"{body}.usage" if body else "usage", body):
            if path and not isinstance(lookup(row, path), dict):
                continue
            if _within(row, path, _PROMPTS) is not None:
                return path
    return None


def _cached_beside(row: dict[str, Any], path: str) -> int:
    """Prompt tokens that ``input_tokens`` leaves out: those of the cache, as Anthropic counts."""
    found = (_within(row, path, (name,)) for name in _CACHE)
    return sum(v for v in found if isinstance(v, int) and not isinstance(v, bool) and v > 0)


#: where the time may be
_TIME_PATHS = [path for body in _BODIES for path in _paths(body, _TIMES)]


def _names(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row calls its time and its tokens."""
    path = _usage(row) or ""
    tokens = [_paths(path, names) for names in (_PROMPTS, _OUTPUTS)]
    found = [
        next((n for n in names if lookup(row, n) is not None), names[0])
        for names in (_TIME_PATHS, *tokens)
    ]
    return found[0], found[1], found[2]


def recognise(source: Source) -> bool:
    """Whether one of the first objects has a usage with a time, or LiteLLM's fields."""
    if not is_json(source):
        return False
    return bool(_first_call(source))


def _first_call(source: Source) -> dict[str, Any]:
    """The first object with a usage and a time, or LiteLLM's fields; the first ones may fail."""
    for row in first_objects(source):
        path = _usage(row)
        if (
            path is not None
            and ("usage" in path or "startTime" in row)
            and lookup_first(row, _TIME_PATHS) is not None
        ):
            return row
    return {}


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the calls in order of their time; those without usage (they failed) are counted."""
    requests = Collector(source, "openai-log", _names(_first_call(source)))
    if options.columns:
        raise TraceError(f"{source.path}: --columns goes with --format table")
    whole, beside = True, False
    for place, row in objects(source):
        path = _usage(row)
        if path is None:
            requests.skip("no usage: a call that failed")
            continue
        time = lookup_first(row, _TIME_PATHS)
        whole = whole and isinstance(time, int) and time < 1e11
        prompt, output = _within(row, path, _PROMPTS), _within(row, path, _OUTPUTS)
        cached = _cached_beside(row, path)
        if cached and isinstance(prompt, int):
            prompt += cached
            beside = True
        total = _within(row, path, ("total_tokens",))
        if output is None and isinstance(total, int) and isinstance(prompt, int):
            output = total - prompt
        requests.add(place, time, prompt, output or 0)
    if beside:
        requests.builder.notes.append(
            "prompts are input_tokens and the tokens of the cache beside them (cache_read_..., "
            "cache_creation_input_tokens), as Anthropic counts"
        )
    if whole:
        requests.builder.notes.append(
            "times are whole seconds, when the response was created: requests of one second arrive "
            "together"
        )
    return requests.build()
