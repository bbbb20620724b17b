"""One latency over all requests of a run that lets them go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qsim.sim.engine.timing import PS_PER_MS
from qsim.sim.results.histogram import Histogram
from qsim.sim.results.itl import Gaps

__all__ = ["Latency"]

FloatArray = npt.NDArray[np.float64]


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
