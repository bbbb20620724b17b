"""Goodput as vLLM defines it: requests that are within every limit by themselves, as a goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsim.checks import is_number
from qsim.errors import ScenarioError
from qsim.sim.results.intervals import share_interval
from qsim.sim.results.slo import Slo, attainment

if TYPE_CHECKING:
    from qsim.sim.results.result import SimulationResult

GOODPUT_METRICS = ("ttft", "tpot", "e2el")
#: bad requests over those that may be, where there is nothing to judge
_NOT_MET = 1e9
#: share of the requests that must be good unless another is given
DEFAULT_SHARE = 0.99


@dataclass(frozen=True)
class Goodput:
    """The share of requests that must be within every limit by themselves."""

    #: as ``vllm bench serve --goodput ttft:500 tpot:50`` takes them
    limits: tuple[tuple[str, float], ...]
    #: in (0, 1]
    share: float = DEFAULT_SHARE

    def __str__(self) -> str:
        limits = ",".join(f"{m}:{ms:.15g}" for m, ms in self.limits)
        return f"goodput:{limits}:{self.share:.15g}"

    def value(self, result: SimulationResult) -> float:
        """The share of all requests that is good; a rejected one is not.

        nan if no request has a latency that is limited.
        """
        limits = [Slo(metric, "mean", ms) for metric, ms in self.limits]
        share = attainment(result, limits)
        return math.nan if share is None else share

    def check(self, result: SimulationResult) -> GoodputOutcome:
        """The goal beside the share that was reached."""
        return GoodputOutcome(self, self.value(result), len(result.completed))


@dataclass(frozen=True)
class GoodputOutcome:
    """A goodput goal beside the share that was reached; read as a ``SloOutcome`` is."""

    slo: Goodput
    share: float
    requests: int | None = None

    @property
    def met(self) -> bool:
        """Whether enough requests are good."""
        return self.share >= self.slo.share

    @property
    def ratio(self) -> float:
        """Requests that are not good over those that may not be: above 1 the goal is missed."""
        if math.isnan(self.share):
            return _NOT_MET
        bad, allowed = 1.0 - self.share, 1.0 - self.slo.share
        if bad <= 0:
            return 0.0
        return bad / allowed if allowed > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        return {
            "goodput": dict(self.slo.limits),
            "min_share": self.slo.share,
            "share": None if math.isnan(self.share) else self.share,
            "met": None if math.isnan(self.share) else self.met,
            "interval": None if self._interval is None else list(self._interval),
        }

    @property
    def _interval(self) -> tuple[float, float] | None:
        """Wilson's, at 90%."""
        if self.requests is None or math.isnan(self.share):
            return None
        return share_interval(self.share, self.requests)

    def doubt(self) -> str:
        """Why the sample does not settle that the goal is met; "" if it does, or it is not met."""
        if not self.met or self._interval is None or self._interval[0] >= self.slo.share:
            return ""
        return (
            f"{self.slo} is met, but not surely: of {self.requests:,} requests it may be down to "
            f"{self._interval[0]:.2%} (90% interval)"
        )

    def sentence(self) -> str:
        """For people, e.g. ``goodput 97.1%, 1.9 points under the 99% that must be good``."""
        if math.isnan(self.share):
            return f"{self.slo} has nothing to judge: no request has such a latency"
        points = abs(self.share - self.slo.share) * 100
        side = "under" if self.share < self.slo.share else "above"
        return (
            f"goodput {self.share * 100:.4g}%, {points:.2g} points {side} the "
            f"{self.slo.share * 100:.15g}% of requests that must be good"
        )


def goodput_goal(
    limits: Sequence[str], share: float | None = None, slos: Sequence[Slo] = ()
) -> Goodput | None:
    """Check a goal: ``metric:limit_ms``, each metric at most once, and a share in (0, 1].

    Where there is only a share, the limits of ``slos`` count, whatever their statistics; where
    there are only limits, :data:`DEFAULT_SHARE`. None if nothing is asked for.

    Raises
    ------
    ScenarioError
        Naming the value that is wrong and what is allowed.
    """
    if not limits and share is None:
        return None
    if share is not None and not (is_number(share) and 0 < share <= 1):
        raise ScenarioError(
            f"min_goodput is {share!r}; must be above 0 and at most 1, the share of requests "
            "within every limit"
        )
    found: dict[str, float] = {}
    for text in limits:
        metric, colon, limit = str(text).strip().lower().partition(":")
        try:
            ms = float(limit) if colon else math.nan
        except ValueError:
            ms = math.nan
        if metric not in GOODPUT_METRICS or not 0 < ms < math.inf or metric in found:
            raise ScenarioError(
                f"goodput is {text!r}; must be metric:limit in ms with ttft, tpot or e2el, each "
                "once, for example ttft:500"
            )
        found[metric] = ms
    if not found:
        for s in slos:
            if s.metric in GOODPUT_METRICS:
                found[s.metric] = min(s.limit_ms, found.get(s.metric, math.inf))
    if not found:
        raise ScenarioError(
            f"min_goodput is {share!r}, but there is no limit that requests could be within; give "
            "--goodput ttft:500, or an SLO on ttft, tpot or e2el"
        )
    return Goodput(tuple(found.items()), DEFAULT_SHARE if share is None else float(share))
