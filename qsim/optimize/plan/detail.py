"""What is told of a plan's best fleet beside its size: how sure it is, and what limits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qsim.checks import is_number, whole
from qsim.errors import ScenarioError
from qsim.optimize.plan.bottleneck import TimeShares
from qsim.optimize.plan.confidence import MAX_REPLICATIONS, Confidence
from qsim.optimize.plan.resample import Resampling
from qsim.optimize.plan.sensitivity import Sensitivity
from qsim.optimize.plan.what_if import WhatIf

__all__ = ["FEW", "LITTLE", "Detail", "DetailWanted"]

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
