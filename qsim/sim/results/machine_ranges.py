"""What the figures of a run may be on other machines, as :mod:`qsim.sim.machines` finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MachineRanges:
    """90% ranges of figures over machines, as multiples of the figures."""

    #: by figure: what it is multiplied by at the low and at the high end
    ratios: Mapping[str, tuple[float, float]]
    #: that the ranges are from
    requests: int
    #: they are a stretch of the traffic
    stretch: bool
    #: the machines are those of an adapted profile's intervals
    adapted: bool

    def of(self, figures: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        """The ranges of figures by their names; those that are not known are left out."""
        found = {}
        for name, (low, high) in self.ratios.items():
            value = figures.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = (low * value, high * value)
        return found

    def told(self) -> str:
        """Where they are from."""
        where = f"the busiest {self.requests:,} requests" if self.stretch else "the traffic"
        if self.adapted:
            return (
                f"90%: what the figures may be on the machine that the profile was adapted to, by "
                f"the intervals of its factors over {where} (docs/adapt.md)"
            )
        outside = any(low > 1 or high < 1 for low, high in self.ratios.values())
        why = " (outside it: the measured machine is faster or slower than most)" if outside else ""
        return (
            f"90%: what the figures may be on your machine{why}, by how known machines differ over "
            f"{where} (docs/adapt.md); 'qsim calibrate adapt' makes the profile one of yours"
        )
