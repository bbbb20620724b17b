"""Lengths from what is left of them: a histogram's buckets and sum, or a mean and a p95."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.bounds import shown
from qsim.errors import TraceError
from qsim.traces.synth.lengths import MAX_LENGTH, QuantileTable

#: pieces that a bucket is cut into
_PIECES = 24
_Z95 = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Histogram:
    """Counts by bucket, as Prometheus has them, of whole numbers of tokens."""

    #: upper ends of the buckets (``le``), included in them, rising; the last may be inf
    edges: tuple[float, ...]
    #: in each bucket alone (not cumulative)
    counts: tuple[float, ...]
    #: the sum of all values
    total: float | None = None

    @property
    def count(self) -> float:
        """Of all values."""
        return math.fsum(self.counts)


def lengths_of_histogram(what: str, histogram: Histogram) -> tuple[QuantileTable, list[str]]:
    """The smooth distribution with these counts and this sum; and what was assumed.

    Within the buckets the distribution function is a monotone cubic in the logarithm of the
    length (Fritsch and Carlson 1980), so that the density goes on from bucket to bucket. The pieces
    of every bucket are then weighed by a power of the length, the same in all of them, that makes
    the mean what the sum tells.

    Raises
    ------
    TraceError
        If there is no value, or the sum cannot be that of the counts.
    """
    if not histogram.count > 0:
        raise TraceError(f"{what}: no request in the histogram")
    notes: list[str] = []
    edges, counts = list(histogram.edges), list(histogram.counts)
    if edges[-1] == math.inf:
        beyond = counts[-1]
        last = edges[-2] if len(edges) > 1 else 1.0
        edges[-1] = 2 * last
        if beyond:
            notes.append(
                f"{what}: {beyond:,.0f} of {histogram.count:,.0f} are longer than the last bucket "
                f"({last:,.0f}); taken to be up to twice that"
            )
    if edges[0] <= 0:
        edges, counts = edges[1:], counts[1:]
    # whole numbers: a bucket (a, b] holds a + 1 to b, and a draw is rounded
    ends = np.concatenate([[0.5], np.array(edges) + 0.5])
    cumulative = np.concatenate([[0.0], np.cumsum(counts)]) / max(math.fsum(counts), 1e-300)
    used = np.flatnonzero(np.diff(cumulative) > 0)
    fine_x, fine_p = _smooth(np.log(ends), cumulative, used)
    if histogram.total is None:
        notes.append(f"{what}: no sum in the metrics; the mean is that of the smooth distribution")
    else:
        fine_p = _with_mean(what, fine_x, fine_p, histogram.total / histogram.count)
    return _table(fine_x, fine_p), notes


def _smooth(x: FloatArray, p: FloatArray, used: IntArray) -> tuple[
    FloatArray, FloatArray
]:  # fmt: skip
    """The distribution function at the ends of all pieces: one row a bucket that is not empty."""
    width, rise = np.diff(x), np.diff(p)
    secant = rise / width
    slope = np.zeros(len(x))
    both = (secant[:-1] > 0) & (secant[1:] > 0)
    w1, w2 = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    with np.errstate(divide="ignore"):
        harmonic = (w1 + w2) / (w1 / secant[:-1] + w2 / secant[1:])
    slope[1:-1] = np.where(both, harmonic, 0.0)
    t = np.linspace(0.0, 1.0, _PIECES + 1)
    i = used[:, None]
    h = width[i]
    fine_p = (
        (1 + 2 * t) * (1 - t) ** 2 * p[i]
        + t * (1 - t) ** 2 * h * slope[i]
        + t**2 * (3 - 2 * t) * p[i + 1]
        + t**2 * (t - 1) * h * slope[i + 1]
    )
    fine_p[:, 0], fine_p[:, -1] = p[used], p[used + 1]
    return np.asarray(x[i] + t * h), np.asarray(fine_p)


def _with_mean(what: str, x: FloatArray, p: FloatArray, mean: float) -> FloatArray:
    """The same counts by bucket with another mean: the pieces weighed by a power of the length."""
    low, high = np.exp(x[:, :-1]), np.exp(x[:, 1:])
    inside = (high - low) / np.diff(x, axis=1)  # the mean of a piece, uniform in the logarithm
    mass = np.maximum(np.diff(p, axis=1), 1e-12 * np.diff(p[:, [0, -1]], axis=1))
    bucket = p[:, -1] - p[:, 0]
    middle = x.mean(axis=1, keepdims=True)

    def weighed(power: float) -> FloatArray:
        tilt = power * (np.log(inside) - middle)
        own = mass * np.exp(tilt - tilt.max(axis=1, keepdims=True))
        return np.asarray(own * (bucket / own.sum(axis=1))[:, None])

    def mean_at(power: float) -> float:
        return float((weighed(power) * inside).sum())

    least, most = -400.0, 400.0
    slack = 0.03 * mean + 0.5  # half a piece
    if not mean_at(least) - slack <= mean <= mean_at(most) + slack:
        raise TraceError(
            f"{what}: a mean of {mean:,.1f} tokens (sum over count) is not that of the buckets, "
            f"which have {mean_at(least):,.1f} to {mean_at(most):,.1f}; the scrape is damaged, or "
            "of several servers at different times"
        )
    for _ in range(80):
        power = (least + most) / 2
        least, most = (power, most) if mean_at(power) < mean else (least, power)
    masses = weighed((least + most) / 2)
    cumulative = np.cumsum(masses, axis=1)
    return np.asarray(np.concatenate([p[:, :1], p[:, :1] + cumulative], axis=1))


def _table(x: FloatArray, p: FloatArray) -> QuantileTable:
    """The quantile table; probabilities that do not rise are left out."""
    flat_p, values = p.reshape(-1), np.exp(x).reshape(-1)
    flat_p = np.clip(flat_p, 0.0, 1.0)
    # at the end of an empty stretch the next bucket begins at the same probability
    keep_p: list[float] = []
    keep_v: list[float] = []
    for probability, value in zip(flat_p.tolist(), values.tolist(), strict=True):
        if keep_p and probability <= keep_p[-1] + 1e-12:
            if keep_p[-1] == 0.0:
                keep_v[-1] = value
                continue
            probability = math.nextafter(keep_p[-1], 2.0)
        keep_p.append(probability)
        keep_v.append(max(value, keep_v[-1] if keep_v else 0.0))
    while keep_p and keep_p[-1] > 1.0 - 1e-12 and len(keep_p) > 2 and keep_p[-2] > 1.0 - 1e-12:
        keep_p.pop(-2)
        keep_v.pop(-2)
    keep_p[0], keep_p[-1] = 0.0, 1.0
    return QuantileTable.of(keep_p, keep_v)


def lengths_of_mean_and_p95(what: str, mean: float, p95: float) -> QuantileTable:
    """The log-normal with this mean and 95th percentile; a constant if they are equal.

    A log-normal with standard deviation s of its logarithm has a p95 of exp(z s - s^2 / 2) means
    (z = 1.645), which is at most 3.87.

    Raises
    ------
    TraceError
        If there is none.
    """
    for name, value in (("mean", mean), ("p95", p95)):
        if not 1 <= value <= MAX_LENGTH:
            raise TraceError(
                f"{what}: {name} is {shown(value)}; must be from 1 to {MAX_LENGTH:g} tokens"
            )
    if p95 == mean:
        return QuantileTable.constant(mean)
    if not mean < p95 <= 3.8 * mean:
        raise TraceError(
            f"{what}: a p95 of {p95:g} for a mean of {mean:g}; must be from the mean to 3.8 times "
            "that, as a log-normal has it (beyond, a few long ones make the mean): give quantiles "
            "to 'qsim traces synth' instead"
        )

    def table(sigma: float) -> QuantileTable:
        median = p95 / math.exp(_Z95 * sigma)
        return QuantileTable.lognormal(median, sigma, 0.5, median * math.exp(4.5 * sigma))

    low, high = 0.0, _Z95
    for _ in range(60):
        sigma = (low + high) / 2
        low, high = (sigma, high) if table(sigma).mean > mean else (low, sigma)
    found = table((low + high) / 2)
    at = np.asarray((np.arange(4000) + 0.5) / 4000)
    drawn = float(found.tokens_at(at).mean())
    if abs(drawn - mean) > 0.05 * mean:
        raise TraceError(
            f"{what}: no log-normal in whole tokens has a mean of {mean:g} and a p95 of {p95:g} "
            f"(the mean would be {drawn:.3g}): give quantiles to 'qsim traces synth' instead"
        )
    return found


def cumulative_to_counts(cumulative: Sequence[float]) -> tuple[float, ...]:
    """Counts of each bucket alone."""
    return tuple(b - a for a, b in zip((0.0, *cumulative), cumulative, strict=False))
