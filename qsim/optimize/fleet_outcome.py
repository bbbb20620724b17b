"""What is kept of one simulated fleet: its summary, and each goal beside its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsim.sim.goodput import GoodputOutcome
from qsim.sim.slo import SloOutcome

__all__ = ["FleetOutcome"]


@dataclass(frozen=True)
class FleetOutcome:
    """One simulated fleet.

    Attributes
    ----------
    replicas : int
    summary : dict
        ``SimulationResult.summary()``.
    slos : tuple of SloOutcome
    attainment : float or None
        Share of requests within every limit.
    quantiles : dict
        Per latency (``ttft_ms``, ...) its values at the quantiles 0, 0.01, ..., 1; for pictures.
    goodput : GoodputOutcome or None
        Where a share of good requests is asked for.
    peak_power_w : float or None
        Highest mean power of the fleet over a four-hundredth of the trace, or 0.1 s if that is
        longer.
    """

    replicas: int
    summary: Mapping[str, Any]
    slos: tuple[SloOutcome, ...]
    attainment: float | None
    quantiles: Mapping[str, list[float]]
    goodput: GoodputOutcome | None = None
    peak_power_w: float | None = None

    @property
    def goals(self) -> tuple[SloOutcome | GoodputOutcome, ...]:
        """Every SLO, and the goodput if it is asked for."""
        return self.slos if self.goodput is None else (*self.slos, self.goodput)

    @property
    def met(self) -> bool:
        """Whether every SLO is met, and the goodput."""
        return all(g.met for g in self.goals)

    @property
    def binding(self) -> SloOutcome | GoodputOutcome:
        """The goal that is nearest to its limit, or farthest above it."""
        return max(self.goals, key=lambda g: g.ratio)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fleet's size, whether it suffices, and the value of each SLO."""
        return {
            "replicas": self.replicas,
            "met": self.met,
            "values_ms": {str(s.slo): s.to_dict()["value_ms"] for s in self.slos},
            **({"goodput": self.goodput.share} if self.goodput else {}),
        }
