"""A workload from a server's metrics or from a few numbers, with what had to be assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike

import numpy as np

from qsim.arrays import FloatArray
from qsim.errors import TraceError
from qsim.traces.reconstruct.histogram import (
    Histogram,
    cumulative_to_counts,
    lengths_of_histogram,
    lengths_of_mean_and_p95,
)
from qsim.traces.reconstruct.metrics import OUTPUT, PROMPT, Metrics, read_metrics
from qsim.traces.synth.arrivals import Gaps, RateProfile
from qsim.traces.synth.lengths import LengthModel, QuantileTable
from qsim.traces.synth.synthesize import Span, Workload, synthesize
from qsim.traces.trace import Trace


@dataclass(frozen=True)
class Reconstruction:
    """A workload that is like what was seen, as far as that tells."""

    workload: Workload
    #: as long as what was seen, unless asked otherwise
    span: Span
    #: what was measured, and what was assumed
    notes: tuple[str, ...]

    def draw(self, seed: int = 0) -> Trace:
        """A trace of the workload; its ``meta["notes"]`` say that it is a reconstruction."""
        trace = synthesize(self.workload, self.span, seed)
        meta = {**trace.meta, "format": "reconstruction", "notes": list(self.notes)}
        return replace(trace, meta=meta)


def reconstruct_from_numbers(
    *,
    rate_rps: float,
    prompt: tuple[float, float],
    output: tuple[float, float],
    cv: float = 1.0,
    correlation: float = 0.0,
    span: Span | None = None,
) -> Reconstruction:
    """A workload of a rate, and of mean and 95th percentile of the lengths.

    Parameters
    ----------
    rate_rps : float
        Requests a second.
    prompt, output : (float, float)
        Mean and 95th percentile, tokens; lengths are log-normal.
    cv : float
        Coefficient of variation of the gaps between requests; 1 is Poisson.
    correlation : float
        Rank correlation of the two lengths.
    span : Span, optional
        How much to draw; 600 s by default.

    Raises
    ------
    TraceError, ScenarioError
        If there is no such workload.
    """
    lengths = LengthModel(
        lengths_of_mean_and_p95("prompt", *prompt),
        lengths_of_mean_and_p95("output", *output),
        correlation,
    )
    notes = (
        f"a reconstruction from {rate_rps:g} requests/s, prompts of mean {prompt[0]:g} and p95 "
        f"{prompt[1]:g} tokens, outputs of mean {output[0]:g} and p95 {output[1]:g}",
        "assumed: log-normal lengths; " + _assumed(cv, correlation, False),
    )
    workload = Workload(
        "reconstruction",
        RateProfile.constant(_rate(rate_rps)),
        _gaps(cv),
        lengths,
        duration_s=600.0,
    )
    return Reconstruction(workload, span or Span(), notes)


def reconstruct_from_metrics(
    paths: Sequence[str | PathLike[str]],
    *,
    seconds: float | None = None,
    rate_rps: float | None = None,
    model_name: str | None = None,
    cv: float = 1.0,
    correlation: float = 0.0,
    span: Span | None = None,
) -> Reconstruction:
    """A workload of vLLM's metrics: the rate, and the histograms of both lengths.

    Parameters
    ----------
    paths : sequence of paths
        As for :func:`qsim.traces.reconstruct.metrics.read_metrics`; ``model_name`` too.
    seconds : float, optional
        Between two scrapes, or from the server's start to the only one; needed for scrapes
        without times, unless ``rate_rps`` (the mean rate, in the place of the metrics' own) is
        given.
    cv, correlation, span
        As for :func:`reconstruct_from_numbers`; as long as what was seen by default.

    Raises
    ------
    TraceError, ScenarioError
        If the metrics do not tell a workload.
    """
    metrics = read_metrics(paths, model_name)
    notes: list[str] = []
    tables: list[QuantileTable] = []
    for what, name in (("prompt", PROMPT), ("output", OUTPUT)):
        table, said = lengths_of_histogram(f"{metrics.name}: {what}", _histogram(metrics, name))
        tables.append(table)
        notes += said
    profile, duration_s, told = _profile(metrics, seconds, rate_rps)
    notes.insert(0, f"a reconstruction from {metrics.name}: {told}")
    notes += _remarks(metrics, duration_s)
    steps = len(profile.rates_rps) > 1
    notes.append(
        "assumed: lengths go smoothly through the buckets; " + _assumed(cv, correlation, steps)
    )
    workload = Workload(
        "reconstruction",
        profile,
        _gaps(cv),
        LengthModel(tables[0], tables[1], correlation),
        duration_s=duration_s,
    )
    return Reconstruction(workload, span or Span(), tuple(notes))


def _assumed(cv: float, correlation: float, steps: bool) -> str:
    kind = "Poisson arrivals" if cv == 1 else f"gaps of CV {cv:g}"
    within = " within each step" if steps else " at a constant rate"
    joined = "lengths of prompt and output" + (
        " not correlated" if correlation == 0 else f" with a rank correlation of {correlation:g}"
    )
    return (
        f"{kind}{within}, whatever the answers take (--cv for bursts); {joined}; no shared "
        "beginnings of prompts, no sessions"
    )


def _rate(rate_rps: float) -> float:
    if not 0 < rate_rps <= 1e9:
        raise TraceError(f"the rate is {rate_rps!r} requests/s; must be > 0 and at most 1e9")
    return rate_rps


def _gaps(cv: float) -> Gaps:
    return Gaps() if cv == 1 else Gaps("gamma", cv)


def _histogram(metrics: Metrics, name: str) -> Histogram:
    buckets = metrics.buckets(name)
    if not buckets:
        raise TraceError(f"{metrics.name}: no vllm:{name}_bucket in it")
    cumulative = list(buckets.values())
    slack = 1e-6 * max(1.0, cumulative[-1])
    if any(b < a - slack for a, b in pairwise(cumulative)):
        raise TraceError(
            f"{metrics.name}: the counts of vllm:{name}_bucket go down with le; they are "
            "cumulative, so one is missing or damaged"
        )
    cumulative = np.maximum.accumulate(cumulative).tolist()
    return Histogram(tuple(buckets), cumulative_to_counts(cumulative), metrics.total(f"{name}_sum"))


def _profile(
    metrics: Metrics, seconds: float | None, rate_rps: float | None
) -> tuple[RateProfile, float, str]:
    """The rate over time, how long it was seen, and that in words."""
    finished = max(metrics.buckets(PROMPT).values())
    edges, counts = _steps(metrics)
    if edges is not None and counts is not None and seconds is None:
        duration_s = float(edges[-1] - edges[0])
        rates = counts / np.diff(edges)
        told = f"{counts.sum():,.0f} requests in {duration_s:,.0f} s"
        if len(rates) > 1:
            told += f", in {len(rates)} steps of {rates.min():.3g} to {rates.max():.3g} requests/s"
        profile = RateProfile(np.asarray(edges - edges[0], np.float64), rates)
        if rate_rps is not None:
            scaled = profile.scaled(_rate(rate_rps) / profile.mean_rps)
            return scaled, duration_s, f"{told}, scaled to {rate_rps:g} requests/s"
        return profile, duration_s, f"{told} ({profile.mean_rps:.4g} requests/s)"
    arrived = finished + (_in_flight_change(metrics) if metrics.scrapes > 1 else 0.0)
    if rate_rps is not None:
        duration_s = 600.0 if seconds is None else seconds
        told = f"lengths of {finished:,.0f} requests, {rate_rps:g} requests/s as given"
        return RateProfile.constant(_rate(rate_rps)), duration_s, told
    if seconds is None:
        which = "between the two scrapes" if metrics.scrapes > 1 else "since the server's start"
        raise TraceError(
            f"{metrics.name}: {finished:,.0f} requests {which}, but the scrape does not say how "
            "long that was: give --seconds (or --rate)"
        )
    if not 0 < seconds <= 3.2e8:
        raise TraceError(f"--seconds is {seconds!r}; must be > 0 and at most ten years")
    rate = _rate(arrived / seconds)
    told = f"{arrived:,.0f} requests in {seconds:,.0f} s ({rate:.4g} requests/s)"
    return RateProfile.constant(rate), seconds, told


def _in_flight_change(metrics: Metrics) -> float:
    """Requests that came and had not finished, less those that were there before."""
    change = 0.0
    for name in ("num_requests_running", "num_requests_waiting"):
        for series in metrics.of(name):
            change += series.samples[-1][1] - series.samples[0][1]
    return change


def _steps(metrics: Metrics) -> tuple[FloatArray | None, FloatArray | None]:
    """Moments of a query, and the requests that finished between them."""
    series = metrics.of(f"{PROMPT}_count") or [
        s for s in metrics.of(f"{PROMPT}_bucket") if s.labels.get("le") in ("+Inf", "inf", "Inf")
    ]
    rises = [
        (begin, end, rise)
        for s in series
        for begin, end, rise in s.increases()
        if begin is not None and end is not None and end > begin
    ]
    if not rises:
        return None, None
    edges = np.unique([t for begin, end, _ in rises for t in (begin, end)])
    counts = np.zeros(len(edges) - 1)
    for begin, end, rise in rises:
        first, last = np.searchsorted(edges, [begin, end])
        width = np.diff(edges[first : last + 1])
        counts[first:last] += rise * width / width.sum()
    if not counts.sum() > 0:
        raise TraceError(f"{metrics.name}: no request finished between the first and last sample")
    return edges, counts


def _remarks(metrics: Metrics, duration_s: float) -> list[str]:
    """What else the metrics say that a reader of the answer should know."""
    notes: list[str] = []
    queries, hits = (metrics.total(f"prefix_cache_{k}_total") for k in ("queries", "hits"))
    if queries and hits and hits > 0.05 * queries:
        share = hits / queries
        mean = (metrics.total(f"{PROMPT}_sum") or 0) / max(
            1.0, metrics.total(f"{PROMPT}_count") or 1.0
        )
        notes.append(
            f"{share:.0%} of the prompt tokens were found in the prefix cache, about "
            f"{share * mean:,.0f} of each prompt: --shared-prefix lets prompts share a beginning"
        )
    took = metrics.total("e2e_request_latency_seconds_sum")
    count = metrics.total("e2e_request_latency_seconds_count")
    if took and count and took / count > 0.1 * duration_s and math.isfinite(took):
        notes.append(
            f"requests took {took / count:.3g} s on average, long for {duration_s:,.0f} s of "
            "metrics: the lengths are of those that had finished, short ones above all; take a "
            "longer time"
        )
    return notes
