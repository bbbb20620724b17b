"""Why a candidate is not the best: how much worse it is, and what keeps it from fewer replicas."""

from __future__ import annotations

from typing import Any

from qsim.optimize.plan.candidate import Candidate

__all__ = ["behind_best"]


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
