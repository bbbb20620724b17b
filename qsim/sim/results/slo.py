"""Service-level objectives such as ``ttft:p99:500``: parsed, and checked against a result."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.arrays import BoolArray, FloatArray
from qsim.bounds import shown
from qsim.errors import ScenarioError
from qsim.sim.results.intervals import percentile_of_rank, ranks, requests_needed, share_interval

if TYPE_CHECKING:
    from qsim.sim.results.summary import Run
    from qsim.traces.trace import Trace

METRICS = ("ttft", "tpot", "itl", "e2el")
#: what may be said of an SLO
MET, MISSED = "met", "missed"
NOTHING, TOO_FEW = "nothing to judge", "not enough requests to judge"
#: value over limit of a statistic over nothing: it is not met
_NOT_MET = 1e9

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
    def figure(self) -> str:
        """The name of its statistic among figures, such as ``p99_ttft_ms``."""
        return f"{self.statistic}_{self.metric}_ms"

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

    def of(self, values_ms: FloatArray) -> float:
        """The statistic over ``values_ms`` but nan, ms; nan if there is nothing else."""
        known = values_ms[~np.isnan(values_ms)]
        if not len(known):
            return math.nan
        return float(known.mean() if self.quantile is None else np.quantile(known, self.quantile))

    def met(self, result: Run) -> bool:
        """Whether the statistic is within the limit; one over nothing is not."""
        return SloOutcome(self, self.value(result)).met

    @property
    def needed(self) -> int:
        """The fewest values that can tell that the statistic is within a limit."""
        return 1 if self.quantile is None else requests_needed(self.quantile)


@dataclass(frozen=True)
class SloOutcome:
    """An SLO beside the value that was reached."""

    slo: Slo
    #: nan for a statistic over nothing
    value_ms: float
    #: how many values it is of: requests, or gaps between tokens for ITL
    sample: int | None = None
    #: its 90% interval (:mod:`qsim.sim.results.intervals`), for percentiles; None for an end that
    #: the sample does not have
    low_ms: float | None = None
    high_ms: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value is not above the limit; one over nothing is not met."""
        return self.value_ms <= self.slo.limit_ms

    @property
    def enough(self) -> bool:
        """Whether there are the requests that it takes to tell that the SLO is met."""
        return self.sample is None or self.sample >= self.slo.needed

    @property
    def verdict(self) -> str:
        """:data:`MET`, :data:`MISSED`, :data:`NOTHING` or :data:`TOO_FEW`."""
        if math.isnan(self.value_ms):
            return NOTHING
        if not self.met:
            return MISSED
        return MET if self.enough else TOO_FEW

    @property
    def ratio(self) -> float:
        """Value over limit: above 1 the SLO is missed; 1e9 for a statistic over nothing."""
        return _NOT_MET if math.isnan(self.value_ms) else self.value_ms / self.slo.limit_ms

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``met`` is null where there is nothing or too little to judge."""
        none = math.isnan(self.value_ms)
        verdict = self.verdict
        return {
            "slo": str(self.slo),
            "limit_ms": self.slo.limit_ms,
            "value_ms": None if none else self.value_ms,
            "met": {MET: True, MISSED: False}.get(verdict),
            "verdict": verdict,
            "over_ms": None if none else self.value_ms - self.slo.limit_ms,
            "interval_ms": [self.low_ms, self.high_ms],
            "sample": self.sample,
            "sample_needed": self.slo.needed,
        }

    def doubt(self) -> str:
        """Why the sample does not settle that the SLO is met; "" if it does, or it is not met."""
        if self.sample is None or not self.met:
            return ""
        if self.high_ms is not None and self.high_ms <= self.slo.limit_ms:
            return ""
        name = f"{self.slo.metric} {self.slo.statistic}"
        of = f"{self.sample:,} {'gaps' if self.slo.metric == 'itl' else 'requests'}"
        if not self.enough:
            return (
                f"not enough requests to judge {self.slo}: {name} of {of} has no upper bound, "
                f"{self.slo.needed:,} are needed; take a longer trace"
            )
        if self.high_ms is None:  # a mean, or the largest value itself
            return ""
        return (
            f"{self.slo} is met, but not surely: {name} of {of} may be up to "
            f"{_number(self.high_ms)} ms (90% interval)"
        )

    def sentence(self) -> str:
        """For people, e.g. ``ttft p99 612 ms, 22% over its limit of 500 ms``."""
        name = f"{self.slo.metric} {self.slo.statistic}"
        limit = f"its limit of {_number(self.slo.limit_ms)} ms"
        if math.isnan(self.value_ms):
            return f"{name} has nothing to judge: no request has one"
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
    """Every SLO beside its value, its sample and interval, in the order given."""
    return [_outcome(result, s) for s in slos]


def _outcome(result: Run, slo: Slo) -> SloOutcome:
    q, n = slo.quantile, result.sample(slo.metric)
    if q is None or n == 0:
        return SloOutcome(slo, slo.value(result), n)
    # one pass for the value and the ends of its interval
    ends = [percentile_of_rank(r, n) for r in ranks(n, q)]
    known = [e for e in ends if not math.isnan(e)]
    values = dict(zip(known, result.percentiles(slo.metric, known), strict=True)) if known else {}
    low, high = (values.get(e) for e in ends)
    return SloOutcome(slo, slo.value(result), n, low, high)


def all_met(outcomes: Sequence[SloOutcome], overloaded: bool = False) -> bool | None:
    """Whether every SLO is met; None without one, or if the rest has not enough requests."""
    verdicts = {o.verdict for o in outcomes}
    if overloaded or verdicts & {MISSED, NOTHING}:
        return False if outcomes else None
    return True if verdicts == {MET} else None


def has_something(result: Run, slos: Sequence[Slo]) -> bool:
    """Whether a limit on single requests has a request to be a limit of."""
    return any(s.metric != "itl" and result.sample(s.metric) for s in slos)


def attainment(result: Run, slos: Sequence[Slo]) -> float | None:
    """The share of all requests that are within every limit, whatever its statistic.

    Rejected requests count as outside. None when no SLO limits a latency of single requests
    (ITL is one of tokens), or no request has one of those that are limited.
    """
    if not has_something(result, slos):
        return None
    counts = result.counts
    return result.count_good(slos) / (counts["completed"] + counts["failed"])


def attainment_interval(share: float | None, requests: int) -> list[float] | None:
    """JSON-ready: the 90% interval of an attainment."""
    return None if share is None else list(share_interval(share, requests))


def too_few(slos: Sequence[Slo], requests: int) -> list[str]:
    """For each percentile that so few requests cannot show to be within its limit, why."""
    return [
        f"not enough requests to judge {s}: {s.statistic} of {requests:,} has no upper bound, "
        f"{s.needed:,} are needed; take a longer trace"
        for s in slos
        if s.metric != "itl" and requests < s.needed
    ]


def check_judgeable(trace: Trace, metrics: Iterable[str], what: str) -> None:
    """Refuse limits (``what``) on the time between tokens where no request has two tokens.

    Raises
    ------
    ScenarioError
        If all ``metrics`` that are limited are of tokens after the first, and there are none.
    """
    asked = set(metrics)
    if asked and asked <= {"tpot", "itl"} and int(trace.output_tokens.max()) < 2:
        raise ScenarioError(
            f"{what} has nothing to judge: no request of {trace.name} has two output tokens, so "
            "that none has a time between tokens; limit ttft or e2el"
        )


def within(
    slos: Sequence[Slo],
    columns_ms: Mapping[str, FloatArray],
    completed: BoolArray,
) -> BoolArray:
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
