"""What is kept of one simulated fleet: its summary, and each goal beside its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qsim.sim.results.backlog import BacklogOutcome, Load
from qsim.sim.results.goodput import GoodputOutcome
from qsim.sim.results.slo import SloOutcome

__all__ = ["FleetOutcome", "Goal"]

#: what a fleet has to meet, beside the value that was reached
Goal = SloOutcome | GoodputOutcome | BacklogOutcome


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
    load : Load or None
        Whether the fleet kept up with its traffic.
    allow_backlog : bool
        One that does not may still meet its goals.
    p95_ms : dict
        ``p95_ttft_ms`` and so on; None over nothing.
    """

    replicas: int
    summary: Mapping[str, Any]
    slos: tuple[SloOutcome, ...]
    attainment: float | None
    quantiles: Mapping[str, list[float]]
    goodput: GoodputOutcome | None = None
    peak_power_w: float | None = None
    load: Load | None = None
    allow_backlog: bool = False
    p95_ms: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def goals(self) -> tuple[Goal, ...]:
        """Every SLO, the goodput if it is asked for, and that the fleet keeps up."""
        goals: tuple[Goal, ...] = self.slos
        if self.goodput is not None:
            goals = (*goals, self.goodput)
        if self.load is not None and not self.allow_backlog:
            goals = (*goals, BacklogOutcome(self.load))
        return goals

    @property
    def met(self) -> bool:
        """Whether every SLO is met, and the goodput, by a fleet that keeps up."""
        return all(g.met for g in self.goals)

    def doubts(self) -> list[str]:
        """What the sample does not settle of goals that are met."""
        found = [s.doubt() for s in self.slos]
        if self.goodput is not None:
            found.append(self.goodput.doubt())
        if self.load is not None and (self.load.unclear or self.load.overloaded):
            found.append(self.load.sentence())
        return [f for f in found if f]

    @property
    def binding(self) -> Goal:
        """The goal that is nearest to its limit, or farthest above it."""
        return max(self.goals, key=lambda g: g.ratio)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fleet's size, whether it suffices, and the value of each SLO."""
        return {
            "replicas": self.replicas,
            "met": self.met,
            "values_ms": {str(s.slo): s.to_dict()["value_ms"] for s in self.slos},
            **({"goodput": self.goodput.share} if self.goodput else {}),
            **({} if self.load is None else {"load": self.load.verdict}),
        }
