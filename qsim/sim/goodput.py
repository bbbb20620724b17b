"""Goodput as vLLM defines it: requests that are within every limit by themselves, as a goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.checks import is_number
from qsim.errors import ScenarioError
from qsim.sim.slo import Slo

if TYPE_CHECKING:
    from qsim.sim.result import SimulationResult

__all__ = ["DEFAULT_SHARE", "GOODPUT_METRICS", "Goodput", "GoodputOutcome", "goodput_goal"]

GOODPUT_METRICS = ("ttft", "tpot", "e2el")
#: share of the requests that must be good unless another is given
DEFAULT_SHARE = 0.99


@dataclass(frozen=True)
class Goodput:
    """The share of requests that must be within every limit by themselves.

    Attributes
    ----------
    limits : tuple of (metric, limit_ms)
        As ``vllm bench serve --goodput ttft:500 tpot:50`` takes them.
    share : float
        In (0, 1].
    """

    limits: tuple[tuple[str, float], ...]
    share: float = DEFAULT_SHARE

    def __str__(self) -> str:
        limits = ",".join(f"{m}:{ms:.15g}" for m, ms in self.limits)
        return f"goodput:{limits}:{self.share:.15g}"

    def value(self, result: SimulationResult) -> float:
        """The share of all requests that is good; a rejected one is not."""
        limits = [Slo(metric, "mean", ms) for metric, ms in self.limits]
        return float(np.mean(result.meets(limits)))

    def check(self, result: SimulationResult) -> GoodputOutcome:
        """The goal beside the share that was reached."""
        return GoodputOutcome(self, self.value(result))


@dataclass(frozen=True)
class GoodputOutcome:
    """A goodput goal beside the share that was reached; read as a ``SloOutcome`` is."""

    slo: Goodput
    share: float

    @property
    def met(self) -> bool:
        """Whether enough requests are good."""
        return self.share >= self.slo.share

    @property
    def ratio(self) -> float:
        """Requests that are not good over those that may not be: above 1 the goal is missed."""
        bad, allowed = 1.0 - self.share, 1.0 - self.slo.share
        if bad <= 0:
            return 0.0
        return bad / allowed if allowed > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "goodput": dict(self.slo.limits),
            "min_share": self.slo.share,
            "share": self.share,
            "met": self.met,
        }

    def sentence(self) -> str:
        """For people, e.g. ``goodput 97.1%, 1.9 points under the 99% that must be good``."""
        points = abs(self.share - self.slo.share) * 100
        side = "under" if self.share < self.slo.share else "above"
        return (
            f"goodput {self.share * 100:.4g}%, {points:.2g} points {side} the "
            f"{self.slo.share * 100:.15g}% of requests that must be good"
        )


def goodput_goal(
    limits: Sequence[str], share: float | None = None, slos: Sequence[Slo] = ()
) -> Goodput | None:
    """Check a goal; None if nothing is asked for.

    Parameters
    ----------
    limits : sequence of str
        ``metric:limit_ms``, each metric at most once. Where there is only a share, the limits of
        ``slos`` count, whatever their statistics.
    share : float, optional
        In (0, 1]; :data:`DEFAULT_SHARE` unless given.

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
