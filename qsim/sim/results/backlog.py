"""Whether a fleet keeps up with its traffic: the requests that are unfinished, over time.

A fleet is overloaded if it finishes fewer requests than arrive for as long as they arrive: then
every latency is a matter of how long the trace is. What is looked at is the number of requests in
the fleet and, of these, of those that have not begun to answer (the queue), as means over thirds
of the time in which requests arrive:

* The drift is what the last third has more than the middle one, a second, over the requests that
  arrive a second. A fleet that finishes 1 - d of what arrives comes to d.
* A batch that fills up in the first seconds drifts too, but its queue does not: a queue that grows
  means that ``max_num_seqs``, KV blocks or the token budget are used up.
* Traffic that comes in bursts leaves more or fewer requests at any time. What may be chance is
  taken from the arrivals' own index of dispersion (variance over mean of counts; Cox and Lewis,
  1966), as in a queue of many servers (Whitt, 1992: the variance of the number in the system is
  its mean times that index).

Where a drift is within chance or may be a batch that fills up, the trace is too short to tell;
:mod:`qsim.sim.results.continued` then lets it go on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qsim.arrays import FloatArray, IntArray

#: all requests within so many seconds are one burst: there is no rate to keep up with
BURST_S = 1.0
#: a drift below it is none; one that may be as large as ``BOUND`` by chance is not known to be
SMALL, BOUND = 0.01, 0.05
#: standard deviations of the number in the fleet that may be chance
_SIGMAS = 2.0
#: share of what comes on top that waits in the queue, if it is no batch that fills up
_QUEUE = 0.6
_BINS = 2048
#: ratio of a fleet that finishes nothing
_ALL = 1e9
#: counts that the dispersion of arrivals is taken from
_COUNTS = 64

OVERLOADED, KEPT_UP, UNCLEAR, BURST = "overloaded", "sustained", "too short to tell", "burst"


@dataclass(frozen=True)
class Load:
    """Whether the fleet kept up."""

    #: {"sustained", "overloaded", "too short to tell", "burst", "closed loop"}: a burst is a trace
    #: whose requests all arrive within a second: nothing is said of it, nor of clients that send a
    #: request when the one before it has ended
    verdict: str
    #: requests a second that arrived; None for a burst
    arriving_rps: float | None
    #: those that it finishes while more arrive, where it is overloaded. It may carry a little more
    #: without the crowd: fewer requests in one batch, and no preemption.
    finished_rps: float | None
    #: requests in the fleet when the last one arrived
    unfinished: int
    #: of the requests that arrive, the share by which those in the fleet grow
    drift: float = 0.0
    #: the same of those that have not begun to answer
    queue_drift: float = 0.0
    #: for how long the trace was made to go on to tell; 0 if it was not
    continued_s: float = 0.0
    #: the highest rate of this traffic that it was found to keep up with, to 5%, where that was
    #: looked for
    carried_rps: float | None = None

    @property
    def overloaded(self) -> bool:
        """Whether more arrives than the fleet finishes."""
        return self.verdict == OVERLOADED

    @property
    def overload(self) -> float | None:
        """The share of what arrives that is not finished: 0 unless overloaded; None if unclear."""
        if self.unclear:
            return None
        if not self.overloaded or not self.arriving_rps:
            return 0.0
        return 1.0 - (self.finished_rps or 0.0) / self.arriving_rps

    @property
    def unclear(self) -> bool:
        """Whether the trace is too short to tell."""
        return self.verdict == UNCLEAR

    def sentence(self) -> str:
        """For people; "" where there is nothing to say."""
        if self.overloaded:
            carries = "" if self.carried_rps is None else f"; it could carry {self.carried_rps:.3g}"
            after = f" and {self.continued_s:,.0f} s more of it" if self.continued_s else ""
            return (
                f"overloaded: {self.arriving_rps:.4g} requests/s arrive and the fleet finishes "
                f"{self.finished_rps:.4g}, so that more and more wait (seen over the trace{after})"
                f"{carries}"
            )
        if self.unclear:
            after = f", even with {self.continued_s:,.0f} s more of it" if self.continued_s else ""
            return (
                f"the trace is too short to tell whether the fleet keeps up with "
                f"{self.arriving_rps:.4g} requests/s{after}: {self.unfinished:,} were unfinished "
                "at the last arrival"
            )
        return ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "arriving_rps": self.arriving_rps,
            "finished_rps": self.finished_rps,
            "carried_rps": self.carried_rps,
            "unfinished_at_last_arrival": self.unfinished,
            "continued_s": self.continued_s,
        }


#: clients wait for answers, so that no more can arrive than the fleet finishes
CLOSED_LOOP = Load("closed loop", None, None, 0)


@dataclass(frozen=True)
class BacklogOutcome:
    """That a fleet keeps up, as a goal beside SLOs; read as a ``SloOutcome`` is."""

    load: Load

    @property
    def slo(self) -> str:
        return "backlog"

    @property
    def met(self) -> bool:
        """Whether the fleet keeps up, or it cannot be told."""
        return not self.load.overloaded

    @property
    def ratio(self) -> float:
        """What arrives over what is finished: above 1 if the fleet is overloaded, else 0."""
        if not self.load.finished_rps or self.load.arriving_rps is None:
            return 0.0 if self.met else _ALL
        return self.load.arriving_rps / self.load.finished_rps

    def to_dict(self) -> dict[str, Any]:
        return self.load.to_dict()

    def sentence(self) -> str:
        """For people."""
        return self.load.sentence() or "the fleet keeps up with its traffic"


class TimeBins:
    """Counts of kinds of events over time, in so many bins, which widen by two where they end.

    So memory does not grow.
    """

    def __init__(self, kinds: int, bins: int, width_s: float) -> None:
        self.width_s = width_s
        self.counts = np.zeros((kinds, bins), np.int64)

    def count(self, start_s: float, end_s: float, times_s: Sequence[FloatArray]) -> None:
        """Count events of each kind by their times, none of which is after ``end_s``."""
        bins = self.counts.shape[1]
        while end_s - start_s >= self.width_s * bins:
            pairs = self.counts[:, ::2] + self.counts[:, 1::2]
            self.counts = np.concatenate([pairs, np.zeros_like(pairs)], axis=1)
            self.width_s *= 2
        for counts, times in zip(self.counts, times_s, strict=True):
            at = ((times - start_s) / self.width_s).astype(np.int64)
            counts += np.bincount(np.clip(at, 0, bins - 1), minlength=bins)


class Flow(TimeBins):
    """Counts of arrivals, first tokens and last tokens over time."""

    def __init__(self, start_s: float = 0.0) -> None:
        super().__init__(3, _BINS, 1.0 / 16)
        self.start_s = self.last_s = start_s
        self.requests = 0

    def add(self, arrival_s: FloatArray, first_s: FloatArray, last_s: FloatArray) -> None:
        """Count requests by their times, s; in order of arrival."""
        if len(arrival_s):
            self.count(self.start_s, float(last_s.max()), (arrival_s, first_s, last_s))
            self.last_s = float(arrival_s[-1])
            self.requests += len(arrival_s)

    def mean_inside(self, begin_s: float, end_s: float) -> tuple[float, float]:
        """Mean number of requests in the fleet, and of those without a first token, in a time."""
        arrived, begun, left = (self._integral(c, begin_s, end_s) for c in self.counts)
        # differences of large sums: rounding must not make them negative
        inside, queue = max(0.0, arrived - left), max(0.0, arrived - begun)
        return inside / (end_s - begin_s), queue / (end_s - begin_s)

    def left_by(self, time_s: float) -> float:
        """How many had their last token by then."""
        edges = np.arange(_BINS + 1) * self.width_s
        total = np.concatenate([[0], np.cumsum(self.counts[2])])
        return float(np.interp(time_s - self.start_s, edges, total))

    def _integral(self, counts: IntArray, begin_s: float, end_s: float) -> float:
        """Of the number that was counted up to each time, over a time; linear within a bin."""
        width = self.width_s
        total = np.concatenate([[0.0], np.cumsum(counts)])
        area = np.concatenate([[0.0], np.cumsum((total[:-1] + total[1:]) * (width / 2))])

        def up_to(time_s: float) -> float:
            x = time_s - self.start_s
            i = min(int(x / width), _BINS - 1)
            rest = x - i * width
            slope = (total[i + 1] - total[i]) / width
            return float(area[i] + total[i] * rest + slope * rest * rest / 2)

        return up_to(end_s) - up_to(begin_s)

    def dispersion(self) -> float:
        """Variance over mean of the arrivals in equal stretches of time; at least 1."""
        bins = min(_BINS, max(1, math.ceil((self.last_s - self.start_s) / self.width_s)))
        step = max(1, bins // _COUNTS)
        whole = self.counts[0, : bins - bins % step].reshape(-1, step).sum(axis=1)
        mean = float(whole.mean()) if len(whole) else 0.0
        return max(1.0, float(whole.var()) / mean) if mean > 0 else 1.0


def judge(flow: Flow, *, end_s: float | None = None, exact: bool = False) -> Load:
    """Whether a fleet kept up with its requests until ``end_s``, their last arrival unless given.

    If that is ``exact``, the thirds have the same arrivals, so that nothing is chance.
    """
    start_s = flow.start_s
    end_s = flow.last_s if end_s is None else end_s
    span_s = end_s - start_s
    unfinished = round(flow.requests - flow.left_by(end_s))
    if span_s < BURST_S:
        return Load(BURST, None, None, unfinished)
    rate = max(flow.requests - (0 if exact else 1), 1) / span_s
    thirds = [
        flow.mean_inside(start_s + span_s * k / 3, start_s + span_s * (k + 1) / 3) for k in range(3)
    ]
    inside, queue = zip(*thirds, strict=True)
    scale = rate * span_s / 3
    drift, queue_drift = (inside[2] - inside[1]) / scale, (queue[2] - queue[1]) / scale
    before = (queue[1] - queue[0]) / scale
    spread = 1.0 if exact else flow.dispersion()
    chance = 0.0 if exact else _SIGMAS * math.sqrt(spread * (inside[1] + inside[2])) / scale
    found = Load(UNCLEAR, rate, None, unfinished, drift, queue_drift)
    if drift < SMALL and drift + chance < BOUND:
        return replace(found, verdict=KEPT_UP)
    queue_grows = queue_drift - chance > SMALL and queue_drift > _QUEUE * drift
    if queue_grows and (exact or before > 0.5 * queue_drift):
        return replace(found, verdict=OVERLOADED, finished_rps=rate * (1 - drift))
    return found
