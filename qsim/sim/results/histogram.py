"""Counts of values in bins whose width grows with the value: percentiles in bounded memory.

A bin is the sign, the exponent and the first 13 bits of the fraction of a float64, so a power of
two has 8,192 equal bins and finding a value's bin is one shift. Within a bin every value counts as
its middle: a percentile is off by at most 1 part in 16,384 (0.0061%), whatever the distribution,
and the same values give the same percentiles in any order. Sketches with a library of their own
were not used: those that take whole arrays with counts (t-digest, KLL) bound the error of the rank
and not of the value, or draw random numbers, and those that bound the value (DDSketch, HDR) take
one value a call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray, IntArray
from qsim.sim.engine.timing import PS_PER_MS
from qsim.sim.results.itl import Gaps

_BITS = 13
#: values from 1 to 2**63; what is less counts as in the first bin
_BINS = 63 << _BITS
_SHIFT = 52 - _BITS
_FIRST = 1023 << _BITS  # the bin of 1.0, by its bits
#: of a percentile
RELATIVE_ERROR = 2.0 ** -(_BITS + 1)


class Histogram:
    """Counts of values >= 0; anything above 1 is told apart."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._least, self._most = math.inf, -math.inf
        #: how many values there are
        self.total = 0

    def add(self, values: FloatArray, counts: npt.ArrayLike | None = None) -> None:
        """Count ``values``, each once or ``counts`` times."""
        if len(values) == 0:
            return
        bins = (values.view(np.int64) >> _SHIFT) - _FIRST
        np.clip(bins, 0, _BINS - 1, out=bins)
        low, high = int(bins.min()), int(bins.max())
        # the sums of a part are whole numbers below 2**53
        found = np.bincount(bins - low, None if counts is None else np.asarray(counts, np.float64))
        found = found.astype(np.int64)
        self._counts[low : high + 1] += found
        self.total += int(found.sum())
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))

    def percentiles(self, qs: Sequence[float]) -> list[float]:
        """Percentiles, interpolated linearly between ranks as numpy does; nan without values."""
        if not self.total:
            return [math.nan] * len(qs)
        ends = np.cumsum(self._counts)
        result = []
        for q in qs:
            rank = (self.total - 1) * q / 100.0
            low = math.floor(rank)
            a, b = (self._at(ends, r) for r in (low, min(low + 1, self.total - 1)))
            result.append(a + (b - a) * (rank - low))
        return result

    def _at(self, ends: IntArray, rank: int) -> float:
        if rank == 0:
            return self._least
        if rank == self.total - 1:
            return self._most
        found = int(np.searchsorted(ends, rank, side="right"))
        edges = (np.array([found, found + 1]) + _FIRST) << _SHIFT
        low, high = edges.view(np.float64).tolist()
        return float(min(max((low + high) / 2, self._least), self._most))


class Latency:
    """One latency over all requests: counts for its percentiles, and an exact sum."""

    def __init__(self) -> None:
        self.histogram = Histogram()
        self._sums_ms: list[float] = []
        self._sum_ps = 0

    def add(self, ms: FloatArray) -> None:
        """Count values in ms; nan is none."""
        values = ms[~np.isnan(ms)]
        self.histogram.add(values * PS_PER_MS)
        self._sums_ms.append(float(values.sum()))
        if len(self._sums_ms) == 1024:
            self._sums_ms = [math.fsum(self._sums_ms)]

    def add_gaps(self, gaps: Gaps) -> None:
        """Count gaps between tokens."""
        for ps, counts in gaps.each():
            self.histogram.add(ps.astype(np.float64), counts)
        self._sum_ps += gaps.sum_ps()

    def mean(self) -> float:
        total = self.histogram.total
        if not total:
            return math.nan
        return self._sum_ps / (total * PS_PER_MS) + math.fsum(self._sums_ms) / total

    def percentiles(self, qs: Sequence[float]) -> list[float]:
        return [ps / PS_PER_MS for ps in self.histogram.percentiles(qs)]
