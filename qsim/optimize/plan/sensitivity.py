"""How the size of a fleet hangs on each limit: every SLO in turn tighter and looser."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from qsim.optimize.search.drive import Progress
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, run_fleet
from qsim.optimize.search.smallest_fleet import smallest_fleet
from qsim.sim.results.slo import Slo

__all__ = ["FACTORS", "Sensitivity", "fleet_sensitivity"]

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
