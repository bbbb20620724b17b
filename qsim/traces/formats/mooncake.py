"""JSON lines with prefix-block ids: Mooncake, Qwen-Bailian, and vLLM's ``timed_trace``.

All three have ``input_length``, ``output_length``, ``hash_ids`` and ``timestamp``; they differ in
the unit of the time and in the tokens that an id stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from qsim.errors import TraceError
from qsim.traces.build import Reading, TraceBuilder, read_whole
from qsim.traces.formats.options import ReadOptions
from qsim.traces.source import Source
from qsim.traces.trace import Trace

__all__ = [
    "PARAMS",
    "WHAT",
    "WHAT_BAILIAN",
    "WHAT_TIMED",
    "read",
    "read_bailian",
    "read_timed",
    "reading",
    "reading_bailian",
    "reading_timed",
    "recognise",
    "recognise_bailian",
]

WHAT = "JSON lines with timestamp (ms), input_length, output_length, hash_ids (512-token blocks)"
WHAT_BAILIAN = "JSON lines as Mooncake's, with chat_id, times in s and 16-token blocks"
WHAT_TIMED = "vLLM bench's timed_trace: JSON lines as Mooncake's, times in s (only when asked for)"
PARAMS = {"block": "prompt tokens that a hash id stands for"}
_LENGTHS = ("input_length", "output_length")


def _first_object(source: Source) -> dict[str, Any]:
    if source.is_dir:
        return {}
    line = source.head.lstrip().split(b"\n", 1)[0]
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and "input_length" in value else {}


def recognise(source: Source) -> bool:
    """Whether the first line is an object with Mooncake's keys."""
    first = _first_object(source)
    return bool(first) and "chat_id" not in first


def recognise_bailian(source: Source) -> bool:
    """Whether the first line is an object with the keys of the Qwen-Bailian traces."""
    return "chat_id" in _first_object(source)


def read(source: Source, options: ReadOptions) -> Trace:
    """Read a Mooncake trace: milliseconds, 512 tokens an id."""
    return read_whole(reading(source, options))


def reading(source: Source, options: ReadOptions) -> Reading:
    """The same, a block of the file at a time."""
    return _reading(source, options, "mooncake", ticks_per_s=1000, block_tokens=512)


def read_bailian(source: Source, options: ReadOptions) -> Trace:
    """Read a Qwen-Bailian trace: seconds, 16 tokens an id."""
    return read_whole(reading_bailian(source, options))


def reading_bailian(source: Source, options: ReadOptions) -> Reading:
    """The same, a block of the file at a time."""
    return _reading(source, options, "bailian", ticks_per_s=1, block_tokens=16)


def read_timed(source: Source, options: ReadOptions) -> Trace:
    """Read a trace for vLLM bench: seconds, 16 tokens an id unless ``block=`` says otherwise."""
    return read_whole(reading_timed(source, options))


def reading_timed(source: Source, options: ReadOptions) -> Reading:
    """The same, a block of the file at a time."""
    return _reading(source, options, "timed-trace", ticks_per_s=1, block_tokens=16)


def _reading(
    source: Source, options: ReadOptions, format: str, *, ticks_per_s: int, block_tokens: int
) -> Reading:
    if "block" in options.params:
        text = options.params["block"]
        if not text.isdigit() or int(text) < 1:
            raise TraceError(f"{source.path}: block is {text!r}; must be a whole number >= 1")
        block_tokens = int(text)
    builder = TraceBuilder(source, format, sort=options.sort, ticks_per_s=ticks_per_s)
    return builder, _steps(source, builder, block_tokens)


def _steps(source: Source, builder: TraceBuilder, block_tokens: int) -> Iterator[None]:
    number = 0
    for block in source.blocks():
        lines: list[int] = []
        times: list[float] = []
        prompts: list[int] = []
        outputs: list[int] = []
        for line in block.split(b"\n"):
            number += 1
            if not line.strip():
                continue
            row = _object(source, number, line)
            time, ids = row.get("timestamp"), row.get("hash_ids", [])
            if isinstance(time, bool) or not isinstance(time, int | float):
                _fail(source, number, row, "timestamp", "a number")
            prompt, output = (_length(source, number, row, key) for key in _LENGTHS)
            if prompt == 0 or output == 0:
                builder.skip("no prompt token" if prompt == 0 else "no output token")
                continue
            if not isinstance(ids, list):
                _fail(source, number, row, "hash_ids", "a list of whole numbers")
            try:
                builder.add_hash_ids(ids)
            except (TypeError, OverflowError):
                _fail(source, number, row, "hash_ids", "a list of 64-bit whole numbers")
            if ids:
                builder.block_tokens = block_tokens
            lines.append(number)
            times.append(time)
            prompts.append(prompt)
            outputs.append(output)
        number -= block.endswith(b"\n")
        builder.add(
            np.array(lines, np.int64),
            np.array(times),
            np.array(prompts, np.int64),
            np.array(outputs, np.int64),
            column="timestamp",
        )
        yield


def _object(source: Source, number: int, text: bytes) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        shown = text[:80].decode("utf-8", "replace")
        raise TraceError(f"{source.path}, line {number}: {shown!r} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise TraceError(f"{source.path}, line {number}: {row!r} is not a JSON object")
    return row


def _length(source: Source, number: int, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        _fail(source, number, row, key, "a whole number >= 0")
    return value


def _fail(source: Source, number: int, row: dict[str, Any], key: str, expected: str) -> NoReturn:
    where = f"{source.path}, line {number}"
    if key not in row:
        raise TraceError(f"{where}: no {key!r}; it must be {expected}")
    raise TraceError(f"{where}, column {key!r}: {str(row[key])[:80]!r} is not {expected}")
