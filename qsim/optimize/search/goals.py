"""What a search holds fleets to besides their size: SLOs that can be judged, quality, carbon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsim.checks import is_number
from qsim.errors import ScenarioError
from qsim.optimize.economics.carbon import DEFAULT_PUE, GridIntensity, gco2e, grid_intensity
from qsim.profiles.schema import Profile
from qsim.sim.results.goodput import Goodput
from qsim.sim.results.slo import Slo, check_judgeable
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.quality.recovery import Recovery


@dataclass(frozen=True)
class QualityGoal:
    """The task mix that quality is told for, and the floor, if there is one."""

    #: shares by task; they sum to 1
    tasks: Mapping[str, float]
    #: percent of the 16-bit score that the low end of the interval must reach
    min_pct: float | None = None

    def of(self, profile: Profile) -> Recovery | None:
        """Recovery of a profile's method; its own measurement goes first.

        None for a method that is not in the catalogue: there is nothing to estimate from.
        """
        from qsim.catalog.methods import find_method
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


#: no method that is served loses half of the score; a lower floor is another number than meant
LEAST_FLOOR = 50.0


def check_floor(name: str, value: Any) -> float:
    """A floor of quality, in percent of the 16-bit model's score.

    Raises
    ------
    ScenarioError
        If it is not from 50 to 100; the message says what was probably meant.
    """
    if is_number(value) and LEAST_FLOOR <= value <= 100:
        return float(value)
    meant = ""
    if is_number(value) and 0 < value <= 1:
        meant = f"; a share of {value:.15g} is {100 * value:.15g}"
    elif is_number(value) and 0 < value < LEAST_FLOOR:
        meant = f"; if {value:.15g} points may be lost, that is {100 - value:.15g}"
    raise ScenarioError(
        f"{name} is {value!r}; must be from {LEAST_FLOOR:g} to 100, percent of the 16-bit model's "
        f"score that is kept{meant}"
    )


def quality_goal(
    tasks: Mapping[str, float] | str | None, min_quality: float | None = None
) -> QualityGoal:
    """Check a task mix (text as for ``--tasks``; None for the default mix) and a floor.

    Raises
    ------
    ScenarioError
        For an unknown task or a wrong share, or a floor that is not in [50, 100].
    """
    from qsim.quality.tasks import normalise_mix, parse_mix

    mix = normalise_mix(parse_mix(tasks) if isinstance(tasks, str) else tasks)
    if min_quality is None:
        return QualityGoal(mix)
    return QualityGoal(mix, check_floor("min_quality", min_quality))


def check_goals(trace: Trace, slos: Sequence[Slo], goodput: Goodput | None = None) -> None:
    """Refuse SLOs and limits of a goodput that this traffic cannot be judged by.

    Raises
    ------
    ScenarioError
        As :func:`qsim.sim.results.slo.check_judgeable`.
    """
    for slo in slos:
        check_judgeable(trace, [slo.metric], f"SLO {slo}")
    if goodput is not None:
        check_judgeable(trace, [metric for metric, _ in goodput.limits], str(goodput))


@dataclass(frozen=True)
class Carbon:
    """Where the energy comes from: a grid, and the site's energy over that of its IT."""

    grid: GridIntensity
    pue: float = DEFAULT_PUE

    def gco2e(self, energy_j: float) -> float:
        """Grams of CO2 equivalent of the GPUs' energy."""
        return gco2e(energy_j, self.grid, self.pue)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.grid.to_dict(), "pue": self.pue, "covers": "energy of the GPUs"}


def carbon_of(region: str | float | None, pue: float | None, objective: str) -> Carbon | None:
    """Check a region and a PUE; None without a region.

    Raises
    ------
    ScenarioError
        For an unknown region (near ones are named), a PUE that is not a finite number >= 1 or
        comes without a region, or the objective carbon without a region.
    """
    if region is None:
        if objective == "carbon":
            raise ScenarioError(
                "objective carbon needs a region (--region), such as DEU, gcp:us-central1 or a "
                "number of gCO2e per kWh"
            )
        if pue is not None:
            raise ScenarioError(
                f"pue is {pue!r}, but no region is given; it scales carbon only: add a region "
                "(--region) or leave it out"
            )
        return None
    if pue is None:
        pue = DEFAULT_PUE
    if not is_number(pue) or not 1 <= pue < math.inf:
        raise ScenarioError(f"pue is {pue!r}; must be a finite number >= 1")
    return Carbon(grid_intensity(region), float(pue))
