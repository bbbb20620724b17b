"""The report of a GuideLLM benchmark (JSON), with one or several runs in it."""

from __future__ import annotations

from typing import Any

from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions, chosen
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json
from qsim.traces.reading.json_rows import lookup, lookup_first, parse_json
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

WHAT = "JSON of guidellm benchmark (benchmarks with requests.successful)"
PARAMS = {"benchmark": "which run of the report, from 1; needed if there are several"}
# field names of several versions, the newest first
TIME = ("request_start_time", "start_time", "info.timings.request_start")
PROMPT = ("prompt_tokens", "input_metrics.total_tokens", "input_metrics.text_tokens")
OUTPUT = ("output_tokens", "output_metrics.total_tokens", "output_metrics.text_tokens")


def recognise(source: Source) -> bool:
    """Whether it is an object with benchmarks in it."""
    return is_json(source) and b'"benchmarks"' in source.head and not _is_lines(source)


def _is_lines(source: Source) -> bool:
    line, _, rest = source.head.lstrip().partition(b"\n")
    return bool(rest.strip()) and line.rstrip().endswith(b"}")


def read(source: Source, options: ReadOptions) -> Trace:
    """Read one run of a report; requests that failed or were cut off are skipped and counted."""
    groups = request_groups(source, options)
    requests = Collector(source, "guidellm", (TIME[0], PROMPT[0], OUTPUT[0]))
    for i, row in enumerate(groups["successful"]):
        values = [lookup_first(row, paths) for paths in (TIME, PROMPT, OUTPUT)]
        requests.add(f"request {i}", *values)
    for kind in ("incomplete", "errored"):
        rows = groups.get(kind, [])
        requests.skip(f"{kind} request", len(rows) if isinstance(rows, list) else 0)
    return requests.build()


def request_groups(source: Source, options: ReadOptions) -> dict[str, Any]:
    """The requests of one run: a list of the successful ones, and what there is of the others.

    Raises
    ------
    TraceError
        If the file is no report, or has no such run, or the run no requests.
    """
    try:
        report = parse_json(source.read_whole())
    except ValueError as error:
        raise TraceError(f"{source.path}: not one JSON object: {error}") from None
    runs = report.get("benchmarks") if isinstance(report, dict) else None
    if not isinstance(runs, list) or not runs:
        raise TraceError(f"{source.path}: no list 'benchmarks' with a run in it")
    told = [
        f"{lookup(run, 'config.strategy.type_') or 'run'}"
        f"{_rate(lookup(run, 'config.strategy.rate'))}"
        for run in runs
    ]
    run = runs[chosen(source, options, "benchmark", told, "runs")]
    found = lookup(run, "requests")
    if isinstance(found, dict) and isinstance(found.get("successful"), list):
        return {kind: found.get(kind) or [] for kind in ("successful", "incomplete", "errored")}
    if isinstance(found, list):
        return {"successful": found}
    raise TraceError(
        f"{source.path}: no requests in the run; GuideLLM writes them unless sampling is off"
    )


def _rate(rate: Any) -> str:
    return f" {rate:g}/s" if isinstance(rate, int | float) else ""
