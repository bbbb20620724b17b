"""What given GPUs carry: every layout at the highest rate at which the SLOs hold."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

from qsim.errors import ScenarioError, TraceError
from qsim.optimize.capacity.layout import (
    DEFAULT_TRAFFIC,
    Capacity,
    Layout,
    Traffic,
    ranked,
)
from qsim.optimize.capacity.rate_search import (
    base_rate_rps,
    fleet_search,
    users_of_fleet,
)
from qsim.optimize.capacity.traffic import Tell, asked_traffic, sized_traffic
from qsim.optimize.economics.prices import prices_of
from qsim.optimize.plan.profile_choice import Choice, blank_candidate, choose_profiles
from qsim.optimize.search.drive import Progress, Step, drive_with
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, describe, fleet_ranges
from qsim.optimize.search.goals import check_goals, quality_goal
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.scenario.arguments import CapacityArguments
from qsim.scenario.names import build, refuse_clients
from qsim.scenario.resolve import candidates_of, searched_engine
from qsim.sim.results.goodput import goodput_goal
from qsim.traces.trace import Trace


def capacity(
    model: str | Scenario | None = None,
    gpus: Mapping[str, int] | None = None,
    trace: Trace | str = DEFAULT_TRAFFIC,
    *,
    words: Sequence[str] = (),
    tell: Tell | None = None,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    **asked: Unpack[CapacityArguments],
) -> Capacity:
    """Find, for every layout of given GPUs, the highest rate at which every SLO is met.

    A layout is a method and a tensor-parallel size on the GPUs of one type: as many replicas as
    fit. All are given the same requests, faster or slower; every figure is simulated. A rate
    counts only if the fleet keeps up with it (:mod:`qsim.sim.results.backlog`).

    Parameters
    ----------
    model : str or Scenario, optional
        Take the shipped profiles of this model, on the types of ``gpus``, by ``methods`` if given;
        or all of what is asked.
    gpus : mapping
        Number of GPUs by type, such as ``{"h100_sxm": 8}``. Each layout uses one type.
    trace : Trace or str
        The traffic's shape; a preset of no given length is drawn long enough for the rates found.
    words : sequence of str
        TRACE and its options on the command line, for the commands that give a layout's figures
        again; by default those of a ``trace`` that is text.
    tell : callable, optional
        Takes the name of each trace and what is known of how it was read.
    jobs, dask, progress
        As for :func:`qsim.plan`.
    **asked
        Fields of the scenario by name: ``slos``, ``objective``, ``users``, ...; see
        :class:`qsim.scenario.arguments.CapacityArguments`.

    Raises
    ------
    ScenarioError
        If an argument is wrong, no SLO is given, the trace has no rate, or no layout fits.
    ProfileError
        If there is no profile to choose from.
    """
    if isinstance(model, Scenario):
        if gpus or asked or trace != DEFAULT_TRAFFIC:
            raise TypeError("capacity() got a scenario and more; change the scenario")
        scenario = model
    else:
        scenario = build("capacity", {"model": model, "gpus": gpus, "trace": trace, **asked})
    section, accounts = scenario.capacity, scenario.accounts
    think_time_s = scenario.traffic.think_time_s
    refuse_clients("capacity", scenario, but=("traffic.think_time_s",))
    limits = scenario.limits()
    good = goodput_goal(scenario.goodput, section.min_goodput, limits)
    if not limits and good is None:
        raise ScenarioError("no SLO is given; a capacity needs one, such as ttft:p99:500")
    users, objective, seed = section.users, section.objective, scenario.seed
    if think_time_s is not None and not users:
        raise ScenarioError(
            f"think_time_s is {think_time_s:g}, and rates are searched; ask for users, too"
        )
    thinks = (think_time_s or 0.0) if users else None
    stock = section.gpus
    if not stock:
        raise ScenarioError("no GPUs are given; say how many of which, such as h100_sxm=8")
    options = searched_engine(scenario, section, "capacity")
    router, too_long = scenario.fleet.router, scenario.traffic.too_long
    trace, named = asked_traffic(scenario, tell)
    named = tuple(words) or named
    goal = quality_goal(accounts.tasks, section.min_quality)
    among = candidates_of(scenario, section)
    choices = choose_profiles(
        among.model, tuple(stock) if among.model else (), among.methods, among.profiles,
        options.vllm_version,
    )  # fmt: skip
    fitting = _fitting(choices, stock)
    need = "cost" if objective == "cost" else "rate"
    prices = prices_of(accounts)
    blanks = [
        blank_candidate(c, options, prices, need, goal, None, accounts.provider) for c in fitting
    ]
    layouts = [
        Layout(b, *divmod(stock[b.gpu], b.tensor_parallel_size), reason=b.reason) for b in blanks
    ]
    if all(b.reason for b in blanks):
        raise ScenarioError(blanks[0].reason)

    def task_of(layout: Layout, profile: Profile, trace: Trace) -> FleetTask:
        return FleetTask(
            trace, profile, layout.replicas, limits, layout.blank.options, router, seed, too_long,
            good, text_prompts=scenario.traffic.text_prompts,
        )  # fmt: skip

    pairs = [(y, c.profile) for y, c in zip(layouts, fitting, strict=True)]
    able = [(y, p) for y, p in pairs if not y.blank.reason]
    if isinstance(trace, str):
        trace, named = sized_traffic(
            trace, seed, lambda t: [task_of(y, p, t) for y, p in able], thinks
        )
    check_goals(trace, limits, good)
    if users and trace.turns is not None:
        raise ScenarioError(
            f"{trace.name}: its sessions are users that think by themselves; leave users out and "
            "see what rate of sessions is carried, or give :turns=open after the path"
        )
    rate_rps = 0.0 if users else base_rate_rps(trace)
    traffic = Traffic(describe(trace), rate_rps, named)
    searches = [_search(task_of(y, p, trace), y, section.precision, thinks) for y, p in pairs]
    found = drive_with(
        jobs, dask, trace, [p for _, p in able], searches, [y.profile for y in layouts], progress
    )
    order = ranked(found, objective)
    machines = None
    # of the best one at the rate that it carries; the stretch of traffic that ranges are simulated
    # on has too few requests for all users
    if order and order[0].best is not None and not users:
        profile = next(p for y, p in pairs if y.profile == order[0].profile)
        faster = trace.speed(order[0].best.speed)
        machines = fleet_ranges(task_of(order[0], profile, faster))
    told = {"router": router, "seed": seed, "too_long": too_long, "precision": section.precision}
    texts = {"text_prompts": True} if scenario.traffic.text_prompts else {}
    settings = {**told, **texts, **options.to_dict()}
    return Capacity(
        order, stock, traffic, limits, good, objective, goal, settings, machines, thinks
    )


def _fitting(choices: Sequence[Choice], stock: Mapping[str, int]) -> list[Choice]:
    """The profiles of which a server fits the stock."""
    foreign = sorted({c.profile.identity.gpu for c in choices} - set(stock))
    if foreign:
        raise ScenarioError(
            f"a profile is of gpu {foreign[0]!r}, of which there is none; there are "
            f"{', '.join(f'{n} {g}' for g, n in stock.items())}"
        )
    servers = [(c, c.profile.identity) for c in choices]
    fitting = [c for c, i in servers if i.tensor_parallel_size <= stock[i.gpu]]
    if not fitting:
        least = min(i.tensor_parallel_size for _, i in servers)
        raise ScenarioError(
            f"no profile fits the GPUs: the smallest needs {least} of one type; give more"
        )
    return fitting


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
