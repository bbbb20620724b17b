"""One profile in a plan: its smallest fleet, or why there is none; and what orders candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qsim.as_json import JsonReady
from qsim.optimize.economics.prices import Price, usd_per_1m
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.goals import Carbon
from qsim.sim.scheduler.config import EngineConfig, EngineOptions

if TYPE_CHECKING:
    from qsim.quality.recovery import Recovery


OBJECTIVES = ("cost", "energy", "gpus", "carbon")
#: of fleets with the same objective these decide, in this order, and at last the profile's id;
#: carbon is not among them: with one grid for all it orders fleets as energy does
_TIE_BREAKERS = ("confidence", "headroom", "cost", "energy", "gpus")


@dataclass(frozen=True)
class Shortfall(JsonReady):
    """The constraint that makes a candidate infeasible, and by how much."""

    #: the SLO as text, or the name of the option (``max_gpus``, ``min_quality``, ...)
    constraint: str
    #: in the unit of the constraint
    value: float
    limit: float
    #: how far the value is beyond the limit, as a share of the limit
    excess: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**super().to_dict(), "excess": self.excess if math.isfinite(self.excess) else None}


@dataclass(frozen=True)
class Part:
    """A pool of a mixed fleet."""

    #: what one of its servers is: profile, settings, price
    blank: Candidate
    replicas: int
    #: how many requests a server gets beside one of weight 1
    weight: float = 1.0

    @property
    def gpus(self) -> int:
        """Of all its servers."""
        return self.replicas * self.blank.tensor_parallel_size

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        b = self.blank
        return {
            "profile": b.profile,
            "gpu": b.gpu,
            "method": b.method,
            "tensor_parallel_size": b.tensor_parallel_size,
            "replicas": self.replicas,
            "gpus": self.gpus,
            "weight": self.weight,
            "options": b.options.to_dict(),
            "usd_per_hour": None if b.price is None else self.gpus * b.price.usd_per_hour,
            "quality": None if b.quality is None else b.quality.to_dict(),
        }


@dataclass(frozen=True)
class Candidate:
    """The smallest fleet of one profile that meets the SLOs, or why there is none.

    ``outcome`` is the simulation of that fleet; for an infeasible candidate the largest fleet
    tried, if any was. ``evaluations`` are all fleets that were simulated, by size. A mixed fleet
    has ``parts``; its ``profile``, ``gpu`` and ``method`` name those of all, and what is said of a
    single server (``engine``, ``options``, ``tensor_parallel_size``) is of the first part alone.
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
    #: where fleets are equal in the objective: replications that met every SLO, and of how many;
    #: and how many times the traffic the fleet was found to carry or, where that was not asked
    #: for, the value of the goal that binds over its limit
    replications: tuple[int, int] | None = None
    carries: float | None = None
    nearest_limit: float | None = None
    outcome: FleetOutcome | None = None
    evaluations: tuple[FleetOutcome, ...] = ()
    #: what settings beyond the measured range rest on; "" if all was measured
    caution: str = ""
    #: the pools of a mixed fleet
    parts: tuple[Part, ...] = ()

    @property
    def replicas(self) -> int | None:
        """The fleet's size; None if infeasible."""
        return self.outcome.replicas if self.feasible and self.outcome else None

    @property
    def gpus(self) -> int | None:
        """GPUs of the fleet: replicas times the tensor-parallel size."""
        if self.replicas is None or self.outcome is None:
            return None
        return self.gpus_of(self.outcome.sizes or (self.replicas,))

    def gpus_of(self, sizes: Sequence[int]) -> int:
        """GPUs of so many servers of each pool."""
        return sum(self.gpus_by_type(sizes).values())

    def gpus_by_type(self, sizes: Sequence[int]) -> dict[str, int]:
        """The same by type of GPU."""
        found: dict[str, int] = {}
        for blank, n in zip(self.blanks, sizes, strict=True):
            found[blank.gpu] = found.get(blank.gpu, 0) + n * blank.tensor_parallel_size
        return found

    @property
    def blanks(self) -> tuple[Candidate, ...]:
        """What one server of each pool is."""
        return tuple(p.blank for p in self.parts) or (self,)

    def usd_of(self, sizes: Sequence[int]) -> float | None:
        """Rent of so many servers of each pool, USD per hour; None without a price."""
        total = 0.0
        for blank, n in zip(self.blanks, sizes, strict=True):
            if blank.price is None:
                return None
            total += n * blank.tensor_parallel_size * blank.price.usd_per_hour
        return round(total, 6)

    @property
    def usd_per_hour(self) -> float | None:
        """Rent of the fleet; None if infeasible or without a price."""
        if self.replicas is None or self.outcome is None:
            return None
        return self.usd_of(self.outcome.sizes or (self.replicas,))

    def metric(self, key: str) -> float | None:
        """A number of the fleet's summary; None if infeasible."""
        if not self.feasible or self.outcome is None:
            return None
        value = self.outcome.summary.get(key)
        return None if value is None else float(value)

    @property
    def spare_gpus(self) -> int | None:
        """GPUs that the goals take only because servers may be down; None if none may be.

        At least so many: a fleet with so many fewer was simulated and met every goal.
        """
        left = self._cheapest_left
        return None if left is None or self.gpus is None else self.gpus - self.gpus_of(left)

    @property
    def spare_usd_per_hour(self) -> float | None:
        """Their rent."""
        left, usd = self._cheapest_left, self.usd_per_hour
        rest = None if left is None else self.usd_of(left)
        return None if usd is None or rest is None else round(usd - rest, 6)

    @property
    def _cheapest_left(self) -> tuple[int, ...] | None:
        """What is left with servers down, the least there is: it meets every goal."""
        if not self.feasible or self.outcome is None or not self.outcome.degraded:
            return None
        left = [d.sizes for d in self.outcome.degraded]
        return min(left, key=lambda sizes: (self.usd_of(sizes) or 0.0, self.gpus_of(sizes)))

    def usd_per_1m(self, key: str) -> float | None:
        """USD per million of the tokens of ``output_throughput`` or ``total_token_throughput``."""
        return usd_per_1m(self.usd_per_hour, self.metric(key))

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
            "confidence": None if self.replications is None else -self.replications[0],
            "headroom": self.nearest_limit if self.carries is None else -self.carries,
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
            "tensor_parallel_size": None if self.parts else self.tensor_parallel_size,
            **({"pools": [p.to_dict() for p in self.parts]} if self.parts else {}),
            "vllm_version": self.vllm_version or None,
            "feasible": self.feasible,
            **({} if self.parts else {"options": self.options.to_dict()}),
            **({"router": self.router} if self.router else {}),
            "reason": self.reason or None,
            "shortfall": None if self.shortfall is None else self.shortfall.to_dict(),
            "replicas": self.replicas,
            "grown_from": self.grown_from,
            "replications": None
            if self.replications is None
            else dict(zip(("met", "of"), self.replications, strict=True)),
            "carries": self.carries,
            **({} if self.nearest_limit is None else {"nearest_limit": self.nearest_limit}),
            "gpus": self.gpus,
            "note": self.note or None,
            "caution": self.caution or None,
            "profile_error_percent": dict(self.error_percent),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "usd_per_hour": usd,
            "cost_usd": None if usd is None or duration_s is None else usd * duration_s / 3600,
            "usd_per_1m_output_tokens": self.usd_per_1m("output_throughput"),
            "usd_per_1m_tokens": self.usd_per_1m("total_token_throughput"),
            "gco2e": self.gco2e,
            "gco2e_per_hour": self.gco2e_per_hour,
            "gco2e_per_1k_output_tokens": self.gco2e_per_1k_output_tokens,
            **(
                {}
                if self.spare_gpus is None
                else {
                    "spare_gpus": self.spare_gpus,
                    "spare_usd_per_hour": self.spare_usd_per_hour,
                    "survive": [d.to_dict() for d in outcome.degraded] if outcome else [],
                }
            ),
            "attainment": outcome.attainment if self.feasible and outcome else None,
            "slos": [s.to_dict() for s in outcome.slos] if outcome else [],
            "goodput": outcome.goodput.to_dict() if outcome and outcome.goodput else None,
            "load": outcome.load.to_dict() if outcome and outcome.load else None,
            "peak_power_w": outcome.peak_power_w if self.feasible and outcome else None,
        }
        if self.feasible and outcome:
            data.update((k, v) for k, v in outcome.summary.items() if _wanted(k))
            data.update(outcome.p95_ms)
            data["beyond_measured"] = outcome.summary.get("beyond_measured")
        data["evaluations"] = [e.to_dict() for e in self.evaluations]
        return data


def deciding_order(objective: str) -> tuple[str, ...]:
    """What decides among fleets, first to last; the profile's id comes after these."""
    return (objective, *(o for o in _TIE_BREAKERS if o != objective))


def _ratio(value: float | None, by: float | None, scale: float) -> float | None:
    return None if value is None or not by else value / by * scale


def _wanted(key: str) -> bool:
    """Which keys of a summary a plan repeats."""
    return key.endswith(("_ms", "_throughput", "_j", "_w")) or key in (
        "completed",
        "failed",
        "duration",
        "joules_per_output_token",
        "preemptions",
    )
