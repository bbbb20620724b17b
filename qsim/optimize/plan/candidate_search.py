"""The search for a profile's smallest fleet."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace

import numpy as np

from qsim.errors import TraceError
from qsim.optimize.plan.budget import Budget
from qsim.optimize.plan.candidate import Candidate, Shortfall
from qsim.optimize.search.drive import Step
from qsim.optimize.search.fleet_outcome import DownGoal, FleetOutcome, Goal, NoneLeft
from qsim.optimize.search.fleet_task import FleetTask, offered_load
from qsim.optimize.search.smallest_fleet import probes_left, smallest_fleet
from qsim.sim.results.backlog import BacklogOutcome
from qsim.sim.results.goodput import GoodputOutcome

Search = Generator[Step, FleetOutcome, Candidate]


def search_candidate(
    task: FleetTask, blank: Candidate, max_replicas: int, budget: Budget | None = None
) -> Search:
    """Find the smallest fleet of one profile; errors of the trace make it infeasible.

    A fleet beyond the budget makes it infeasible, too: a larger one takes more. Then the largest
    fleet within the budget's GPUs and money is simulated as well, to tell what it misses.
    """
    if blank.engine is None or blank.reason:
        return blank
    done: dict[int, FleetOutcome] = {}
    load = offered_load(task.trace, task.profile, blank.engine)
    start = max(1, math.ceil(load)) + task.survive
    probe = smallest_fleet(min(start, max_replicas), max_replicas)
    try:
        n = next(probe)
        while True:
            failed = max((k for k, o in done.items() if not o.met), default=0)
            met = min((k for k, o in done.items() if o.met), default=None)
            if n not in done:
                done[n] = yield replace(task, replicas=n), probes_left(failed, met)
            # two fleets missed: is there any point in searching on? (most need no more than two)
            doubtful = len(done) == 2 or (len(done) == 1 and n == max_replicas)
            if doubtful and met is None and not done[n].met:
                floor = yield from _floor(task)
                if floor and max_replicas not in done:
                    done[max_replicas] = yield replace(task, replicas=max_replicas), 2
                if floor and not done[max_replicas].met:
                    return _infeasible(blank, done, *floor)
            n = probe.send(done[n].met)
    except StopIteration as stop:
        best: int | None = stop.value
    except TraceError as e:
        return _infeasible(blank, done, str(e))
    if best is None:
        worst = done[max_replicas].binding
        return _infeasible(
            blank,
            done,
            f"{worst.sentence()} even with {max_replicas} replicas, the most to try",
            _missed(worst),
        )
    overruns = budget.overruns(blank, done[best]) if budget else []
    if budget and overruns:
        reason = "; ".join(text for _, text in overruns)
        price = blank.price.usd_per_hour if blank.price else None
        largest = budget.largest(blank.tensor_parallel_size, price, blank.gpu) or 0
        if 0 < largest < best:
            if largest not in done:
                done[largest] = yield replace(task, replicas=largest), 1
            gpus = largest * blank.tensor_parallel_size
            if not done[largest].met:  # it may be power alone that is beyond the budget
                reason += f"; with {gpus} {done[largest].binding.sentence()}"
        missed = _infeasible(blank, done, reason, overruns[0][0])
        return replace(missed, outcome=done[best])
    return replace(blank, feasible=True, outcome=done[best], evaluations=_by_size(done))


def _floor(task: FleetTask) -> Generator[Step, FleetOutcome, tuple[str, Shortfall] | None]:
    """Why no fleet at all can do it, or None if that cannot be said.

    Every request is simulated alone, one after the other: no queue, no batch, a cold GPU. An SLO
    missed here is missed by a fleet too (the caller also simulates the largest one, because a
    first token that is delivered late flatters the TPOT of a short answer a little).
    """
    trace = task.trace
    longest_ms = (
        float(trace.prompt_tokens.max())
        + float(trace.output_tokens.max()) * 3 * task.profile.latency.decode.base_ms[0]
    )
    gap_s = 60.0 + longest_ms / 1000
    apart_s = np.arange(len(trace), dtype=np.float64) * gap_s
    alone = replace(trace, arrival_s=apart_s, turns=None)
    outcome = yield replace(task, trace=alone, replicas=1, survive=0), 3
    slowest = outcome.quantiles["e2el_ms"]
    if outcome.met or (slowest and slowest[-1] / 1000 >= gap_s):  # they were not alone after all
        return None
    worst = outcome.binding
    reason = f"{worst.sentence()} even for requests served alone: more GPUs do not help"
    return reason, _missed(worst)


def _missed(goal: Goal) -> Shortfall:
    """A goal that is missed, in numbers."""
    if isinstance(goal, DownGoal):
        goal = goal.goal
    if isinstance(goal, NoneLeft):
        return Shortfall("survive", 0.0, 1.0, 1.0)
    if isinstance(goal, BacklogOutcome):
        arriving, finished = goal.load.arriving_rps or 0.0, goal.load.finished_rps or 0.0
        return Shortfall("backlog", arriving, finished, goal.ratio - 1)
    if isinstance(goal, GoodputOutcome):
        return Shortfall(str(goal.slo), goal.share, goal.slo.share, goal.ratio - 1)
    return Shortfall(str(goal.slo), goal.value_ms, goal.slo.limit_ms, goal.ratio - 1)


def _infeasible(
    blank: Candidate,
    done: dict[int, FleetOutcome],
    reason: str,
    shortfall: Shortfall | None = None,
) -> Candidate:
    largest = done[max(done)] if done else None
    evaluations = _by_size(done)
    return replace(
        blank, reason=reason, shortfall=shortfall, outcome=largest, evaluations=evaluations
    )


def _by_size(done: dict[int, FleetOutcome]) -> tuple[FleetOutcome, ...]:
    return tuple(done[n] for n in sorted(done))
