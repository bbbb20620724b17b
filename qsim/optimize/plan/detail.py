"""What is told of a plan's best fleet beside its size: how sure it is, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from qsim.checks import is_number, whole
from qsim.errors import ScenarioError
from qsim.optimize.plan.bottleneck import TimeShares, time_shares
from qsim.optimize.plan.confidence import MAX_REPLICATIONS, Confidence, Replication, replicate
from qsim.optimize.plan.resample import Resample, Resampling
from qsim.optimize.plan.sensitivity import Sensitivity, fleet_sensitivity
from qsim.optimize.plan.what_if import WhatIf, changes_of, what_if
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask

__all__ = ["FEW", "LITTLE", "Detail", "DetailWanted", "plan_detail"]

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
            "confidence": None if self.confidence is None else self.confidence.to_dict(),
            "sensitivity": None
            if self.sensitivity is None
            else [s.to_dict() for s in self.sensitivity],
            "bottleneck": None if self.shares is None else self.shares.to_dict(),
            "what_if": None if self.changes is None else self.changes.to_dict(),
        }


def plan_detail(
    executor: Executor,
    task: FleetTask,
    known: Sequence[FleetOutcome],
    wanted: DetailWanted,
    *,
    max_replicas: int,
    speed: float = 1.0,
    other: FleetTask | None = None,
    runs: Sequence[Replication] = (),
    asked: bool = True,
    progress: Progress | None = None,
) -> Detail:
    """Find out what is wanted about the fleet of ``task``.

    Parameters
    ----------
    known : sequence of FleetOutcome
        Fleets of the same setting that were simulated on the same trace.
    speed : float
        The speed that breaks an SLO, where it is known; single changes are tried at it.
    other : FleetTask, optional
        The next best candidate's fleet.
    runs : sequence of Replication
        Replications of this very fleet that were made already.
    asked : bool
        Explain misses of replications, which takes more of them.
    """
    steps = [bool(wanted.replications), wanted.sensitivity, wanted.bottlenecks]

    def part(i: int) -> Progress | None:
        if progress is None:
            return None
        begin, share = sum(steps[:i]) / sum(steps), 1 / sum(steps)
        return lambda done, text: progress(begin + done * share, text)

    confidence, sensitivity, shares, changes = None, None, None, None
    if wanted.replications:
        resampling = wanted.resampling or Resample(task.trace)
        confidence = replicate(
            executor, task, resampling, wanted.replications, part(0), explain=asked, runs=runs
        )
    if wanted.sensitivity:
        sensitivity = fleet_sensitivity(executor, task, known, max_replicas, part(1))
    if wanted.bottlenecks:
        future = executor.submit(time_shares, task)
        changes = what_if(executor, task, changes_of(task, other), speed, part(2))
        shares = future.result()
    return Detail(confidence, sensitivity, shares, changes, asked)
