"""Service-level objectives such as ``ttft:p99:500``: parsed, and checked against a result."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qsim.bounds import shown
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.sim.result import SimulationResult
    from qsim.sim.summary import Run

__all__ = ["METRICS", "Slo", "SloOutcome", "attainment", "check_slos", "parse_slos", "within"]

METRICS = ("ttft", "tpot", "itl", "e2el")

#: of a latency: eleven days
MAX_LIMIT_MS = 1e9

_STATISTIC = re.compile(r"mean|median|p([0-9]{1,2}(\.[0-9]{1,6})?|100)")


@dataclass(frozen=True)
class Slo:
    """A limit on one statistic of one latency, as in ``ttft:p99:500`` (ms).

    Attributes
    ----------
    metric : {"ttft", "tpot", "itl", "e2el"}
        With the definitions of ``vllm bench serve``.
    statistic : str
        ``mean``, ``median`` or ``pNN`` (``p99``, ``p99.9``).
    limit_ms : float
        The statistic may not exceed it.
    """

    metric: str
    statistic: str
    limit_ms: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ScenarioError(
                f"SLO metric is {shown(self.metric)}; must be one of {', '.join(METRICS)}"
            )
        if not _STATISTIC.fullmatch(self.statistic) or self.quantile == 0.0:
            raise ScenarioError(
                f"SLO statistic is {shown(self.statistic)}; must be mean, median or a percentile "
                "such as p90, p99 or p99.9"
            )
        if not (0 < self.limit_ms <= MAX_LIMIT_MS):
            raise ScenarioError(
                f"SLO limit is {self.limit_ms:g} ms; must be a finite number > 0, at most "
                f"{MAX_LIMIT_MS:g}"
            )

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read ``metric:statistic:limit_ms``.

        Raises
        ------
        ScenarioError
            Naming the part that is wrong and what is allowed.
        """
        parts = str(text).strip().lower().split(":")
        if len(parts) != 3:
            raise ScenarioError(
                f"SLO {shown(text)} does not parse; must be metric:statistic:limit in ms, for "
                "example ttft:p99:500 or tpot:mean:50"
            )
        metric, statistic, limit = (p.strip() for p in parts)
        try:
            limit_ms = float(limit)
        except ValueError:
            raise ScenarioError(
                f"SLO {shown(text)}: the limit is {shown(limit)}; must be a number of milliseconds"
            ) from None
        try:
            return cls(metric, statistic, limit_ms)
        except ScenarioError as e:
            raise ScenarioError(f"SLO {shown(text)}: {e}") from None

    def __str__(self) -> str:
        return f"{self.metric}:{self.statistic}:{self.limit_ms:.15g}"

    @property
    def quantile(self) -> float | None:
        """The quantile in [0, 1], or None for the mean."""
        if self.statistic == "mean":
            return None
        return 0.5 if self.statistic == "median" else float(self.statistic[1:]) / 100

    def value(self, result: Run) -> float:
        """The statistic over the completed requests, in ms; nan if it is over nothing.

        Percentiles are interpolated linearly, as numpy and ``vllm bench serve`` do. TPOT is, as
        there, of the requests with at least two output tokens.
        """
        return result.statistic(self.metric, self.statistic)

    def of(self, values_ms: npt.NDArray[np.float64]) -> float:
        """The statistic over ``values_ms`` but nan, ms; nan if there is nothing else."""
        known = values_ms[~np.isnan(values_ms)]
        if not len(known):
            return math.nan
        return float(known.mean() if self.quantile is None else np.quantile(known, self.quantile))

    def met(self, result: Run) -> bool:
        """Whether the statistic is within the limit; nothing is too slow when there is nothing."""
        return SloOutcome(self, self.value(result)).met


@dataclass(frozen=True)
class SloOutcome:
    """An SLO beside the value that was reached."""

    slo: Slo
    value_ms: float

    @property
    def met(self) -> bool:
        """Whether the value is not above the limit."""
        return not self.value_ms > self.slo.limit_ms  # nan, a statistic over nothing, is not

    @property
    def ratio(self) -> float:
        """Value over limit: above 1 the SLO is missed; 0 for a statistic over nothing."""
        return 0.0 if math.isnan(self.value_ms) else self.value_ms / self.slo.limit_ms

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the SLO as text, limit, value, whether it is met, and the excess in ms."""
        none = math.isnan(self.value_ms)
        return {
            "slo": str(self.slo),
            "limit_ms": self.slo.limit_ms,
            "value_ms": None if none else self.value_ms,
            "met": self.met,
            "over_ms": None if none else self.value_ms - self.slo.limit_ms,
        }

    def sentence(self) -> str:
        """For people, e.g. ``ttft p99 612 ms, 22% over its limit of 500 ms``."""
        name = f"{self.slo.metric} {self.slo.statistic}"
        limit = f"its limit of {_number(self.slo.limit_ms)} ms"
        if math.isnan(self.value_ms):
            return f"{name} of no request, within {limit}"
        if self.ratio >= 10:
            excess = f"{self.ratio:.3g} times"
        else:
            percent = abs(self.ratio - 1) * 100
            excess = f"{percent:{'.0f' if percent >= 99.5 else '.2g'}}% "
            excess += "under" if self.met else "over"
        return f"{name} {_number(self.value_ms)} ms, {excess} {limit}"


def parse_slos(slos: Sequence[Slo | str]) -> tuple[Slo, ...]:
    """Parse those that are text.

    Raises
    ------
    ScenarioError
        If one does not parse.
    """
    return tuple(s if isinstance(s, Slo) else Slo.parse(s) for s in slos)


def check_slos(result: Run, slos: Sequence[Slo]) -> list[SloOutcome]:
    """Every SLO beside its value, in the order given."""
    return [SloOutcome(s, s.value(result)) for s in slos]


def attainment(result: SimulationResult, slos: Sequence[Slo]) -> float | None:
    """The share of all requests that are within every limit, whatever its statistic.

    Rejected requests count as outside. None when no SLO limits a latency of single requests
    (ITL is one of tokens).
    """
    if all(s.metric == "itl" for s in slos):
        return None
    return float(np.mean(result.meets(slos)))


def within(
    slos: Sequence[Slo],
    columns_ms: Mapping[str, npt.NDArray[np.float64]],
    completed: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Which requests are within every limit by themselves, as vLLM's goodput counts them.

    A request of one token has a TPOT of 0. Limits on ``itl`` are not per request and do not count
    here.
    """
    good = completed.copy()
    for s in slos:
        if s.metric != "itl":
            values = columns_ms[f"{s.metric}_ms"]
            good &= np.where(np.isnan(values) & completed, 0.0, values) <= s.limit_ms
    return good


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
