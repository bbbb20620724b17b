"""Capacity planning: per profile the smallest fleet that meets the SLOs, found by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from qsim.errors import ScenarioError
from qsim.optimize.economics.prices import prices_of
from qsim.optimize.plan.budget import Budget, left_with_servers
from qsim.optimize.plan.candidate import Candidate, Shortfall
from qsim.optimize.plan.confidence import Replication
from qsim.optimize.plan.detail import FEW, LITTLE, DetailWanted
from qsim.optimize.plan.headroom import find_headroom
from qsim.optimize.plan.profile_choice import Choice, blank_candidate, profiles_among
from qsim.optimize.plan.resample import preset_draw
from qsim.optimize.plan.result import Plan
from qsim.optimize.plan.setting_search import PlanProblem, run_search, search_space
from qsim.optimize.plan.stages import PlanRun
from qsim.optimize.search.drive import Progress, part_of
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.fleet_task import FleetTask, describe, fleet_ranges
from qsim.optimize.search.goals import carbon_of, check_goals, quality_goal
from qsim.optimize.search.space import search_texts
from qsim.optimize.search.storage import check_study, held_study
from qsim.optimize.search.study import StudySettings
from qsim.scenario import Scenario
from qsim.scenario.arguments import PlanArguments
from qsim.scenario.names import scenario_of
from qsim.scenario.resolve import load_traffic, searched_engine
from qsim.sim.results.goodput import goodput_goal
from qsim.traces.reshape import forecast
from qsim.traces.trace import Trace


def plan(
    trace: Scenario | Trace,
    model: str | None = None,
    *,
    traffic: Trace | None = None,
    study: StudySettings | None = None,
    detail: DetailWanted | None = None,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    **asked: Unpack[PlanArguments],
) -> Plan:
    """Find, for every profile, the smallest fleet that meets every SLO on this traffic.

    Every figure is simulated. The offered load only says where the search begins; it then
    doubles and bisects, and the answer ``n`` is returned only after ``n`` met the SLOs and
    ``n - 1`` missed one.

    Parameters
    ----------
    trace : Scenario or Trace
        All of what is asked; or the traffic to serve, and ``model`` and ``asked`` say the rest.
    model : str, optional
        Take the shipped profiles of this model; on ``gpus`` and by ``methods`` if given.
    traffic : Trace, optional
        That of the scenario where it was read already, before growth and peak hour.
    study : StudySettings, optional
        Sampler, trials, seed and storage of the search of settings, in the place of the
        scenario's.
    detail : DetailWanted, optional
        What else to find out about the best fleet, in the place of what the scenario says:
        replications, sensitivity, bottlenecks.
    jobs : int
        Processes to simulate in; the answer does not depend on it. With more than one, a script
        must guard its entry with ``if __name__ == "__main__":`` (processes are spawned).
    dask : str, optional
        Simulate on a Dask cluster instead: the address of its scheduler, or a scheduler file.
    progress : callable, optional
        Called with a fraction in [0, 1] and a text after every simulation.
    **asked
        Fields of the scenario by name: ``slos``, ``objective``, ``max_gpus``, ...; see
        :class:`qsim.scenario.arguments.PlanArguments`.

    Raises
    ------
    ScenarioError
        If a value is wrong, no SLO is given, the objective is cost and a GPU has no price,
        or the engine options suit no profile.
    ProfileError
        If there is no profile to choose from.
    """
    scenario = scenario_of("plan", trace, model, asked)
    section, accounts = scenario.plan, scenario.accounts
    if traffic is None:
        traffic = load_traffic(scenario.traffic, scenario.seed, grown=False)
    limits = scenario.limits()
    good = goodput_goal(scenario.goodput, section.min_goodput, limits)
    if not limits and good is None:
        raise ScenarioError("no SLO is given; a plan needs at least one, such as ttft:p99:500")
    check_goals(traffic, limits, good)
    budget = Budget(
        section.max_gpus,
        section.max_usd_per_hour,
        section.max_power_kw,
        section.max_peak_power_kw,
        section.stock or None,
    )
    if section.survive >= section.max_replicas:
        raise ScenarioError(
            f"survive is {section.survive}; must be below max_replicas, {section.max_replicas}: a "
            "server must be left"
        )
    objective = section.objective
    options = searched_engine(scenario, section, "plan")
    goal = quality_goal(accounts.tasks, section.min_quality)
    carbon = carbon_of(accounts.region, accounts.pue, objective)
    trace, shaped = forecast(traffic, scenario.traffic.growth, scenario.traffic.peak_hour)
    choices = profiles_among(scenario, section, options, section.stock)
    chosen = [c.profile for c in choices]
    used = {p.identity.gpu for p in chosen}
    priced = sorted(accounts.prices)
    for what, named in (("stock has", section.stock), ("a price is given for", priced)):
        for gpu in named:
            if gpu not in used:
                raise ScenarioError(
                    f"{what} gpu {gpu!r}, which no profile in this plan uses; they use: "
                    f"{', '.join(sorted(used))}"
                )
    own = prices_of(accounts)
    rent = budget.max_usd_per_hour is not None
    blanks = [
        blank_candidate(c, options, own, objective, goal, carbon, accounts.provider, rent)
        for c in choices
    ]
    blanks = [_if_owned(b, budget) for b in blanks]
    if all(b.engine is None for b in blanks):
        raise ScenarioError(blanks[0].reason)
    if section.survive:
        blanks = left_with_servers(blanks, budget, section.survive)
    base = FleetTask(
        trace, chosen[0], 1, limits, options, scenario.fleet.router, scenario.seed,
        scenario.traffic.too_long, good, scenario.allow_backlog, survive=section.survive,
        text_prompts=scenario.traffic.text_prompts,
    )  # fmt: skip
    search = search_texts(section.search)
    space = search_space(search, _able(choices, blanks), options) if search else None
    if study is None and (section.trials is not None or section.sampler is not None):
        study = study_of(scenario)
    if study is not None and space is None:
        raise ScenarioError("a study is given, but nothing to search (--search max_num_seqs)")
    wanted = detail_of(scenario) if detail is None else detail
    ahead = section.headroom
    shares = _shares(bool(space) or bool(section.stock), ahead, bool(wanted))
    many = None if space or wanted else len(chosen)
    study = study or study_of(scenario)
    with held_study(study.storage), open_executor(jobs, at_most=many, dask=dask) as executor:
        check_study(study.storage, study.name, study.resume)
        executor.share(trace)
        for profile in chosen:
            executor.share(profile)
        run = PlanRun(executor, base, choices, blanks, objective, section.max_replicas, budget)
        candidates = run.fleets(part_of(progress, 0.0, shares[0]))
        report, spare, told = None, None, None
        if space is not None:
            between = part_of(progress, shares[0], shares[1])
            by_id = {c.profile.id: c for c in choices}
            before = {b.profile: b for b in blanks}
            problem = PlanProblem(
                space, base, by_id, before, objective, section.max_replicas, budget
            )
            candidates, report = run_search(problem, study, executor, candidates, between)
        between = part_of(progress, shares[0] if space is None else shares[1] * 0.9, shares[1])
        mixes, mix_report = run.mixes(candidates, between)
        candidates += mixes
        runs: tuple[Replication, ...] = ()
        if wanted.min_confidence is not None:
            between = part_of(progress, shares[1], shares[2])
            candidates, runs = run.confident(candidates, wanted, between)
        told_of, count = bool(wanted), wanted.replications
        if count is None:
            count = FEW if len(trace) <= LITTLE else 0
            wanted = replace(wanted, replications=count)
        candidates, replicated, rooms = run.settle_ties(
            candidates, wanted, count, ahead, part_of(progress, shares[1], shares[2])
        )
        ranked = run.ranked(candidates)
        best = ranked[0]
        runs = runs or replicated.get(best.profile, ())
        if ahead and best.feasible:
            between = part_of(progress, shares[1], shares[2])
            spare = rooms.get(best.profile) or find_headroom(executor, run.fleet_of(best), between)
        machines = None
        if best.feasible:
            machines = executor.submit(fleet_ranges, run.fleet_of(best)).result()
        if wanted and best.feasible:
            between = part_of(progress, shares[2], 1.0)
            told = run.detail(ranked, wanted, spare, runs, told_of, between)
    if progress is not None:
        progress(1.0, "done")
    settings = {
        "router": scenario.fleet.router,
        "seed": scenario.seed,
        "too_long": scenario.traffic.too_long,
        "max_replicas": section.max_replicas,
        **({"allow_backlog": True} if scenario.allow_backlog else {}),
        **({"survive": section.survive} if section.survive else {}),
        **({"text_prompts": True} if scenario.traffic.text_prompts else {}),
        **options.to_dict(),
    }
    return Plan(
        objective,
        limits,
        ranked,
        describe(trace),
        settings,
        quality_goal=goal,
        carbon=carbon,
        forecast=shaped,
        headroom=spare,
        goodput=good,
        budget=budget,
        search=report,
        detail=told,
        mixes=mix_report,
        machines=machines,
    )


def study_of(scenario: Scenario, **kept: Any) -> StudySettings:
    """How settings are searched; ``kept`` says where (storage, name, resume)."""
    asked = scenario.plan
    trials = 60 if asked.trials is None else asked.trials
    return StudySettings(asked.sampler or "tpe", trials=trials, seed=scenario.seed, **kept)


def detail_of(scenario: Scenario) -> DetailWanted:
    """What else to find out; other traffic of a preset is drawn, that of a file resampled."""
    asked, traffic = scenario.plan, scenario.traffic
    replications = asked.replications or (
        20 if asked.explain or asked.min_confidence is not None else asked.replications
    )
    resampling = None
    if isinstance(traffic.trace, str) and not traffic.merge:
        resampling = preset_draw(
            traffic.trace,
            scenario.seed,
            traffic.reshaping(),
            traffic.growth,
            traffic.peak_hour,
        )
    return DetailWanted(
        replications,
        asked.explain or asked.sensitivity,
        asked.explain or asked.bottlenecks,
        resampling,
        asked.min_confidence,
    )


def _if_owned(blank: Candidate, budget: Budget) -> Candidate:
    """The candidate, or that there are no GPUs for one server of it."""
    owned, need = budget.in_stock(blank.gpu), blank.tensor_parallel_size
    if owned is None or owned >= need or blank.reason:
        return blank
    has = f"{owned} {'is' if owned == 1 else 'are'}" if owned else "none is"
    reason = f"one server needs {need} {blank.gpu}, and {has} in stock (--stock)"
    over = (need - owned) / owned if owned else math.inf
    return replace(blank, reason=reason, shortfall=Shortfall("stock", need, owned, over))


def _able(choices: Sequence[Choice], blanks: Sequence[Candidate]) -> list[Choice]:
    """Those that there is a point in searching: the quality is enough."""
    return [
        c for c, b in zip(choices, blanks, strict=True) if b.engine is None or not b.reason
    ] or list(choices)


def _shares(search: bool, headroom: bool, detail: bool) -> tuple[float, float, float]:
    """The progress at the end of the profiles', the settings' and the head-room's searches."""
    end = 0.5 if detail else 1.0
    settled = end * 0.9 if headroom else end
    return (settled * 0.2 if search else settled, settled, end)
