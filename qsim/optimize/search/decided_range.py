"""Which values of engine settings a search may try: those within some profile's measured range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from qsim.checks import is_number
from qsim.errors import ScenarioError
from qsim.optimize.search.space import Decision, Range
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions

__all__ = ["check_measured", "largest_measured", "measured_values"]

Value = TypeVar("Value")


def largest_measured(profiles: Sequence[Profile], options: EngineOptions) -> dict[str, int]:
    """By setting the largest value that is within the measured range of any of the profiles.

    Without a setting that a profile says nothing of, and empty if the options do not ask to keep
    to the range. A value beyond the range of one profile alone is refused where that profile's
    settings are resolved.
    """
    if not options.within_measured:
        return {}
    known = [MeasuredRange.of(p).limits() for p in profiles]
    names = set.intersection(*(set(limits) for limits in known)) if known else set()
    return {name: max(limits[name] for limits in known) for name in names}


def measured_values(
    name: str, values: Sequence[Value], limits: Mapping[str, int]
) -> tuple[Value, ...]:
    """Those of the usual values of a setting that are within the range."""
    limit = limits.get(name)
    if limit is None:
        return tuple(values)
    return tuple(v for v in values if not is_number(v) or v <= limit) or tuple(values[:1])


def check_measured(name: str, decision: Decision, limits: Mapping[str, int]) -> None:
    """Refuse values that lead beyond the measured range.

    Raises
    ------
    ScenarioError
        Naming the setting, the value and the largest that is within the range.
    """
    limit = limits.get(name)
    if limit is None:
        return
    values = [decision.high] if isinstance(decision, Range) else decision.grid()
    for value in values:
        if is_number(value) and value > limit:
            raise ScenarioError(
                f"{name} is to be searched up to {value}; the profiles were measured up to "
                f"{limit}: lower it, or give --beyond-measured to rely on extrapolated steps"
            )
