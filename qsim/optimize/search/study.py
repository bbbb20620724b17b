"""Studies: Optuna asks in batches of a fixed size, any executor measures, results are told at once.

What a trial is depends on the seed, its number and what had been told when its batch began, and on
nothing else. So one process, many, and a Dask cluster give the same study, and one that was
interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qsim.bounds import MAX_RUNS
from qsim.checks import whole
from qsim.errors import InfeasibleError, InputError, QsimError, ScenarioError
from qsim.interrupts import uninterrupted
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executor import LaterExecutor, TaskExecutor
from qsim.optimize.search.space import Space
from qsim.optimize.search.storage import open_study, quiet_optuna, shown_storage, without_password

SAMPLERS = ("nsga2", "tpe", "random", "grid")

#: share of a batch that is proposed, where a study has proposals
PROPOSED = 0.4
#: share of a batch that is left to the sampler at least
SAMPLED = 0.2

#: NumPy's legacy generator, which samplers of Optuna use, takes no more
_MAX_SEED = (1 << 32) - 1

Params = dict[str, Any]


@dataclass(frozen=True)
class Objective:
    """A figure to make small, or large."""

    name: str
    maximize: bool = False


@dataclass(frozen=True)
class Judgement:
    """What a measurement is worth."""

    #: one an objective; None if the trial failed
    values: tuple[float, ...] | None
    #: by constraint; at most 0 where it is met. Comparable with each other: the excess as a share
    #: of the limit
    violations: Mapping[str, float] = field(default_factory=dict)
    #: more to keep with the trial; JSON-ready
    figures: Mapping[str, Any] = field(default_factory=dict)
    #: why it failed
    reason: str = ""


class Problem(Protocol):
    """What a study searches.

    All trials of a batch are submitted before the first of them is judged. A problem that learns
    from what was judged may have ``recall(params, judgement)``: it is called for every trial of an
    earlier run, before the first new one of another batch.
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
    """How to search, and where to keep the study."""

    #: of :data:`SAMPLERS`; ``grid`` measures every combination, whatever ``trials`` is
    sampler: str = "nsga2"
    #: number of trials of the whole study, those of earlier runs included
    trials: int = 100
    seed: int = 0
    #: trials that are asked for at a time: as many workers can be busy. Part of what decides the
    #: result, so it does not follow the number of workers
    batch: int = 10
    #: of NSGA-II
    population: int = 20
    #: as for :func:`qsim.optimize.search.storage.open_storage`
    storage: str | None = None
    #: of the study within its storage
    name: str = "qsim"
    #: go on with the study of that name; otherwise there must be none
    resume: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ScenarioError(
                f"sampler is {self.sampler!r}; must be one of {', '.join(SAMPLERS)}"
            )
        whole("trials", self.trials, 1, MAX_RUNS)
        whole("batch", self.batch, 1, 10_000)
        whole("population", self.population, 2, 100_000)
        whole("seed", self.seed, 0, _MAX_SEED)
        if self.resume and self.storage is None:
            raise ScenarioError("resume needs the study to go on with (--study FILE or URL)")


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a study; ``records`` are the trials finished, at least one."""

    def __init__(self, records: list[Record], study: Any) -> None:
        super().__init__()
        self.records, self.study = records, study


class StudyStoppedError(QsimError):
    """A study cannot go on: its storage or its workers fail; with what was finished until then."""

    def __init__(self, reason: str, records: list[Record], study: Any) -> None:
        super().__init__(reason)
        self.records, self.study = records, study


def run_study(
    problem: Problem,
    settings: StudySettings,
    executor: TaskExecutor,
    *,
    designed: Sequence[Params] = (),
    propose: Propose | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
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
        another process works on it, or the space cannot be enumerated for ``grid``.
    StudyInterrupted, StudyStoppedError
        If it ends early after at least one trial.
    """
    points = [dict(p) for p in designed]
    trials = settings.trials
    if settings.sampler == "grid":
        points = list(problem.space.grid())
        trials = len(points)
    with quiet_optuna():
        run = _Run(problem, settings, executor, points[:trials], dict(identity or {}))
        run.propose = propose if settings.sampler in ("nsga2", "tpe") else None
        try:
            while run.told < trials:
                begun = run.told
                for told in run.batch(min(begun + settings.batch - begun % settings.batch, trials)):
                    if progress is not None:
                        progress(told / trials, f"{told} of {trials} trials")
        except KeyboardInterrupt as e:
            with uninterrupted():
                finished = run.records(trials)
            if not finished:
                raise
            raise StudyInterrupted(finished, run.study) from e
        except Exception as e:
            reason = _of_the_machinery(e, settings)
            finished = run.records(trials) if reason else []
            if not finished:
                raise
            raise StudyStoppedError(reason, finished, run.study) from e
        return run.records(trials), run.study


def _of_the_machinery(error: Exception, settings: StudySettings) -> str:
    """What to say of an error of the storage or the workers; "" for one of the program."""
    if isinstance(error, QsimError):
        return str(error)
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
        "sqlalchemy",
        "redis",
    ):
        text = error.strerror if isinstance(error, OSError) else str(error)
        where = settings.storage or ""
        reason = without_password(" ".join(str(text).split()), where)
        return f"study {shown_storage(where)!r} can no longer be kept: {reason}"
    return ""


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
            self.study = open_study(problem, settings, identity)
        self.known: dict[Hashable, Judgement] = {}
        self.propose: Propose | None = None
        #: numbers of the trials that are finished; in the batch under way there may be gaps
        self.finished: set[int] = set()
        #: those of the batch under way: a problem is to know of them when the others have begun
        self._late: list[tuple[Params, Judgement]] = []
        stored = self.study.get_trials(deepcopy=False)
        ended = [t for t in stored if t.state.is_finished()]
        self.finished.update(t.number for t in ended)
        begin = self.told - self.told % settings.batch
        for trial in ended:
            judgement = _judgement(trial)
            self.known.setdefault(problem.key(trial.params), judgement)
            if trial.number < begin:
                self._recall(trial.params, judgement)
            else:
                self._late.append((trial.params, judgement))

    @property
    def told(self) -> int:
        """How many trials from the first on are finished, without a gap."""
        count = 0
        while count in self.finished:
            count += 1
        return count

    def _recall(self, params: Params, judgement: Judgement) -> None:
        recall = getattr(self.problem, "recall", None)
        if recall is not None:
            recall(params, judgement)

    def batch(self, end: int) -> Iterator[int]:
        """Ask for the trials up to number ``end``, measure them, and tell each once it is measured.

        What a trial is does not depend on the others of its batch, so the order of telling does
        not matter. Yields how many trials of the study are finished, after each.
        """
        fixed = self._fixed(end)
        trials = []
        for number in range(self.told, end):
            if number not in self.finished:
                with uninterrupted():
                    trials.append(self._ask(number, fixed.get(number)))
        later = LaterExecutor()
        begun: dict[Hashable, Future[Any]] = {}
        same: dict[Hashable, list[Any]] = {}
        for trial in trials:
            key = self.problem.key(trial.params)
            same.setdefault(key, []).append(trial)
            if key not in self.known and key not in begun:
                begun[key] = self.problem.submit(later, trial.params)
        for params, judgement in self._late:
            self._recall(params, judgement)
        self._late.clear()
        for key in [k for k in same if k in self.known]:
            yield from self._tell_all(same.pop(key), self.known[key])
        keys = {future: key for key, future in begun.items()}
        for future in later.finished(self.executor, list(keys)):
            key = keys[future]
            self.known[key] = self._judge(same[key][0].params, future)
            yield from self._tell_all(same.pop(key), self.known[key])

    def _tell_all(self, trials: Sequence[Any], judgement: Judgement) -> Iterator[int]:
        for trial in trials:
            with uninterrupted():
                self._tell(trial, judgement)
            yield len(self.finished)

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
        if trial.number != number:
            raise ScenarioError(
                f"study {self.settings.name!r} in "
                f"{shown_storage(self.settings.storage)!r} gets trials of another "
                "process, too; wait until that ends, and go on with --resume"
            )
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
            if not isinstance(e, InputError | InfeasibleError):
                raise  # a dead worker, a missing package: not of what was tried
            return Judgement(None, reason=str(e))
        if judgement.values is not None and any(map(math.isnan, judgement.values)):
            raise ValueError(f"an objective of {params} is nan; a problem must give a reason")
        return judgement

    def _tell(self, trial: Any, judgement: Judgement) -> None:
        import optuna

        try:
            self._store(trial, judgement)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            stored = self.study.get_trials(deepcopy=False)[trial.number]
            if not stored.state.is_finished():  # by another process, with the same result
                raise
        self.finished.add(trial.number)

    def _store(self, trial: Any, judgement: Judgement) -> None:
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

    def records(self, trials: int) -> list[Record]:
        """The finished ones of the first ``trials`` trials, as they are stored."""
        found = []
        for trial in self.study.get_trials(deepcopy=False)[:trials]:
            if trial.number not in self.finished:
                continue
            j = _judgement(trial)
            found.append(
                Record(
                    trial.number, dict(trial.params), j.values, j.violations, j.figures, j.reason
                )
            )
        return found


def _judgement(trial: Any) -> Judgement:
    values = None if trial.values is None else tuple(trial.values)
    attrs = trial.user_attrs
    return Judgement(
        values, dict(trial.constraints), attrs.get("figures", {}), attrs.get("reason", "")
    )
