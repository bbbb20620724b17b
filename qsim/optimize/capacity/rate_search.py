"""The most that a fleet carries: a faster trace, or more users, until a goal breaks."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from qsim.checks import finite
from qsim.errors import ScenarioError
from qsim.optimize.search.drive import Step, of_fleets
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, busy_s, offered_load
from qsim.traces.trace import Trace

#: the search ends when the rate that fails is at most so much above the one that does not
PRECISION = 0.02
#: how far from the guess is looked, upwards and downwards
_FARTHEST = 256.0
#: how much faster, or slower, is tried until the limit lies between two rates
_STRIDE = 1.4
#: requests of the trace for each user, at least
EACH = 4
#: a fleet carries about so much of what its best efficiency would allow
_USUAL_SHARE = 0.6


@dataclass(frozen=True)
class Point:
    """One simulation: the speed of the trace or the users that send it, and what came of it."""

    speed: float
    outcome: FleetOutcome
    users: int | None = None


@dataclass(frozen=True)
class Carried:
    """What was found about one fleet."""

    #: the fastest (with the most users) that met every goal, below ``broken``; None if none did
    best: Point | None
    #: one at most :data:`PRECISION` faster that missed a goal; None if the fastest speed that is
    #: tried met all
    broken: Point | None
    #: every simulation, by speed or users
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

    About ``left`` simulations follow each, for the progress that is shown.
    """
    search = rate_search(first_speed(task), precision)
    return of_fleets(search, lambda speed: replace(task, trace=task.trace.speed(speed)), left)


def first_users(task: FleetTask, think_time_s: float) -> int:
    """Where to begin: the users that keep the fleet busy most of the time.

    By Little's law N = X (R + Z): the throughput of a fleet that is busy, and the time of an
    answer at its speed with a quarter of its largest measured batch.
    """
    trace, profile = task.trace, task.profile
    engine = task.options.resolve(profile)
    rate_rps = _USUAL_SHARE * task.replicas * len(trace) / busy_s(trace, profile, engine)
    decode = profile.latency.decode
    step_ms = decode.base_ms[max(0, len(decode.rows) - 3)]
    answer_s = float(trace.output_tokens.mean()) * step_ms / 1000
    return max(1, round(rate_rps * (answer_s + think_time_s)))


def users_search(
    guess: int, most: int, precision: float = PRECISION
) -> Generator[int, FleetOutcome, Carried]:
    """:func:`rate_search` of whole numbers of users, from 1 to ``most``.

    It ends when one user more, or at most ``precision`` more users, miss a goal.

    Raises
    ------
    ScenarioError
        If ``precision`` is not from 0.002 to 0.5.
    """
    finite("precision", precision, 0.002, 0.5)
    points: dict[int, FleetOutcome] = {}
    low, high = 0, most + 1  # none, and more than can be told
    users = min(max(1, guess), most)
    while True:
        points[users] = yield users
        if points[users].met:
            low = users
        else:
            high = users
        if low == most or high == 1:
            break
        if low and high <= most:
            if high - low <= max(1.0, low * precision * (1 + 1e-9)):
                break
            users = min(max(low + 1, round((low * high) ** 0.5)), high - 1)
        elif low:
            users = min(max(low + 1, round(low * _STRIDE)), most)
        else:
            users = max(1, min(high - 1, round(high / (_STRIDE if len(points) < 4 else 4.0))))
    return Carried(
        Point(1.0, points[low], low) if low else None,
        Point(1.0, points[high], high) if high <= most else None,
        tuple(Point(1.0, points[n], n) for n in sorted(points)),
    )


def users_of_fleet(
    task: FleetTask, think_time_s: float, precision: float = PRECISION
) -> Generator[Step, FleetOutcome, Carried]:
    """:func:`users_search` of one fleet, as :func:`fleet_search` does for rates."""
    most = max(1, len(task.trace) // EACH)
    search = users_search(first_users(task, think_time_s), most, precision)
    return of_fleets(
        search, lambda n: replace(task, concurrency=n, think_time_s=think_time_s), left=3
    )


def _rounded(speed: float) -> float:
    return float(f"{speed:.5g}")
