"""What failures of servers did to a run, and how long it took to recover from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.arrays import BoolArray, FloatArray, IntArray
from qsim.sim.results.backlog import TimeBins

#: a level is a mean over so long; that before a failure is one over at most ``BEFORE_S``
WINDOW_S = 10.0
BEFORE_S = 600.0
#: standard deviations that may be chance
_SIGMAS = 3.0
_BINS = 1 << 16


class TimeCounts(TimeBins):
    """Counts of two kinds of events over time, in bins of 1 s that widen with the run.

    The first kind are arrivals: their times do not decrease from call to call.
    """

    def __init__(self) -> None:
        super().__init__(2, _BINS, 1.0)
        self.start_s = self.last_s = 0.0  # of the arrivals
        self._begun = False

    def add(self, arrival_s: FloatArray, second_s: FloatArray) -> None:
        """Count arrivals, and events of the second kind, by their times."""
        if not len(arrival_s):
            return
        if not self._begun:
            self.start_s, self._begun = float(arrival_s[0]), True
        self.last_s = float(arrival_s[-1])
        end_s = max(self.last_s, float(second_s.max()) if len(second_s) else 0.0)
        self.count(self.start_s, end_s, (arrival_s, second_s))

    def inside(self) -> tuple[IntArray, IntArray]:
        """Both counts by bin, of the bins that lie before the last arrival."""
        bins = int((self.last_s - self.start_s) / self.width_s)
        return self.counts[0, :bins], self.counts[1, :bins]


def backlog_recovery_s(flow: TimeCounts, outages: list[tuple[float, float]]) -> list[float | None]:
    """By outage, how long after it the requests in the fleet were back at their number before.

    The level before is the mean number of requests in the fleet over the 10 minutes before the
    failure (or what there is of them), without the times in which a server was down. A time is
    disturbed if the mean over the 10 s that begin with it is above the level by more than three
    standard deviations, of the means over 10 s before or of Poisson's law, whichever is larger.
    What counts are the disturbed times until the server is on again, and those that follow without
    a break: the time to recover is that from the failure to the end of the last of them, 0 if there
    is none. It is known to about 10 s.

    Parameters
    ----------
    flow : TimeCounts
        Arrivals of requests, and when they ended, in whatever way.
    outages : list of (begin_s, end_s)
        On the same clock.

    Returns
    -------
    list of float or None
        s; None if the fleet had not recovered when the last request arrived, or there is no time
        before that could be compared.
    """
    arrived, ended = flow.inside()
    inside = np.cumsum(arrived - ended)
    mean = (inside + np.concatenate([[0], inside[:-1]])) / 2 if len(inside) else inside
    size = _window(flow)
    level = _sliding(mean.astype(np.float64), size) / size
    usual = _undisturbed(flow, outages, len(level), size)
    found: list[float | None] = []
    for begin_s, end_s in outages:
        before = _before(flow, begin_s, usual, size)
        if not len(before):
            found.append(None)
            continue
        means = level[before]
        most = means.mean() + _SIGMAS * max(float(means.std()), float(means.mean()) ** 0.5)
        found.append(_last_disturbed_s(flow, level > most, begin_s, end_s))
    return found


def attainment_recovery_s(
    good: TimeCounts, outages: list[tuple[float, float]]
) -> list[float | None]:
    """The same of the share of requests within every limit, by when they arrive.

    A time is disturbed if the share of the requests that arrive within 10 s of it is below that
    before by more than three standard deviations: of a share of so many requests, or of the shares
    over 10 s before, whichever is larger.

    Parameters
    ----------
    good : TimeCounts
        Arrivals of requests, and of those within every limit.
    """
    arrived, within = good.inside()
    size = _window(good)
    n = _sliding(arrived.astype(np.float64), size)
    k = _sliding(within.astype(np.float64), size)
    usual = _undisturbed(good, outages, len(n), size)
    found: list[float | None] = []
    for begin_s, end_s in outages:
        before = _before(good, begin_s, usual, size)
        if not len(before) or not n[before].sum():
            found.append(None)
            continue
        share = float(k[before].sum() / n[before].sum())
        spread = (k[before].sum() + 1) / (n[before].sum() + 2)  # not 0 where all were within
        sigma = np.sqrt(spread * (1 - spread) / np.maximum(n, 1))
        some = before[n[before] > 0]
        sigma = np.maximum(sigma, float((k[some] / n[some]).std()))  # misses come in bursts
        disturbed = (n > 0) & (k < (share - _SIGMAS * sigma) * n)
        found.append(_last_disturbed_s(good, disturbed, begin_s, end_s))
    return found


def _window(counts: TimeCounts) -> int:
    return max(1, round(WINDOW_S / counts.width_s))


def _sliding(values: FloatArray, size: int) -> FloatArray:
    """Sums over ``size`` bins from each bin on, where there are so many."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return total[size:] - total[:-size] if len(values) >= size else np.zeros(0)


def _undisturbed(
    counts: TimeCounts, outages: list[tuple[float, float]], length: int, size: int
) -> BoolArray:
    """Bins from which on no server is down for a window."""
    at_s = counts.start_s + np.arange(length) * counts.width_s
    usual = np.ones(length, np.bool_)
    for begin_s, end_s in outages:
        usual &= (at_s + size * counts.width_s <= begin_s) | (at_s >= end_s)
    return usual


def _before(counts: TimeCounts, begin_s: float, usual: BoolArray, size: int) -> IntArray:
    """The undisturbed windows before a failure, next to each other."""
    last = int((begin_s - counts.start_s) / counts.width_s) - size
    first = max(0, last - int(BEFORE_S / counts.width_s))
    places = np.arange(last, first - 1, -size)
    places = places[(places >= 0) & (places < len(usual))]
    return places[usual[places]]


def _last_disturbed_s(
    counts: TimeCounts, disturbed: BoolArray, begin_s: float, end_s: float
) -> float | None:
    """From the failure to the end of the last disturbed time that belongs to it."""
    first = int(np.ceil((begin_s - counts.start_s) / counts.width_s))
    if first >= len(disturbed):
        return None
    back = min(len(disturbed) - 1, int((min(end_s, 1e15) - counts.start_s) / counts.width_s))
    own = np.flatnonzero(disturbed[first : back + 1])
    if not len(own):
        return 0.0
    last = first + int(own[-1])
    while last + 1 < len(disturbed) and disturbed[last + 1]:
        last += 1
    if last + 1 == len(disturbed):
        return None
    return max(0.0, counts.start_s + (last + 1) * counts.width_s - begin_s)


_PHASES = ("before", "during", "after")


class Windows:
    """Counts requests that arrive before, during and after outages, and those within all limits."""

    def __init__(self) -> None:
        self.requests = [0, 0, 0]
        self.good = [0, 0, 0]
        self.over_time = TimeCounts()

    def add(
        self, arrival_s: FloatArray, good: BoolArray, outages: Sequence[tuple[int, float, float]]
    ) -> None:
        """Count requests.

        Parameters
        ----------
        outages : sequence of (server, begin_s, end_s)
            On the same clock.
        """
        self.over_time.add(arrival_s, arrival_s[good])
        phase = np.zeros(len(arrival_s), np.int64)
        if outages:
            phase[arrival_s >= min(begin for _, begin, _ in outages)] = 2
            for _, begin, end in outages:
                phase[(arrival_s >= begin) & (arrival_s < end)] = 1
        for k in range(3):
            self.requests[k] += int((phase == k).sum())
            self.good[k] += int((good & (phase == k)).sum())

    def to_dict(self) -> dict[str, float | None]:
        """Attainment by phase; None over nothing."""
        pairs = zip(_PHASES, self.requests, self.good, strict=True)
        return {f"attainment_{name}": good / n if n else None for name, n, good in pairs}

    def recovery_s(self, outages: Sequence[tuple[int, float, float]]) -> list[float | None]:
        """By outage, how long the attainment took to be back: see `attainment_recovery_s`."""
        return attainment_recovery_s(self.over_time, [(begin, end) for _, begin, end in outages])


@dataclass(frozen=True)
class Outages:
    """The failures of a run."""

    #: how often a server failed
    failures: int
    #: requests that were under way at a server that failed, each time
    lost: int
    #: how often one was sent again
    retried: int
    #: the share of the time in which a server was on, over all servers
    availability: float
    #: when each was down, its start-up included, on the trace's clock
    outages: tuple[tuple[int, float, float], ...]
    #: by outage, how long the requests in the fleet took to be back at their number before, s
    #: (:func:`qsim.sim.results.outages.backlog_recovery_s`); None where that is not known
    recovery_s: tuple[float | None, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "failures": self.failures,
            "lost": self.lost,
            "retried": self.retried,
            "availability": self.availability,
            "outages": [
                {"server": server, "begin_s": begin, "end_s": end, "recovery_s": recovery}
                for (server, begin, end), recovery in zip(
                    self.outages, self.recovery_s, strict=True
                )
            ],
            "time_to_recover_s": longest(self.recovery_s),
        }


def longest(recovery_s: Sequence[float | None]) -> float | None:
    """The longest time to recover; None if one is not known, or there is none."""
    known = [r for r in recovery_s if r is not None]
    return max(known) if known and len(known) == len(recovery_s) else None
