"""A plan's detail as text: losers, confidence, sensitivity, bottlenecks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim.optimize.losers import lost_text

if TYPE_CHECKING:
    from qsim.optimize.plan_result import Plan
    from qsim.optimize.sensitivity import Sensitivity

__all__ = ["detail_lines"]

#: candidates that are told why they lost; the nearest ones
_MOST_LOSERS = 8


def detail_lines(plan: Plan) -> list[str]:
    """Lines, those of one matter one after the other; none where no detail was asked for."""
    detail = plan.detail
    if detail is None:
        return []
    losers = [text for text in (lost_text(plan, c) for c in plan.candidates) if text]
    lines = [f"why not {text}" for text in losers[:_MOST_LOSERS]]
    if len(losers) > _MOST_LOSERS:
        lines.append(f"and {len(losers) - _MOST_LOSERS} more, which are farther off (--json)")
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


def _sensitivity(found: tuple[Sensitivity, ...]) -> list[str]:
    parts: dict[str, list[str]] = {}
    for s in found:
        change = f"{abs(s.factor - 1):.0%} {'tighter' if s.factor < 1 else 'looser'}"
        size = f"more than {s.limit}" if s.replicas is None else str(s.replicas)
        parts.setdefault(s.goal, []).append(f"{size} if {change}")
    named = "; ".join(f"{goal}: {', '.join(p)}" for goal, p in parts.items())
    return [f"sensitivity, replicas needed: {named}"]
