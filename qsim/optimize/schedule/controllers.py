"""Controllers that switch servers: a timetable, an autoscaler, and one that looks ahead.

Each is asked once a period and sees what :class:`qsim.sim.fleet.policy.Observation` holds,
nothing else.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from qsim.sim.fleet.autoscaling import Autoscaler, ScalingRules, Signal
from qsim.sim.fleet.horizontal import PoolScaler, Reading
from qsim.sim.fleet.policy import Observation

DAY_S = 86400.0


@dataclass(frozen=True)
class Timetable:
    """So many servers of each pool in each window, as written down beforehand."""

    #: one a window; the last one holds after the end
    counts: tuple[tuple[int, ...], ...]
    window_s: float
    #: servers are started so long before the window that needs them
    lead_s: float
    #: and taken out of use so long after the last one that does
    lag_s: float = 0.0
    period_s: float = 15.0

    def initial(self) -> tuple[int, ...]:
        """Those of the first window."""
        return self.counts[0]

    def decide(self, seen: Observation) -> tuple[int, ...]:
        """The most of what is needed from ``lag_s`` ago until ``lead_s`` from now."""
        first = max(0.0, seen.now_s - self.lag_s) // self.window_s
        # a server must be on when its window begins, and the next look is a period away
        last = (seen.now_s + self.lead_s + self.period_s) // self.window_s
        end = len(self.counts) - 1
        rows = self.counts[min(int(first), end) : min(int(last), end) + 1]
        return tuple(max(column) for column in zip(*rows, strict=True))


@dataclass
class Reactive:
    """Autoscaling on the number of requests in the fleet, as KEDA and Kubernetes' HPA do it.

    The rules are those of :class:`qsim.sim.fleet.horizontal.PoolScaler` for the one pool, on the
    requests at the servers and at the gateway, on average over ``average_s``, as they are when it
    looks. More servers are started at once; fewer are kept only after all wishes of the last
    ``stabilisation_s`` were lower (HPA's default, 300 s).
    """

    target: float
    least: int
    most: int
    first: int
    period_s: float = 15.0
    stabilisation_s: float = 300.0
    average_s: float = 60.0
    tolerance: float = 0.1
    _scaler: PoolScaler = field(init=False, repr=False)
    _ticks: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.initial()

    def initial(self) -> tuple[int, ...]:
        """``first``."""
        settings = Autoscaler(
            (Signal("requests", self.target, max(1, round(self.average_s))),),
            self.most,
            self.least,
            scale_up=ScalingRules(0, ()),
            scale_down=ScalingRules(self.stabilisation_s, ()),
            tolerance=self.tolerance,
            sync_s=max(1, round(self.period_s)),
            scrape_s=0,
        )
        self._scaler = PoolScaler(settings, self.first, remembers_first=False)
        self._ticks = 0
        return (self.first,)

    def decide(self, seen: Observation) -> tuple[int, ...]:
        """The highest wish of the stabilisation window."""
        self._ticks += 1
        now_s = self._ticks * self.period_s
        requests = float(sum(seen.outstanding) + seen.held)
        self._scaler.scrape(now_s, Reading({"requests": requests}))
        return (self._scaler.sync(now_s, seen.on[0], seen.starting[0]),)


@dataclass
class Predictive:
    """Autoscaling on a forecast of the rate from the past alone.

    The rate to come is that of the same time yesterday, times today's last half hour over
    yesterday's; on the first day it is the last ten minutes' and goes on rising as it did. Servers
    for ``margin`` times that are wanted, by the table of what n servers carry, for the highest
    forecast from now until ``horizon_s`` from now. ``before`` holds the requests by period of the
    time that ended when the trace begins, if there is such a record.
    """

    capacity_rps: tuple[float, ...]
    margin: float
    horizon_s: float
    first: int
    before: tuple[int, ...] = ()
    period_s: float = 60.0
    stabilisation_s: float = 600.0
    _wishes: deque[int] = field(default_factory=deque, repr=False)

    def initial(self) -> tuple[int, ...]:
        """``first``."""
        self._wishes.clear()
        return (self.first,)

    def decide(self, seen: Observation) -> tuple[int, ...]:
        """The highest wish of the last ``stabilisation_s``."""
        rate = self._forecast(seen) * self.margin
        most = len(self.capacity_rps)
        wish = next((n for n, c in enumerate(self.capacity_rps, 1) if c >= rate), most)
        self._wishes.append(wish)
        while len(self._wishes) > max(1, round(self.stabilisation_s / self.period_s)):
            self._wishes.popleft()
        return (max(self._wishes),)

    def _forecast(self, seen: Observation) -> float:
        past = np.append(np.array(self.before), seen.arrivals) / self.period_s
        now = len(past)
        day = round(DAY_S / self.period_s)
        ahead = math.ceil(self.horizon_s / self.period_s)
        recent = max(1, round(600 / self.period_s))
        level = float(past[-recent:].mean())
        if now <= day:
            before = past[-2 * recent : -recent]
            rise = max(0.0, level - float(before.mean())) if len(before) else 0.0
            return level + rise * (ahead / recent + 1)
        half = max(1, round(1800 / self.period_s))
        yesterday = float(past[max(0, now - day - half) : now - day].mean())
        ratio = float(past[-half:].mean()) / yesterday if yesterday > 0 else 1.0
        # single periods are noisy: a mean over ten minutes about each
        window = past[max(0, now - day - recent // 2) : now - day + ahead + recent]
        smooth = np.convolve(window, np.ones(recent) / recent, mode="valid")
        return max(level, float(smooth.max()) * ratio if len(smooth) else level)
