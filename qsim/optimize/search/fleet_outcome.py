"""What is kept of one simulated fleet: its summary, and each goal beside its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qsim.sim.results.backlog import BacklogOutcome, Load
from qsim.sim.results.goodput import Goodput, GoodputOutcome
from qsim.sim.results.slo import Slo, SloOutcome

_ALL = 1e9


@dataclass(frozen=True)
class DownGoal:
    """A goal of a fleet some of whose servers are down; read as the goal itself is.

    ``down`` says for people which are.
    """

    goal: SloOutcome | GoodputOutcome | BacklogOutcome
    down: str

    @property
    def slo(self) -> Slo | Goodput | str:
        """What is to be met."""
        return self.goal.slo

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.goal.met

    @property
    def ratio(self) -> float:
        """Value over limit."""
        return self.goal.ratio

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.goal.to_dict(), "down": self.down}

    def sentence(self) -> str:
        """For people."""
        return f"{self.goal.sentence()} {self.down}"


@dataclass(frozen=True)
class NoneLeft:
    """The goal that a server is left at all when some are down; missed."""

    down: str
    slo: str = "survive"
    met: bool = False
    ratio: float = _ALL

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"survive": self.down, "met": False}

    def sentence(self) -> str:
        """For people."""
        return f"no server is left {self.down}"


#: what a fleet has to meet, beside the value that was reached
Goal = SloOutcome | GoodputOutcome | BacklogOutcome | DownGoal | NoneLeft


@dataclass(frozen=True)
class Degraded:
    """A fleet with some servers down."""

    #: servers that are left, by pool
    sizes: tuple[int, ...]
    #: which are not, for people
    down: str
    #: of the same traffic; None where no server is left
    outcome: FleetOutcome | None

    @property
    def met(self) -> bool:
        """Whether what is left meets every goal."""
        return self.outcome is not None and self.outcome.met

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {} if self.outcome is None else self.outcome.to_dict()
        return {**found, "replicas": sum(self.sizes), "down": self.down, "met": self.met}


#: of which latencies are kept, for pictures: every hundredth, and finer where SLOs are set
QUANTILES = (
    *(k / 100 for k in range(99)),
    *(k / 1000 for k in range(990, 999)),
    *(k / 10_000 for k in range(9990, 10_001)),
)


@dataclass(frozen=True)
class FleetOutcome:
    """One simulated fleet."""

    replicas: int
    #: ``SimulationResult.summary()``
    summary: Mapping[str, Any]
    slos: tuple[SloOutcome, ...]
    #: share of requests within every limit
    attainment: float | None
    #: per latency (``ttft_ms``, ...) its values at ``QUANTILES``, the least to the highest
    quantiles: Mapping[str, list[float]]
    #: where a share of good requests is asked for
    goodput: GoodputOutcome | None = None
    #: highest mean power of the fleet over a four-hundredth of the trace, or 0.1 s if that is
    #: longer
    peak_power_w: float | None = None
    #: whether the fleet kept up with its traffic
    load: Load | None = None
    #: one that does not may still meet its goals
    allow_backlog: bool = False
    #: ``p95_ttft_ms`` and so on; None over nothing
    p95_ms: Mapping[str, float | None] = field(default_factory=dict)
    #: servers of each pool of a mixed fleet; empty for one pool
    sizes: tuple[int, ...] = ()
    #: the fleet with servers down, where it is to survive that
    degraded: tuple[Degraded, ...] = ()

    @property
    def figures(self) -> dict[str, Any]:
        """Those of the summary, and the statistic of every SLO by its name there."""
        values = {o.slo.figure: o.value_ms for o in self.slos}
        return values | dict(self.summary)

    @property
    def goals(self) -> tuple[Goal, ...]:
        """Every SLO, the goodput if it is asked for, and that the fleet keeps up.

        Of a fleet that is to survive servers that are down, each as it is farthest from being met.
        """
        goals: tuple[Goal, ...] = self._own_goals
        for part in self.degraded:
            if part.outcome is None:
                return (*goals, NoneLeft(part.down))
            worse = [DownGoal(g, part.down) for g in part.outcome._own_goals]
            goals = tuple(
                b if (not b.met, b.ratio) > (not a.met, a.ratio) else a
                for a, b in zip(goals, worse, strict=True)
            )
        return goals

    @property
    def _own_goals(self) -> tuple[SloOutcome | GoodputOutcome | BacklogOutcome, ...]:
        goals: tuple[SloOutcome | GoodputOutcome | BacklogOutcome, ...] = self.slos
        if self.goodput is not None:
            goals = (*goals, self.goodput)
        if self.load is not None and not self.allow_backlog:
            goals = (*goals, BacklogOutcome(self.load))
        return goals

    @property
    def met(self) -> bool:
        """Whether every SLO is met, and the goodput, by a fleet that keeps up."""
        return all(g.met for g in self.goals)

    def judged(self, slos: Sequence[Slo]) -> FleetOutcome:
        """The same with other limits of the same statistics, which takes no simulation."""
        degraded = tuple(
            part if part.outcome is None else replace(part, outcome=part.outcome.judged(slos))
            for part in self.degraded
        )
        own = tuple(replace(o, slo=s) for s, o in zip(slos, self.slos, strict=True))
        return replace(self, slos=own, degraded=degraded)

    @property
    def unclear(self) -> bool:
        """Whether it was not settled that it keeps up, with servers down or not."""
        below = [part.outcome.unclear for part in self.degraded if part.outcome is not None]
        return any(below) or (self.load is not None and self.load.unclear)

    def doubts(self) -> list[str]:
        """What the sample does not settle of goals that are met."""
        found = [s.doubt() for s in self.slos]
        if self.goodput is not None:
            found.append(self.goodput.doubt())
        if self.load is not None and (self.load.unclear or self.load.overloaded):
            found.append(self.load.sentence())
        for part in self.degraded if not any(found) else ():
            below = [] if part.outcome is None else part.outcome.doubts()
            found += [f"{text}, {part.down}" for text in below]
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
            **({"pools": list(self.sizes)} if self.sizes else {}),
            **({"survive": [d.to_dict() for d in self.degraded]} if self.degraded else {}),
        }
