"""What is told of a plan's best fleet beside its size: how sure it is, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from qsim.as_json import json_ready
from qsim.checks import is_number, whole
from qsim.errors import ScenarioError
from qsim.optimize.plan.bottleneck import TimeShares
from qsim.optimize.plan.confidence import MAX_REPLICATIONS, Confidence
from qsim.optimize.plan.resample import Resampling
from qsim.optimize.plan.what_if import WhatIf
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, run_fleet
from qsim.optimize.search.smallest_fleet import smallest_fleet
from qsim.sim.results.slo import Slo

#: replications that are run without being asked for, of a trace of at most so many requests
FEW, LITTLE = 5, 20_000


@dataclass(frozen=True)
class DetailWanted:
    """What to find out."""

    #: runs with other traffic, seeds and profile errors; 0 for none. Unless given :data:`FEW` where
    #: they cost little: of a trace of at most :data:`LITTLE` requests
    replications: int | None = None
    #: the fleet's size for each limit 20% tighter and looser
    sensitivity: bool = False
    #: where the time goes, and which single change helps most
    bottlenecks: bool = False
    #: how to draw other traffic; the trace is resampled unless given
    resampling: Resampling | None = None
    #: share of the replications that must meet every limit: the best fleet grows until they do
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        n, share = self.replications, self.min_confidence
        if n is not None:
            whole("replications", n, 0, MAX_REPLICATIONS)
        if share is None:
            return
        if not is_number(share) or not 0 < share <= 1:
            raise ScenarioError(f"min_confidence is {share!r}; must be above 0 and at most 1")
        if not n:
            raise ScenarioError(
                f"min_confidence is {share!r}, but replications is {n or 0}; give some "
                "(--replications 20)"
            )

    def __bool__(self) -> bool:
        return bool(self.replications or self.sensitivity or self.bottlenecks)


@dataclass(frozen=True)
class Detail:
    """What was found out about the best fleet; None for what was not asked for.

    ``asked`` is False where a few replications were run without being asked for.
    """

    confidence: Confidence | None = None
    sensitivity: tuple[Sensitivity, ...] | None = None
    shares: TimeShares | None = None
    changes: WhatIf | None = None
    asked: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "confidence": json_ready(self.confidence),
            "sensitivity": json_ready(self.sensitivity),
            "bottleneck": json_ready(self.shares),
            "what_if": json_ready(self.changes),
        }


#: what a limit is multiplied by
FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Sensitivity:
    """The smallest fleet with one limit changed and the others as they were.

    ``replicas`` (of a mixed fleet those of its first pool, the other pools as they are) is None
    where no fleet up to ``limit`` replicas suffices.
    """

    goal: str
    factor: float
    replicas: int | None
    limit: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"goal": self.goal, "factor": self.factor, "replicas": self.replicas}


def fleet_sensitivity(
    executor: Executor,
    task: FleetTask,
    known: Sequence[FleetOutcome],
    max_replicas: int,
    progress: Progress | None = None,
) -> tuple[Sensitivity, ...]:
    """Find the smallest fleet for every limit times every factor of :data:`FACTORS`.

    A percentile does not depend on its limit, so that a fleet that was simulated (those ``known``
    to begin with) is judged anew without another simulation. For a goodput all its limits in ms
    are changed, which takes simulations.
    """
    others = task.sizes[1:]
    sizes = {(o.sizes or (o.replicas,))[0]: o for o in known if not others or o.sizes[1:] == others}
    limit = min(max_replicas, 4 * task.replicas + 4)
    goals: list[tuple[int | None, str]] = [(i, str(s)) for i, s in enumerate(task.slos)]
    if task.goodput is not None:
        goals.append((None, str(task.goodput)))
    found = []
    for done, (i, name) in enumerate(goals):
        for factor in FACTORS:
            changed = _changed(task, i, factor)
            own = sizes if i is not None else {}
            n = _smallest(executor, changed, own, task.replicas, limit)
            found.append(Sensitivity(name, factor, n, limit))
        if progress is not None:
            progress((done + 1) / len(goals), "sensitivity")
    return tuple(found)


def _changed(task: FleetTask, i: int | None, factor: float) -> FleetTask:
    if i is None:
        assert task.goodput is not None
        limits = tuple((m, ms * factor) for m, ms in task.goodput.limits)
        return replace(task, goodput=replace(task.goodput, limits=limits))
    slos: list[Slo] = list(task.slos)
    slos[i] = replace(slos[i], limit_ms=slos[i].limit_ms * factor)
    return replace(task, slos=tuple(slos))


def _smallest(
    executor: Executor,
    task: FleetTask,
    sizes: dict[int, FleetOutcome],
    start: int,
    limit: int,
) -> int | None:
    search = smallest_fleet(min(start, limit), limit)
    try:
        n = next(search)
        while True:
            if n not in sizes:
                sizes[n] = executor.submit(run_fleet, task.with_first(n)).result()
            outcome = sizes[n]
            judged = outcome.judged(task.slos)
            if judged.met and not task.allow_backlog and outcome.unclear:
                # its SLOs were missed before, so that it did not matter whether it keeps up
                judged = sizes[n] = executor.submit(run_fleet, task.with_first(n)).result()
            n = search.send(judged.met)
    except StopIteration as stop:
        found: int | None = stop.value
        return found
