"""Energy-aware scheduling: which servers are on when, for traffic that varies over days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack, get_args

import numpy as np

from qsim.errors import InfeasibleError, ScenarioError
from qsim.optimize.economics.carbon import (
    CarbonSeries,
    GridIntensity,
    grid_intensity,
    load_carbon_series,
)
from qsim.optimize.economics.prices import price_of, prices_of
from qsim.optimize.plan.profile_choice import profiles_among
from qsim.optimize.schedule.capacity import CapacityTask, PoolCapacity, measure_capacity
from qsim.optimize.schedule.controllers import DAY_S
from qsim.optimize.schedule.policies import Bench, smallest_static
from qsim.optimize.schedule.problem import (
    PoolChoice,
    ScheduleProblem,
    labelled,
    parse_window,
)
from qsim.optimize.schedule.result import PolicyResult, Schedule
from qsim.optimize.schedule.timetable_search import OPTIMISM, Proposal, WindowSearch
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.fleet_task import describe
from qsim.optimize.search.goals import check_goals, quality_goal
from qsim.optimize.search.storage import check_study, held_study
from qsim.optimize.search.study import StudySettings
from qsim.scenario import Scenario
from qsim.scenario.arguments import ScheduleArguments
from qsim.scenario.names import scenario_of
from qsim.scenario.resolve import (
    common_lifecycle,
    load_traffic,
    searched_engine,
)
from qsim.scenario.searches import Policy
from qsim.scenario.sections import Accounts
from qsim.sim.fleet.admission import text_notes
from qsim.sim.fleet.dynamic import waits_for_answers
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.results.slo import Slo
from qsim.traces.trace import Trace

#: what the timetable is compared with
POLICIES = get_args(Policy)
#: with more candidates than this two are kept: the most efficient and the best in quality
MOST_POOLS = 3
#: the stretch of traffic that capacities are found with, s
_STRETCH_S = 1200.0


def schedule(
    trace: Scenario | Trace,
    model: str | None = None,
    *,
    traffic: Trace | None = None,
    grid: str | float | CarbonSeries | None = None,
    study: str | None = None,
    resume: bool = False,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    **asked: Unpack[ScheduleArguments],
) -> Schedule:
    """Find how many servers of which method are on in each window, and compare with other policies.

    Every SLO must hold in every window, over the requests that arrive in it. The timetable is
    found by dynamic programming over fleets that were simulated in their windows, then simulated
    on the whole trace with the servers' starts; what misses an SLO is mended. The other policies'
    parameters are searched with Optuna over simulations of the whole trace under the same
    condition, so that energies are compared at the same attainment.

    Parameters
    ----------
    trace : Scenario or Trace
        All of what is asked; or the traffic, and ``model`` and ``asked`` say the rest. Windows
        begin at time 0 of the traffic.
    traffic : Trace, optional
        That of the scenario where it was read already.
    grid : str, float or CarbonSeries, optional
        Instead of the scenario's ``region`` or ``carbon_series``.
    study, resume
        An Optuna storage in which the searches are kept, and to go on with it.
    jobs, dask, progress
        As for :func:`qsim.plan`.
    **asked
        Fields of the scenario by name; see :class:`qsim.scenario.arguments.ScheduleArguments`.
        At least one SLO, and none of ``itl``.

    Raises
    ------
    ScenarioError
        If a value is wrong.
    InfeasibleError
        If no timetable within the limits does; the message names what binds, and by how much.
    """
    scenario = scenario_of("schedule", trace, model, asked)
    section, accounts = scenario.schedule, scenario.accounts
    if traffic is None:
        traffic = load_traffic(scenario.traffic, scenario.seed)
    if grid is None:
        grid = _grid(accounts)
    limits = scenario.limits()
    _check(scenario, limits, grid)
    if traffic.turns is not None:
        raise waits_for_answers(traffic)
    check_goals(traffic, limits)
    window_s = parse_window(section.window)
    forecast = section.forecast
    if forecast == "day-before" and DAY_S % window_s:
        raise ScenarioError(
            f"window is {window_s:g} s; with a day-before forecast it must divide a day"
        )
    plan_trace, serve_trace = _split(traffic, forecast)
    margin = section.forecast_margin
    if margin is None:
        margin = 1.0 if forecast == "perfect" else 1.15
    if not 0.1 <= margin <= 10:
        raise ScenarioError(f"forecast_margin is {margin!r}; must be from 0.1 to 10")
    where: CarbonSeries | GridIntensity | None = (
        grid if grid is None or isinstance(grid, CarbonSeries) else grid_intensity(grid)
    )
    plan = ScheduleProblem(
        plan_trace, window_s, limits, section.objective, where,
        1.0 if accounts.pue is None else accounts.pue, section.min_quality, section.max_gpus,
        section.owned_gpus, section.off_w, scenario.traffic.too_long, margin,
        scenario.allow_backlog, scenario.traffic.text_prompts,
    )  # fmt: skip
    serve = plan
    if serve_trace is not plan_trace:
        # the carbon of the hours that are served
        serve = replace(plan, trace=serve_trace, grid=_later(where, plan.end_s))
    settings = StudySettings(
        "tpe", section.trials, scenario.seed, batch=2, storage=study, name="qsim-schedule",
        resume=resume,
    )  # fmt: skip
    choices = _choices(scenario)
    with held_study(study), open_executor(jobs, dask=dask) as executor:
        check_study(study, settings.name, resume)
        executor.share(plan_trace)
        executor.share(serve_trace)
        tell = _Teller(progress, 3 + len(section.policies))
        choices, capacities, notes = _measure(executor, plan, choices, section.max_replicas, tell)
        notes += _few(serve)
        if plan.text_prompts:
            notes += text_notes(c.pool.profile for c in choices)
        bench = Bench(plan, serve, executor, settings)
        return _run(bench, choices, capacities, section.policies, forecast, notes, tell)


def _few(problem: ScheduleProblem) -> list[str]:
    """Windows with fewer requests than a percentile takes to be judged."""
    requests = problem.requests()
    notes = []
    for slo in problem.slos:
        few = int(((requests > 0) & (requests < slo.needed)).sum())
        if few:
            notes.append(
                f"not enough requests to judge {slo} in {few} of {problem.windows} windows: "
                f"{slo.statistic} has no upper bound below {slo.needed:,} requests; take wider "
                "windows, or read it as what this very trace does"
            )
    return notes


def _grid(accounts: Accounts) -> str | float | CarbonSeries | None:
    """The grid's intensity: of a region, or by the hour."""
    if accounts.carbon_series is None:
        region: str | float | None = accounts.region
        return region
    if accounts.region is not None:
        raise ScenarioError(
            "both a carbon series (--carbon-series) and a region (--region) are given; drop one"
        )
    return load_carbon_series(accounts.carbon_series)


def _check(scenario: Scenario, limits: Sequence[Slo], grid: Any) -> None:
    if not limits:
        raise ScenarioError("no SLO is given; a schedule needs at least one, such as ttft:p99:500")
    if scenario.goodput:
        raise ScenarioError(
            "goodput is given; qsim schedule judges SLOs only: leave it out (--set goodput=)"
        )
    for slo in limits:
        if slo.metric == "itl":
            raise ScenarioError(f"SLO {slo} is of itl, which is not kept by window; use tpot")
    if scenario.schedule.objective == "carbon" and grid is None:
        raise ScenarioError(
            "objective carbon needs a grid: an hourly series (--carbon-series) or a region "
            "(--region)"
        )


def _split(trace: Trace, forecast: str) -> tuple[Trace, Trace]:
    """What is known and what is to be served."""
    if forecast == "perfect":
        return trace, trace
    if not trace.arrival_s[0] < DAY_S <= trace.arrival_s[-1]:
        raise ScenarioError(
            f"{trace.name} ends at {float(trace.arrival_s[-1]):,.0f} s; a day-before forecast "
            "needs a first day to plan from and traffic after it"
        )
    return trace.slice(0.0, DAY_S), trace.slice(DAY_S, float("inf"))


def _later(
    grid: CarbonSeries | GridIntensity | None, by_s: float
) -> CarbonSeries | GridIntensity | None:
    if not isinstance(grid, CarbonSeries):
        return grid
    hours = round(by_s / 3600) % len(grid.hourly)
    return replace(grid, hourly=grid.hourly[hours:] + grid.hourly[:hours])


def _choices(scenario: Scenario) -> list[PoolChoice]:
    asked, accounts = scenario.schedule, scenario.accounts
    options = searched_engine(scenario, asked, "schedule")
    goal, prices = quality_goal(accounts.tasks, asked.min_quality), prices_of(accounts)
    lifecycle = common_lifecycle(scenario, "schedule")
    choices = []
    for one in profiles_among(scenario, asked, options):
        identity = one.profile.identity
        price = price_of(identity.gpu, prices, accounts.provider)
        if price is None and asked.objective == "cost":
            raise ScenarioError(
                f"no price is known for gpu {identity.gpu!r}; give one (--price "
                f"{identity.gpu}=USD per hour) or choose another objective"
            )
        pool = ServerPool(one.profile, 1, options.settled(one.profile), lifecycle=lifecycle)
        pool.options.resolve(one.profile)
        choices.append(
            PoolChoice(
                pool,
                goal.of(one.profile),
                None if price is None else price.usd_per_hour,
                "" if price is None else price.source,
                one.source,
            )
        )
    return labelled(choices)


def _measure(
    executor: TaskExecutor,
    plan: ScheduleProblem,
    choices: Sequence[PoolChoice],
    max_replicas: int,
    tell: _Teller,
) -> tuple[list[PoolChoice], list[PoolCapacity], list[str]]:
    """Capacities of the candidates; those that are kept, with limits that the peak needs."""
    tell.stage("capacities")
    stretch, peak = _stretch(plan)
    futures = [
        executor.submit(
            measure_capacity,
            CapacityTask(
                stretch,
                c.pool,
                plan.slos,
                min(max_replicas, 8),
                plan.too_long,
                plan.allow_backlog,
                plan.text_prompts,
            ),
        )
        for c in choices
    ]
    kept: list[tuple[PoolChoice, PoolCapacity]] = []
    notes: list[str] = []
    for choice, future in zip(choices, futures, strict=True):
        try:
            capacity = future.result()
        except InfeasibleError as e:
            notes.append(str(e))
            continue
        need = next(
            (n for n in range(1, max_replicas) if capacity.of(n) >= peak * 1.1), max_replicas
        )
        limit = min(max_replicas, need + 1)
        kept.append((replace(choice, pool=replace(choice.pool, replicas=limit)), capacity))
        tell.step(len(kept) / len(choices), choice.name)
    if not kept:
        raise InfeasibleError("; ".join(notes))
    if len(kept) > MOST_POOLS:
        kept, dropped = _two(kept, plan.objective)
        notes.append(
            "pools of the timetable: the most efficient candidate and the one of the best quality; "
            f"left out: {', '.join(dropped)}"
        )
    return [c for c, _ in kept], [k for _, k in kept], notes


def _two(
    kept: list[tuple[PoolChoice, PoolCapacity]], objective: str
) -> tuple[list[tuple[PoolChoice, PoolCapacity]], list[str]]:
    def effort(one: tuple[PoolChoice, PoolCapacity]) -> float:
        choice, capacity = one
        if objective == "cost":
            return (choice.usd_per_gpu_hour or 0.0) * choice.gpus / capacity.many_rps
        return float(capacity.power_w(np.array([capacity.one_rps]))[0]) / capacity.one_rps

    lean = min(kept, key=effort)
    good = max(kept, key=lambda one: (one[0].low_pct, -effort(one)))
    chosen = [k for k in kept if k is lean or k is good]
    return chosen, [k[0].label for k in kept if k not in chosen]


def _stretch(plan: ScheduleProblem) -> tuple[Trace, float]:
    """Traffic around the middle of the busiest window, and that window's rate."""
    rates = plan.requests() / plan.window_s * plan.margin
    busiest = int(np.argmax(rates))
    middle = (busiest + 0.5) * plan.window_s
    half = max(_STRETCH_S, min(plan.window_s, _STRETCH_S)) / 2
    at = plan.trace.arrival_s
    low, high = np.searchsorted(at, [middle - half, middle + half])
    if high - low < 50:  # too few to say anything: all of it
        low, high = 0, len(at)
    if high - low < 2 or at[high - 1] <= at[low]:
        raise ScenarioError(
            f"{plan.trace.name}: a schedule needs traffic over time, and this is one burst"
        )
    return plan.trace.take(np.arange(low, high)), float(rates[busiest])


def _run(
    bench: Bench,
    choices: list[PoolChoice],
    capacities: list[PoolCapacity],
    policies: Sequence[str],
    forecast: str,
    notes: list[str],
    tell: _Teller,
) -> Schedule:
    plan = bench.plan
    tell.stage("windows of single pools")
    singles: list[tuple[WindowSearch, Proposal, int] | None] = []
    for choice, capacity in zip(choices, capacities, strict=True):
        search = WindowSearch(
            replace(plan, min_quality=None, max_gpus=None), [choice], [capacity], bench.executor,
            note=partial(_told, tell, choice.label),
        )  # fmt: skip
        try:
            proposal = search.propose()
            singles.append((search, proposal, smallest_static(search, proposal)))
        except InfeasibleError as e:
            singles.append(None)
            notes.append(f"{choice.name} alone: {e}")
    allowed = [k for k, s in enumerate(singles) if s is not None and _allowed(plan, choices[k])]
    results: list[PolicyResult] = []
    if allowed and policies:
        results = _baselines(bench, choices, capacities, singles, allowed, policies, tell)
    elif policies:
        notes.append("no single method meets the SLOs and the quality floor: nothing to compare")

    tell.stage("timetable")
    search = WindowSearch(
        plan, choices, capacities, bench.executor, note=lambda text: tell.step(0.3, text)
    )
    if plan.min_quality is None or any(c.quality for c in choices):
        _reuse(search, singles)
    proposal = search.propose()
    best, counts, lead_s, pack = bench.optimized(search, proposal, tell.part(0.5, 1.0))
    simulations = sum(len(s[0].known) for s in singles if s) + len(search.known)
    return Schedule(
        bench.serve,
        best.choices,
        counts,
        lead_s,
        pack,
        (*results, best),
        forecast,
        tuple(notes),
        {
            "capacity_simulations": sum(c.simulations for c in capacities),
            "window_simulations": simulations,
            "trace_simulations": sum(r.trials for r in results) + best.trials,
            "capacity_optimism": OPTIMISM,
            "capacities_rps": {
                c.name: [k.of(n) for n in range(1, c.pool.replicas + 1)]
                for c, k in zip(choices, capacities, strict=True)
            },
        },
        describe(bench.serve.trace),
    )


def _told(tell: _Teller, method: str, text: str) -> None:
    tell.step(0.5, f"{method}: {text}")


def _allowed(plan: ScheduleProblem, choice: PoolChoice) -> bool:
    floor = plan.min_quality
    return floor is None or (choice.quality is not None and choice.quality.low_pct >= floor)


def _reuse(search: WindowSearch, singles: Sequence[Any]) -> None:
    """Single-pool fleets were simulated already."""
    for k, single in enumerate(singles):
        if single is None:
            continue
        for (t, s), outcome in single[0].known.items():
            row = [0] * len(search.choices)
            row[k] = int(single[0].states[s][0])
            match = np.flatnonzero((search.states == np.array(row)).all(axis=1))
            if len(match):
                requests = [0] * len(search.choices)
                requests[k] = outcome.requests[0]
                search._learn(t, int(match[0]), replace(outcome, requests=tuple(requests)))


def _baselines(
    bench: Bench,
    choices: Sequence[PoolChoice],
    capacities: Sequence[PoolCapacity],
    singles: Sequence[Any],
    allowed: Sequence[int],
    policies: Sequence[str],
    tell: _Teller,
) -> list[PolicyResult]:
    statics = {k: bench.static(choices[k], singles[k][2]) for k in allowed}
    tell.stage("static fleets")
    base = min(allowed, key=lambda k: statics[k].value)
    choice, capacity = choices[base], capacities[base]
    servers = int(statics[base].params["servers"])
    results = []
    if "static" in policies:
        results += [statics[k] for k in sorted(allowed, key=lambda k: -statics[k].value)]
    for name in ("reactive", "predictive", "consolidation"):
        if name in policies:
            tell.stage(name)
            results.append(getattr(bench, name)(choice, capacity, servers, tell.part(0.0, 1.0)))
    if "mixed" in policies and len(allowed) > 1:
        tell.stage("mixed precision")
        good = max(allowed, key=lambda k: choices[k].low_pct)
        if good != base:
            search = WindowSearch(bench.plan, list(choices), list(capacities), bench.executor)
            tables = [s[1].counts if s else () for s in singles]
            results.append(bench.mixed(search, good, base, tables, servers))
    return results


class _Teller:
    """A progress bar over stages of about equal length."""

    def __init__(self, progress: Progress | None, stages: int) -> None:
        self._progress = progress
        self._stages = stages
        self._stage = -1
        self._name = ""

    def stage(self, name: str) -> None:
        """The next stage begins."""
        self._stage += 1
        self._name = name
        self.step(0.0, "")

    def step(self, share: float, text: str) -> None:
        """So much of the stage is done."""
        if self._progress is not None:
            done = min(1.0, (max(0, self._stage) + share) / self._stages)
            self._progress(done, f"{self._name} {text}".strip())

    def part(self, begin: float, end: float) -> Progress:
        """A bar for a part of the stage."""
        return lambda share, text: self.step(begin + (end - begin) * share, text)
