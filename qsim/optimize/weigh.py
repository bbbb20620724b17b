"""What a plan weighs besides speed: the answers' quality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsim.errors import ScenarioError
from qsim.profile import Profile

if TYPE_CHECKING:
    from qsim.quality.recovery import Recovery

__all__ = ["QualityGoal", "quality_goal"]


@dataclass(frozen=True)
class QualityGoal:
    """The task mix that quality is told for, and the floor, if there is one.

    Attributes
    ----------
    tasks : dict
        Shares by task; they sum to 1.
    min_pct : float or None
        Percent of the 16-bit score that the low end of the interval must reach.
    """

    tasks: Mapping[str, float]
    min_pct: float | None = None

    def of(self, profile: Profile) -> Recovery | None:
        """Recovery of a profile's method; its own measurement goes first.

        None for a method that is not in the catalogue: there is nothing to estimate from.
        """
        from qsim.calibrate.methods import find_method
        from qsim.quality.recovery import recovery

        identity = profile.identity
        try:
            find_method(identity.method)
        except ScenarioError:
            return None
        return recovery(identity.model, identity.method, self.tasks, profile.quality)

    def objection(self, quality: Recovery | None) -> str:
        """Why a quality misses the floor, or "" if it does not."""
        if self.min_pct is None:
            return ""
        floor = f"the floor of {self.min_pct:.15g}"
        if quality is None:
            return f"quality is not known for this method, so that it cannot be held to {floor}"
        if quality.low_pct >= self.min_pct:
            return ""
        return (
            f"quality {quality.mean_pct:.2f} ({quality.low_pct:.2f} to {quality.high_pct:.2f}, "
            f"{quality.status}): the low end is below {floor}"
        )

    def mix_text(self) -> str:
        """The mix as ``--tasks`` takes it."""
        return ",".join(f"{task}:{share:.3g}" for task, share in self.tasks.items())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"tasks": dict(self.tasks), "interval": 0.9, "min_quality": self.min_pct}


def quality_goal(
    tasks: Mapping[str, float] | str | None, min_quality: float | None = None
) -> QualityGoal:
    """Check a task mix (text as for ``--tasks``; None for the default mix) and a floor.

    Raises
    ------
    ScenarioError
        For an unknown task or a wrong share, or a floor that is not in (0, 100].
    """
    from qsim.quality.tasks import normalise_mix, parse_mix

    mix = normalise_mix(parse_mix(tasks) if isinstance(tasks, str) else tasks)
    if min_quality is None:
        return QualityGoal(mix)
    number = isinstance(min_quality, int | float) and not isinstance(min_quality, bool)
    if not number or not (math.isfinite(min_quality) and 0 < min_quality <= 100):
        raise ScenarioError(
            f"min_quality is {min_quality!r}; must be above 0 and at most 100, percent of the "
            "16-bit model's score"
        )
    return QualityGoal(mix, float(min_quality))
