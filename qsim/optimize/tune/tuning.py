"""Multi-objective tuning: the fleets and engine settings that no other one beats in everything."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Unpack

import numpy as np

from qsim.errors import InputError, QsimError, ScenarioError
from qsim.optimize.economics.prices import price_of, prices_of
from qsim.optimize.plan.profile_choice import profiles_among
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.expressions import Pick, parse_pick
from qsim.optimize.search.fleet_task import FleetTask, TaskPool, describe, weights_of
from qsim.optimize.search.goals import carbon_of, check_goals, quality_goal
from qsim.optimize.search.measures import (
    ALIASES,
    Measure,
    Worth,
    find_measure,
    measure_fleet,
    statistics,
)
from qsim.optimize.search.pareto import front_mask
from qsim.optimize.search.space import Space
from qsim.optimize.search.storage import held_study
from qsim.optimize.search.study import (
    Judgement,
    Objective,
    Params,
    Record,
    StudyInterrupted,
    StudySettings,
    StudyStoppedError,
    run_study,
)
from qsim.optimize.tune.arguments import (
    gpu_figures,
    not_owned,
    parse_fix,
    parse_limits,
    parse_objectives,
    parse_search,
)
from qsim.optimize.tune.result import Limit, TuneResult, check_pick
from qsim.optimize.tune.space import TuneSpace, tune_space
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.scenario.arguments import TuneArguments
from qsim.scenario.names import scenario_of
from qsim.scenario.resolve import load_traffic, searched_engine
from qsim.sim.fleet.admission import text_notes
from qsim.sim.results.slo import too_few
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.scheduler.server_memory import most_model_len
from qsim.traces.reshape import forecast
from qsim.traces.trace import Trace

#: latencies that every trial tells, beside those that are asked for
_USUAL = ("p99_ttft_ms", "p99_tpot_ms", "p99_e2el_ms")


class TuneInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a tuning; ``result`` has the trials that were finished."""

    def __init__(self, result: TuneResult) -> None:
        super().__init__()
        self.result = result


class TuneStoppedError(QsimError):
    """A tuning cannot go on; ``result`` has the trials that were finished."""

    def __init__(self, reason: str, result: TuneResult) -> None:
        super().__init__(reason)
        self.result = result


@dataclass(frozen=True)
class _Tuning:
    """The problem that a study searches."""

    spaces: TuneSpace
    base: FleetTask
    measures: tuple[Measure, ...]
    limits: tuple[Limit, ...]
    worth: Worth
    #: keys by parameters: each is asked for once a batch
    keys: dict[tuple[Any, ...], Hashable] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        return self.spaces.space

    @property
    def objectives(self) -> Sequence[Objective]:
        return tuple(Objective(m.name, m.maximize) for m in self.measures)

    @property
    def latencies(self) -> tuple[str, ...]:
        names = [m.name for m in self.measures] + [m.measure.name for m in self.limits]
        return statistics([*names, *_USUAL])

    def task(self, params: Params) -> FleetTask:
        task = replace(
            self.base,
            profile=self.spaces.choices[params["profile"]].profile,
            replicas=params["replicas"],
            router=params.get("router", self.base.router),
            options=self.base.options.updated(params),
        )
        other, more = params.get("beside"), params.get("beside_replicas", 0)
        if other is None:
            return task
        if other == params["profile"]:
            return replace(task, replicas=task.replicas + more)
        # the same fleet whichever pool is said first
        pools = [
            TaskPool(self.spaces.choices[id_].profile, n, task.options)
            for id_, n in sorted([(params["profile"], task.replicas), (other, more)])
        ]
        try:
            servers = [(p.profile, p.options.resolve(p.profile)) for p in pools]
        except ScenarioError:  # its trial says why
            return task.of_pools(pools)
        weights = weights_of(task.router, task.trace, servers)
        return task.of_pools([replace(p, weight=w) for p, w in zip(pools, weights, strict=True)])

    def key(self, params: Params) -> Hashable:
        """What is simulated: options that vLLM resolves to the same settings are the same."""
        given = tuple(params.items())
        if given not in self.keys:
            task = self.task(params)
            keys: list[Hashable] = []
            for pool in task.pools:
                try:
                    engine: Hashable = pool.options.resolve(pool.profile)
                except ScenarioError:
                    engine = pool.options
                router = task.router if task.servers > 1 else ""
                keys.append((pool.profile.id, pool.replicas, router, engine))
            self.keys[given] = tuple(keys) if task.beside else keys[0]
        return self.keys[given]

    def submit(self, executor: TaskExecutor, params: Params) -> Future[Any]:
        return executor.submit(measure_fleet, self.task(params), self.latencies)

    def judge(self, params: Params, outcome: Mapping[str, float | None]) -> Judgement:
        task = self.task(params)
        figures = self.worth.complete(outcome, task.pools)
        figures["configuration"] = hashlib.sha256(repr(self.key(params)).encode()).hexdigest()[:16]  # type: ignore[assignment]
        if task.beside:
            for pool in task.pools:
                name = "weight" if pool.profile.id == params["profile"] else "beside_weight"
                figures[name] = pool.weight
        values = [figures.get(m.name) for m in self.measures]
        for measure, value in zip(self.measures, values, strict=True):
            if value is None:
                raise ScenarioError(
                    f"{measure.name} is not defined for this run (a statistic over nothing, or a "
                    "figure that is not known)"
                )
        return Judgement(
            tuple(float(v) for v in values if v is not None),
            {str(m): m.violation(figures.get(m.measure.name)) for m in self.limits},
            figures,
        )

    def propose(self, records: Sequence[Record], count: int) -> list[Params]:
        """Neighbours of the front that were not tried: first of its ends, then of the others."""
        tried = {self.key(r.params) for r in records}
        feasible = [r for r in records if r.feasible]
        if feasible:
            signs = np.array([-1.0 if m.maximize else 1.0 for m in self.measures])
            values = np.array([r.values for r in feasible]) * signs
            on_front = np.flatnonzero(front_mask(values))
            front = values[on_front]
            ends = [on_front[np.lexsort((front.sum(axis=1), front[:, j]))[0]]
                    for j in range(front.shape[1])]  # fmt: skip
            first = [feasible[i] for i in dict.fromkeys(ends)]
            others = sorted((feasible[i] for i in on_front), key=lambda r: -r.number)
        else:  # on the way to what is feasible
            first = [r for r in records if r.complete]
            first.sort(key=lambda r: sum(max(0.0, v) for v in r.violations.values()))
            first, others = first[:3], first[3:6]
        found: list[Params] = []
        lines = [self.spaces.neighbours(r.params, far=True) for r in first]
        more = [self.spaces.neighbours(r.params) for r in others]
        for queues in (lines, more):
            for params in _in_turn(queues):
                if len(found) >= count:
                    return found
                key = self.key(params)
                if key not in tried:
                    tried.add(key)
                    found.append(params)
        return found


def _in_turn(queues: Sequence[Sequence[Params]]) -> Iterator[Params]:
    """The first of each queue, then the second of each, and so on."""
    for step in range(max(map(len, queues), default=0)):
        yield from (queue[step] for queue in queues if step < len(queue))


def tune(
    trace: Scenario | Trace,
    model: str | None = None,
    *,
    traffic: Trace | None = None,
    study: str | None = None,
    study_name: str = "qsim-tune",
    resume: bool = False,
    pick: Pick | str | None = None,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    **asked: Unpack[TuneArguments],
) -> TuneResult:
    """Search the fleets and engine settings that no other one beats in every objective.

    Every figure is simulated. The first trials are designed (each profile as it was measured, in
    the smallest, a middle and the largest fleet, with the largest and the smallest
    ``max_num_seqs``); of the others four in ten are untried neighbours of the front, and the
    sampler chooses the rest.

    Parameters
    ----------
    trace : Scenario or Trace
        All of what is asked; or the traffic to serve, and ``model`` and ``asked`` say the rest.
    traffic : Trace, optional
        That of the scenario where it was read already, before growth and peak hour.
    study, study_name, resume
        Where the study is kept: see :class:`qsim.optimize.search.study.StudySettings`, whose
        ``storage`` is ``study``.
    pick : Pick or str, optional
        What :meth:`TuneResult.pick` will be asked for, in the place of the scenario's; refused
        before the study if it cannot be.
    jobs, dask, progress
        As for :func:`qsim.plan`; the answer does not depend on them.
    **asked
        Fields of the scenario by name; see :class:`qsim.scenario.arguments.TuneArguments`.
        ``objectives`` are figures of :mod:`qsim.optimize.search.measures`, such as
        ``p99_ttft_ms``, ``joules_per_output_token``, ``quality``, or ``latency``, ``energy``,
        ``cost``, ``throughput``, ``carbon``; ``slos`` and ``constraints`` (``"gpus<=8"``) must be
        met; ``search`` are decisions, ``{"max_num_seqs": "32:1024:log"}``
        (:func:`qsim.optimize.search.space.parse_decision`), and ``fix`` decisions with the one
        value they are to have, or None to leave them to the profile.

    Raises
    ------
    ScenarioError
        If a value is wrong.
    ProfileError
        If there is no profile to choose from.
    TuneInterrupted, TuneStoppedError
        If it ends early after at least one trial: by Ctrl-C, or because its workers or the place
        where it is kept fail.
    """
    scenario = scenario_of("tune", trace, model, asked)
    settings = study_of(scenario, study, study_name, resume)
    if traffic is None:
        traffic = load_traffic(scenario.traffic, scenario.seed, grown=False)
    section, accounts, seed = scenario.tune, scenario.accounts, scenario.seed
    router, too_long = scenario.fleet.router, scenario.traffic.too_long
    texts = scenario.traffic.text_prompts
    if scenario.goodput:
        raise ScenarioError(
            "goodput is given; qsim tune does not judge it: leave it out (--set goodput=), or "
            "constrain attainment"
        )
    limits = scenario.limits()
    chosen_measures = parse_objectives(section.objectives)
    owned = [f"gpus_{gpu}<={count}" for gpu, count in section.stock.items()]
    all_limits = parse_limits(limits, [*section.constraints, *owned])
    if not scenario.allow_backlog:
        all_limits = (*all_limits, Limit(find_measure("overload"), "<=", 0.0))
    needed = {m.needs for m in (*chosen_measures, *(m.measure for m in all_limits))}
    goal = quality_goal(accounts.tasks, section.min_quality)
    carbon = carbon_of(accounts.region, accounts.pue, "carbon" if "region" in needed else "")
    if not limits and "slo" in needed:
        raise ScenarioError("goodput and attainment need SLOs (--slo) to count against")
    check_goals(traffic, limits)
    options = searched_engine(scenario, section, "tune")
    trace, shaped = forecast(traffic, scenario.traffic.growth, scenario.traffic.peak_hour)
    choices = profiles_among(scenario, section, options, section.stock)
    types = gpu_figures(
        [c.profile.identity.gpu for c in choices],
        [*chosen_measures, *(m.measure for m in all_limits)],
    )
    quality = {c.profile.id: goal.of(c.profile) for c in choices}
    excluded, left = {}, []
    for choice in choices:
        reason = (
            goal.objection(quality[choice.profile.id])
            or _unfit(choice.profile, options, trace, too_long)
            or not_owned(choice.profile, section.stock)
        )
        if reason:
            excluded[choice.profile.id] = reason
        else:
            left.append(choice)
    spaces = tune_space(
        trace, left, excluded, parse_search(section.search), parse_fix(section.fix), options,
        section.max_replicas,
    )  # fmt: skip
    own = prices_of(accounts)
    price = {
        id_: price_of(c.profile.identity.gpu, own, accounts.provider)
        for id_, c in spaces.choices.items()
    }
    if "price" in needed:
        for id_, known in price.items():
            if known is None:
                gpu = spaces.choices[id_].profile.identity.gpu
                raise ScenarioError(
                    f"no price is known for gpu {gpu!r}; give one (--price {gpu}=USD per hour)"
                )
    first = next(iter(spaces.choices.values())).profile
    base = FleetTask(
        trace, first, 1, limits, options, router, seed, too_long, None, scenario.allow_backlog,
        text_prompts=texts,
    )  # fmt: skip
    worth = Worth(price, quality, carbon, types)
    problem = _Tuning(spaces, base, chosen_measures, all_limits, worth)
    pick = section.pick if pick is None else pick
    if pick is not None:
        _check_pick(parse_pick(pick) if isinstance(pick, str) else pick, problem)
    identity = {
        "trace": _fingerprint(trace),
        "profiles": {
            id_: hashlib.sha256(repr(asdict(c.profile)).encode()).hexdigest()[:16]
            for id_, c in sorted(spaces.choices.items())
        },
        "constraints": [str(m) for m in all_limits],
        "options": options.to_dict(),
        **({"beyond_measured": True} if section.beyond_measured else {}),
        "router": router,
        "too_long": too_long,
        **({"text_prompts": True} if texts else {}),
        "worth": repr((sorted(price.items()), carbon, goal)),
    }
    with (
        held_study(settings.storage),
        open_executor(jobs, at_most=settings.batch, dask=dask) as executor,
    ):
        executor.share(trace)
        for choice in spaces.choices.values():
            executor.share(choice.profile)
        unfinished = ""
        end: StudyInterrupted | StudyStoppedError | None = None
        try:
            records, found = run_study(
                problem,
                settings,
                executor,
                designed=spaces.designed(),
                propose=problem.propose,
                identity=identity,
                progress=progress,
            )
        except (StudyInterrupted, StudyStoppedError) as e:
            end, records, found = e, e.records, e.study
            wanted = spaces.space.size() if settings.sampler == "grid" else settings.trials
            unfinished = f"{len(records)} of {wanted} trials"
            if isinstance(e, StudyStoppedError):
                unfinished += f", {e}"
    untold = text_notes(c.profile for c in spaces.choices.values()) if texts else []
    result = TuneResult(
        chosen_measures,
        all_limits,
        tuple(records),
        dict(spaces.excluded),
        {**describe(trace), "forecast": shaped.to_dict()},
        {
            "sampler": settings.sampler,
            "trials": len(records),
            "seed": settings.seed,
            "batch": settings.batch,
            "population": settings.population if settings.sampler == "nsga2" else None,
            "space": spaces.space.to_dict(),
            "router": router,
            "too_long": too_long,
            **({"text_prompts": True} if texts else {}),
            **options.to_dict(),
        },
        dict(spaces.choices),
        options,
        router,
        goal,
        price,
        carbon,
        (*too_few(limits, len(trace)), *untold),
        found,
        unfinished,
    )
    if isinstance(end, StudyInterrupted):
        raise TuneInterrupted(result) from end
    if end is not None:
        raise TuneStoppedError(str(end), result) from end
    return result


def study_of(
    scenario: Scenario, study: str | None, study_name: str = "qsim-tune", resume: bool = False
) -> StudySettings:
    """How it is searched, and where the study is kept."""
    section = scenario.tune
    return StudySettings(
        section.sampler, section.trials, scenario.seed, section.batch, section.population, study,
        study_name, resume,
    )  # fmt: skip


def _unfit(profile: Profile, options: EngineOptions, trace: Trace, too_long: str) -> str:
    """Why a profile cannot serve the trace whatever the fleet; "" if it can."""
    try:
        engine = options.resolve(profile)
    except InputError as e:
        return str(e)
    longest = int(trace.prompt_tokens.max())
    if too_long == "error" and longest >= engine.max_model_len:
        most = most_model_len(profile, engine)
        longer = f"raise --max-model-len, to at most {most}, or " if longest < most else ""
        return (
            f"the longest prompt has {longest} tokens, max_model_len is {engine.max_model_len}: "
            f"{longer}give --too-long reject"
        )
    return ""


def _check_pick(pick: Pick, problem: _Tuning) -> None:
    """Refuse a pick by what no trial will tell: the figures of one request say what there are."""
    trace = problem.base.trace
    shortest = trace.take(np.array([int(np.argmin(trace.prompt_tokens))]))
    task = replace(problem.base, trace=shortest)
    try:
        outcome = measure_fleet(task, problem.latencies)
    except InputError:  # each trial will say why
        return
    known: dict[str, Any] = {
        **problem.worth.complete(outcome, task.pools),
        **{name: decision.at(0.0) for name, decision in problem.space.decisions.items()},
        **{"method": task.profile.identity.method, "gpu": task.profile.identity.gpu},
    }
    check_pick(pick, known | {a: known[m] for a, m in ALIASES.items() if m in known})


def _fingerprint(trace: Trace) -> str:
    digest = hashlib.sha256()
    for column in (trace.arrival_s, trace.prompt_tokens, trace.output_tokens):
        digest.update(np.ascontiguousarray(column).tobytes())
    if trace.hash_ids is not None:
        digest.update(trace.hash_ids.values.tobytes() + trace.hash_ids.offsets.tobytes())
    return digest.hexdigest()[:16]
