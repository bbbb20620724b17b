"""Capacity planning: per profile the smallest fleet that meets the SLOs, found by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qsim.errors import ScenarioError, TraceError
from qsim.optimize.executor import open_executor
from qsim.optimize.fleet_search import probes_left, smallest_fleet
from qsim.optimize.forecast import forecast
from qsim.optimize.headroom import Headroom, headroom_search
from qsim.optimize.plan_result import OBJECTIVES, Candidate, FleetOutcome, Plan
from qsim.optimize.prices import price_of
from qsim.optimize.weigh import Carbon, QualityGoal, carbon_of, quality_goal
from qsim.profile import Profile
from qsim.profiles import find_profiles, load_profile, stated_errors
from qsim.sim.config import EngineConfig, EngineOptions
from qsim.sim.slo import Slo, attainment, check_slos, parse_slos
from qsim.traces.trace import Trace

__all__ = ["FleetTask", "offered_load", "plan", "run_fleet"]

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class FleetTask:
    """One fleet to simulate, complete in itself, so that any process can do it."""

    trace: Trace
    profile: Profile
    replicas: int
    slos: tuple[Slo, ...]
    options: EngineOptions
    router: str
    seed: int
    too_long: str


def run_fleet(task: FleetTask) -> FleetOutcome:
    """Simulate one fleet and keep what a plan needs of the result."""
    from qsim.sim.api import simulate

    result = simulate(
        task.trace,
        task.profile,
        replicas=task.replicas,
        router=task.router,
        options=task.options,
        seed=task.seed,
        too_long=task.too_long,
    )
    at = np.linspace(0, 1, 101)
    quantiles: dict[str, list[float]] = {}
    for name in ("ttft_ms", "tpot_ms", "e2el_ms"):
        values = np.asarray(getattr(result, name))
        values = values[~np.isnan(values)]
        quantiles[name] = np.quantile(values, at).tolist() if len(values) else []
    return FleetOutcome(
        task.replicas,
        result.summary(),
        tuple(check_slos(result, task.slos)),
        attainment(result, task.slos),
        quantiles,
    )


def plan(
    trace: Trace,
    model: str | None = None,
    *,
    slos: Sequence[Slo | str],
    gpus: Sequence[str] = (),
    methods: Sequence[str] = (),
    profiles: Sequence[Profile | str] = (),
    objective: str = "cost",
    prices: Mapping[str, float] | None = None,
    tasks: Mapping[str, float] | str | None = None,
    min_quality: float | None = None,
    region: str | float | None = None,
    pue: float | None = None,
    growth: float = 1.0,
    peak_hour: bool = False,
    headroom: bool = True,
    max_replicas: int = 128,
    router: str = "least-requests",
    options: EngineOptions | None = None,
    seed: int = 0,
    too_long: str = "error",
    jobs: int = 1,
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
        At least one, e.g. ``["ttft:p99:500", "tpot:p99:50"]`` (ms).
    profiles : sequence of Profile or str
        More candidates: profiles, ids or files.
    objective : {"cost", "energy", "gpus", "carbon"}
        What decides among the fleets: USD per hour, energy over the trace, number of GPUs, or
        gCO2e over the trace (needs ``region``). Of equal fleets decides cost, then energy, then
        the number of GPUs, then the profile's id.
    prices : mapping, optional
        USD per GPU and hour by GPU id; the shipped table fills in the others.
    tasks : mapping or str, optional
        Shares of the tasks that quality is told for, ``{"gsm8k": 0.3, "mmlu": 0.7}`` or
        ``"gsm8k:0.3,mmlu:0.7"``; by default the mix of :mod:`qsim.quality.tasks`.
    min_quality : float, optional
        Percent of the 16-bit model's score, in (0, 100]. A candidate whose 90% interval begins
        below it is infeasible, and not simulated.
    region : str or float, optional
        Grid that the energy comes from, as for :func:`qsim.optimize.carbon.grid_intensity`, or
        its gCO2e per kWh; tells the carbon of each candidate.
    pue : float, optional
        Energy of the site over that of the IT equipment; 1 unless given.
    growth : float
        Plan for arrivals so many times as fast as in the trace.
    peak_hour : bool
        Plan for the busiest hour of the trace by requests; before ``growth``.
    headroom : bool
        Also find, to 2% and by simulation, how much faster the trace may be until the best
        fleet misses an SLO, and which.
    max_replicas : int
        The largest fleet to try.
    jobs : int
        Processes to simulate in; the answer does not depend on it. With more than one, a script
        must guard its entry with ``if __name__ == "__main__":`` (processes are spawned).
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
    if not limits:
        raise ScenarioError("no SLO is given; a plan needs at least one, such as ttft:p99:500")
    if objective not in OBJECTIVES:
        raise ScenarioError(f"objective is {objective!r}; must be one of {', '.join(OBJECTIVES)}")
    if isinstance(max_replicas, bool) or not isinstance(max_replicas, int) or max_replicas < 1:
        raise ScenarioError(f"max_replicas is {max_replicas!r}; must be a whole number >= 1")
    options = options or EngineOptions()
    goal = quality_goal(tasks, min_quality)
    carbon = carbon_of(region, pue, objective)
    trace, shaped = forecast(trace, growth, peak_hour)
    chosen = _choose(model, gpus, methods, profiles)
    unused = sorted(set(prices or {}) - {p.identity.gpu for p in chosen})
    if unused:
        raise ScenarioError(
            f"a price is given for gpu {unused[0]!r}, which no profile in this plan uses; "
            f"they use: {', '.join(sorted({p.identity.gpu for p in chosen}))}"
        )
    blanks = [_blank(p, options, prices, objective, goal, carbon) for p in chosen]
    if all(b.engine is None for b in blanks):
        raise ScenarioError(blanks[0].reason)
    base = FleetTask(trace, chosen[0], 1, limits, options, router, seed, too_long)
    searches = [
        _search(replace(base, profile=p), b, max_replicas)
        for p, b in zip(chosen, blanks, strict=True)
    ]
    with open_executor(jobs, at_most=len(searches)) as executor:
        candidates = _drive(executor, searches, [b.profile for b in blanks], progress, headroom)
        ranked = tuple(sorted(candidates, key=lambda c: c.rank(objective)))
        spare = None
        if headroom and ranked[0].feasible:
            winner = next(p for p in chosen if p.id == ranked[0].profile)
            task = replace(base, profile=winner, replicas=ranked[0].replicas or 1)
            spare = _headroom(executor, task, progress)
    settings = {
        "router": router,
        "seed": seed,
        "too_long": too_long,
        "max_replicas": max_replicas,
        **options.to_dict(),
    }
    return Plan(objective, limits, ranked, describe(trace), settings, goal, carbon, shaped, spare)


def describe(trace: Trace) -> dict[str, Any]:
    """The trace in a few numbers, for reports."""
    duration_s = trace.duration_s
    rate = len(trace) / duration_s if duration_s > 1e-9 else None  # a burst has no rate
    return {
        "name": trace.name,
        "requests": len(trace),
        "duration_s": duration_s,
        "request_rate": rate,
        "mean_prompt_tokens": float(trace.prompt_tokens.mean()),
        "mean_output_tokens": float(trace.output_tokens.mean()),
    }


def offered_load(trace: Trace, profile: Profile, engine: EngineConfig) -> float:
    """Replicas that the trace keeps busy at the profile's best efficiency.

    Prompts in full chunks, decodes in the largest measured batch without context: what any real
    schedule takes is more. It only tells the search where to begin.
    """
    duration_s = trace.duration_s
    if duration_s < 1.0:  # a burst: what it needs is not a matter of its rate
        return 1.0
    eager, decode = profile.latency.eager, profile.latency.decode
    chunk = engine.max_num_batched_tokens
    prefill_ms = float(np.interp(chunk, eager.tokens, eager.base_ms)) / min(chunk, eager.tokens[-1])
    rows = min(decode.rows[-1], engine.max_num_seqs)
    decode_ms = float(np.interp(rows, decode.rows, decode.base_ms)) / rows
    busy_ms = prefill_ms * float(trace.prompt_tokens.sum()) + decode_ms * float(
        trace.output_tokens.sum()
    )
    return busy_ms / 1000 / duration_s


def _choose(
    model: str | None,
    gpus: Sequence[str],
    methods: Sequence[str],
    profiles: Sequence[Profile | str],
) -> list[Profile]:
    chosen: dict[str, Profile] = {}
    if model is not None:
        for entry in find_profiles(model, tuple(gpus), tuple(methods)):
            chosen[entry.id] = load_profile(entry.id)
    elif gpus or methods:
        raise ScenarioError("gpus and methods choose among the profiles of a model; give model")
    for given in profiles:
        profile = load_profile(given) if isinstance(given, str) else given
        chosen[profile.id] = profile  # one of the user's own replaces the shipped one
    if not chosen:
        raise ScenarioError("neither a model nor a profile is given; there is nothing to choose")
    return [chosen[i] for i in sorted(chosen)]


def _blank(
    profile: Profile,
    options: EngineOptions,
    prices: Mapping[str, float] | None,
    objective: str,
    goal: QualityGoal,
    carbon: Carbon | None,
) -> Candidate:
    """The candidate before its search.

    With a ``reason`` if there is nothing to search for: its quality is below the floor, or the
    options do not suit it (then without ``engine``).
    """
    identity = profile.identity
    price = price_of(identity.gpu, prices)
    if price is None and objective == "cost":
        raise ScenarioError(
            f"no price is known for gpu {identity.gpu!r}; give one (--price {identity.gpu}=USD "
            "per hour) or choose another objective"
        )
    candidate = Candidate(
        profile.id,
        identity.gpu,
        identity.model,
        identity.method,
        identity.tensor_parallel_size,
        tuple(identity.vllm_args),
        options=options,
        price=price,
        error_percent=stated_errors(profile),
        quality=goal.of(profile),
        carbon=carbon,
    )
    try:
        engine = options.resolve(profile)
    except ScenarioError as e:
        return replace(candidate, reason=str(e))
    return replace(candidate, engine=engine, reason=goal.objection(candidate.quality))


#: share of a progress bar for the searches, where the head-room follows
_SEARCHES = 0.9

#: What a search yields: a fleet to simulate, and about how many more there will be
_Step = tuple[FleetTask, int]
_Search = Generator[_Step, FleetOutcome, Candidate]


def _search(task: FleetTask, blank: Candidate, max_replicas: int) -> _Search:
    """Find the smallest fleet of one profile; errors of the trace make it infeasible."""
    if blank.engine is None or blank.reason:
        return blank
    done: dict[int, FleetOutcome] = {}
    load = offered_load(task.trace, task.profile, blank.engine)
    probe = smallest_fleet(min(max(1, math.ceil(load)), max_replicas), max_replicas)
    try:
        n = next(probe)
        while True:
            failed = max((k for k, o in done.items() if not o.met), default=0)
            met = min((k for k, o in done.items() if o.met), default=None)
            if n not in done:
                done[n] = yield replace(task, replicas=n), probes_left(failed, met)
            if not done[n].met and len(done) == 1:  # is there any point in searching on?
                floor = yield from _floor(task)
                if floor and max_replicas not in done:
                    done[max_replicas] = yield replace(task, replicas=max_replicas), 2
                if floor and not done[max_replicas].met:
                    return _infeasible(blank, done, floor)
            n = probe.send(done[n].met)
    except StopIteration as stop:
        best: int | None = stop.value
    except TraceError as e:
        return _infeasible(blank, done, str(e))
    if best is None:
        worst = done[max_replicas].binding
        return _infeasible(
            blank, done, f"{worst.sentence()} even with {max_replicas} replicas, the most to try"
        )
    return replace(blank, feasible=True, outcome=done[best], evaluations=_by_size(done))


def _floor(task: FleetTask) -> Generator[_Step, FleetOutcome, str]:
    """Why no fleet at all can do it, or "" if that cannot be said.

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
    alone = replace(trace, arrival_s=np.arange(len(trace), dtype=np.float64) * gap_s)
    outcome = yield replace(task, trace=alone, replicas=1), 3
    slowest = outcome.quantiles["e2el_ms"]
    if outcome.met or (slowest and slowest[-1] / 1000 >= gap_s):  # they were not alone after all
        return ""
    return f"{outcome.binding.sentence()} even for requests served alone: more GPUs do not help"


def _infeasible(blank: Candidate, done: dict[int, FleetOutcome], reason: str) -> Candidate:
    largest = done[max(done)] if done else None
    return replace(blank, reason=reason, outcome=largest, evaluations=_by_size(done))


def _by_size(done: dict[int, FleetOutcome]) -> tuple[FleetOutcome, ...]:
    return tuple(done[n] for n in sorted(done))


def _drive(
    executor: Executor,
    searches: list[_Search],
    names: list[str],
    progress: Progress | None,
    headroom: bool,
) -> list[Candidate]:
    """Run all searches to their end, each one simulation ahead at a time."""
    found: dict[int, Candidate] = {}
    running: dict[Future[FleetOutcome], int] = {}
    probes = [0] * len(searches)
    shares = [0.0] * len(searches)

    def advance(i: int, resume: Callable[[], _Step]) -> None:
        try:
            task, left = resume()
        except StopIteration as stop:
            found[i] = stop.value
            shares[i] = 1.0
            return
        shares[i] = max(shares[i], probes[i] / (probes[i] + 1 + left))
        running[executor.submit(run_fleet, task)] = i

    for i, search in enumerate(searches):
        advance(i, search.__next__)
    while running:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in sorted(finished, key=lambda f: running[f]):
            i = running.pop(future)
            search, error = searches[i], future.exception()
            probes[i] += 1
            if error is not None:
                advance(i, lambda s=search, e=error: s.throw(e))  # type: ignore[misc]
            else:
                advance(i, lambda s=search, f=future: s.send(f.result()))  # type: ignore[misc]
            if progress is not None:
                more = headroom and (running or any(c.feasible for c in found.values()))
                progress(sum(shares) / len(shares) * (_SEARCHES if more else 1.0), names[i])
    return [found[i] for i in range(len(searches))]


def _headroom(executor: Executor, task: FleetTask, progress: Progress | None) -> Headroom:
    """Speed up the trace until the fleet of ``task`` misses an SLO.

    One replica less missed one, so that about n/(n - 1) times the traffic should; a single
    replica has no such bound, and begins with its load at best efficiency.
    """
    n = task.replicas
    if n > 1:
        guess = n / (n - 1)
    else:
        load = offered_load(task.trace, task.profile, task.options.resolve(task.profile))
        guess = 1 / load if load > 0 else 2.0
    search = headroom_search(guess)
    speed, done = next(search), 0
    while True:
        faster = replace(task, trace=task.trace.speed(speed))
        outcome = executor.submit(run_fleet, faster).result()
        done += 1
        try:
            speed = search.send(outcome)
        except StopIteration as stop:
            if progress is not None:
                progress(1.0, "head-room")
            found: Headroom = stop.value
            return found
        if progress is not None:
            progress(1 - (1 - _SEARCHES) / (done + 1), "head-room")
