"""What a capacity plan says: one candidate a profile, sorted, with the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qsim.errors import InfeasibleError
from qsim.optimize.budget import Budget, Shortfall
from qsim.optimize.forecast import Forecast
from qsim.optimize.prices import Price
from qsim.optimize.weigh import Carbon, QualityGoal
from qsim.sim.config import EngineConfig, EngineOptions
from qsim.sim.goodput import Goodput, GoodputOutcome
from qsim.sim.slo import Slo, SloOutcome

if TYPE_CHECKING:
    from qsim.optimize.headroom import Headroom
    from qsim.optimize.plan_detail import Detail
    from qsim.optimize.plan_search import SearchReport
    from qsim.quality.recovery import Recovery

__all__ = ["OBJECTIVES", "Candidate", "FleetOutcome", "Plan", "Tie", "deciding_order"]

OBJECTIVES = ("cost", "energy", "gpus", "carbon")
#: of fleets with the same objective these decide, in this order, and at last the profile's id;
#: carbon is not among them: with one grid for all it orders fleets as energy does
_TIE_BREAKERS = ("cost", "energy", "gpus")


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


@dataclass(frozen=True)
class Candidate:
    """The smallest fleet of one profile that meets the SLOs, or why there is none.

    ``outcome`` is the simulation of that fleet; for an infeasible candidate the largest fleet
    tried, if any was. ``evaluations`` are all fleets that were simulated, by size.
    """

    profile: str
    gpu: str
    model: str
    method: str
    tensor_parallel_size: int
    vllm_args: tuple[str, ...] = ()
    vllm_version: str = ""
    #: what to know before relying on a profile that was not measured; "" for a measured one
    note: str = ""
    #: id or path that the profile is read from; None for one that was given as an object
    source: str | None = None
    engine: EngineConfig | None = None
    options: EngineOptions = field(default_factory=EngineOptions)
    #: "" for that of the plan
    router: str = ""
    price: Price | None = None
    #: the profile's stated errors on loads that were not fitted, in percent
    error_percent: Mapping[str, float] = field(default_factory=dict)
    #: recovery on the plan's task mix; None for a method that is not in the catalogue
    quality: Recovery | None = None
    carbon: Carbon | None = None
    feasible: bool = False
    reason: str = ""
    #: what makes it infeasible, in numbers; None if it is feasible or numbers do not say it
    shortfall: Shortfall | None = None
    #: the smallest fleet that met the SLOs, if it grew from there for confidence
    grown_from: int | None = None
    outcome: FleetOutcome | None = None
    evaluations: tuple[FleetOutcome, ...] = ()

    @property
    def replicas(self) -> int | None:
        """The fleet's size; None if infeasible."""
        return self.outcome.replicas if self.feasible and self.outcome else None

    @property
    def gpus(self) -> int | None:
        """GPUs of the fleet: replicas times the tensor-parallel size."""
        return None if self.replicas is None else self.replicas * self.tensor_parallel_size

    @property
    def usd_per_hour(self) -> float | None:
        """Rent of the fleet; None if infeasible or without a price."""
        if self.gpus is None or self.price is None:
            return None
        return round(self.gpus * self.price.usd_per_hour, 6)

    def metric(self, key: str) -> float | None:
        """A number of the fleet's summary; None if infeasible."""
        if not self.feasible or self.outcome is None:
            return None
        value = self.outcome.summary.get(key)
        return None if value is None else float(value)

    @property
    def gco2e(self) -> float | None:
        """Grams of CO2 equivalent of the run's energy; None if infeasible or without a region."""
        energy_j = self.metric("energy_j")
        return None if self.carbon is None or energy_j is None else self.carbon.gco2e(energy_j)

    @property
    def gco2e_per_hour(self) -> float | None:
        """Grams of CO2 equivalent for an hour of this load."""
        return _ratio(self.gco2e, self.metric("duration"), 3600)

    @property
    def gco2e_per_1k_output_tokens(self) -> float | None:
        """Grams of CO2 equivalent for 1000 output tokens."""
        return _ratio(self.gco2e, self.metric("total_output_tokens"), 1000)

    def worth(self, objective: str) -> float:
        """What an objective is decided by, less is better; inf where it is not known."""
        value = {
            "cost": self.usd_per_hour,
            "energy": self.metric("energy_j"),
            "gpus": self.gpus,
            "carbon": self.gco2e,
        }[objective]
        return math.inf if value is None else float(value)

    def rank(self, objective: str) -> tuple[float | str, ...]:
        """Sort key: feasible first, then by :func:`deciding_order`, at last by the id."""
        key = [self.worth(o) for o in deciding_order(objective)]
        return (float(not self.feasible), *key, self.profile)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; latencies and throughputs under the summary's names."""
        outcome = self.outcome
        duration_s = self.metric("duration")
        usd = self.usd_per_hour
        data: dict[str, Any] = {
            "profile": self.profile,
            "gpu": self.gpu,
            "model": self.model,
            "method": self.method,
            "tensor_parallel_size": self.tensor_parallel_size,
            "feasible": self.feasible,
            "options": self.options.to_dict(),
            **({"router": self.router} if self.router else {}),
            "reason": self.reason or None,
            "shortfall": None if self.shortfall is None else self.shortfall.to_dict(),
            "replicas": self.replicas,
            "grown_from": self.grown_from,
            "gpus": self.gpus,
            "note": self.note or None,
            "profile_error_percent": dict(self.error_percent),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "usd_per_hour": usd,
            "cost_usd": None if usd is None or duration_s is None else usd * duration_s / 3600,
            "gco2e": self.gco2e,
            "gco2e_per_hour": self.gco2e_per_hour,
            "gco2e_per_1k_output_tokens": self.gco2e_per_1k_output_tokens,
            "attainment": outcome.attainment if self.feasible and outcome else None,
            "slos": [s.to_dict() for s in outcome.slos] if outcome else [],
            "goodput": outcome.goodput.to_dict() if outcome and outcome.goodput else None,
            "peak_power_w": outcome.peak_power_w if self.feasible and outcome else None,
        }
        if self.feasible and outcome:
            data.update((k, v) for k, v in outcome.summary.items() if _wanted(k))
        data["evaluations"] = [e.to_dict() for e in self.evaluations]
        return data


def deciding_order(objective: str) -> tuple[str, ...]:
    """What decides among fleets, first to last; the profile's id comes after these."""
    return (objective, *(o for o in _TIE_BREAKERS if o != objective))


def _ratio(value: float | None, by: float | None, scale: float) -> float | None:
    return None if value is None or not by else value / by * scale


@dataclass(frozen=True)
class Tie:
    """Fleets that are equal to the best one in the objective, and what decided among them.

    ``decided_by`` sets the best apart from the next one; ``name`` if they are equal in all.
    """

    profiles: tuple[str, ...]
    decided_by: str


def _wanted(key: str) -> bool:
    """Which keys of a summary a plan repeats."""
    return key.endswith(("_ms", "_throughput", "_j", "_w")) or key in (
        "completed",
        "failed",
        "duration",
        "joules_per_output_token",
        "preemptions",
    )


@dataclass(frozen=True)
class Plan:
    """The answer of :func:`qsim.plan`: candidates, the best first, infeasible ones last."""

    objective: str
    slos: tuple[Slo, ...]
    candidates: tuple[Candidate, ...]
    #: what was planned for: name, requests, duration_s, mean rates and lengths
    trace: Mapping[str, Any]
    #: router, seed, max_replicas and engine options, as used
    settings: Mapping[str, Any]
    #: the task mix that the candidates' quality is of, and the floor
    quality_goal: QualityGoal | None = None
    carbon: Carbon | None = None
    #: what was done to the trace before ``trace`` was described
    forecast: Forecast = field(default_factory=Forecast)
    #: of the best fleet; None if there is none, or it was not asked for
    headroom: Headroom | None = None
    goodput: Goodput | None = None
    budget: Budget = field(default_factory=Budget)
    #: of a plan that searched engine options or routers
    search: SearchReport | None = None
    detail: Detail | None = None

    def router_of(self, candidate: Candidate) -> str:
        """The router of a candidate's fleet."""
        return candidate.router or str(self.settings["router"])

    @property
    def goals(self) -> tuple[Slo | Goodput, ...]:
        """Every SLO, and the goodput if it is asked for."""
        return self.slos if self.goodput is None else (*self.slos, self.goodput)

    @property
    def nearest_misses(self) -> dict[str, Candidate]:
        """By constraint the infeasible candidate that is least beyond it, the least first."""
        missed = [(c.shortfall, c) for c in self.candidates if not c.feasible and c.shortfall]
        nearest: dict[str, Candidate] = {}
        for shortfall, candidate in sorted(missed, key=lambda m: m[0].excess):
            nearest.setdefault(shortfall.constraint, candidate)
        return nearest

    def objection(self) -> str:
        """Why there is no best candidate: by constraint the one that is nearest, by how much."""
        near = self.nearest_misses
        if not near:
            return "no candidate meets the SLOs; the reasons are listed above"
        told = "; ".join(f"{name}: {c.profile} {c.reason}" for name, c in near.items())
        return f"no candidate meets the SLOs and limits; nearest by what binds: {told}"

    @property
    def tie(self) -> Tie | None:
        """The feasible candidates that share the best one's objective; None if it stands alone."""
        best = self.best
        if best is None:
            return None
        worth = best.worth(self.objective)
        equal = [c for c in self.candidates if c.feasible and c.worth(self.objective) == worth]
        if len(equal) < 2:
            return None
        order = deciding_order(self.objective)
        apart = (o for o in order if best.worth(o) != equal[1].worth(o))
        return Tie(tuple(c.profile for c in equal), next(apart, "name"))

    @property
    def best(self) -> Candidate | None:
        """The first feasible candidate, or None if nothing meets the SLOs."""
        first = self.candidates[0] if self.candidates else None
        return first if first is not None and first.feasible else None

    def serve_command(self, candidate: Candidate | None = None, port: int = 8000) -> str:
        """The ``vllm serve`` command of one replica of ``candidate``, by default of the best.

        Raises
        ------
        InfeasibleError
            If that candidate, or every one, is infeasible.
        """
        from qsim.optimize.serve import serve_command

        chosen = candidate or self.best
        if chosen is None:
            raise InfeasibleError("no candidate of this plan meets the SLOs: nothing to serve")
        return serve_command(chosen, port)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        from qsim import __version__
        from qsim.optimize.losers import lost

        prices = {c.price.gpu: c.price.to_dict() for c in self.candidates if c.price}
        return {
            "schema": "qsim-plan/1",
            "qsim_version": __version__,
            "objective": self.objective,
            "order": [*deciding_order(self.objective), "name"],
            "tie": None
            if self.tie is None
            else {"profiles": list(self.tie.profiles), "decided_by": self.tie.decided_by},
            "slos": [str(s) for s in self.slos],
            "goodput": None if self.goodput is None else str(self.goodput),
            "budget": self.budget.to_dict(),
            "nearest_misses": {k: c.profile for k, c in self.nearest_misses.items()},
            "trace": dict(self.trace),
            "forecast": self.forecast.to_dict(),
            "settings": dict(self.settings),
            "quality": None if self.quality_goal is None else self.quality_goal.to_dict(),
            "carbon": None if self.carbon is None else self.carbon.to_dict(),
            "prices": [prices[g] for g in sorted(prices)],
            "best": self.best.profile if self.best else None,
            "search": None if self.search is None else self.search.to_dict(),
            "headroom": None if self.headroom is None else self.headroom.to_dict(),
            "detail": None if self.detail is None else self.detail.to_dict(),
            "serve_command": self.serve_command() if self.best else None,
            "candidates": [
                {
                    **c.to_dict(),
                    "lost": lost(self, c),
                    "serve_command": self.serve_command(c) if c.feasible else None,
                }
                for c in self.candidates
            ],
        }
