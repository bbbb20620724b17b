"""The highest rate that a fleet carries: a trace made faster or slower, until a goal breaks."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from qsim.checks import finite
from qsim.errors import ScenarioError
from qsim.optimize.search.drive import Step
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, offered_load
from qsim.traces.trace import Trace

__all__ = [
    "PRECISION",
    "Carried",
    "Point",
    "base_rate_rps",
    "first_speed",
    "fleet_search",
    "rate_search",
]

#: the search ends when the rate that fails is at most so much above the one that does not
PRECISION = 0.02
#: how far from the guess is looked, upwards and downwards
_FARTHEST = 256.0
#: how much faster, or slower, is tried until the limit lies between two rates
_STRIDE = 1.4
#: a fleet carries about so much of what its best efficiency would allow
_USUAL_SHARE = 0.6


@dataclass(frozen=True)
class Point:
    """One simulation: the speed of the trace, and what came of it."""

    speed: float
    outcome: FleetOutcome


@dataclass(frozen=True)
class Carried:
    """What was found about one fleet.

    Attributes
    ----------
    best : Point or None
        The fastest that met every goal, below ``broken``; None if none did.
    broken : Point or None
        One at most :data:`PRECISION` faster that missed a goal; None if the fastest speed that is
        tried met all.
    points : tuple of Point
        Every simulation, by speed.
    """

    best: Point | None
    broken: Point | None
    points: tuple[Point, ...]


def base_rate_rps(trace: Trace) -> float:
    """Requests a second of the trace as it is.

    Raises
    ------
    ScenarioError
        If all requests arrive within a second: they have no rate that could be raised.
    """
    if trace.duration_s < 1.0:
        raise ScenarioError(
            f"{trace.name}: all requests arrive within a second, so that there is no rate to raise "
            "or lower; give a trace of some minutes, or a preset"
        )
    return len(trace) / trace.duration_s


def first_speed(task: FleetTask) -> float:
    """Where to begin: the speed at which the fleet would be busy most of the time."""
    load = offered_load(task.trace, task.profile, task.options.resolve(task.profile))
    return _rounded(_USUAL_SHARE * task.replicas / load) if load > 0 else 1.0


def rate_search(
    guess: float, precision: float = PRECISION
) -> Generator[float, FleetOutcome, Carried]:
    """Yield speeds to simulate; what is sent back is the outcome at that speed.

    From ``guess`` the speed grows, or falls, until one meets every goal and a faster one does not;
    bisection then narrows the gap to ``precision``. Nothing is concluded but from what was sent.
    Speeds have at most five digits, so that they can be written out and simulated again.

    Raises
    ------
    ScenarioError
        If ``precision`` is not from 0.002 to 0.5.
    """
    finite("precision", precision, 0.002, 0.5)
    points: dict[float, FleetOutcome] = {}
    low: float | None = None
    high: float | None = None
    speed = _rounded(guess)
    while True:
        if speed not in points:
            points[speed] = yield speed
        if points[speed].met:
            low = speed
        else:
            high = speed
        if high is None:
            if speed >= guess * _FARTHEST:
                break
            speed = _rounded(speed * _STRIDE)
        elif low is None:
            if speed <= guess / _FARTHEST:
                break
            speed = _rounded(speed / (_STRIDE if len(points) < 4 else 4.0))
        elif high > low * (1 + precision) * (1 + 1e-9):
            speed = _rounded((low * high) ** 0.5)
        else:
            break
    done = tuple(Point(s, points[s]) for s in sorted(points))
    return Carried(
        None if low is None else Point(low, points[low]),
        None if high is None else Point(high, points[high]),
        done,
    )


def fleet_search(
    task: FleetTask, precision: float = PRECISION, left: int = 3
) -> Generator[Step, FleetOutcome, Carried]:
    """:func:`rate_search` of one fleet, as :func:`qsim.optimize.search.drive.drive` runs it.

    Parameters
    ----------
    left : int
        About how many simulations follow each, for the progress that is shown.
    """
    search = rate_search(first_speed(task), precision)
    try:
        speed = next(search)
        while True:
            speed = search.send((yield replace(task, trace=task.trace.speed(speed)), left))
    except StopIteration as stop:
        found: Carried = stop.value
        return found


def _rounded(speed: float) -> float:
    return float(f"{speed:.5g}")
