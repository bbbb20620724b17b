"""vLLM's Prometheus metrics: scrapes as text, and the JSON of range and instant queries.

The names are those of vLLM's ``vllm/v1/metrics/loggers.py``: histograms
``vllm:request_prompt_tokens`` and ``vllm:request_generation_tokens`` (observed when a request has
finished; ``_bucket`` with ``le``, ``_sum``, ``_count``) and gauges ``vllm:num_requests_running``
and ``vllm:num_requests_waiting``, by ``model_name`` and ``engine``; and, for who asks for them,
sums and counts of times, and DCGM's energy and power. JSON is what Prometheus's HTTP API answers
to ``/api/v1/query_range`` (``resultType`` ``matrix``) and ``/api/v1/query``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from qsim.errors import TraceError
from qsim.prometheus import parse_sample, samples
from qsim.traces.reading.json_rows import as_number, parse_json
from qsim.traces.reading.source import Source

PROMPT, OUTPUT = "request_prompt_tokens", "request_generation_tokens"
#: histograms of times, s: seen by the API server, and by the engine
TIMES = (
    "time_to_first_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
)
#: DCGM's, of each GPU: mJ since some time, and W
ENERGY, POWER = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_POWER_USAGE"
#: names that are read, without vllm: before them
_COUNTERS = (
    *(f"{h}_{part}" for h in (PROMPT, OUTPUT) for part in ("bucket", "sum", "count")),
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    *(f"{h}_{part}" for h in TIMES for part in ("sum", "count")),
    "num_preemptions_total",
    ENERGY,
)
_GAUGES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "cache_config_info",
    POWER,
)
_QUERY = (
    '{__name__=~"vllm:(request_(prompt|generation)_tokens_(bucket|sum|count)|num_requests_.+)"}'
)
_MOST = 1e18
_PREFIX = re.compile(r"^vllm[:_]")


@dataclass
class Series:
    """One counter or gauge over time."""

    #: without ``vllm:``
    name: str
    labels: dict[str, str]
    #: time in s (None: not told) and value, in order
    samples: list[tuple[float | None, float]] = field(default_factory=list)

    def increases(self) -> Iterator[tuple[float | None, float | None, float]]:
        """From when to when, and by how much it rose; after a restart it counts from 0 again."""
        for (begin, before), (end, after) in pairwise(self.samples):
            yield begin, end, after - before if after >= before else after

    @property
    def increase(self) -> float:
        """Over all samples; of a single one the value itself."""
        if len(self.samples) == 1:
            return self.samples[0][1]
        return math.fsum(rise for _, _, rise in self.increases())


@dataclass(frozen=True)
class Metrics:
    """What was read from one or several files."""

    #: of the files, for people
    name: str
    series: list[Series]
    #: how many moments there are of each: 1 for a single scrape
    scrapes: int

    def of(self, name: str) -> list[Series]:
        """The series of a name, of all engines."""
        return [s for s in self.series if s.name == name]

    def total(self, name: str) -> float | None:
        """By how much a counter rose, over all of its series; None if there is none."""
        found = self.of(name)
        return math.fsum(s.increase for s in found) if found else None

    def buckets(self, name: str) -> dict[float, float]:
        """By ``le``, by how much a bucket's cumulative count rose."""
        found: dict[float, float] = {}
        for series in self.of(f"{name}_bucket"):
            try:
                le = float(series.labels["le"])
            except (KeyError, ValueError):
                raise TraceError(
                    f"{self.name}: vllm:{name}_bucket without a label le that is a number "
                    f"({series.labels.get('le')!r})"
                ) from None
            found[le] = found.get(le, 0.0) + series.increase
        return dict(sorted(found.items()))


def read_metrics(paths: Sequence[str | PathLike[str]], model_name: str | None = None) -> Metrics:
    """Read one scrape, two (the earlier first), or answers of Prometheus's API.

    Parameters
    ----------
    paths : sequence of paths
        Text of one or two scrapes of ``/metrics``; or JSON files, of which each may have the
        answer to another query.
    model_name : str, optional
        Take this model alone.

    Raises
    ------
    TraceError
        If there is none of vLLM's request metrics in them, they are of several models, or the
        kinds of files are mixed.
    """
    sources = [Source(Path(fspath(path))) for path in paths]
    name = " and ".join(source.name for source in sources)
    heads = {source.head.lstrip()[:1] in (b"{", b"[") for source in sources}
    if len(heads) != 1:
        raise TraceError(f"{name}: a JSON answer and a text scrape; give files of one kind")
    series: dict[tuple[Any, ...], Series] = {}
    as_json = heads.pop()
    if not as_json and len(sources) > 2:
        raise TraceError(f"{name}: {len(sources)} scrapes; give one, or the earlier and the later")
    for number, source in enumerate(sources, 1):
        for one in _from_json(source) if as_json else _from_text(source):
            before = series.get(_key(one))
            if not as_json and before is not None and len(before.samples) == number:
                raise TraceError(f"{source.path}: vllm:{one.name} of {one.labels} is there twice")
            series.setdefault(_key(one), Series(one.name, one.labels)).samples += one.samples
    found = list(series.values())
    if not any(s.name.startswith((PROMPT, OUTPUT)) for s in found):
        raise TraceError(
            f"{name}: no vllm:{PROMPT} or vllm:{OUTPUT} in it; "
            + (f"query {_QUERY}" if as_json else "give the text of vLLM's /metrics")
        )
    found = _of_model(name, found, model_name)
    if as_json:
        for one in found:
            one.samples.sort(key=lambda sample: sample[0] or 0.0)
        return Metrics(name, found, max(len(s.samples) for s in found))
    if len(sources) == 2:
        later = {id(series[_key(one)]) for one in _from_text(sources[1])}
        for one in found:
            if id(one) not in later:
                raise TraceError(
                    f"{name}: vllm:{one.name} of {one.labels} is in the first scrape alone; give "
                    "two scrapes of one server"
                )
            if len(one.samples) == 1:  # what the first scrape did not have yet was 0
                one.samples.insert(0, (None, 0.0))
            if one.name in _COUNTERS and one.samples[1][1] < one.samples[0][1]:
                raise TraceError(
                    f"{name}: vllm:{one.name} goes down from {one.samples[0][1]:g} to "
                    f"{one.samples[1][1]:g}: give the earlier scrape first; if the server was "
                    "restarted between them, the later one alone"
                )
    return Metrics(name, found, len(sources))


def metrics_of_scrapes(
    name: str, scrapes: Sequence[tuple[float, str]], model_name: str | None = None
) -> Metrics:
    """What texts of ``/metrics`` say that were scraped at times (s), in order.

    Raises
    ------
    TraceError
        As :func:`read_metrics`.
    """
    series: dict[tuple[Any, ...], Series] = {}
    for time_s, text in scrapes:
        for sample in samples(text):
            short = _PREFIX.sub("", sample.name)
            if (short in _COUNTERS or short in _GAUGES) and 0 <= sample.value < _MOST:
                one = Series(short, dict(sample.labels))
                series.setdefault(_key(one), one).samples.append((time_s, sample.value))
    found = list(series.values())
    if not any(s.name.startswith((PROMPT, OUTPUT)) for s in found):
        raise TraceError(f"{name}: no vllm:{PROMPT} or vllm:{OUTPUT} in it; is it vLLM's /metrics?")
    return Metrics(name, _of_model(name, found, model_name), len(scrapes))


def _key(series: Series) -> tuple[Any, ...]:
    return (series.name, *sorted(series.labels.items()))


def _of_model(name: str, series: list[Series], model_name: str | None) -> list[Series]:
    models = sorted({s.labels["model_name"] for s in series if "model_name" in s.labels})
    if model_name is not None and model_name not in models:
        raise TraceError(
            f"{name}: model_name is {model_name!r}; must be one of {', '.join(models) or 'none'}"
        )
    if model_name is None and len(models) > 1:
        raise TraceError(
            f"{name}: metrics of {len(models)} models; choose one with --model-name: "
            f"{', '.join(models)}"
        )
    if model_name is None:
        return series
    of_gpus = (ENERGY, POWER)  # a GPU knows no model
    return [s for s in series if s.name in of_gpus or s.labels.get("model_name") == model_name]


def _from_text(source: Source) -> Iterator[Series]:
    for number, data in source.lines():
        line = data.decode("utf-8", "replace").strip()
        if not line.startswith(("vllm:", "vllm_")):
            continue
        sample = parse_sample(line)
        if sample is None:
            raise TraceError(
                f"{source.path}, line {number}: {line[:120]!r} is not a metric with a number"
            )
        name = _PREFIX.sub("", sample.name)
        if name in _COUNTERS or name in _GAUGES:
            _check_value(source, f"line {number}", name, sample.value)
            time_s = None if sample.time_ms is None else sample.time_ms / 1000
            yield Series(name, dict(sample.labels), [(time_s, sample.value)])


def _check_value(source: Source, place: str, name: str, value: float) -> None:
    if not 0 <= value < _MOST:
        raise TraceError(f"{source.path}, {place}: vllm:{name} is {value!r}; must be >= 0")


def _from_json(source: Source) -> Iterator[Series]:
    try:
        answer = parse_json(source.read_whole())
    except ValueError as error:
        raise TraceError(f"{source.path}: not JSON: {error}") from None
    data = answer.get("data", answer) if isinstance(answer, dict) else None
    result = data.get("result") if isinstance(data, dict) else None
    if not isinstance(result, list):
        said = answer.get("error") if isinstance(answer, dict) else None
        raise TraceError(
            f"{source.path}: no data.result as Prometheus's API answers"
            + (f"; it says {str(said)[:200]!r}" if said else "")
        )
    for i, one in enumerate(result):
        place = f"result {i + 1}"
        metric = one.get("metric") if isinstance(one, dict) else None
        if not isinstance(metric, dict):
            raise TraceError(f"{source.path}, {place}: no metric in it")
        name = metric.get("__name__")
        if not isinstance(name, str):
            raise TraceError(
                f"{source.path}, {place}: the metric has no name, as after rate() or sum(); query "
                f"the counters themselves: {_QUERY}"
            )
        name = _PREFIX.sub("", name)
        if name not in _COUNTERS and name not in _GAUGES:
            continue
        values = one.get("values")
        values = [one.get("value")] if values is None else values
        labels = {str(k): str(v) for k, v in metric.items() if k != "__name__"}
        yield Series(name, labels, list(_samples(source, place, name, values)))


def _samples(
    source: Source, place: str, name: str, values: Any
) -> Iterator[tuple[float | None, float]]:
    for pair in values if isinstance(values, list) else [None]:
        time = value = None
        if isinstance(pair, list) and len(pair) == 2:
            time, value = as_number(pair[0]), as_number(pair[1])
        if time is None or value is None or not math.isfinite(time):
            raise TraceError(f"{source.path}, {place}: {str(pair)[:80]} is not [time, value]")
        _check_value(source, place, name, value)
        yield time, value
