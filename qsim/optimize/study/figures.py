"""The figures of a study: their names, units and sense, and a value with its error band."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Band:
    """A value, and the range in which it lies as far as is known."""

    #: ``low`` <= ``value`` <= ``high``; all equal where a value has no error
    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Band:
        """A value without an error."""
        return cls(value, value, value)

    @classmethod
    def around(cls, value: float, error_percent: float) -> Band:
        """A value that may be too low or too high by a factor of ``1 + error_percent / 100``."""
        return cls.exact(value).wider(error_percent)

    def wider(self, percent: float) -> Band:
        """With ends that may lie lower or higher by a factor of ``1 + percent / 100``."""
        factor = 1.0 + percent / 100.0
        return Band(self.value, self.low / factor, self.high * factor)

    def apart(self, other: Band) -> bool:
        """Whether two bands have nothing in common: the values differ by more than their errors."""
        return self.low > other.high or self.high < other.low

    def to_dict(self) -> dict[str, float]:
        """JSON-ready, with six digits."""
        return {k: rounded(getattr(self, k)) for k in ("value", "low", "high")}


def rounded(value: float) -> float:
    """To the six digits that are written."""
    return float(f"{value:.6g}") if math.isfinite(value) else value


@dataclass(frozen=True)
class Figure:
    """What one number of a simulated fleet is."""

    #: as in the summary of ``qsim simulate``, or of this study where it says so
    name: str
    #: for axes and heads of tables, with the unit
    title: str
    #: whether more is better
    maximize: bool
    #: which of the errors that a profile states is that of this figure: ``mean``, ``median``,
    #: ``p99``, ``energy`` or ``kv_tokens``
    error: str


#: the figures of every run, by name; latencies in ms, energy in J, power in W
FIGURES: Mapping[str, Figure] = {
    f.name: f
    for f in (
        Figure("mean_ttft_ms", "mean TTFT, ms", False, "mean"),
        Figure("p99_ttft_ms", "p99 TTFT, ms", False, "p99"),
        Figure("mean_tpot_ms", "mean TPOT, ms", False, "mean"),
        Figure("p99_tpot_ms", "p99 TPOT, ms", False, "p99"),
        Figure("mean_e2el_ms", "mean E2EL, ms", False, "mean"),
        Figure("p99_e2el_ms", "p99 E2EL, ms", False, "p99"),
        Figure("request_throughput", "requests/s", True, "mean"),
        Figure("output_throughput", "output tokens/s", True, "mean"),
        Figure("output_throughput_per_gpu", "output tokens/s per GPU", True, "mean"),
        Figure("joules_per_request", "J per request", False, "energy"),
        Figure("joules_per_output_token", "J per output token", False, "energy"),
        Figure("avg_power_w", "mean power, W", False, "energy"),
        Figure("usd_per_1m_output_tokens", "USD per million output tokens", False, "mean"),
        Figure("mean_concurrency", "mean requests in the fleet", False, "mean"),
        Figure("power_limit_share", "share of the time at the power limit", False, "energy"),
    )
}
