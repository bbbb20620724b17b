"""The rules of Kubernetes' HorizontalPodAutoscaler and of KEDA, for one pool of servers.

The HPA wants ``ceil(current * metric / target)`` servers (Kubernetes' documentation, "Horizontal
Pod Autoscaling", "Algorithm details"), and changes nothing while that ratio is within a tolerance
of 1. What it wants is stabilised over a window and limited by policies ("Configurable scaling
behavior"; pkg/controller/podautoscaler/horizontal.go, ``stabilizeRecommendationWithBehaviors`` and
``convertDesiredReplicasWithBehaviorRate``). How the ratio is formed depends on the kind of metric
(replica_calculator.go):

- ``Pods`` (kind hpa): the mean over pods that are on. A pod that starts has no value yet; it counts
  as 0 when there are too few pods and as the target when there are too many
  (``calcPlainMetricReplicas``).
- ``External`` with ``AverageValue`` (kind keda, and the gateway's rate): the sum over target and
  all pods, those that start included (``GetExternalPerPodMetricReplicas``).
- ``External`` with ``Value`` (TTFT): the value over target, times the pods that are on
  (``GetExternalMetricReplicas``).

KEDA sees to zero servers (pkg/scaling/executor/scale_scaledobjects.go): every ``pollingInterval``
it looks whether a metric is above its activation threshold. If so and there is no server, one
starts; if there was nothing for ``cooldownPeriod``, the last one goes. In between its HPA decides.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from qsim.sim.fleet.autoscaling import RATES, Autoscaler, ScalingRules, Signal
from qsim.sim.fleet.policy import Observation


@dataclass(frozen=True)
class Reading:
    """One scrape of a pool."""

    #: ``requests``, ``running``, ``waiting`` and ``kv_usage``: sums over its servers; where there
    #: may be none, the requests that wait at the gateway are among the first and the third
    values: dict[str, float]
    #: requests that have come so far
    arrived: int = 0
    #: requests that have had their first token so far
    first_tokens: int = 0
    #: the sum of their times to it
    ttft_s: float = 0.0


class PoolScaler:
    """Decides for one pool, which has ``first`` servers at the beginning, whenever it is asked.

    If it remembers these, the first count stabilises what follows, as with a controller that has
    just seen its object.
    """

    def __init__(self, settings: Autoscaler, first: int, remembers_first: bool = True) -> None:
        self._settings = settings
        #: ``spec.replicas`` of the Deployment
        self.wanted = first
        self._scrapes: deque[tuple[float, Reading]] = deque()
        step_s = settings.step_s
        self._kept_s = max([step_s, *(s.range_s(step_s) for s in settings.signals)])
        self._wishes: deque[tuple[float, int]] = deque([(0.0, first)] if remembers_first else ())
        self._wishes_s = max(
            settings.scale_up.stabilization_window_s, settings.scale_down.stabilization_window_s
        )
        self._changes: deque[tuple[float, int]] = deque()
        rules = (settings.scale_up, settings.scale_down)
        self._changes_s = max([0, *(p.period_s for r in rules for p in r.policies or ())])
        self._active_s = 0.0  # when KEDA last saw something to do

    # ------------------------------------------------------------------ what it knows

    def scrape(self, now_s: float, reading: Reading) -> None:
        """Take a value of every metric."""
        scrapes = self._scrapes
        scrapes.append((now_s, reading))
        # one more than the longest window: the newest may not be seen yet
        while scrapes[0][0] < now_s - self._kept_s - self._settings.step_s:
            scrapes.popleft()

    def value(self, signal: Signal, now_s: float) -> float | None:
        """A metric as a query at that time gives it; None before the first scrape.

        A scrape at the very same time is not seen, unless the present is.
        """
        late = self._settings.scrape_s > 0
        seen = [(t, r) for t, r in self._scrapes if t < now_s or not late]
        if not seen:
            return None
        last_s = seen[-1][0]
        window_s = signal.range_s(self._settings.step_s)
        within = [(t, r) for t, r in seen if t > last_s - window_s] if window_s else seen[-1:]
        if signal.metric not in RATES:
            values = [r.values[signal.metric] for _, r in within]
            return sum(values) / len(values)
        (begin_s, begin), (end_s, end) = within[0], within[-1]
        if signal.metric == "ttft":
            count = end.first_tokens - begin.first_tokens
            return (end.ttft_s - begin.ttft_s) / count if count else 0.0
        return (end.arrived - begin.arrived) / (end_s - begin_s) if end_s > begin_s else 0.0

    # ------------------------------------------------------------------ the HPA

    def sync(self, now_s: float, on: int, starting: int) -> int:
        """What the HPA makes of the metrics: the servers that are wanted from now on.

        Parameters
        ----------
        on, starting : int
            Servers that answer, and those that will.
        """
        settings = self._settings
        least = max(1, settings.min_replicas)
        if self.wanted == 0:  # the HPA is off; KEDA starts the first
            return 0
        if not least <= self.wanted <= settings.max_replicas:
            return self._change(now_s, min(max(self.wanted, least), settings.max_replicas))
        wishes = [
            wish
            for signal in settings.signals
            if (wish := self._wish(signal, now_s, on, starting)) is not None
        ]
        if not wishes:
            return self.wanted
        wish = self._stabilised(now_s, max(wishes))
        return self._change(now_s, self._limited(now_s, wish, least))

    def _wish(self, signal: Signal, now_s: float, on: int, starting: int) -> int | None:
        """The servers that one metric wants."""
        value = self.value(signal, now_s)
        if value is None:
            return None
        tolerance, target = self._settings.tolerance, signal.target
        if signal.metric == "ttft":
            ratio = value / target
            return self.wanted if abs(ratio - 1) <= tolerance else _ceil(value * on, target)
        if self._settings.kind == "hpa" and signal.metric != "request_rate":
            return self._wish_of_pods(value, target, on, starting)
        present = on + starting
        if present and abs(value / (present * target) - 1) <= tolerance:
            return present
        return _ceil(value, target)

    def _wish_of_pods(self, value: float, target: float, on: int, starting: int) -> int | None:
        """The same of a metric that every pod has."""
        if not on:
            return None  # no pod has a value
        tolerance = self._settings.tolerance
        ratio = value / (on * target)
        if not starting:
            return self.wanted if abs(ratio - 1) <= tolerance else _ceil(value, target)
        pods = on + starting
        if ratio < 1:
            value += starting * target
        again = value / (pods * target)
        turned = (ratio < 1 < again) or (again < 1 < ratio)
        if abs(again - 1) <= tolerance or turned:
            return self.wanted
        wish = _ceil(value, target)
        wrong = wish > self.wanted if again < 1 else wish < self.wanted
        return self.wanted if wrong else wish

    def _stabilised(self, now_s: float, wish: int) -> int:
        """Of the last wishes the lowest before there are more, the highest before there are fewer.

        Both limits hold at once, and the present number is moved to within them.
        """
        wishes = self._wishes
        up_s = now_s - self._settings.scale_up.stabilization_window_s
        down_s = now_s - self._settings.scale_down.stabilization_window_s
        while wishes and wishes[0][0] <= now_s - self._wishes_s:
            wishes.popleft()
        lowest = min([wish, *(n for t, n in wishes if t > up_s)])
        highest = max([wish, *(n for t, n in wishes if t > down_s)])
        wishes.append((now_s, wish))
        return min(max(self.wanted, lowest), highest)

    def _limited(self, now_s: float, wish: int, least: int) -> int:
        """Within the bounds, and no faster than the policies let it."""
        settings, wanted = self._settings, self.wanted
        if wish > wanted:
            most = max(wanted, self._limit(now_s, settings.scale_up, 1))
            return min(wish, most, settings.max_replicas)
        if wish < wanted:
            fewest = min(wanted, self._limit(now_s, settings.scale_down, -1))
            return max(wish, fewest, least)
        return wish

    def _limit(self, now_s: float, rules: ScalingRules, sign: int) -> int:
        """The most (``sign`` 1) or fewest (-1) servers that the policies of a direction allow."""
        if rules.select_policy == "Disabled":
            return self.wanted
        if not rules.policies:
            return self._settings.max_replicas if sign > 0 else 0
        limits = []
        for policy in rules.policies:
            recent = sum(n for t, n in self._changes if t > now_s - policy.period_s)
            before = self.wanted - recent  # when the period began
            if policy.type == "Pods":
                limits.append(before + sign * policy.value)
            elif sign > 0:  # rounded up, or it might never grow
                limits.append(-(-before * (100 + policy.value) // 100))
            else:
                limits.append(before * max(0, 100 - policy.value) // 100)
        return max(limits) if (rules.select_policy == "Max") == (sign > 0) else min(limits)

    def _change(self, now_s: float, wanted: int) -> int:
        changes = self._changes
        while changes and changes[0][0] <= now_s - self._changes_s:
            changes.popleft()
        if wanted != self.wanted:
            changes.append((now_s, wanted - self.wanted))
            self.wanted = wanted
        return wanted

    # ------------------------------------------------------------------ KEDA

    def poll(self, now_s: float) -> int:
        """What KEDA makes of the metrics: the first server, or none."""
        settings = self._settings
        values = [(s, self.value(s, now_s)) for s in settings.signals]
        active = any(v is not None and v > s.activation for s, v in values)
        if active:
            self._active_s = now_s
            if self.wanted == 0:
                self.wanted = max(1, settings.min_replicas)
        elif (
            self.wanted
            and settings.min_replicas == 0
            and now_s - self._active_s > settings.cooldown_s
        ):
            self.wanted = 0
        return self.wanted


def _ceil(value: float, target: float) -> int:
    """``ceil(value / target)``; in thousandths, as Kubernetes counts, where the target is such."""
    thousandths = target * 1000
    if abs(thousandths - round(thousandths)) < 1e-6:
        return math.ceil(int(value * 1000 + 1e-6) / round(thousandths))
    return math.ceil(value / target)


class FleetScaler:
    """The policy of a fleet whose pools are each scaled by an autoscaler of their own.

    Parameters
    ----------
    first : tuple of int
        Servers of each pool at the beginning.
    scaled : tuple of bool
        Which pools are scaled; the others stay as they are.
    """

    #: it wants :class:`qsim.sim.fleet.policy.PoolSignals`
    reads_signals = True

    def __init__(
        self, settings: Autoscaler, first: tuple[int, ...], scaled: tuple[bool, ...]
    ) -> None:
        self._settings = settings
        self._first = first
        self._scalers = [
            PoolScaler(settings, n) if own else None for n, own in zip(first, scaled, strict=True)
        ]
        self.provision_s = settings.provision_s
        #: whether it needs the times to first tokens
        self.reads_ttft = any(s.metric == "ttft" for s in settings.signals)
        self.periods_s = tuple(
            float(s)
            for s in dict.fromkeys(
                [settings.sync_s, settings.step_s]
                + ([settings.polling_s] if settings.kind == "keda" else [])
            )
        )
        self.period_s = min(self.periods_s)

    def initial(self) -> tuple[int, ...]:
        return self._first

    def decide(self, seen: Observation) -> tuple[int, ...]:
        """What the autoscalers of all pools want, after whatever falls due now."""
        settings, now_s = self._settings, seen.elapsed_s
        tick = round(now_s)
        counts = list(self._first)
        for k, scaler in enumerate(self._scalers):
            if scaler is None:
                continue
            if tick % settings.step_s == 0:
                scaler.scrape(now_s, self._reading(seen, k))
            if settings.kind == "keda" and tick % settings.polling_s == 0:
                scaler.poll(now_s)
            if tick % settings.sync_s == 0:
                scaler.sync(now_s, seen.on[k], seen.starting[k])
            counts[k] = scaler.wanted
        return tuple(counts)

    def _reading(self, seen: Observation, pool: int) -> Reading:
        s = seen.signals[pool]
        if self._settings.kind == "hpa":
            running, waiting, kv_usage, held = s.running_on, s.waiting_on, s.kv_usage_on, 0
        else:
            running, waiting, kv_usage = s.running, s.waiting, s.kv_usage
            held = seen.held if self._settings.min_replicas == 0 else 0
        values = {
            "requests": running + waiting + held,
            "running": running,
            "waiting": waiting + held,
            "kv_usage": kv_usage,
        }
        return Reading(values, seen.arrived, s.first_tokens, s.ttft_s)
