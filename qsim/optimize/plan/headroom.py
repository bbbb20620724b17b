"""How much more traffic a fleet carries: the same trace sped up until an SLO breaks."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from qsim.optimize.search.drive import Progress, Step, of_fleets
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, offered_load, run_fleet
from qsim.sim.results.slo import Slo, SloOutcome

#: the search ends when the speed that fails is at most so much above the one that does not
PRECISION = 0.02
#: speeds above it are not tried: the trace is then next to a single burst
MOST = 64.0

#: what a simulation may come to, for a look ahead
_MET = FleetOutcome(1, {}, (), None, {})
_MISSED = replace(_MET, slos=(SloOutcome(Slo("ttft", "mean", 1.0), 2.0),))


@dataclass(frozen=True)
class Headroom:
    """What the fleet was found to carry."""

    #: the fastest speed simulated below ``broken_speed``, 1 or more; it met every SLO
    speed: float
    #: a speed at most 2% above it that missed one; None if :data:`MOST` met all
    broken_speed: float | None
    #: the simulation at ``broken_speed``
    broken: FleetOutcome | None
    #: how many were run; 0 where all requests arrive at one time, so that none can come faster
    simulations: int

    def text(self) -> str:
        """One sentence for people."""
        if not self.simulations:
            return (
                "head-room: not to be told, as all requests arrive at the same time: a faster "
                "trace is the same trace"
            )
        if self.broken is None:
            return f"head-room: still meets every SLO with arrivals {self.speed:.3g} times as fast"
        more = (self.speed - 1) * 100
        within = f"{more:.1f}% more traffic" if more > 0 else "less than 2% more traffic"
        return (
            f"head-room: carries {within} (the same trace, faster); at "
            f"{((self.broken_speed or 1) - 1) * 100:+.1f}% {self.broken.binding.sentence()}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        missed = [] if self.broken is None else [g for g in self.broken.goals if not g.met]
        return {
            "speed": self.speed,
            "broken_speed": self.broken_speed,
            "breaks_first": str(self.broken.binding.slo) if self.broken else None,
            "missed": [s.to_dict() for s in missed],
            "simulations": self.simulations,
        }


#: of requests that all arrive at one time
_UNTOLD = Headroom(1.0, None, None, 0)


def headroom_search(guess: float) -> Generator[float, FleetOutcome, Headroom]:
    """Yield speeds to simulate; what is sent back is the outcome at that speed.

    Speed 1 is known to meet the SLOs. From ``guess`` up the speed doubles until one is missed;
    bisection then narrows the gap to 2%. As with the size of a fleet, nothing is concluded but
    from what was sent: ``speed`` met the SLOs and ``broken_speed`` did not.

    An SLO is expected to break at ``guess``; a poor one costs simulations, not correctness.
    """
    low, high, count = 1.0, min(max(guess, 1.0 + PRECISION), MOST), 0
    while True:
        outcome = yield high
        count += 1
        if not outcome.met:
            break
        if high >= MOST:
            return Headroom(high, None, None, count)
        low, high = high, min(2 * high, MOST)
    while high > low * (1 + PRECISION) * (1 + 1e-9):
        middle = (low * high) ** 0.5
        tried = yield middle
        count += 1
        if tried.met:
            low = middle
        else:
            high, outcome = middle, tried
    return Headroom(low, high, outcome, count)


def headroom_steps(task: FleetTask) -> Generator[Step, FleetOutcome, Headroom]:
    """What :func:`find_headroom` finds, one simulation after the other, for many fleets at a time.

    See :func:`qsim.optimize.search.drive.drive`.
    """
    if _one_burst(task):
        return _UNTOLD
    search = headroom_search(_guess(task))
    return (yield from of_fleets(search, lambda speed: _faster(task, speed), 2))


def find_headroom(
    executor: TaskExecutor, task: FleetTask, progress: Progress | None = None
) -> Headroom:
    """Speed up the trace until the fleet of ``task`` misses an SLO.

    An executor that runs several tasks at a time also gets the speed that will probably follow.
    What is found does not depend on it.
    """
    if _one_burst(task):
        return _UNTOLD
    guess = _guess(task)
    search = headroom_search(guess)
    speed = next(search)
    outcomes: list[FleetOutcome] = []
    running: dict[float, Future[FleetOutcome]] = {}

    def begin(speed: float) -> None:
        if speed not in running:
            running[speed] = executor.submit(run_fleet, _faster(task, speed))

    while True:
        begin(speed)
        after = _next_speed(guess, outcomes) if executor.width > 1 else None
        if after is not None:
            begin(after)
        outcomes.append(running.pop(speed).result())
        done = len(outcomes)
        try:
            speed = search.send(outcomes[-1])
        except StopIteration as stop:
            for unused in running.values():
                unused.cancel()
            if progress is not None:
                progress(1.0, "head-room")
            found: Headroom = stop.value
            return found
        if progress is not None:
            progress(1 - 1 / (done + 1), "head-room")


def _one_burst(task: FleetTask) -> bool:
    return task.trace.duration_s == 0 and task.trace.turns is None


def _guess(task: FleetTask) -> float:
    """Where an SLO should break.

    One replica less missed one, so that about n/(n - 1) times the traffic should; a single
    replica has no such bound, and begins with its load at best efficiency.
    """
    n = task.servers - task.survive
    if n > 1:
        return n / (n - 1)
    pool = task.pools[0]
    load = offered_load(task.trace, pool.profile, pool.options.resolve(pool.profile))
    return 1 / load if load > 0 else 2.0


def _faster(task: FleetTask, speed: float) -> FleetTask:
    return replace(task, trace=task.trace.speed(speed))


def _next_speed(guess: float, outcomes: list[FleetOutcome]) -> float | None:
    """The speed after the one that is simulated now, if that does what is to be expected.

    The first speed is expected to miss an SLO, as that is what it was chosen for; then met and
    missed are equally likely, and met is assumed.
    """
    search = headroom_search(guess)
    next(search)
    expected = _MET if any(not o.met for o in outcomes) else _MISSED
    speed = None
    try:
        for outcome in (*outcomes, expected):
            speed = search.send(outcome)
    except StopIteration:
        return None
    return speed
