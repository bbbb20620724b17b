"""A mixed fleet as a candidate of a plan: its pools, and what they come to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qsim.errors import ScenarioError
from qsim.optimize.plan.candidate import Candidate, Part
from qsim.optimize.search.fleet_task import FleetTask, TaskPool, offered_load
from qsim.optimize.search.measures import worst_quality
from qsim.profiles.schema import Profile
from qsim.sim.fleet.router import check_weights

__all__ = ["blank_mix", "task_of_parts", "weights_of"]


def weights_of(
    router: str, task: FleetTask, blanks: Sequence[Candidate], profiles: Sequence[Profile]
) -> list[float]:
    """How many requests a server of each profile gets beside one of the slowest.

    By the load that the traffic is for each at its best efficiency, to three digits. All 1 where
    the router takes no weights; one that knows the profiles (``expected-finish``) needs none.
    """
    try:
        check_weights(router, [1.0, 2.0])
    except ScenarioError:
        return [1.0] * len(blanks)
    loads = []
    for blank, profile in zip(blanks, profiles, strict=True):
        assert blank.engine is not None
        loads.append(max(offered_load(task.trace, profile, blank.engine), 1e-9))
    return [float(f"{max(loads) / load:.3g}") for load in loads]


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
