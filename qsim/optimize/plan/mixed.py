"""A mixed fleet as a candidate of a plan: its pools, and what they come to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qsim.optimize.plan.candidate import Candidate, Part
from qsim.optimize.search.fleet_task import FleetTask, TaskPool
from qsim.optimize.search.measures import worst_quality
from qsim.profiles.schema import Profile

__all__ = ["blank_mix", "task_of_parts"]


def blank_mix(parts: Sequence[Part]) -> Candidate:
    """The candidate of pools before its search; its quality is that of the worst pool.

    Nobody knows which pool an answer comes from, so that no average is what a client gets.
    """
    blanks = [p.blank for p in parts]
    errors: dict[str, float] = {}
    for blank in blanks:
        for key, value in blank.error_percent.items():
            errors[key] = max(value, errors.get(key, 0.0))
    return replace(
        blanks[0],
        profile=_joined([b.profile for b in blanks]),
        gpu=_joined([b.gpu for b in blanks]),
        method=_joined([b.method for b in blanks]),
        note=" ".join(dict.fromkeys(b.note for b in blanks if b.note)),
        caution="; ".join(dict.fromkeys(b.caution for b in blanks if b.caution)),
        source=None,
        router="",
        price=None,
        error_percent=errors,
        quality=worst_quality([b.quality for b in blanks]),
        feasible=False,
        reason="",
        shortfall=None,
        grown_from=None,
        replications=None,
        carries=None,
        nearest_limit=None,
        outcome=None,
        evaluations=(),
        parts=tuple(parts),
    )


def _joined(words: Sequence[str]) -> str:
    return " + ".join(words)


def task_of_parts(
    base: FleetTask, parts: Sequence[Part], profiles: Mapping[str, Profile]
) -> FleetTask:
    """The fleet of the pools, to be simulated."""
    return base.of_pools(
        [TaskPool(profiles[p.blank.profile], p.replicas, p.blank.options, p.weight) for p in parts]
    )
