"""A plan's detail as text: why not the others, confidence, sensitivity, bottlenecks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim.optimize.plan.why_not_best import behind_best

if TYPE_CHECKING:
    from qsim.optimize.plan.candidate import Candidate
    from qsim.optimize.plan.result import Plan
    from qsim.optimize.plan.sensitivity import Sensitivity

__all__ = ["detail_lines", "why_not_best"]

_WORDS = {
    "cost": "the cost",
    "energy": "the energy",
    "gpus": "the GPUs",
    "carbon": "the carbon",
}

#: candidates that are told why they lost; the nearest ones
_MOST_EXPLAINED = 8


def detail_lines(plan: Plan) -> list[str]:
    """Lines, those of one matter one after the other; none where no detail was asked for."""
    detail = plan.detail
    if detail is None:
        return []
    if not detail.asked:
        return [] if detail.confidence is None else detail.confidence.text()
    others = [text for text in (why_not_best(plan, c) for c in plan.candidates) if text]
    lines = [f"why not {text}" for text in others[:_MOST_EXPLAINED]]
    if len(others) > _MOST_EXPLAINED:
        lines.append(f"and {len(others) - _MOST_EXPLAINED} more, which are farther off (--json)")
    if plan.best is not None and plan.best.grown_from is not None:
        lines.append(
            f"{plan.best.grown_from} replicas meet every SLO on this trace, but in too few "
            f"replications; the fleet has {plan.best.replicas} for that"
        )
    if detail.confidence is not None:
        lines += detail.confidence.text()
    if detail.sensitivity is not None:
        lines += _sensitivity(detail.sensitivity)
    if detail.shares is not None:
        lines += detail.shares.text()
    if detail.changes is not None:
        lines += detail.changes.text()
    return lines


def why_not_best(plan: Plan, candidate: Candidate) -> str:
    """Why a candidate is not the best; "" where there is nothing to say."""
    found = behind_best(plan.best, plan.objective, candidate)
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
        fewer = f"{n - 1} replica{'s' if n != 2 else ''}"
        if candidate.parts:
            fewer = "one server less"
        text += f"; with {fewer} {found['one_less']}"
    return text


def _sensitivity(found: tuple[Sensitivity, ...]) -> list[str]:
    parts: dict[str, list[str]] = {}
    for s in found:
        change = f"{abs(s.factor - 1):.0%} {'tighter' if s.factor < 1 else 'looser'}"
        size = f"more than {s.limit}" if s.replicas is None else str(s.replicas)
        parts.setdefault(s.goal, []).append(f"{size} if {change}")
    named = "; ".join(f"{goal}: {', '.join(p)}" for goal, p in parts.items())
    return [f"sensitivity, replicas needed: {named}"]
