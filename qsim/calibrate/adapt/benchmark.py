"""Results of benchmarks that hold the latencies of every request, as a load to compare with.

Requests (when, how long) are read as traces are (:mod:`qsim.traces`); beside each goes what the
benchmark's client measured of it: ``vllm bench serve --save-detailed``, ``sglang.bench_serving
--output-details``, GuideLLM and AIPerf.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from os import PathLike, fspath
from os.path import exists, isfile  # False for a text too long to be a path
from pathlib import Path
from typing import Any

import numpy as np

from qsim.bounds import shown
from qsim.calibrate.adapt.load import Load
from qsim.errors import TraceError
from qsim.files import write_text
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.formats import aiperf, guidellm
from qsim.traces.formats.bench_result import chosen_run
from qsim.traces.formats.options import ReadOptions
from qsim.traces.load import opened, split_params
from qsim.traces.reading.json_rows import lookup, lookup_first, objects
from qsim.traces.reading.source import Source

__all__ = ["FORMATS", "read_benchmark", "write_benchmark"]

#: prompt tokens, output tokens, TTFT in s, end-to-end latency in s
_Row = tuple[int, int, float, float]
#: the same with the time of sending, s
_Timed = tuple[float, _Row]

_MOST_S, _MOST_J = 1e7, 1e12


def read_benchmark(
    source: str | PathLike[str],
    options: EngineOptions | None = None,
    *,
    energy_j: float | None = None,
    seed: int = 0,
    text_prompts: bool = False,
) -> Load:
    """Read a benchmark's result.

    Parameters
    ----------
    source : str or path
        A file; ``:run=N`` or ``:benchmark=N`` behind it chooses one of several runs.
    options : EngineOptions, optional
        The server's settings, where they are not the profile's.
    energy_j : float, optional
        Energy of the server's GPUs from the first send to the last token; by default what the
        file says (``energy_j``, as :func:`write_benchmark` writes it), or it is not known.
    text_prompts : bool
        Whether prompts were texts, which no format tells; those of loads that qsim sent and wrote
        are token ids.

    Raises
    ------
    TraceError
        If the file is not a result of a benchmark that qsim reads, has no latencies, or they
        cannot be matched with its requests.
    """
    text = fspath(source)
    params: dict[str, str] = {}
    if not exists(text):
        text, params = split_params(text)
    if not isfile(text):
        raise TraceError(f"{text}: no such file; give the result of a benchmark, or a recording")
    file = Source(Path(text))
    form, read_options = opened(file, None, True, seed, params)
    if form.name not in FORMATS:
        raise TraceError(
            f"{text}: a trace of format {form.name}, which holds no latencies; a result of one of "
            f"{', '.join(FORMATS)} does"
        )
    trace = form.read(file, read_options)
    timed = list(FORMATS[form.name](file, read_options))
    if all(math.isfinite(at) for at, _ in timed):
        timed.sort(key=lambda x: x[0])
    rows = [row for _, row in timed]
    if [r[0] for r in rows] != trace.prompt_tokens.tolist() or [
        r[1] for r in rows
    ] != trace.output_tokens.tolist():
        raise TraceError(
            f"{text}: the latencies of {len(rows)} requests cannot be matched with its "
            f"{len(trace)} requests"
        )
    return Load(
        name=Path(text).name,
        trace=trace,
        ttft_ms=np.array([r[2] for r in rows]) * 1e3,
        e2el_ms=np.array([r[3] for r in rows]) * 1e3,
        energy_j=_energy_j(file, form.name, read_options) if energy_j is None else energy_j,
        options=options or EngineOptions(),
        text_prompts=text_prompts,
    )


def write_benchmark(load: Load, path: str | PathLike[str]) -> None:
    """Write a load as ``vllm bench serve --save-detailed`` does, with its energy.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    ttft_s, e2el_s = load.ttft_ms / 1e3, load.e2el_ms / 1e3
    run = {
        "backend": "openai",
        "label": load.name,
        "num_prompts": len(load),
        "request_rate": None,
        "input_lens": load.trace.prompt_tokens.tolist(),
        "output_lens": load.trace.output_tokens.tolist(),
        "start_times": load.trace.arrival_s.round(6).tolist(),
        "ttfts": ttft_s.round(6).tolist(),
        "latencies": e2el_s.round(6).tolist(),
        "errors": [""] * len(load),
        **({} if load.energy_j is None else {"energy_j": load.energy_j}),
    }
    write_text(path, json.dumps(run) + "\n")


def _energy_j(source: Source, form: str, options: ReadOptions) -> float | None:
    """What the file says of the energy; only :func:`write_benchmark` writes it."""
    value = chosen_run(source, options).get("energy_j") if form == "vllm-bench" else None
    if value is None:
        return None
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or not 0 < float(value) < _MOST_J:
        raise TraceError(f"{source.path}: energy_j is {shown(value)}; must be an energy above 0 J")
    return float(value)


def _seconds(value: Any, what: str, where: str) -> float:
    """A time that a benchmark states."""
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or not 0 <= float(value) < _MOST_S:
        raise TraceError(f"{where}: {what} is {shown(value)}; must be a time of 0 s or more")
    return float(value)


def _empty(prompt: Any, output: Any) -> bool:
    """Whether a request had no prompt token or no output token.

    Such a request has no latencies of use; the trace's reader leaves it out too, and counts it.
    """
    return any(isinstance(x, int | float) and x == 0 for x in (prompt, output))


def _row(where: str, prompt: Any, output: Any, ttft_s: float, e2el_s: float) -> _Row:
    if e2el_s < ttft_s:
        raise TraceError(
            f"{where}: the whole request took {e2el_s:.6g} s, less than its first token "
            f"({ttft_s:.6g} s)"
        )
    return int(prompt), int(output), ttft_s, e2el_s


def _vllm(source: Source, options: ReadOptions) -> Iterator[_Timed]:
    """``ttfts``, and ``latencies`` or ``itls``, of the requests without an error."""
    run = chosen_run(source, options)
    prompts, outputs = run["input_lens"], run["output_lens"]  # the trace's reader checked them
    ttfts, ends, gaps = (run.get(name) for name in ("ttfts", "latencies", "itls"))
    if not isinstance(ttfts, list) or not (isinstance(ends, list) or isinstance(gaps, list)):
        raise TraceError(
            f"{source.path}: no lists 'ttfts' and 'itls' or 'latencies'; run the benchmark with "
            "--save-detailed (vLLM) or --output-details (SGLang)"
        )
    n = len(prompts)
    whole = ends if isinstance(ends, list) and len(ends) == n else None
    if len(ttfts) != n or (whole is None and (not isinstance(gaps, list) or len(gaps) != n)):
        raise TraceError(f"{source.path}: the lists of single requests differ in length")
    sent, errors = run.get("start_times"), run.get("errors")
    starts = sent if isinstance(sent, list) and sent else None
    for i in range(n):
        where = f"{source.path}: request {i}"
        failed = isinstance(errors, list) and i < len(errors) and errors[i]
        if failed or _empty(prompts[i], outputs[i]):
            continue
        ttft = _seconds(ttfts[i], "ttft", where)
        if whole is not None:
            end = _seconds(whole[i], "latency", where)
        else:
            end = ttft + sum(_seconds(g, "itl", where) for g in _gaps(gaps, i, where))
        at = math.nan if starts is None else _seconds(starts[i], "start time", where)
        yield at, _row(where, prompts[i], outputs[i], ttft, max(end, ttft))


def _gaps(gaps: Any, i: int, where: str) -> list[Any]:
    if not isinstance(gaps[i], list):
        raise TraceError(f"{where}: itls is {shown(gaps[i])}; must be a list")
    return list(gaps[i])


def _guidellm(source: Source, options: ReadOptions) -> Iterator[_Timed]:
    """The successful requests of a report."""
    for i, row in enumerate(guidellm.request_groups(source, options)["successful"]):
        prompt, output = (lookup_first(row, x) for x in (guidellm.PROMPT, guidellm.OUTPUT))
        if _empty(prompt, output):
            continue
        where = f"{source.path}: request {i}"
        start = _unix(lookup_first(row, guidellm.TIME))
        ttft_ms = lookup_first(row, ("time_to_first_token_ms", "ttft_ms"))
        whole = lookup(row, "request_latency")
        ttft = ttft_ms / 1e3 if isinstance(ttft_ms, int | float) else _since(start, row, _FIRST)
        e2el = whole if isinstance(whole, int | float) else _since(start, row, _END)
        ttft_s = _seconds(ttft, "time to first token", where)
        yield start, _row(where, prompt, output, ttft_s, _seconds(e2el, "request latency", where))


#: GuideLLM's names of the moments of the first token and the end, of several versions
_FIRST = ("first_token_time", "info.timings.first_iteration", "info.timings.first_token_iteration")
_END = ("request_end_time", "end_time", "info.timings.request_end")


def _since(start: float, row: Any, paths: tuple[str, ...]) -> float:
    return _unix(lookup_first(row, paths)) - start


def _unix(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _aiperf(source: Source, options: ReadOptions) -> Iterator[_Timed]:
    """The records of the profiling phase that were answered whole."""
    for place, row in objects(source):
        prompt, output = aiperf.prompt_tokens(row), aiperf.output_tokens(row)
        if aiperf.left_out(row) is not None or _empty(prompt, output):
            continue
        where = f"{source.path}, {place}"
        ttft = _metric_s(row, "time_to_first_token", where)
        e2el = _metric_s(row, "request_latency", where)
        start = lookup(row, aiperf.TIME)
        yield _unix(start) / 1e9, _row(where, prompt, output, ttft, e2el)


_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}


def _metric_s(row: Any, name: str, where: str) -> float:
    found = lookup(row, f"metrics.{name}")
    unit = found.get("unit", "ms") if isinstance(found, dict) else "ms"
    if unit not in _UNITS_S:
        raise TraceError(f"{where}: {name} is in {shown(unit)}; known are {', '.join(_UNITS_S)}")
    value = aiperf.metric(row, name)
    if value is None:
        raise TraceError(f"{where}: no {name}; run aiperf with --streaming")
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return _seconds(value * _UNITS_S[unit] if known else value, name, where)


#: by name of the trace's format: what was measured of each request
FORMATS: dict[str, Callable[[Source, ReadOptions], Iterator[_Timed]]] = {
    "vllm-bench": _vllm,
    "sglang-bench": _vllm,
    "guidellm": _guidellm,
    "aiperf": _aiperf,
}
