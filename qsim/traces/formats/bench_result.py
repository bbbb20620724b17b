"""Results of ``vllm bench serve --save-detailed`` and SGLang's ``bench_serving --output-details``.

One JSON object a run, with lists of one value a request: ``input_lens``, ``output_lens`` and, in
newer versions of vLLM, ``start_times``. Without these the times of sending are put together anew
from what the run states: a request rate (with its burstiness, if that is given), and a limit of
requests at a time, whose places become free as the measured latencies say.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np

from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions, chosen
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json
from qsim.traces.reading.json_rows import as_number, parse_json
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

WHAT = {
    "sglang-bench": "JSON lines of sglang.bench_serving --output-details (input_lens, output_lens)",
    "vllm-bench": "JSON of vllm bench serve --save-detailed (input_lens, output_lens and "
    "start_times if new)",
}
PARAMS = {"run": "which run of the file, from 1; needed if there are several"}
_MARKS = (b'"input_lens"', b'"total_input_tokens"', b'"request_throughput"', b'"endpoint_type"')
#: how to get lists of one value a request
_ADVICE = {
    "sglang-bench": "run sglang.bench_serving with --output-details, which writes one value a "
    "request",
    "vllm-bench": "run vllm bench serve with --save-result --save-detailed, which writes one value "
    "a request",
}
_NAMES = ("start_times", "input_lens", "output_lens")


def recognise(source: Source, name: str) -> bool:
    """Whether it has keys of vLLM's benchmark; or SGLang's, which has some that vLLM's has not."""
    head = source.head if is_json(source) else b""
    if name == "vllm-bench":
        return any(mark in head for mark in _MARKS)
    return b'"dataset_name"' in head and b'"backend"' in head and b'"model_id"' not in head


def read(source: Source, options: ReadOptions, name: str) -> Trace:
    """Read the requests of a run, in order of their start; failed ones are skipped and counted."""
    run = chosen_run(source, options)
    prompts, outputs = (_list(source, run, key, _ADVICE[name]) for key in _NAMES[1:])
    starts = run.get("start_times")
    requests = Collector(source, name, _NAMES)
    if isinstance(starts, list) and starts:
        _same_length(source, {"start_times": starts, "input_lens": prompts, "output_lens": outputs})
    else:
        _same_length(source, {"input_lens": prompts, "output_lens": outputs})
        starts, how = _reconstructed(source, run, len(prompts), options.seed)
        requests.builder.notes.append(f"the file has no times of sending; {how}")
        del requests.builder.columns["arrival"]
    errors = run.get("errors")
    errors = errors if isinstance(errors, list) else []
    for i, (start, prompt, output) in enumerate(zip(starts, prompts, outputs, strict=True)):
        if i < len(errors) and errors[i]:
            requests.skip("failed request")
        else:
            requests.add(f"request {i}", start, prompt, output)
    return requests.build()


def chosen_run(source: Source, options: ReadOptions) -> dict[str, Any]:
    """The run of a file that ``:run=N`` names, or its only one.

    Raises
    ------
    TraceError
        If the file has no such run, or several and none is named.
    """
    runs = _runs(source)
    told = [f"request_rate {run.get('request_rate')}" for run in runs]
    return runs[chosen(source, options, "run", told, "runs, as --append-result writes them")]


def _runs(source: Source) -> list[dict[str, Any]]:
    data = source.read_whole()
    try:
        values: list[Any] = [parse_json(data)]
    except ValueError as error:
        try:  # appended results: one object a line
            values = [parse_json(line) for line in data.splitlines() if line.strip()]
        except ValueError:
            raise TraceError(f"{source.path}: not JSON objects: {error}") from None
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    for value in values:
        if not isinstance(value, dict):
            raise TraceError(
                f"{source.path}: a JSON {type(value).__name__}, must be an object a run"
            )
    if not values:
        raise TraceError(f"{source.path}: no run in it")
    return values


def _list(source: Source, run: dict[str, Any], key: str, advice: str) -> list[Any]:
    value = run.get(key)
    if not isinstance(value, list):
        raise TraceError(f"{source.path}: no list {key!r}; {advice}")
    return value


def _same_length(source: Source, lists: dict[str, list[Any]]) -> None:
    if len({len(v) for v in lists.values()}) > 1:
        sizes = ", ".join(f"{k} {len(v)}" for k, v in lists.items())
        raise TraceError(f"{source.path}: lists of different lengths ({sizes})")


def _reconstructed(
    source: Source, run: dict[str, Any], n: int, seed: int
) -> tuple[list[float], str]:
    """Times of sending as the client of the benchmark draws them, and how that was done."""
    rate = as_number(run.get("request_rate"))
    if rate is None or not rate > 0:
        raise TraceError(
            f"{source.path}: neither start_times nor a request_rate > 0 "
            f"({run.get('request_rate')!r}): the times of sending cannot be told"
        )
    if math.isinf(rate):
        at = np.zeros(n)
        how = "its request_rate is infinite: all are sent at once"
    else:
        burstiness = as_number(run.get("burstiness"))
        shape = burstiness if burstiness is not None and 0 < burstiness < 1e6 else 1.0
        rng = np.random.default_rng(seed)
        gaps = rng.gamma(shape, 1 / (rate * shape), max(0, n - 1))
        at = np.concatenate([[0.0], np.cumsum(gaps)])[:n]
        kind = "Poisson arrivals" if shape == 1 else f"arrivals of burstiness {shape:g}"
        how = f"they are drawn as {kind} at its request_rate of {rate:g}/s (--seed)"
    limit = as_number(run.get("max_concurrency"))
    if limit is None or not 1 <= limit < n:
        return at.tolist(), how
    latencies = _latencies_s(run, n)
    if latencies is None:
        return at.tolist(), f"{how}; its max_concurrency of {limit:g} is not kept"
    busy: list[float] = []
    sent = []
    for time, latency in zip(at.tolist(), latencies, strict=True):
        if len(busy) == int(limit):
            time = max(time, heapq.heappop(busy))
        sent.append(time)
        heapq.heappush(busy, time + latency)
    return sent, f"{how}, at most {limit:g} at a time with the latencies that were measured"


def _latencies_s(run: dict[str, Any], n: int) -> list[float] | None:
    """From sending to the last token of each request; None if the file does not say."""
    ttfts, itls = run.get("ttfts"), run.get("itls")
    if not (isinstance(ttfts, list) and isinstance(itls, list) and len(ttfts) == len(itls) == n):
        return None
    try:
        found = [float(t) + math.fsum(gaps) for t, gaps in zip(ttfts, itls, strict=True)]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if all(0 <= x < 1e9 for x in found) else None
