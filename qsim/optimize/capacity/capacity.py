"""What given GPUs carry: every layout at the highest rate at which the SLOs hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

from qsim.bounds import MAX_REPLICAS
from qsim.checks import finite, whole
from qsim.errors import ScenarioError, TraceError
from qsim.optimize.capacity.layout import (
    DEFAULT_TRAFFIC,
    OBJECTIVES,
    Capacity,
    Layout,
    Traffic,
    ranked,
)
from qsim.optimize.capacity.rate_search import (
    PRECISION,
    base_rate_rps,
    first_speed,
    first_users,
    fleet_search,
    users_of_fleet,
)
from qsim.optimize.capacity.scenario import capacity_arguments
from qsim.optimize.economics.prices import DEFAULT_CLASS
from qsim.optimize.plan.candidate import Candidate
from qsim.optimize.plan.profile_choice import Choice, blank_candidate, choose_profiles
from qsim.optimize.search.drive import Progress, Step, drive_with
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, describe, fleet_ranges
from qsim.optimize.search.goals import check_goals, quality_goal
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.sim.results.goodput import goodput_goal
from qsim.sim.results.slo import Slo, parse_slos
from qsim.sim.scheduler.config import EngineOptions, refuse_queue_limits
from qsim.traces import load_trace
from qsim.traces.load import preset_names
from qsim.traces.trace import Trace

__all__ = ["DEFAULT_TRAFFIC", "capacity", "sized_traffic"]

#: a preset of no given length is drawn to last about so long at the highest rate that is expected,
#: within these numbers of requests
_SECONDS = 120.0
_FEWEST, _MOST = 2_000, 8_000
#: the same where users send it: so many requests for each of those that are expected; more where
#: they do not think, because then all begin at once
_EACH_USER, _EACH_CLIENT, _MOST_OF_USERS = 12, 40, 24_000


def capacity(
    model: str | Scenario | None = None,
    gpus: Mapping[str, int] | None = None,
    trace: Trace | str = DEFAULT_TRAFFIC,
    *,
    slos: Sequence[Slo | str] = (),
    goodput: Sequence[str] = (),
    min_goodput: float | None = None,
    methods: Sequence[str] = (),
    profiles: Sequence[Profile | str] = (),
    objective: str = "rate",
    prices: Mapping[str, float] | None = None,
    provider: str = DEFAULT_CLASS,
    tasks: Mapping[str, float] | str | None = None,
    min_quality: float | None = None,
    router: str = "least-requests",
    options: EngineOptions | None = None,
    beyond_measured: bool = False,
    users: bool = False,
    think_time_s: float | None = None,
    precision: float = PRECISION,
    seed: int = 0,
    too_long: str = "error",
    words: Sequence[str] = (),
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Capacity:
    """Find, for every layout of given GPUs, the highest rate at which every SLO is met.

    A layout is a method and a tensor-parallel size on the GPUs of one type: as many replicas as
    fit. All are given the same requests, faster or slower; every figure is simulated. A rate
    counts only if the fleet keeps up with it (:mod:`qsim.sim.results.backlog`).

    Parameters
    ----------
    model : str or Scenario, optional
        Take the shipped profiles of this model, on the types of ``gpus``, by ``methods`` if given;
        or all of what is asked: then ``jobs``, ``dask`` and ``progress`` may follow.
    gpus : mapping
        Number of GPUs by type, such as ``{"h100_sxm": 8}``. Each layout uses one type.
    trace : Trace or str
        The traffic's shape; a preset of no given length is drawn long enough for the rates found.
    slos, goodput, min_goodput, profiles, prices, provider, tasks, min_quality, router, options
        As for :func:`qsim.plan`.
    objective : {"rate", "cost", "energy"}
        What layouts are ordered by: requests a second, USD per million output tokens, or J per
        output token, each at the highest rate.
    precision : float
        A rate is the answer if one at most so much higher (0.02 is 2%) misses a goal.
    users : bool
        Find the most users instead: clients that each send the next request when they have the
        answer to the last one and have thought for ``think_time_s``, as ``concurrency`` of
        :func:`qsim.simulate`. When requests arrive in the trace means nothing then.
    think_time_s : float, optional
        Of users, s: the mean of an exponential distribution; 0 by default.
    words : sequence of str
        TRACE and its options on the command line, for the commands that give a layout's figures
        again; by default those of a ``trace`` that is text.
    beyond_measured, seed, too_long, jobs, dask, progress
        As for :func:`qsim.plan`.

    Raises
    ------
    ScenarioError
        If an argument is wrong, no SLO is given, the trace has no rate, or no layout fits.
    ProfileError
        If there is no profile to choose from.
    """
    if isinstance(model, Scenario):
        if gpus or slos or goodput or profiles or trace != DEFAULT_TRAFFIC:
            raise TypeError("capacity() got a scenario and more; change the scenario")
        return capacity(**capacity_arguments(model), jobs=jobs, dask=dask, progress=progress)
    limits = parse_slos(slos)
    good = goodput_goal(goodput, min_goodput, limits)
    if not limits and good is None:
        raise ScenarioError("no SLO is given; a capacity needs one, such as ttft:p99:500")
    if objective not in OBJECTIVES:
        raise ScenarioError(f"objective is {objective!r}; must be one of {', '.join(OBJECTIVES)}")
    if think_time_s is not None and not users:
        raise ScenarioError(
            f"think_time_s is {think_time_s:g}, and rates are searched; ask for users, too"
        )
    if think_time_s is not None:
        finite("think_time_s", think_time_s, 0.0, 86_400.0)
    think_s = think_time_s or 0.0
    stock = _stock(gpus)
    options = replace(options or EngineOptions(), within_measured=not beyond_measured)
    refuse_queue_limits(options.to_dict(), "qsim capacity")
    goal = quality_goal(tasks, min_quality)
    choices = choose_profiles(
        model, tuple(stock) if model else (), methods, profiles, options.vllm_version
    )
    fitting = _fitting(choices, stock)
    need = "cost" if objective == "cost" else "rate"
    blanks = [blank_candidate(c, options, prices, need, goal, None, provider) for c, _ in fitting]
    layouts = [_layout(b, stock) for b in blanks]
    if all(b.reason for b in blanks):
        raise ScenarioError(blanks[0].reason)

    def task_of(layout: Layout, profile: Profile, trace: Trace) -> FleetTask:
        return FleetTask(
            trace, profile, layout.replicas, limits, layout.blank.options, router, seed, too_long,
            good,
        )  # fmt: skip

    pairs = [(y, c.profile) for y, (c, _) in zip(layouts, fitting, strict=True)]
    able = [(y, p) for y, p in pairs if not y.blank.reason]
    if isinstance(trace, str):
        trace, words = sized_traffic(
            trace, seed, lambda t: [task_of(y, p, t) for y, p in able], tuple(words),
            think_s if users else None,
        )  # fmt: skip
    check_goals(trace, limits, good)
    if users and trace.turns is not None:
        raise ScenarioError(
            f"{trace.name}: its sessions are users that think by themselves; leave users out and "
            "see what rate of sessions is carried, or give :turns=open after the path"
        )
    rate_rps = 0.0 if users else base_rate_rps(trace)
    traffic = Traffic(describe(trace), rate_rps, tuple(words))
    asked = think_s if users else None
    searches = [_search(task_of(y, p, trace), y, precision, asked) for y, p in pairs]
    found = drive_with(
        jobs, dask, trace, [p for _, p in able], searches, [y.profile for y in layouts], progress
    )
    order = ranked(found, objective)
    machines = None
    # the stretch of traffic that ranges are simulated on has too few requests for all users
    if (
        order and order[0].best is not None and not users
    ):  # of the best one, at the rate that it carries
        profile = next(p for y, p in pairs if y.profile == order[0].profile)
        faster = trace.speed(order[0].best.speed)
        machines = fleet_ranges(task_of(order[0], profile, faster))
    settings = {"router": router, "seed": seed, "too_long": too_long, "precision": precision,
                **options.to_dict()}  # fmt: skip
    return Capacity(
        order, stock, traffic, limits, good, objective, goal, settings, machines, asked,
    )  # fmt: skip


def _stock(gpus: Mapping[str, int] | None) -> dict[str, int]:
    if not gpus:
        raise ScenarioError("no GPUs are given; say how many of which, such as h100_sxm=8")
    for gpu, count in gpus.items():
        whole(f"gpus {gpu}", count, 1, MAX_REPLICAS)
    return dict(gpus)


def _fitting(choices: Sequence[Choice], stock: Mapping[str, int]) -> list[tuple[Choice, int]]:
    """The profiles that fit the stock, each with its number of replicas."""
    foreign = sorted({c.profile.identity.gpu for c in choices} - set(stock))
    if foreign:
        raise ScenarioError(
            f"a profile is of gpu {foreign[0]!r}, of which there is none; there are "
            f"{', '.join(f'{n} {g}' for g, n in stock.items())}"
        )
    sizes = [(c, c.profile.identity.tensor_parallel_size, c.profile.identity.gpu) for c in choices]
    fitting = [(c, stock[g] // size) for c, size, g in sizes if size <= stock[g]]
    if not fitting:
        least = min(size for _, size, _ in sizes)
        raise ScenarioError(
            f"no profile fits the GPUs: the smallest needs {least} of one type; give more"
        )
    return fitting


def _layout(blank: Candidate, stock: Mapping[str, int]) -> Layout:
    replicas = stock[blank.gpu] // blank.tensor_parallel_size
    return Layout(
        blank,
        replicas,
        stock[blank.gpu] - replicas * blank.tensor_parallel_size,
        reason=blank.reason,
    )


def sized_traffic(
    trace: str,
    seed: int,
    tasks: Callable[[Trace], Sequence[FleetTask]],
    words: tuple[str, ...] = (),
    think_time_s: float | None = None,
) -> tuple[Trace, tuple[str, ...]]:
    """Read or draw the traffic; a preset of no given length as long as the fleets call for.

    Parameters
    ----------
    tasks : callable
        The fleets' tasks with a trace.
    think_time_s : float, optional
        Of users that send it.

    Returns
    -------
    Trace
    tuple of str
        TRACE for the command line.
    """
    if trace not in preset_names():
        return load_trace(trace, seed=seed), words or (trace,)
    drawn = load_trace(f"{trace}:requests={_FEWEST}", seed=seed)
    if think_time_s is not None:
        users = max((first_users(t, think_time_s) for t in tasks(drawn)), default=1)
        each = _EACH_USER if think_time_s else _EACH_CLIENT
        count = min(max(math.ceil(each * users / 100) * 100, _FEWEST), _MOST_OF_USERS)
        text = f"{trace}:requests={count}"
        return load_trace(text, seed=seed), (text,)
    rate_rps = base_rate_rps(drawn)
    fastest = max((first_speed(t) for t in tasks(drawn)), default=1.0)
    count = min(max(math.ceil(fastest * rate_rps * _SECONDS / 100) * 100, _FEWEST), _MOST)
    text = f"{trace}:requests={count}"
    return load_trace(text, seed=seed), (text,)


def _search(
    task: FleetTask, layout: Layout, precision: float, think_time_s: float | None
) -> Generator[Step, FleetOutcome, Layout]:
    """One layout's search as :func:`qsim.optimize.search.drive.drive` runs it."""
    if layout.blank.reason:
        return layout
    try:
        if think_time_s is None:
            found = yield from fleet_search(task, precision)
        else:
            found = yield from users_of_fleet(task, think_time_s, precision)
    except TraceError as e:
        return replace(layout, reason=str(e))
    reason = ""
    if found.best is None:
        slowest = found.points[0]
        least = "with one user"
        if think_time_s is None:
            least = f"at {slowest.speed * base_rate_rps(task.trace):.3g} requests/s"
        reason = f"{slowest.outcome.binding.sentence()} even {least}"
    return replace(layout, carried=found, reason=reason)
