"""Studies: Optuna asks in batches of a fixed size, any executor measures, and results are told in
order.

What a trial is depends on the seed, its number and what had been told when its batch began, and on
nothing else. So one process, many, and a Dask cluster give the same study, and one that was
interrupted goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qsim.checks import whole
from qsim.errors import QsimError, ScenarioError
from qsim.optimize.executor import TaskExecutor
from qsim.optimize.space import Space
from qsim.optimize.storage import open_storage, quiet_optuna, uninterrupted

__all__ = ["SAMPLERS", "Judgement", "Objective", "Problem", "Record", "StudySettings", "run_study"]

SAMPLERS = ("nsga2", "tpe", "random", "grid")

#: key of the study's user attribute that holds what it was begun with
_SETTINGS = "qsim"

#: share of a batch that is proposed, where a study has proposals
PROPOSED = 0.4
#: share of a batch that is left to the sampler at least
SAMPLED = 0.2

Params = dict[str, Any]


@dataclass(frozen=True)
class Objective:
    """A figure to make small, or large."""

    name: str
    maximize: bool = False


@dataclass(frozen=True)
class Judgement:
    """What a measurement is worth.

    Attributes
    ----------
    values : tuple of float, or None
        One an objective; None if the trial failed.
    violations : dict
        By constraint; at most 0 where it is met. Comparable with each other: the excess as a share
        of the limit.
    figures : dict
        More to keep with the trial; JSON-ready.
    reason : str
        Why it failed.
    """

    values: tuple[float, ...] | None
    violations: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


class Problem(Protocol):
    """What a study searches.

    One that learns from what was judged may have ``recall(params, judgement)``: it is called for
    every trial of an earlier run, in order, before the first new one.
    """

    @property
    def space(self) -> Space:
        """The decisions."""

    @property
    def objectives(self) -> Sequence[Objective]:
        """At least one."""

    def key(self, params: Params) -> Hashable:
        """Equal for parameters that come down to the same thing: it is measured once."""

    def submit(self, executor: TaskExecutor, params: Params) -> Future[Any]:
        """Begin to measure."""

    def judge(self, params: Params, outcome: Any) -> Judgement:
        """What came out of it; a QsimError raised here or by the measurement fails the trial."""


@dataclass(frozen=True)
class Record:
    """A finished trial."""

    number: int
    params: Params
    values: tuple[float, ...] | None
    violations: Mapping[str, float]
    figures: Mapping[str, Any]
    reason: str = ""

    @property
    def complete(self) -> bool:
        """Whether it was measured, be it feasible or not."""
        return self.values is not None

    @property
    def feasible(self) -> bool:
        """Whether it was measured and met every constraint."""
        return self.complete and all(v <= 0 for v in self.violations.values())


Propose = Callable[[Sequence[Record], int], Sequence[Params]]


@dataclass(frozen=True)
class StudySettings:
    """How to search, and where to keep the study.

    Attributes
    ----------
    sampler : {"nsga2", "tpe", "random", "grid"}
        ``grid`` measures every combination, whatever ``trials`` is.
    trials : int
        Number of trials of the whole study, those of earlier runs included.
    batch : int
        Trials that are asked for at a time: as many workers can be busy. Part of what decides the
        result, so it does not follow the number of workers.
    population : int
        Of NSGA-II.
    storage : str, optional
        As for :func:`qsim.optimize.storage.open_storage`.
    name : str
        Of the study within its storage.
    resume : bool
        Go on with the study of that name; otherwise there must be none.
    """

    sampler: str = "nsga2"
    trials: int = 100
    seed: int = 0
    batch: int = 10
    population: int = 20
    storage: str | None = None
    name: str = "qsim"
    resume: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ScenarioError(
                f"sampler is {self.sampler!r}; must be one of {', '.join(SAMPLERS)}"
            )
        for name, least in (("trials", 1), ("batch", 1), ("population", 2), ("seed", 0)):
            whole(name, getattr(self, name), least)
        if self.resume and self.storage is None:
            raise ScenarioError("resume needs the study to go on with (--study FILE or URL)")


def run_study(
    problem: Problem,
    settings: StudySettings,
    executor: TaskExecutor,
    *,
    designed: Sequence[Params] = (),
    propose: Propose | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[list[Record], Any]:
    """Search ``problem`` and return all trials, in the order of their numbers.

    Parameters
    ----------
    designed : sequence of dict
        Parameters of the first trials; each a point of the space. Ignored by ``grid``.
    propose : callable, optional
        Given the trials told before a batch and how many points are wanted, says parameters to
        try: the first of the batch, :data:`PROPOSED` of it, and as many more as the sampler drew
        what was known already in the batch before. What it returns may depend on its arguments
        alone. The sampler fills the rest. Not for ``random`` and ``grid``.
    identity : mapping, optional
        JSON-ready; what must be the same for a study to be resumed (traffic, profiles, ...).

    Returns
    -------
    records : list of Record
    study : optuna.Study
        The study itself, for importances and the like.

    Raises
    ------
    ScenarioError
        If the study exists already and is not to be resumed, or was begun with other settings, or
        the space cannot be enumerated for ``grid``.
    """
    points = [dict(p) for p in designed]
    trials = settings.trials
    if settings.sampler == "grid":
        points = list(problem.space.grid())
        trials = len(points)
    with quiet_optuna():
        run = _Run(problem, settings, executor, points[:trials], dict(identity or {}))
        run.propose = propose if settings.sampler in ("nsga2", "tpe") else None
        while run.told < trials:
            begun = run.told
            for told in run.batch(min(begun + settings.batch - begun % settings.batch, trials)):
                if progress is not None:
                    progress(told / trials, f"{told} of {trials} trials")
        return run.records(trials), run.study


class _Run:
    def __init__(
        self,
        problem: Problem,
        settings: StudySettings,
        executor: TaskExecutor,
        points: list[Params],
        identity: dict[str, Any],
    ) -> None:
        self.problem, self.settings, self.executor = problem, settings, executor
        self.points = points
        self.space = problem.space.distributions()
        with uninterrupted():
            self.study = _open_study(problem, settings, identity)
        self.known: dict[Hashable, Judgement] = {}
        self.propose: Propose | None = None
        self.told = 0
        for trial in self.study.get_trials(deepcopy=False):
            if not trial.state.is_finished():
                break
            judgement = _judgement(trial)
            self.known.setdefault(problem.key(trial.params), judgement)
            recall = getattr(problem, "recall", None)
            if recall is not None:
                recall(trial.params, judgement)
            self.told += 1

    def batch(self, end: int) -> Iterator[int]:
        """Ask for the trials up to number ``end``, measure them, and tell them in order.

        Yields how many trials of the study are told, after each.
        """
        fixed = self._fixed(end)
        trials = []
        for number in range(self.told, end):
            with uninterrupted():
                trials.append(self._ask(number, fixed.get(number)))
        begun: dict[Hashable, Future[Any]] = {}
        for trial in trials:
            key = self.problem.key(trial.params)
            if key not in self.known and key not in begun:
                begun[key] = self.problem.submit(self.executor, trial.params)
        for trial in trials:
            key = self.problem.key(trial.params)
            if key not in self.known:
                self.known[key] = self._judge(trial.params, begun[key])
            with uninterrupted():
                self._tell(trial, self.known[key])
            yield self.told

    def _fixed(self, end: int) -> dict[int, Params]:
        """Parameters by number of the trials before ``end`` that no sampler is asked for."""
        size = self.settings.batch
        begin = (end - 1) // size * size
        fixed = {n: self.points[n] for n in range(begin, min(end, len(self.points)))}
        first = max(begin, len(self.points))
        if self.propose is None or first >= end:
            return fixed
        told = self.records(begin)  # before the batch began, also if this is the rest of one
        # what the sampler drew twice in the last batch was for nothing: more proposals instead
        keys = [self.problem.key(r.params) for r in told]
        wasted = sum(keys[i] in keys[:i] for i in range(max(0, begin - size), begin))
        share = min(round(size * PROPOSED) + wasted, max(1, size - round(size * SAMPLED)))
        count = min(share, end - first)
        fixed |= {first + i: p for i, p in enumerate(self.propose(told, count)[:count])}
        return fixed

    def _ask(self, number: int, fixed: Params | None) -> Any:
        """Trial ``number``: one that was asked for before an interruption, or a new one."""
        import optuna

        self.study.sampler = self._sampler(number, 0)
        there = self.study.get_trials(deepcopy=False)
        waiting = len(there) > number and there[number].state == optuna.trial.TrialState.WAITING
        if len(there) > number and not waiting:
            trial = optuna.trial.Trial(self.study, there[number]._trial_id)
        else:
            if fixed is not None and not waiting:
                self.study.enqueue_trial(fixed)
            trial = self.study.ask()
        _ = trial.relative_params  # drawn now, also if the first parameters are there already
        for i, (name, distribution) in enumerate(self.space.items(), 1):
            self.study.sampler = self._sampler(number, i)
            trial._suggest(name, distribution)
        return trial

    def _sampler(self, number: int, draw: int) -> Any:
        """A sampler without a past: what it draws depends on the seed, the trial and the parameter.

        A trial that was interrupted between two parameters thus gets the same ones.
        """
        from optuna import samplers

        words = np.random.SeedSequence([self.settings.seed, number, draw]).generate_state(1)
        seed = int(words[0])
        if self.settings.sampler == "nsga2":
            return samplers.NSGAIISampler(population_size=self.settings.population, seed=seed)
        if self.settings.sampler == "tpe":
            return samplers.TPESampler(seed=seed)
        return samplers.RandomSampler(seed=seed)

    def _judge(self, params: Params, future: Future[Any]) -> Judgement:
        try:
            judgement = self.problem.judge(params, future.result())
        except QsimError as e:
            if not _of_the_trial(e):
                raise
            return Judgement(None, reason=str(e))
        if judgement.values is not None and any(map(math.isnan, judgement.values)):
            raise ValueError(f"an objective of {params} is nan; a problem must give a reason")
        return judgement

    def _tell(self, trial: Any, judgement: Judgement) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr("figures", dict(judgement.figures))
        if judgement.reason:
            trial.set_user_attr("reason", judgement.reason)
        told = trial.constraints
        for name, violation in judgement.violations.items():
            if name not in told:
                trial.set_constraint(name, violation)
        if judgement.values is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, list(judgement.values))
        self.told += 1

    def records(self, trials: int) -> list[Record]:
        """The first ``trials`` trials, as they are stored."""
        found = []
        for trial in self.study.get_trials(deepcopy=False)[:trials]:
            j = _judgement(trial)
            found.append(
                Record(
                    trial.number, dict(trial.params), j.values, j.violations, j.figures, j.reason
                )
            )
        return found


def _of_the_trial(error: QsimError) -> bool:
    """Whether an error belongs to what was tried: not a dead worker, not a missing package."""
    from qsim.errors import InfeasibleError, InputError

    return isinstance(error, InputError | InfeasibleError)


def _judgement(trial: Any) -> Judgement:
    values = None if trial.values is None else tuple(trial.values)
    attrs = trial.user_attrs
    return Judgement(
        values, dict(trial.constraints), attrs.get("figures", {}), attrs.get("reason", "")
    )


def _open_study(problem: Problem, settings: StudySettings, identity: dict[str, Any]) -> Any:
    import optuna

    storage = open_storage(settings.storage)
    directions: Any = ["maximize" if o.maximize else "minimize" for o in problem.objectives]
    wanted = {
        "sampler": settings.sampler,
        "seed": settings.seed,
        "batch": settings.batch,
        "population": settings.population if settings.sampler == "nsga2" else None,
        "objectives": [
            f"{d} {o.name}" for d, o in zip(directions, problem.objectives, strict=True)
        ],
        "space": problem.space.to_dict(),
        **identity,
    }
    wanted = json.loads(json.dumps(wanted))  # as it will come back
    exists = settings.name in optuna.get_all_study_names(storage)
    where = f"study {settings.name!r} in {settings.storage!r}"
    if exists and not settings.resume:
        raise ScenarioError(
            f"{where} exists already; go on with it (--resume), give it another name "
            "(--study-name) or another place (--study)"
        )
    study = optuna.create_study(
        storage=storage, study_name=settings.name, directions=directions, load_if_exists=True
    )
    begun = study.user_attrs.get(_SETTINGS)
    if begun is None:
        if len(study.get_trials(deepcopy=False)):
            raise ScenarioError(f"{where} was not made by qsim; give another name (--study-name)")
        with warnings.catch_warnings():  # experimental; only a dashboard reads it
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([o.name for o in problem.objectives])
        study.set_user_attr(_SETTINGS, wanted)
    elif begun != wanted:
        differ = [k for k in {**begun, **wanted} if begun.get(k) != wanted.get(k)]
        k = differ[0]
        raise ScenarioError(
            f"{where} was begun with another {', '.join(differ)}: {k} was {begun.get(k)!r} and is "
            f"now {wanted.get(k)!r}; resume it as it was begun, or begin another (--study-name)"
        )
    return study
