"""What a server's metrics tell of stretches of its time: arrivals, lengths, times, energy.

Counters are read at the moments of the scrapes. A window is a run of these with enough requests
that finished in it; before it lies a lead-in, so that a simulation of the window has the requests
that were under way when it began. Times are the engine's own where vLLM tells them (from being
queued to the first token, from there to the last one): what lies before and behind, in the API
server, is another load's with every tokenizer and client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qsim.errors import CalibrationError, TraceError
from qsim.traces.reconstruct.histogram import Histogram, lengths_of_histogram
from qsim.traces.reconstruct.metrics import ENERGY, OUTPUT, POWER, PROMPT, Metrics, Series
from qsim.traces.synth.lengths import QuantileTable

__all__ = ["LEAST_FINISHED", "Window", "cache_labels", "of_one_server", "windows_of"]

FloatArray = npt.NDArray[np.float64]

#: requests that must finish in a window, and in all of the range
LEAST_FINISHED = 200
#: windows that are looked at, and requests of each at most
_MOST_WINDOWS, _MOST_IN_WINDOW = 6, 2500
#: a lead-in is so many mean latencies long
_LEAD_LATENCIES = 3.0
#: a gauge must be read once in so many scrapes
_GAUGE_GAP_SCRAPES = 2.5
#: power that is read once tells the mean around it no better than this, as a share
_READ_SD = 0.15
#: labels that are not of the server
_NOT_OF_SERVER = ("le", "__name__", "finished_reason", "reason", "sleep_state", "source")
_QUEUE, _PREFILL, _DECODE = (f"request_{p}_time_seconds" for p in ("queue", "prefill", "decode"))
_TTFT, _E2E = "time_to_first_token_seconds", "e2e_request_latency_seconds"


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a server's time.

    Attributes
    ----------
    name : str
    edges_s : array of shape (k + 1,)
        Moments of the scrapes from the lead-in's begin on; the lead-in begins at 0.
    arrivals : array of shape (k,)
        Requests that came between them.
    begin_s, end_s : float
        Of the window itself.
    prompt, output : QuantileTable
        Lengths of the requests that finished in it.
    cached : float
        Share of the prompt tokens that the prefix cache held.
    finished : float
        Requests.
    measured : dict
        ``first_ms`` (to the first token), ``token_ms`` (between tokens), ``power_w``; what was not
        told is missing.
    power_sd : float
        Standard deviation of the logarithm of ``power_w``: of a counter of energy next to nothing,
        of power that was read now and then what it scatters.
    engine : bool
        ``first_ms`` is the engine's, from being queued on; otherwise the API server's.
    """

    name: str
    edges_s: FloatArray
    arrivals: FloatArray
    begin_s: float
    end_s: float
    prompt: QuantileTable
    output: QuantileTable
    cached: float
    finished: float
    measured: Mapping[str, float]
    power_sd: float
    engine: bool

    @property
    def rate_rps(self) -> float:
        """Requests that finished, a second."""
        return self.finished / (self.end_s - self.begin_s)


def of_one_server(metrics: Metrics, labels: Mapping[str, str], gpus: Sequence[int]) -> Metrics:
    """The series of one server, and of its GPUs.

    Parameters
    ----------
    labels : mapping
        What its series must have; needed if there are several servers.
    gpus : sequence of int
        As DCGM numbers them.

    Raises
    ------
    CalibrationError
        If several servers remain, or none, or DCGM's series are of several hosts.
    """

    def fits(series: Series) -> bool:
        return all(series.labels.get(k) == v for k, v in labels.items())

    power = [s for s in metrics.series if s.name in (ENERGY, POWER)]
    own = [s for s in metrics.series if s.name not in (ENERGY, POWER) and fits(s)]
    if not own:
        told = ", ".join(f"{k}={v}" for k, v in labels.items())
        raise CalibrationError(f"{metrics.name}: no series of vLLM with {told}")
    servers = sorted({_server(s) for s in own if s.name == f"{PROMPT}_count"})
    if len(servers) > 1:
        told = "; ".join(",".join(f"{k}={v}" for k, v in one) for one in servers[:4])
        raise CalibrationError(
            f"{metrics.name}: metrics of {len(servers)} servers or engines; a profile is adapted "
            f"to one: choose it by --label KEY=VALUE ({told})"
        )
    mine = [s for s in power if s.labels.get("gpu") in {str(g) for g in gpus}]
    several = {k for k in ("instance", "Hostname", "pod", "node") if _values(mine, k) > 1}
    narrowed = [s for s in mine if fits(s)] if several else mine
    if several and (not narrowed or any(_values(narrowed, k) > 1 for k in several)):
        raise CalibrationError(
            f"{metrics.name}: power of GPUs of several hosts ({', '.join(sorted(several))}); query "
            "those of the server's host alone"
        )
    return Metrics(metrics.name, [*own, *narrowed], metrics.scrapes)


def _values(series: Sequence[Series], label: str) -> int:
    return len({s.labels.get(label) for s in series})


def _server(series: Series) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in series.labels.items() if k not in _NOT_OF_SERVER))


def cache_labels(metrics: Metrics) -> dict[str, str]:
    """What ``vllm:cache_config_info`` says; empty where it is not there."""
    found = metrics.of("cache_config_info")
    return dict(found[-1].labels) if found else {}


def windows_of(metrics: Metrics) -> tuple[list[Window], list[str]]:
    """Up to six windows of different load, and what the metrics do not tell.

    Raises
    ------
    CalibrationError
        If there is not enough traffic to tell anything, or scrapes have no times.
    """
    times = _times(metrics)
    counters = _Counters(metrics, times)
    finished = counters.of(f"{PROMPT}_count")
    if finished is None or finished[-1] < LEAST_FINISHED:
        n = 0 if finished is None else finished[-1]
        raise CalibrationError(
            f"{metrics.name}: {n:,.0f} requests finished in {times[-1] - times[0]:,.0f} s, not "
            f"enough traffic to tell; take a longer range, with {LEAST_FINISHED} requests at least"
        )
    arrived = _arrived(metrics, counters, times, finished)
    lost = []
    engine = all(counters.of(f"{h}_sum") is not None for h in (_QUEUE, _PREFILL))
    if not engine:
        lost.append(
            "no request_queue_time_seconds and request_prefill_time_seconds: times to the first "
            "token are the API server's"
        )
    joules = _joules(metrics, times)
    if joules is None:
        lost.append("no power of DCGM: power and energy stay those expected of a machine")
    latency_s = _mean(counters, _E2E, 0, len(times) - 1)
    if latency_s is None:
        raise CalibrationError(f"{metrics.name}: no vllm:{_E2E} in it; query it, too")
    lead = _LEAD_LATENCIES * latency_s
    spans = _spans(times, finished, lead, bool(arrived[0] < 0.5))
    if not spans:
        raise CalibrationError(
            f"{metrics.name}: no {LEAST_FINISHED} requests finished in a row after a lead-in of "
            f"{lead:,.0f} s (three mean latencies), not enough traffic to tell; take a longer range"
        )
    told = [_window(metrics, counters, times, arrived, joules, s, lead, engine) for s in spans]
    return told, lost


def _times(metrics: Metrics) -> FloatArray:
    """The moments of the scrapes, s."""
    counts = metrics.of(f"{PROMPT}_count") or metrics.of(f"{PROMPT}_bucket")
    times = sorted({t for s in counts for t, _ in s.samples if t is not None})
    if len(times) < 3:
        raise CalibrationError(
            f"{metrics.name}: {len(times)} moments with times; a range of three scrapes at least "
            "is needed (the answer to /api/v1/query_range)"
        )
    return np.array(times)


class _Counters:
    """Sums of counters over their series, from 0 at the first moment on."""

    def __init__(self, metrics: Metrics, times: FloatArray) -> None:
        self._metrics, self._times = metrics, times
        self._known: dict[str, FloatArray | None] = {}

    def of(self, name: str) -> FloatArray | None:
        """At every moment; None without it."""
        if name not in self._known:
            found = self._metrics.of(name)
            self._known[name] = None if not found else np.sum([self.one(s) for s in found], axis=0)
        return self._known[name]

    def one(self, series: Series) -> FloatArray:
        """One series at every moment: what lies between two of its samples is shared out."""
        told = [(t, v) for t, v in series.samples if t is not None]
        at = np.array([t for t, _ in told])
        rises = [0.0, *(rise for _, _, rise in Series("", {}, list(told)).increases())]
        first = np.searchsorted(at, self._times[0])
        total = np.cumsum(rises)
        if first == 0 and len(at) and at[0] > self._times[0]:  # it began later, from 0
            total = total + told[0][1]
            at, total = np.append(self._times[0], at), np.append(0.0, total)
        return np.asarray(np.interp(self._times, at, total))

    def buckets(self, name: str) -> dict[float, FloatArray]:
        """Cumulative counts by ``le``."""
        found: dict[float, FloatArray] = {}
        for series in self._metrics.of(f"{name}_bucket"):
            try:
                le = float(series.labels["le"])
            except (KeyError, ValueError):
                raise TraceError(
                    f"{self._metrics.name}: vllm:{name}_bucket without a label le that is a number"
                ) from None
            found[le] = found.get(le, np.zeros(len(self._times))) + self.one(series)
        return dict(sorted(found.items()))


def _gauge(metrics: Metrics, name: str, times: FloatArray) -> FloatArray | None:
    found = metrics.of(name)
    if not found:
        return None
    values = []
    for series in found:
        told = [(t, v) for t, v in series.samples if t is not None]
        at = np.array([t for t, _ in told])
        gaps = np.abs(at[:, None] - times[None, :]).min(axis=0)
        if len(at) < 2 or gaps.max() > _GAUGE_GAP_SCRAPES * float(np.median(np.diff(times))):
            return None
        values.append(np.interp(times, at, [v for _, v in told]))
    return np.asarray(np.sum(values, axis=0))


def _arrived(
    metrics: Metrics, counters: _Counters, times: FloatArray, finished: FloatArray
) -> FloatArray:
    """Requests that had come: those that finished, and those under way; those at first among them.

    Without gauges those that finished, half a latency earlier at best: the rate is then late.
    """
    under_way = [_gauge(metrics, f"num_requests_{k}", times) for k in ("running", "waiting")]
    total = finished.copy()
    for one in under_way:
        if one is not None:
            total = total + one
    return np.maximum.accumulate(total)


def _joules(metrics: Metrics, times: FloatArray) -> FloatArray | None:
    """Energy since the first moment: of the counter (mJ), or of power over time."""
    energy = [s for s in metrics.of(ENERGY) if len(s.samples) > 1]
    if energy:
        counters = _Counters(Metrics(metrics.name, energy, metrics.scrapes), times)
        total = counters.of(ENERGY)
        if total is not None and total[-1] > 0:
            return np.asarray((total - total[0]) / 1e3)
    watts = _gauge(metrics, POWER, times)
    if watts is None:
        return None
    steps = (watts[1:] + watts[:-1]) / 2 * np.diff(times)
    return np.concatenate([[0.0], np.cumsum(steps)])


def _mean(counters: _Counters, name: str, first: int, last: int) -> float | None:
    """Mean of a histogram over what was observed between two moments."""
    total, count = counters.of(f"{name}_sum"), counters.of(f"{name}_count")
    if total is None or count is None or not count[last] - count[first] > 0:
        return None
    return float((total[last] - total[first]) / (count[last] - count[first]))


def _spans(
    times: FloatArray, finished: FloatArray, lead_s: float, empty: bool
) -> list[tuple[int, int]]:
    """Runs of scrapes with enough requests that finished, of different load."""
    first = 0 if empty else int(np.searchsorted(times, times[0] + lead_s))
    candidates = []
    begin = first
    for i in range(first + 1, len(times)):
        if finished[i] - finished[begin] >= LEAST_FINISHED and i - begin >= 2:
            candidates.append((begin, i))
            begin = i
    candidates = [
        (a, b) for a, b in candidates if finished[b] - finished[a] <= _MOST_IN_WINDOW
    ] or candidates[:_MOST_WINDOWS]
    rates = [(finished[b] - finished[a]) / (times[b] - times[a]) for a, b in candidates]
    by_rate = [candidates[i] for i in np.argsort(rates, kind="stable")]
    if len(by_rate) > _MOST_WINDOWS:
        at = np.linspace(0, len(by_rate) - 1, _MOST_WINDOWS).round().astype(int)
        by_rate = [by_rate[i] for i in at]
    return sorted(by_rate)


def _window(
    metrics: Metrics,
    counters: _Counters,
    times: FloatArray,
    arrived: FloatArray,
    joules: FloatArray | None,
    span: tuple[int, int],
    lead_s: float,
    engine: bool,
) -> Window:
    a, b = span
    zero = max(0, int(np.searchsorted(times, times[a] - lead_s, side="right")) - 1)
    edges = times[zero : b + 1] - times[zero]
    finished = counters.of(f"{PROMPT}_count")
    assert finished is not None
    count = float(finished[b] - finished[a])
    name = f"{times[a] - times[0]:,.0f} to {times[b] - times[0]:,.0f} s"
    tables = []
    for what, metric in (("prompt", PROMPT), ("output", OUTPUT)):
        table, _ = lengths_of_histogram(
            f"{metrics.name}, {name}: {what}", _histogram(metrics, counters, metric, a, b)
        )
        tables.append(table)
    measured = _measured(metrics, counters, a, b, engine)
    power_sd = 0.0
    if joules is not None:
        measured["power_w"] = float((joules[b] - joules[a]) / (times[b] - times[a]))
        if not measured["power_w"] > 0:
            del measured["power_w"]
        elif not metrics.of(ENERGY):
            each = np.diff(joules)[a:b] / np.diff(times)[a:b]
            power_sd = max(
                float(each.std() / each.mean() / math.sqrt(len(each))), _READ_SD / len(each)
            )
    return Window(
        name=name,
        edges_s=edges,
        arrivals=np.diff(arrived[zero : b + 1]),
        begin_s=float(times[a] - times[zero]),
        end_s=float(times[b] - times[zero]),
        prompt=tables[0],
        output=tables[1],
        cached=_cached(counters, a, b),
        finished=count,
        measured=measured,
        power_sd=power_sd,
        engine=engine,
    )


def _measured(
    metrics: Metrics, counters: _Counters, a: int, b: int, engine: bool
) -> dict[str, float]:
    """Times of the requests that finished in a window, ms."""
    e2e = _mean(counters, _E2E, a, b)
    found = {}
    if engine:
        parts = [_mean(counters, h, a, b) for h in (_QUEUE, _PREFILL)]
        first = None if None in parts else sum(p for p in parts if p is not None)
    else:
        first = _mean(counters, _TTFT, a, b)
    if first is None or e2e is None or not 0 < first <= e2e * 1.01:
        raise CalibrationError(
            f"{metrics.name}: times to the first token ({first}) and to the last ({e2e}) are not "
            "those of requests that finished; query sums and counts of all histograms of times"
        )
    found["first_ms"] = first * 1e3
    decode, outputs = counters.of(f"{_DECODE}_sum"), counters.of(f"{OUTPUT}_sum")
    requests, e2e_sum = counters.of(f"{OUTPUT}_count"), counters.of(f"{_E2E}_sum")
    if outputs is None or requests is None:
        return found
    gaps = float(outputs[b] - outputs[a] - (requests[b] - requests[a]))
    if decode is not None:
        took = float(decode[b] - decode[a])
    else:  # as many requests finish as have their first token, but for the window's ends
        assert e2e_sum is not None
        took = float(e2e_sum[b] - e2e_sum[a]) - first * float(requests[b] - requests[a])
    if gaps > 0 and took > 0:
        found["token_ms"] = took / gaps * 1e3
    return found


def _histogram(metrics: Metrics, counters: _Counters, name: str, a: int, b: int) -> Histogram:
    buckets = counters.buckets(name)
    if not buckets:
        raise CalibrationError(f"{metrics.name}: no vllm:{name}_bucket in it; query it, too")
    cumulative = np.maximum.accumulate([x[b] - x[a] for x in buckets.values()])
    counts = np.diff(np.concatenate([[0.0], cumulative]))
    total = counters.of(f"{name}_sum")
    return Histogram(
        tuple(buckets),
        tuple(float(c) for c in counts),
        None if total is None else float(total[b] - total[a]),
    )


def _cached(counters: _Counters, a: int, b: int) -> float:
    queries, hits = (counters.of(f"prefix_cache_{k}_total") for k in ("queries", "hits"))
    if queries is None or hits is None or not queries[b] - queries[a] > 0:
        return 0.0
    return float(min(max((hits[b] - hits[a]) / (queries[b] - queries[a]), 0.0), 0.99))
