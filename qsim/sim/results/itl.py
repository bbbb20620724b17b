"""Inter-token gaps of all requests as a weighted sample, held as arithmetic progressions.

In a decode run the gap grows by the same amount from step to step, so that a run of any length is
one entry. Statistics are exact: whole picoseconds are summed as integers, and percentiles are found
by counting, then sorting only what shares the bin of the rank that is asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray, IntArray
from qsim.sim.engine.timing import PS_PER_MS

_BINS = 1 << 14
#: so few are sorted without counting first
_FEW = 1 << 14
#: gaps that are laid out at a time, which bounds the memory
_CHUNK = 1 << 18


#: first_ps, growth_ps, length and rows as columns, int64 or narrower
Table = tuple[npt.NDArray[Any], ...]


class Gaps:
    """``rows[i]`` gaps of each of ``first_ps[i] + k * growth_ps[i]``, k = 0 .. ``length[i]`` - 1.

    Parameters
    ----------
    entries : array of int64 (typecode q), or int64 array
        first_ps, growth_ps, length and rows of one entry after the other.
    """

    def __init__(self, entries: array[int] | IntArray) -> None:
        table = np.frombuffer(entries, np.int64) if len(entries) else np.empty(0, np.int64)
        self._tables: list[Table] = [tuple(table.reshape(-1, 4).T)] if len(table) else []

    def pack(self, entries: array[int]) -> None:
        """Take over further entries in half of their memory; ``entries`` is empty then."""
        if not len(entries):
            return
        # a copy: who looks at this frame from another thread (Dask's profiler does) holds what is
        # in it, and an array that a view looks into cannot be emptied
        columns = np.array(entries, np.int64).reshape(-1, 4).T
        self._tables.append(tuple(_narrow(c) for c in columns))
        del entries[:]

    @classmethod
    def of(cls, ms: npt.ArrayLike, count: npt.ArrayLike) -> Gaps:
        """``count[i]`` gaps of ``ms[i]``, rounded to whole picoseconds."""
        ps = np.rint(np.asarray(ms, np.float64) * PS_PER_MS).astype(np.int64)
        counts = np.asarray(count, np.int64)
        return cls(np.stack([ps, np.zeros_like(ps), np.ones_like(ps), counts], axis=1).ravel())

    @property
    def total(self) -> int:
        return sum(int(length @ rows) for _, _, length, rows in self._parts())

    @property
    def ms(self) -> FloatArray:
        """The gaps of every step, ms; with ``count``."""
        parts = [ps / PS_PER_MS for ps, _ in self.each()]
        return np.concatenate(parts) if parts else np.empty(0)

    @property
    def count(self) -> IntArray:
        """How often each of ``ms`` occurred."""
        parts = [np.repeat(rows, length) for _, _, length, rows in self._parts()]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def mean(self) -> float:
        """Mean gap, ms; nan without gaps."""
        total = self.total
        if not total:
            return float("nan")
        return self.sum_ps() / (total * PS_PER_MS)

    def sum_ps(self) -> int:
        """The sum of all gaps, ps, exactly."""
        # a progression's sum in whole ps, in parts that cannot overflow
        sum_ps = 0
        for first, growth, length, rows in self._parts():
            weight = length * rows
            sum_ps += _exact_dot(first, weight)
            sum_ps += _exact_dot(growth, weight * (length - 1) // 2)
        return sum_ps

    def percentile(self, q: float) -> float:
        """The q-th percentile, ms, interpolated linearly between ranks as numpy does."""
        return self.percentiles([q])[0]

    def percentiles(self, qs: list[float]) -> list[float]:
        """Several percentiles in one pass over the gaps; nan without gaps."""
        total = self.total
        if not total:
            return [float("nan")] * len(qs)
        ranks = [(total - 1) * q / 100.0 for q in qs]
        lows = [int(np.floor(r)) for r in ranks]
        wanted = sorted({r for low in lows for r in (low, min(low + 1, total - 1))})
        values = dict(zip(wanted, self._at_ranks(wanted), strict=True))
        result = []
        for rank, low in zip(ranks, lows, strict=True):
            a = values[low] / PS_PER_MS
            b = values[min(low + 1, total - 1)] / PS_PER_MS
            result.append(a + (b - a) * (rank - low))
        return result

    def _parts(self) -> Iterator[tuple[IntArray, IntArray, IntArray, IntArray]]:
        """The entries' columns, a part at a time."""
        for table in self._tables:
            for start in range(0, len(table[0]), _CHUNK):
                part = slice(start, start + _CHUNK)
                first, growth, length, rows = (c[part].astype(np.int64, copy=False) for c in table)
                yield first, growth, length, rows

    def each(self) -> Iterator[tuple[IntArray, IntArray]]:
        """Gap (ps) and count of every step, a part at a time."""
        for part in self._parts():
            yield from _laid_out(*part)

    def _at_ranks(self, ranks: list[int]) -> list[int]:
        """The gaps (ps) at these ranks, in ascending order of rank."""
        ends: list[int] = []
        for first, growth, length, _ in self._parts():
            last = first + (length - 1) * growth
            ends += (int(f(c)) for f in (np.min, np.max) for c in (first, last))
        least, most = min(ends), max(ends)
        if sum(int(length.sum()) for _, _, length, _ in self._parts()) <= _FEW:
            return self._sorted(ranks, least, most)
        return self._select(ranks, least, most)

    def _select(self, ranks: list[int], least: int, most: int) -> list[int]:
        """The same for ranks that are counted among the gaps from ``least`` to ``most``."""
        width = (most - least) // _BINS + 1
        counts = np.zeros(_BINS, np.int64)
        steps = np.zeros(_BINS, np.int64)
        for ps, count in self._between(least, most):
            bins = (ps - least) // width
            # the sums of a part are whole numbers below 2**53
            counts += np.bincount(bins, count, _BINS).astype(np.int64)
            steps += np.bincount(bins, minlength=_BINS)
        ends = np.cumsum(counts)
        values: list[int] = []
        hits = np.searchsorted(ends, ranks, side="right").tolist()
        for b in dict.fromkeys(hits):
            low = least + b * width
            inside = [
                rank - int(ends[b] - counts[b])
                for rank, hit in zip(ranks, hits, strict=True)
                if hit == b
            ]
            if width == 1:
                values += [low] * len(inside)
            elif steps[b] > _CHUNK:
                values += self._select(inside, low, low + width - 1)
            else:
                values += self._sorted(inside, low, low + width - 1)
        return values

    def _sorted(self, ranks: list[int], least: int, most: int) -> list[int]:
        parts = list(self._between(least, most))
        ps = np.concatenate([p for p, _ in parts])
        order = np.argsort(ps, kind="stable")
        ends = np.cumsum(np.concatenate([c for _, c in parts])[order])
        values: list[int] = ps[order][np.searchsorted(ends, ranks, side="right")].tolist()
        return values

    def _between(self, least: int, most: int) -> Iterator[tuple[IntArray, IntArray]]:
        for first, growth, length, rows in self._parts():
            last = first + (length - 1) * growth
            reach = (np.maximum(first, last) >= least) & (np.minimum(first, last) <= most)
            if reach.all():
                chosen = first, growth, length, rows
            else:
                chosen = first[reach], growth[reach], length[reach], rows[reach]
            for ps, count in _laid_out(*chosen):
                keep = (ps >= least) & (ps <= most)
                yield (ps, count) if keep.all() else (ps[keep], count[keep])


def _narrow(column: IntArray) -> npt.NDArray[Any]:
    """A copy in the narrowest type that holds the values."""
    low, high = int(column.min()), int(column.max())
    for kind in (np.int16, np.int32):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return column.astype(kind)
    return column.copy()


def _laid_out(
    first: IntArray, growth: IntArray, length: IntArray, rows: IntArray
) -> Iterator[tuple[IntArray, IntArray]]:
    """Gap and count of every step of the progressions, some hundred thousand at a time."""
    if not length.all():
        some = length > 0
        first, growth, length, rows = first[some], growth[some], length[some], rows[some]
    ends = np.cumsum(length)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
        part = slice(start, stop)
        sizes = length[part]
        # the difference of each gap to the one before it, added up
        ps = np.repeat(growth[part], sizes)
        begins = ends[part] - sizes - before
        last = first[part] + (sizes - 1) * growth[part]
        ps[begins] = first[part]
        ps[begins[1:]] -= last[:-1]
        yield np.cumsum(ps, out=ps), np.repeat(rows[part], sizes)
        start = stop


def _exact_dot(values: IntArray, counts: IntArray) -> int:
    low, high = values & 0xFFFFFF, values >> 24
    return (int(high @ counts) << 24) + int(low @ counts)
