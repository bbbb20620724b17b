"""``qsim plan --search``: profile, engine options and router searched, the fleet's size solved.

A trial of the study is one setting (profile, engine options, router). Its value is that of the
smallest fleet that meets the SLOs, found by bisection, so that the size is no decision of the
study. A setting is given up as soon as it cannot beat the best one known when its batch began: a
fleet of the largest size that is not worse in cost or GPUs misses an SLO, or one that misses takes
more energy already. That takes for granted what bisection does, too, that more replicas are never
worse; and that they do not take less energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from qsim.errors import ScenarioError
from qsim.optimize.plan.budget import Budget
from qsim.optimize.plan.candidate import Candidate
from qsim.optimize.plan.candidate_search import search_candidate
from qsim.optimize.plan.profile_choice import Choice
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, offered_load, run_fleet
from qsim.optimize.search.smallest_fleet import smallest_fleet
from qsim.optimize.search.space import (
    Choices,
    Decision,
    Space,
    check_measured,
    largest_measured,
    measured_values,
    parse_decision,
)
from qsim.optimize.search.study import (
    Judgement,
    Objective,
    Params,
    Record,
    StudySettings,
    run_study,
)
from qsim.profiles.measured_range import MeasuredRange
from qsim.sim.fleet.routers.router import check_router
from qsim.sim.scheduler.config import ENGINE, EngineOptions, refuse_queue_limits

#: what a bare name stands for
DEFAULT_DECISIONS: dict[str, tuple[Any, ...]] = {
    "max_num_seqs": (32, 64, 128, 256, 512, 1024),
    "max_num_batched_tokens": (1024, 2048, 4096, 8192),
    "router": ("least-requests", "round-robin", "least-tokens", "power-of-two", "prefix-affinity"),
}
_MOST_VIOLATION = 1e6


@dataclass(frozen=True)
class SearchReport:
    """What was searched, and every trial."""

    space: Space
    sampler: str
    records: tuple[Record, ...]
    simulations: int

    @property
    def feasible(self) -> int:
        """Trials with a fleet that meets the SLOs and is not worse than the best known then."""
        return sum(r.feasible for r in self.records)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "space": self.space.to_dict(),
            "sampler": self.sampler,
            "simulations": self.simulations,
            "trials": [
                {
                    "number": r.number,
                    "params": dict(r.params),
                    "value": r.values[0] if r.values and r.feasible else None,
                    "feasible": r.feasible,
                    "replicas": r.figures.get("replicas"),
                    "violations": dict(r.violations),
                    "reason": r.reason or None,
                }
                for r in self.records
            ],
        }


@dataclass(frozen=True)
class SettingTask:
    """One setting to solve.

    ``cap`` is the largest fleet worth a look, None for no such bound; ``bound_j`` the energy that
    a fleet that is worth it may take.
    """

    task: FleetTask
    blank: Candidate
    cap: int | None
    max_replicas: int
    bound_j: float | None = None


@dataclass(frozen=True)
class SettingOutcome:
    """The candidate, and how many simulations it took.

    An infeasible candidate's outcome is the fleet of ``cap`` replicas, if it was given up there.
    ``cap`` and ``bound_j`` are those of the task.
    """

    candidate: Candidate
    simulations: int
    cap: int | None = None
    bound_j: float | None = None


def solve_setting(job: SettingTask) -> SettingOutcome:
    """Find the smallest fleet of a setting, or that none within ``cap`` meets the SLOs."""
    if job.cap is None:
        return _unbounded(job)
    done: dict[int, FleetOutcome] = {}

    def met(n: int) -> bool:
        done[n] = run_fleet(replace(job.task, replicas=n))
        return done[n].met

    assert job.blank.engine is not None
    load = offered_load(job.task.trace, job.task.profile, job.blank.engine)
    guess = math.ceil(load) + job.task.survive
    if job.bound_j is None:
        best = _below(job.cap, guess, met)
    else:
        best = _upwards(job.cap, guess, met, done, job.bound_j)
    if best is None:
        last = done[max(done)]
        text = f"{last.binding.sentence()} with {last.replicas} replicas: more would not be best"
        behind_best = replace(job.blank, reason=text, outcome=last)
        return SettingOutcome(behind_best, len(done), job.cap, job.bound_j)
    evaluations = tuple(done[n] for n in sorted(done))
    found = replace(job.blank, feasible=True, outcome=done[best], evaluations=evaluations)
    return SettingOutcome(found, len(done), job.cap, job.bound_j)


def _below(cap: int, guess: int, met: Callable[[int], bool]) -> int | None:
    """The smallest fleet up to ``cap``, which is tried first: where it fails all is said."""
    if not met(cap):
        return None
    low, high = 0, cap
    for probe in (guess, guess - 1):  # where the load says it is, if it is right
        if low < probe < high:
            low, high = (low, probe) if met(probe) else (probe, high)
    while high - low > 1:
        probe = (low + high) // 2
        low, high = (low, probe) if met(probe) else (probe, high)
    return high


def _upwards(
    cap: int,
    guess: int,
    met: Callable[[int], bool],
    done: Mapping[int, FleetOutcome],
    bound_j: float,
) -> int | None:
    """The smallest fleet up to ``cap``; given up once one that fails takes more energy."""
    search = smallest_fleet(min(max(1, guess), cap), cap)
    try:
        n = next(search)
        while True:
            enough = met(n)
            if not enough and done[n].summary["energy_j"] > bound_j:
                return None
            n = search.send(enough)
    except StopIteration as stop:
        found: int | None = stop.value
        return found


def _unbounded(job: SettingTask) -> SettingOutcome:
    search = search_candidate(job.task, job.blank, job.max_replicas)
    count = 0
    try:
        task, _ = next(search)
        while True:
            outcome = run_fleet(task)
            count += 1
            task, _ = search.send(outcome)
    except StopIteration as stop:
        return SettingOutcome(stop.value, count)


def search_space(wanted: Sequence[str], choices: Sequence[Choice], options: EngineOptions) -> Space:
    """The decisions of ``--search``: ``NAME`` for the usual values, or as ``parse_decision``.

    Where ``options`` keep to the measured range, so do the usual values.

    Raises
    ------
    ScenarioError
        For an unknown name, a name that is given twice, values that do not parse, or that are
        beyond the measured range of every profile.
    """
    limits = largest_measured([c.profile for c in choices], options)
    known = (*ENGINE, "router")
    decisions: dict[str, Decision] = {"profile": Choices(tuple(c.profile.id for c in choices))}
    for text in wanted:
        name = str(text).strip().lstrip("-").replace("-", "_")
        if name in DEFAULT_DECISIONS:
            decision: Decision = Choices(measured_values(name, DEFAULT_DECISIONS[name], limits))
        else:
            name, decision = parse_decision(text)
            check_measured(name, decision, limits)
        refuse_queue_limits([name], "qsim plan")
        if name not in known:
            usual = ", ".join(DEFAULT_DECISIONS)
            raise ScenarioError(
                f"search is {text!r}; may be {usual} (with usual values), or one of "
                f"{', '.join(known)} with =values; profiles are chosen by --gpu, --method and "
                "--profile, and the fleet's size is found for each setting"
            )
        if name in decisions:
            raise ScenarioError(f"search has {name} twice; give it once, with all its values")
        if name == "router":
            for router in decision.values if isinstance(decision, Choices) else (str(decision),):
                check_router(str(router))
        decisions[name] = decision
    return Space(decisions)


@dataclass
class PlanProblem:
    """What the study searches; see the module's docstring.

    ``incumbent`` is what the best fleet so far is worth; ``found`` the candidates by their key.
    """

    space: Space
    task: FleetTask
    choices: Mapping[str, Choice]
    blanks: Mapping[str, Candidate]
    objective: str
    max_replicas: int
    budget: Budget
    incumbent: float = math.inf
    found: dict[Hashable, Candidate] = field(default_factory=dict)

    @property
    def objectives(self) -> Sequence[Objective]:
        """The plan's."""
        return (Objective(self.objective),)

    def options(self, params: Params) -> EngineOptions:
        """The plan's engine options with the setting's."""
        return self.task.options.updated(params)

    def key(self, params: Params) -> Hashable:
        """The settings that they come down to."""
        profile = self.choices[params["profile"]].profile
        try:
            engine: Hashable = self.options(params).resolve(profile)
        except ScenarioError:
            engine = tuple(sorted(params.items(), key=str))
        return (profile.id, engine, params.get("router", self.task.router))

    def submit(self, executor: TaskExecutor, params: Params) -> Future[SettingOutcome]:
        """Begin to solve a setting."""
        try:
            blank, task = self._setting(params)
        except ScenarioError as e:
            refused: Future[SettingOutcome] = Future()
            refused.set_exception(e)
            return refused
        return executor.submit(solve_setting, self._job(blank, task))

    def _setting(self, params: Params) -> tuple[Candidate, FleetTask]:
        profile = self.choices[params["profile"]].profile
        options = self.options(params).settled(profile)
        engine = options.resolve(profile)
        router = str(params.get("router", self.task.router))
        blank = replace(
            self.blanks[profile.id],
            engine=engine,
            options=options,
            router=router,
            caution=MeasuredRange.of(profile).caution(
                engine.max_num_seqs, engine.max_num_batched_tokens
            ),
        )
        return blank, replace(self.task, profile=profile, options=options, router=router)

    def _job(self, blank: Candidate, task: FleetTask) -> SettingTask:
        """What is worth a look: up to the largest fleet that is not worse than the incumbent."""
        price = blank.price.usd_per_hour if blank.price else None
        caps = [self.budget.largest(blank.tensor_parallel_size, price, blank.gpu)]
        bound_j: float | None = None
        if math.isfinite(self.incumbent):
            if self.objective in ("gpus", "cost"):
                one = float(blank.tensor_parallel_size)
                one *= 1.0 if self.objective == "gpus" else price or 0.0
            else:  # idle power alone, for as long as requests arrive: no fleet takes less
                one = task.profile.power.idle_w * task.trace.duration_s
                bound_j = self.incumbent
                if self.objective == "carbon" and blank.carbon is not None:
                    bound_j = self.incumbent / max(blank.carbon.gco2e(1.0), 1e-300)
                caps.append(math.floor(bound_j / one) if one > 0 else None)
                one = 0.0
            if one > 0:
                caps.append(math.floor(self.incumbent / one * (1 + 1e-9)))
        known = [c for c in caps if c is not None]
        cap = max(1, min(*known, self.max_replicas)) if known else None
        return SettingTask(task, blank, cap, self.max_replicas, bound_j)

    def judge(self, params: Params, outcome: SettingOutcome) -> Judgement:
        """The worth of the smallest fleet, or how far the largest one that is worth it missed."""
        c = outcome.candidate
        # what it takes to find the same candidate again after an interruption
        figures: dict[str, Any] = {
            "simulations": outcome.simulations,
            "cap": outcome.cap,
            "bound_j": outcome.bound_j,
        }
        if c.outcome is None:
            return Judgement(None, figures=figures, reason=c.reason)
        as_if = c if c.feasible else replace(c, feasible=True)
        worth = as_if.worth(self.objective)
        violations = {"slo": min(max(c.outcome.binding.ratio - 1, 0.0), _MOST_VIOLATION)}
        if not c.feasible:
            violations["slo"] = max(violations["slo"], 1e-9)
        if self.budget:
            over = self.budget.overruns(as_if, c.outcome)
            violations["budget"] = max((s.excess for s, _ in over), default=0.0)
        figures["replicas"] = c.outcome.replicas
        judgement = Judgement((worth,), violations, figures, "" if c.feasible else c.reason)
        if all(v <= 0 for v in violations.values()):
            self.found[self.key(params)] = c
        self.recall(params, judgement)
        return judgement

    def recall(self, params: Params, judgement: Judgement) -> None:
        """Take note of a trial that was judged, now or before an interruption."""
        if judgement.values and all(v <= 0 for v in judgement.violations.values()):
            self.incumbent = min(self.incumbent, judgement.values[0])

    def candidates(self, records: Sequence[Record]) -> list[Candidate]:
        """The best of each profile and all that are worth as much as the best of all.

        Those of an earlier run are simulated again.
        """
        good = [r for r in records if r.feasible and r.values]
        best: dict[str, float] = {}
        for r in good:
            worth = r.values[0] if r.values else math.inf
            best[r.params["profile"]] = min(worth, best.get(r.params["profile"], math.inf))
        chosen: dict[Hashable, Candidate] = {}
        for r in good:
            key = self.key(r.params)
            if key in chosen or not r.values or r.values[0] > best[r.params["profile"]]:
                continue
            if key not in self.found:
                blank, task = self._setting(r.params)
                cap = r.figures.get("cap", r.figures["replicas"])
                job = SettingTask(task, blank, cap, self.max_replicas, r.figures.get("bound_j"))
                self.found[key] = solve_setting(job).candidate
            chosen[key] = self.found[key]
        return list(chosen.values())


def run_search(
    problem: PlanProblem,
    settings: StudySettings,
    executor: TaskExecutor,
    known: Sequence[Candidate],
    progress: Progress | None = None,
) -> tuple[list[Candidate], SearchReport]:
    """Search, and return each profile's candidate: the best of ``known`` and of what was found.

    ``known`` has a candidate a profile, with the plan's own settings; the best of them is the
    first incumbent, so that the answer is never worse than without a search.
    """
    worths = [c.worth(problem.objective) for c in known if c.feasible]
    problem.incumbent = min(worths, default=math.inf)
    trace = problem.task.trace
    identity = {
        "trace": [trace.name, len(trace), trace.duration_s, int(trace.output_tokens.sum())],
        "slos": [str(s) for s in problem.task.slos],
        "goodput": str(problem.task.goodput),
        "allow_backlog": problem.task.allow_backlog,
        "options": problem.task.options.to_dict(),
        "router": problem.task.router,
        "seed_of_simulations": problem.task.seed,
        "max_replicas": problem.max_replicas,
        "budget": problem.budget.to_dict(),
        **({"survive": problem.task.survive} if problem.task.survive else {}),
        **({"text_prompts": True} if problem.task.text_prompts else {}),
    }
    records, _ = run_study(problem, settings, executor, identity=identity, progress=progress)
    best = {c.profile: c for c in known}
    for c in problem.candidates(records):
        best[c.profile] = min(best[c.profile], c, key=lambda b: b.rank(problem.objective))
    once = {problem.key(r.params): r.figures.get("simulations", 0) for r in records}
    report = SearchReport(problem.space, settings.sampler, tuple(records), sum(once.values()))
    return [best[c.profile] for c in known], report
