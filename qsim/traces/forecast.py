"""Shaping a trace for planning: its busiest hour, and growth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.checks import is_number
from qsim.errors import ScenarioError
from qsim.traces.trace import Trace

__all__ = ["Forecast", "busiest_hour", "forecast"]

HOUR_S = 3600.0


@dataclass(frozen=True)
class Forecast:
    """How the trace was shaped: the start of its busiest hour (None: all of it), and growth."""

    peak_hour_start_s: float | None = None
    growth: float = 1.0

    def text(self) -> str:
        """For people, "" if the trace is as it was given."""
        parts = []
        if self.peak_hour_start_s is not None:
            end_s = self.peak_hour_start_s + HOUR_S
            parts.append(
                f"the busiest hour of the trace by requests, {self.peak_hour_start_s:,.0f} s to "
                f"{end_s:,.0f} s"
            )
        if self.growth != 1:
            parts.append(f"arrivals {self.growth:.15g} times as fast as in the trace")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"peak_hour_start_s": self.peak_hour_start_s, "growth": self.growth}


def busiest_hour(trace: Trace) -> float:
    """Start of the hour with the most requests, s; the first of several.

    Only hours that begin with an arrival need a look: to begin later without losing one is to
    reach further.

    Raises
    ------
    ScenarioError
        If the trace is shorter than an hour.
    """
    if trace.duration_s < HOUR_S:
        raise ScenarioError(
            f"{trace.name} lasts {trace.duration_s:.6g} s, less than the hour that peak_hour "
            "(--peak-hour) cuts out; leave it out to plan for the whole trace, or give a longer one"
        )
    at = trace.arrival_s
    counts = np.searchsorted(at, at + HOUR_S, side="left") - np.arange(len(at))
    return float(at[int(np.argmax(counts))])


def forecast(trace: Trace, growth: float = 1.0, peak_hour: bool = False) -> tuple[Trace, Forecast]:
    """The traffic to plan for: first the busiest hour, if asked for, then the growth.

    Raises
    ------
    ScenarioError
        If ``growth`` is not a finite number > 0, or the trace is shorter than an hour.
    """
    if not is_number(growth) or not 0 < growth < math.inf:
        raise ScenarioError(
            f"growth is {growth!r}; must be a finite number > 0, such as 1.5 for half as much again"
        )
    start_s = busiest_hour(trace) if peak_hour else None
    if start_s is not None:
        trace = trace.slice(start_s, start_s + HOUR_S)
    return trace.speed(growth), Forecast(start_s, float(growth))
