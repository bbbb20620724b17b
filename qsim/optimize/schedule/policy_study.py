"""A policy's parameters, searched with Optuna over simulations of the whole trace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from qsim.optimize.schedule.problem import PoolChoice, ScheduleProblem
from qsim.optimize.schedule.tasks import RunOutcome, RunTask, run_policy
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.space import Space
from qsim.optimize.search.study import Judgement, Objective, Record, StudySettings, run_study

__all__ = ["PolicyProblem", "Tuned", "tune_policy"]

#: builds what is to be simulated from the parameters
Builder = Callable[[Mapping[str, Any]], RunTask]


@dataclass(frozen=True)
class Tuned:
    """The best parameters, and the run under them."""

    params: dict[str, Any]
    task: RunTask
    run: RunOutcome
    trials: int


@dataclass
class PolicyProblem:
    """Make the objective small while every window meets the SLOs."""

    problem: ScheduleProblem
    choices: Sequence[PoolChoice]
    space: Space
    build: Builder
    runs: dict[Hashable, RunOutcome] = field(default_factory=dict)

    @property
    def objectives(self) -> Sequence[Objective]:
        """One: the schedule's."""
        return (Objective(self.problem.objective),)

    def key(self, params: dict[str, Any]) -> Hashable:
        """The parameters themselves."""
        return tuple(sorted(params.items()))

    def submit(self, executor: TaskExecutor, params: dict[str, Any]) -> Future[Any]:
        """Simulate the whole trace."""
        return executor.submit(run_policy, self.build(params))

    def judge(self, params: dict[str, Any], outcome: RunOutcome) -> Judgement:
        """The objective; the excess of the worst window is the violation."""
        self.runs[self.key(params)] = outcome
        ratio, window, slo = outcome.worst
        return Judgement(
            (self.problem.value(self.choices, outcome),),
            {"slo": max(ratio - 1.0, outcome.overload)},
            {
                "worst_window": window,
                "worst_slo": str(self.problem.slos[slo]),
                "missed_windows": len(outcome.missed),
                "energy_j": outcome.energy_j,
                "starts": outcome.starts,
            },
        )


def tune_policy(
    problem: ScheduleProblem,
    choices: Sequence[PoolChoice],
    name: str,
    space: Space,
    build: Builder,
    executor: TaskExecutor,
    settings: StudySettings,
    *,
    designed: Sequence[dict[str, Any]] = (),
    progress: Progress | None = None,
) -> Tuned:
    """Search a policy's parameters; the best feasible trial, else the one that misses least."""
    target = PolicyProblem(problem, choices, space, build)
    trace = problem.trace
    digest = hashlib.sha256(trace.arrival_s.tobytes() + trace.output_tokens.tobytes()).hexdigest()
    records, _ = run_study(
        target,
        replace(settings, name=f"{settings.name}-{name}"),
        executor,
        designed=designed,
        identity={
            "policy": name,
            "trace": digest[:16],
            "slos": [str(s) for s in problem.slos],
            "window_s": problem.window_s,
            "pools": [[c.name, c.pool.replicas] for c in choices],
        },
        progress=progress,
    )
    best = min(records, key=_rank)
    task = build(best.params)
    run = target.runs.get(target.key(best.params))
    if run is None:  # it was measured before an interruption
        run = executor.submit(run_policy, task).result()
    return Tuned(best.params, task, run, len(records))


def _rank(record: Record) -> tuple[float, float, int]:
    if record.values is None:
        return (float("inf"), 0.0, record.number)
    excess = max(0.0, record.violations.get("slo", 0.0))
    return (excess, record.values[0], record.number)
