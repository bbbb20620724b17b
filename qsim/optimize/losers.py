"""Why a candidate is not the best: how much worse it is, and what keeps it from fewer replicas."""

from __future__ import annotations

from typing import Any

from qsim.optimize.plan_result import Candidate, Plan

__all__ = ["lost", "lost_text"]

_WORDS = {
    "cost": "the cost",
    "energy": "the energy",
    "gpus": "the GPUs",
    "carbon": "the carbon",
}


def lost(plan: Plan, candidate: Candidate) -> dict[str, Any] | None:
    """JSON-ready: ratio to the best by the objective, and the goal that one replica less misses.

    None for the best itself, and for infeasible candidates, which have a reason.
    """
    best = plan.best
    if best is None or candidate is best or not candidate.feasible:
        return None
    worth = best.worth(plan.objective)
    ratio = candidate.worth(plan.objective) / worth if worth else None
    n = candidate.grown_from or candidate.replicas or 0
    fewer = next((e for e in candidate.evaluations if e.replicas == n - 1), None)
    return {
        "ratio": ratio,
        "objective": plan.objective,
        "binding": None if fewer is None else str(fewer.binding.slo),
        "one_less": None if fewer is None else fewer.binding.sentence(),
    }


def lost_text(plan: Plan, candidate: Candidate) -> str:
    """For people; "" where there is nothing to say."""
    found = lost(plan, candidate)
    if found is None:
        return ""
    several = len({(c.gpu, c.model, c.tensor_parallel_size) for c in plan.candidates}) > 1
    ratio, name = found["ratio"], candidate.profile if several else candidate.method
    if ratio is None or abs(ratio - 1) < 5e-5:
        text = f"{name}: equal in {plan.objective}"
    else:
        text = f"{name}: {ratio:.3g} times {_WORDS[plan.objective]}"
    if found["one_less"] is not None:
        n = candidate.grown_from or candidate.replicas or 0
        text += f"; with {n - 1} replica{'s' if n != 2 else ''} {found['one_less']}"
    return text
