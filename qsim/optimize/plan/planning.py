"""Capacity planning: per profile the smallest fleet that meets the SLOs, found by simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qsim.bounds import MAX_REPLICAS
from qsim.checks import whole
from qsim.errors import ScenarioError
from qsim.optimize.economics.prices import DEFAULT_CLASS
from qsim.optimize.plan.budget import budget_of
from qsim.optimize.plan.candidate import OBJECTIVES, Candidate
from qsim.optimize.plan.confidence import Replication
from qsim.optimize.plan.detail import FEW, LITTLE, DetailWanted
from qsim.optimize.plan.forecast import forecast
from qsim.optimize.plan.profile_choice import Choice, blank_candidate, choose_profiles
from qsim.optimize.plan.result import Plan
from qsim.optimize.plan.setting_search import search_space
from qsim.optimize.plan.stages import PlanRun
from qsim.optimize.search.drive import Progress, part_of
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.fleet_task import FleetTask, describe
from qsim.optimize.search.goals import carbon_of, quality_goal
from qsim.optimize.search.storage import held_study
from qsim.optimize.search.study import StudySettings
from qsim.optimize.search.study_open import check_study
from qsim.profiles.schema import Profile
from qsim.sim.results.goodput import goodput_goal
from qsim.sim.results.slo import Slo, check_judgeable, parse_slos
from qsim.sim.scheduler.config import EngineOptions, refuse_queue_limits
from qsim.traces.trace import Trace

__all__ = ["plan"]


def plan(
    trace: Trace,
    model: str | None = None,
    *,
    slos: Sequence[Slo | str] = (),
    goodput: Sequence[str] = (),
    min_goodput: float | None = None,
    gpus: Sequence[str] = (),
    methods: Sequence[str] = (),
    profiles: Sequence[Profile | str] = (),
    objective: str = "cost",
    prices: Mapping[str, float] | None = None,
    price_list: Mapping[str, float] | None = None,
    provider: str = DEFAULT_CLASS,
    max_gpus: int | None = None,
    max_usd_per_hour: float | None = None,
    max_power_kw: float | None = None,
    max_peak_power_kw: float | None = None,
    tasks: Mapping[str, float] | str | None = None,
    min_quality: float | None = None,
    region: str | float | None = None,
    pue: float | None = None,
    growth: float = 1.0,
    peak_hour: bool = False,
    headroom: bool = True,
    search: Sequence[str] = (),
    study: StudySettings | None = None,
    detail: DetailWanted | None = None,
    max_replicas: int = 128,
    router: str = "least-requests",
    options: EngineOptions | None = None,
    beyond_measured: bool = False,
    seed: int = 0,
    too_long: str = "error",
    allow_backlog: bool = False,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Find, for every profile, the smallest fleet that meets every SLO on this trace.

    Every figure is simulated. The offered load only says where the search begins; it then
    doubles and bisects, and the answer ``n`` is returned only after ``n`` met the SLOs and
    ``n - 1`` missed one.

    Parameters
    ----------
    trace : Trace
        The traffic to serve.
    model : str, optional
        Take the shipped profiles of this model; on ``gpus`` and by ``methods`` if given.
    slos : sequence of Slo or str
        E.g. ``["ttft:p99:500", "tpot:p99:50"]`` (ms). At least one, or a goodput.
    goodput : sequence of str
        Limits of single requests as in vLLM's ``--goodput``, e.g. ``["ttft:500", "tpot:50"]``
        (ms); a request is good if it is within all of them.
    min_goodput : float, optional
        The share of requests that must be good; 0.99 where only ``goodput`` is given. Without
        ``goodput`` the limits of ``slos`` count.
    profiles : sequence of Profile or str
        More candidates: profiles, ids or files.
    objective : {"cost", "energy", "gpus", "carbon"}
        What decides among the fleets: USD per hour, energy over the trace, number of GPUs, or
        gCO2e over the trace (needs ``region``). Of equal fleets those decide: more replications
        that met every SLO, more head-room, less cost, less energy, fewer GPUs, at last the
        profile's id.
    prices : mapping, optional
        USD per GPU and hour by GPU id; the shipped table fills in the others.
    price_list : mapping, optional
        The same for any GPUs, whether a profile uses them or not; ``prices`` goes first.
    provider : str
        The table's class of provider: ``hyperscaler``, ``specialty`` or ``longtail``.
    max_gpus, max_usd_per_hour, max_power_kw, max_peak_power_kw : optional
        Upper limits of the fleet: see :class:`qsim.optimize.plan.budget.Budget`. The smallest fleet
        that meets the SLOs is infeasible if it is beyond one of them.
    tasks : mapping or str, optional
        Shares of the tasks that quality is told for, ``{"gsm8k": 0.3, "mmlu": 0.7}`` or
        ``"gsm8k:0.3,mmlu:0.7"``; by default the mix of :mod:`qsim.quality.tasks`.
    min_quality : float, optional
        Percent of the 16-bit model's score, in (0, 100]. A candidate whose 90% interval begins
        below it is infeasible, and not simulated.
    region : str or float, optional
        Grid that the energy comes from, as for
        :func:`qsim.optimize.economics.carbon.grid_intensity`, or its gCO2e per kWh; tells the
        carbon of each candidate.
    pue : float, optional
        Energy of the site over that of the IT equipment; 1 unless given.
    growth : float
        Plan for arrivals so many times as fast as in the trace.
    peak_hour : bool
        Plan for the busiest hour of the trace by requests; before ``growth``.
    headroom : bool
        Also find, to 2% and by simulation, how much faster the trace may be until the best
        fleet misses an SLO, and which.
    search : sequence of str
        Engine options and the router to search, beside the profile: ``max_num_seqs``,
        ``max_num_batched_tokens`` and ``router`` with usual values, or any with its own, as
        ``"max_num_seqs=64,128"``. The smallest fleet is found for each setting; see
        :mod:`qsim.optimize.plan.setting_search`.
    study : StudySettings, optional
        Sampler, trials, seed, storage of the search; 60 trials of TPE unless given.
    detail : DetailWanted, optional
        What else to find out about the best fleet: replications, sensitivity, bottlenecks.
    max_replicas : int
        The largest fleet to try.
    beyond_measured : bool
        Also recommend settings beyond what a profile's measurements cover (more tokens or requests
        a step), and say what that rests on. Otherwise defaults are lowered to the measured range,
        and what is asked for beyond it is an error.
    allow_backlog : bool
        Take a fleet that finishes less than arrives (:mod:`qsim.sim.results.backlog`) for one that
        may meet the SLOs.
    jobs : int
        Processes to simulate in; the answer does not depend on it. With more than one, a script
        must guard its entry with ``if __name__ == "__main__":`` (processes are spawned).
    dask : str, optional
        Simulate on a Dask cluster instead: the address of its scheduler, or a scheduler file.
    progress : callable, optional
        Called with a fraction in [0, 1] and a text after every simulation.

    Raises
    ------
    ScenarioError
        If an argument is wrong, no SLO is given, the objective is cost and a GPU has no price,
        or the engine options suit no profile.
    ProfileError
        If there is no profile to choose from.
    """
    limits = parse_slos(slos)
    good = goodput_goal(goodput, min_goodput, limits)
    if not limits and good is None:
        raise ScenarioError("no SLO is given; a plan needs at least one, such as ttft:p99:500")
    for slo in limits:
        check_judgeable(trace, [slo.metric], f"SLO {slo}")
    if good is not None:
        check_judgeable(trace, [m for m, _ in good.limits], str(good))
    budget = budget_of(max_gpus, max_usd_per_hour, max_power_kw, max_peak_power_kw)
    if objective not in OBJECTIVES:
        raise ScenarioError(f"objective is {objective!r}; must be one of {', '.join(OBJECTIVES)}")
    whole("max_replicas", max_replicas, 1, MAX_REPLICAS)
    options = replace(options or EngineOptions(), within_measured=not beyond_measured)
    refuse_queue_limits(options.to_dict(), "qsim plan")
    goal = quality_goal(tasks, min_quality)
    carbon = carbon_of(region, pue, objective)
    trace, shaped = forecast(trace, growth, peak_hour)
    choices = choose_profiles(model, gpus, methods, profiles, options.vllm_version)
    chosen = [c.profile for c in choices]
    unused = sorted(set(prices or {}) - {p.identity.gpu for p in chosen})
    if unused:
        raise ScenarioError(
            f"a price is given for gpu {unused[0]!r}, which no profile in this plan uses; "
            f"they use: {', '.join(sorted({p.identity.gpu for p in chosen}))}"
        )
    own = {**(price_list or {}), **(prices or {})}
    rent = budget.max_usd_per_hour is not None
    blanks = [
        blank_candidate(c, options, own, objective, goal, carbon, provider, rent) for c in choices
    ]
    if all(b.engine is None for b in blanks):
        raise ScenarioError(blanks[0].reason)
    base = FleetTask(
        trace, chosen[0], 1, limits, options, router, seed, too_long, good, bool(allow_backlog)
    )
    space = search_space(search, _able(choices, blanks), options) if search else None
    if study is not None and space is None:
        raise ScenarioError("a study is given, but nothing to search (--search max_num_seqs)")
    wanted = DetailWanted() if detail is None else detail
    shares = _shares(bool(space), headroom, bool(wanted))
    many = None if space or wanted else len(chosen)
    study = study or StudySettings("tpe", trials=60, seed=seed)
    with held_study(study.storage), open_executor(jobs, at_most=many, dask=dask) as executor:
        check_study(study.storage, study.name, study.resume)
        executor.share(trace)
        for profile in chosen:
            executor.share(profile)
        run = PlanRun(executor, base, choices, blanks, objective, max_replicas, budget)
        candidates = run.fleets(part_of(progress, 0.0, shares[0]))
        report, spare, told = None, None, None
        if space is not None:
            between = part_of(progress, shares[0], shares[1])
            candidates, report = run.settings(space, study, candidates, between)
        runs: tuple[Replication, ...] = ()
        if wanted.min_confidence is not None:
            between = part_of(progress, shares[1], shares[2])
            candidates, runs = run.confident(candidates, wanted, between)
        asked, count = bool(wanted), wanted.replications
        if count is None:
            count = FEW if len(trace) <= LITTLE else 0
            wanted = replace(wanted, replications=count)
        candidates, replicated, rooms = run.settle_ties(
            candidates, wanted, count, headroom, part_of(progress, shares[1], shares[2])
        )
        ranked = run.ranked(candidates)
        best = ranked[0]
        runs = runs or replicated.get(best.profile, ())
        if headroom and best.feasible:
            between = part_of(progress, shares[1], shares[2])
            spare = rooms.get(best.profile) or run.headroom(best, between)
        if wanted and best.feasible:
            between = part_of(progress, shares[2], 1.0)
            told = run.detail(ranked, wanted, spare, runs, asked, between)
    if progress is not None:
        progress(1.0, "done")
    settings = {
        "router": router,
        "seed": seed,
        "too_long": too_long,
        "max_replicas": max_replicas,
        **({"allow_backlog": True} if allow_backlog else {}),
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
    )


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
