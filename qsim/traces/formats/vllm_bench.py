"""The result file of ``vllm bench serve --save-result --save-detailed`` (JSON)."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from qsim.errors import TraceError
from qsim.traces.build import TraceBuilder
from qsim.traces.formats.options import ReadOptions
from qsim.traces.source import Source
from qsim.traces.trace import Trace

__all__ = ["WHAT", "read", "recognise"]

WHAT = "JSON of vllm bench serve --save-detailed (start_times, input_lens, output_lens)"
_KEYS = ("start_times", "input_lens", "output_lens")
_MARKS = (b'"input_lens"', b'"total_input_tokens"', b'"request_throughput"', b'"endpoint_type"')


def recognise(source: Source) -> bool:
    """Whether it is a JSON object with the keys of a vLLM benchmark."""
    if source.is_dir:
        return False
    return source.head.lstrip().startswith(b"{") and any(m in source.head for m in _MARKS)


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the requests of a benchmark run, in order of their start.

    The file lists requests in the order of the data set, which is not always that of their
    start, so they are always sorted. Failed requests are skipped and counted.
    """
    try:
        result = json.loads(source.read())
    except ValueError as error:
        raise TraceError(
            f"{source.path}: not one JSON object ({error}); with --append-result a file holds "
            "several: keep one of them"
        ) from None
    columns = _columns(source, result)
    builder = TraceBuilder(source, "vllm-bench", sort=True, absolute=True)
    errors = result.get("errors") or []
    rows: list[tuple[int, float, int, int]] = []
    for i, (start, prompt, output) in enumerate(zip(*columns, strict=True)):
        if i < len(errors) and errors[i]:
            builder.skip("failed request")
            continue
        _check(source, i, _KEYS[0], start, whole=False)
        _check(source, i, _KEYS[1], prompt, whole=True)
        _check(source, i, _KEYS[2], output, whole=True)
        if prompt == 0 or output == 0:
            builder.skip("no prompt token" if prompt == 0 else "no output token")
            continue
        rows.append((i, start, prompt, output))
    if rows:
        number, times, prompts, outputs = zip(*rows, strict=True)
        builder.add(
            np.array(number, np.int64),
            np.array(times, np.float64),
            np.array(prompts, np.int64),
            np.array(outputs, np.int64),
            column="start_times",
            place="request",
        )
    return builder.build()


def _columns(source: Source, result: Any) -> list[list[Any]]:
    if not isinstance(result, dict):
        raise TraceError(f"{source.path}: a JSON {type(result).__name__}, must be an object")
    columns = []
    for key in _KEYS:
        if not isinstance(result.get(key), list):
            raise TraceError(
                f"{source.path}: no list {key!r}; run vllm bench serve with --save-result "
                "--save-detailed, which writes one value a request"
            )
        columns.append(result[key])
    if len({len(c) for c in columns}) > 1:
        sizes = ", ".join(f"{k} {len(c)}" for k, c in zip(_KEYS, columns, strict=True))
        raise TraceError(f"{source.path}: lists of different lengths ({sizes})")
    return columns


def _check(source: Source, i: int, key: str, value: Any, *, whole: bool) -> None:
    kind: Any = int if whole else int | float
    good = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (whole and value < 0):
        expected = "a whole number >= 0" if whole else "a finite number of seconds"
        raise TraceError(f"{source.path}, request {i}, column {key!r}: {value!r} is not {expected}")
