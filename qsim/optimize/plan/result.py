"""What a capacity plan says: one candidate a profile, sorted, with the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qsim.as_json import JsonReady, json_ready
from qsim.errors import InfeasibleError
from qsim.optimize.deploy.vllm import serve_command
from qsim.optimize.plan.budget import Budget
from qsim.optimize.plan.candidate import Candidate, deciding_order
from qsim.optimize.search.goals import Carbon, QualityGoal
from qsim.sim.results.goodput import Goodput
from qsim.sim.results.slo import Slo
from qsim.traces.reshape import Forecast

if TYPE_CHECKING:
    from qsim.optimize.plan.detail import Detail
    from qsim.optimize.plan.headroom import Headroom
    from qsim.optimize.plan.mix_search import MixReport
    from qsim.optimize.plan.setting_search import SearchReport
    from qsim.sim.results.machine_ranges import MachineRanges


@dataclass(frozen=True)
class Tie(JsonReady):
    """Fleets that are equal to the best one in the objective, and what decided among them.

    ``decided_by`` sets the best apart from the next one; ``name`` if they are equal in all.
    """

    profiles: tuple[str, ...]
    decided_by: str


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
    #: which mixed fleets were looked for; None where no stock is given
    mixes: MixReport | None = None
    #: 90% ranges of the best fleet's figures over machines
    machines: MachineRanges | None = None

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

    @property
    def range_90(self) -> dict[str, tuple[float, float]]:
        """What the best fleet's figures may be on another machine: 90% ranges by name."""
        outcome = None if self.best is None else self.best.outcome
        if self.machines is None or outcome is None:
            return {}
        return self.machines.of(outcome.figures)

    def serve_command(self, candidate: Candidate | None = None, port: int = 8000) -> str:
        """The ``vllm serve`` command of one replica of ``candidate``, by default of the best.

        Of a mixed fleet a line for each pool.

        Raises
        ------
        InfeasibleError
            If that candidate, or every one, is infeasible.
        """
        chosen = candidate or self.best
        if chosen is None:
            raise InfeasibleError("no candidate of this plan meets the SLOs: nothing to serve")
        if chosen.parts and chosen.feasible:
            blanks = [replace(p.blank, feasible=True) for p in chosen.parts]
            return "\n".join(serve_command(b, port) for b in blanks)
        return serve_command(chosen, port)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        from qsim import __version__

        prices = {c.price.gpu: c.price.to_dict() for c in self.candidates if c.price}
        return {
            "schema": "qsim-plan/1",
            "qsim_version": __version__,
            "objective": self.objective,
            "order": [*deciding_order(self.objective), "name"],
            "tie": json_ready(self.tie),
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
            **({} if self.mixes is None else {"mixes": self.mixes.to_dict()}),
            "headroom": None if self.headroom is None else self.headroom.to_dict(),
            "detail": None if self.detail is None else self.detail.to_dict(),
            "machines": None
            if self.machines is None
            else {"requests": self.machines.requests, "range_90": self.range_90},
            "serve_command": self.serve_command() if self.best else None,
            "candidates": [
                {
                    **c.to_dict(),
                    "lost": behind_best(self.best, self.objective, c),
                    "serve_command": self.serve_command(c) if c.feasible else None,
                }
                for c in self.candidates
            ],
        }


def behind_best(
    best: Candidate | None, objective: str, candidate: Candidate
) -> dict[str, Any] | None:
    """JSON-ready: ratio to the best by the objective, and the goal that one replica less misses.

    None for the best itself, and for infeasible candidates, which have a reason.
    """
    if best is None or candidate is best or not candidate.feasible:
        return None
    worth = best.worth(objective)
    ratio = candidate.worth(objective) / worth if worth else None
    n = candidate.grown_from or candidate.replicas or 0
    sizes = candidate.outcome.sizes if candidate.outcome else ()
    fewer = next(
        (
            e
            for e in candidate.evaluations
            if e.replicas == n - 1 and not e.met and _within(e.sizes, sizes)
        ),
        None,
    )
    return {
        "ratio": ratio,
        "objective": objective,
        "binding": None if fewer is None else str(fewer.binding.slo),
        "one_less": None if fewer is None else fewer.binding.sentence(),
    }


def _within(fewer: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether a mixed fleet has no more of any pool; fleets of one pool are told by their size."""
    if len(fewer) != len(sizes):
        return False
    return all(a <= b for a, b in zip(fewer, sizes, strict=True))
