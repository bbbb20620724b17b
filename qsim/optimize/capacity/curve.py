"""A load curve: what fleets do from light load to beyond what they carry."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

from qsim.bounds import MAX_REPLICAS
from qsim.checks import whole
from qsim.documents import rows_csv
from qsim.errors import ScenarioError
from qsim.optimize.capacity.layout import DEFAULT_TRAFFIC, Layout, Traffic
from qsim.optimize.capacity.rate_search import (
    Point,
    base_rate_rps,
    fleet_search,
)
from qsim.optimize.capacity.traffic import Tell, asked_traffic, sized_traffic
from qsim.optimize.economics.prices import prices_of, usd_per_1m
from qsim.optimize.plan.profile_choice import blank_candidate, choice_of
from qsim.optimize.search.drive import Progress, Step, drive_with
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, describe
from qsim.optimize.search.goals import check_goals, quality_goal
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.scenario.arguments import CurveArguments
from qsim.scenario.names import build, refuse_clients
from qsim.scenario.resolve import candidates_of, searched_engine
from qsim.scenario.searches import SearchSection
from qsim.sim.results.slo import METRICS, Slo
from qsim.sim.scheduler.config import EngineOptions
from qsim.traces.trace import Trace

#: shares of the highest rate that a fleet carries at which it is also simulated
SHARES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.1, 1.25, 1.5)
_MOST_FLEETS = 16


@dataclass(frozen=True)
class FleetCurve:
    """One fleet over load."""

    name: str
    #: with every simulation in ``fleet.carried.points``, by speed
    fleet: Layout

    @property
    def points(self) -> tuple[Point, ...]:
        """Every simulation, by speed."""
        return () if self.fleet.carried is None else self.fleet.carried.points


@dataclass(frozen=True)
class LoadCurve:
    """The answer of :func:`qsim.curve`."""

    fleets: tuple[FleetCurve, ...]
    traffic: Traffic
    slos: tuple[Slo, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """A row a fleet and rate; the same columns in each.

        Latencies in ms, rates and throughputs a second, energy in J, power in W.
        """
        return [self._row(f, p) for f in self.fleets for p in f.points]

    def _row(self, curve: FleetCurve, point: Point) -> dict[str, Any]:
        summary, outcome, fleet = point.outcome.summary, point.outcome, curve.fleet
        throughput, load = summary["output_throughput"], outcome.load
        return {
            "fleet": curve.name,
            "profile": fleet.profile,
            "replicas": fleet.replicas,
            "gpus": fleet.gpus,
            "speed": point.speed,
            "rate_rps": point.speed * self.traffic.rate_rps,
            "met": outcome.met if self.slos else None,
            "load": None if load is None else load.verdict,
            "request_throughput": summary["request_throughput"],
            "output_throughput": throughput,
            "total_token_throughput": summary["total_token_throughput"],
            **{
                f"{statistic}_{name}_ms": summary[f"{statistic}_{name}_ms"]
                for name in METRICS
                for statistic in ("mean", "median", "p90", "p99")
            },
            **{f"{s.slo}": s.to_dict()["value_ms"] for s in outcome.slos},
            "attainment": outcome.attainment if self.slos else None,
            "joules_per_output_token": summary["joules_per_output_token"],
            "avg_power_w": summary["avg_power_w"],
            "usd_per_1m_output_tokens": usd_per_1m(fleet.usd_per_hour, throughput),
            "preemptions": summary["preemptions"],
            "failed": summary["failed"],
        }

    def to_csv(self) -> str:
        """The rows as CSV."""
        return rows_csv(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        from qsim import __version__

        return {
            "schema": "qsim-curve/1",
            "qsim_version": __version__,
            "traffic": {**self.traffic.facts, "words": list(self.traffic.words)},
            "slos": [str(s) for s in self.slos],
            "settings": dict(self.settings),
            "fleets": [
                {
                    "name": f.name,
                    "profile": f.fleet.profile,
                    "replicas": f.fleet.replicas,
                    "gpus": f.fleet.gpus,
                    "knee_rps": f.fleet.rate_rps(self.traffic),
                    "reason": f.fleet.reason or None,
                    "note": f.fleet.blank.note or None,
                    "caution": f.fleet.blank.caution or None,
                }
                for f in self.fleets
            ],
            "points": self.rows(),
        }


def curve(
    profiles: Sequence[Profile | str] | Scenario,
    trace: Trace | str = DEFAULT_TRAFFIC,
    *,
    words: Sequence[str] = (),
    tell: Tell | None = None,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    **asked: Unpack[CurveArguments],
) -> LoadCurve:
    """Simulate fleets at many rates of the same traffic, and find where each breaks.

    The knee of a fleet is the highest rate, to 2%, at which it keeps up with the traffic and meets
    every SLO. It is simulated at shares of that (:data:`SHARES`), or at ``rates``.

    Parameters
    ----------
    profiles : sequence of Profile or str, or Scenario
        One fleet each: profiles, ids or files; or all of what is asked, where without profiles the
        fleets are the scenario's pools.
    trace : Trace or str
        The traffic's shape, as for :func:`qsim.capacity`.
    words, tell, jobs, dask, progress
        As for :func:`qsim.capacity`.
    **asked
        Fields of the scenario by name: ``slos``, ``rates``, ``replicas``, ...; see
        :class:`qsim.scenario.arguments.CurveArguments`.

    Raises
    ------
    ScenarioError
        If an argument is wrong, or the trace has no rate.
    ProfileError
        If there is no such profile.
    """
    if isinstance(profiles, Scenario):
        if asked or trace != DEFAULT_TRAFFIC:
            raise TypeError("curve() got a scenario and more; change the scenario")
        scenario = profiles
    else:
        scenario = build("curve", {"profiles": profiles, "trace": trace, **asked})
    section, accounts, seed = scenario.curve, scenario.accounts, scenario.seed
    refuse_clients("curve", scenario)
    if scenario.goodput:
        raise ScenarioError("goodput is given; qsim curve judges SLOs only: leave it out")
    among = SearchSection(profiles=section.profiles)
    profiles = candidates_of(scenario, among).profiles
    if not profiles:
        raise ScenarioError("no fleet is given; name a profile (--profile ID; qsim profiles)")
    if len(profiles) > _MOST_FLEETS:
        raise ScenarioError(
            f"{len(profiles)} profiles are given; there must be 1 to {_MOST_FLEETS}"
        )
    replicas, gpus = section.replicas, section.gpus
    if replicas is not None and gpus is not None:
        raise ScenarioError("replicas and gpus are both given; one says how large each fleet is")
    if replicas is None and gpus is None and not section.profiles:
        sizes = {p.replicas for p in scenario.fleet.pools}
        if len(sizes) > 1:
            raise ScenarioError(
                f"fleet.pools have {' and '.join(map(str, sorted(sizes)))} replicas; the fleets of "
                "a curve have one number: give curve.replicas or curve.gpus"
            )
        replicas = sizes.pop()
    options = replace(
        searched_engine(scenario, among, "curve"), within_measured=EngineOptions().within_measured
    )
    limits = scenario.limits()
    router, too_long = scenario.fleet.router, scenario.traffic.too_long
    texts = scenario.traffic.text_prompts
    trace, named = asked_traffic(scenario, tell)
    named = tuple(words) or named
    goal, prices = quality_goal(None), prices_of(accounts)
    fleets: list[tuple[Layout, Profile]] = []
    for choice in [choice_of(p, options.vllm_version) for p in profiles]:
        profile = choice.profile
        size = profile.identity.tensor_parallel_size
        blank = blank_candidate(choice, options, prices, "rate", goal, None, accounts.provider)
        if blank.reason:
            raise ScenarioError(blank.reason)
        count = _replicas(profile.id, size, replicas, gpus)
        fleets.append((Layout(blank, count, 0 if gpus is None else gpus - count * size), profile))

    def task_of(layout: Layout, profile: Profile, trace: Trace) -> FleetTask:
        return FleetTask(
            trace, profile, layout.replicas, limits, layout.blank.options, router, seed, too_long,
            text_prompts=texts,
        )  # fmt: skip

    if isinstance(trace, str):
        trace, named = sized_traffic(trace, seed, lambda t: [task_of(y, p, t) for y, p in fleets])
    check_goals(trace, limits)
    base_rps = base_rate_rps(trace)
    speeds = [float(f"{r / base_rps:.5g}") for r in sorted(set(section.rates))]
    searches = [_search(task_of(y, p, trace), y, speeds) for y, p in fleets]
    names = _names([y.profile for y, _ in fleets])
    found = drive_with(jobs, dask, trace, [p for _, p in fleets], searches, names, progress)
    settings = {"router": router, "seed": seed, "too_long": too_long,
                **({"text_prompts": True} if texts else {}), **options.to_dict()}  # fmt: skip
    return LoadCurve(
        tuple(FleetCurve(n, y) for n, y in zip(names, found, strict=True)),
        Traffic(describe(trace), base_rps, named),
        limits,
        settings,
    )


def _replicas(profile: str, size: int, replicas: int | None, gpus: int | None) -> int:
    if gpus is None:
        whole("replicas", 1 if replicas is None else replicas, 1, MAX_REPLICAS)
        return 1 if replicas is None else replicas
    whole("gpus", gpus, 1, MAX_REPLICAS)
    if gpus < size:
        raise ScenarioError(f"gpus is {gpus}; a server of {profile} takes {size}")
    return gpus // size


def _names(profiles: Sequence[str]) -> list[str]:
    """The ids without what all have in common, so that a picture can tell them apart."""
    parts = [p.split("/") for p in profiles]
    if len(set(profiles)) < 2 or len({len(p) for p in parts}) > 1:
        return list(profiles)
    differ = [i for i in range(len(parts[0])) if len({p[i] for p in parts}) > 1]
    return ["/".join(p[i] for i in differ) for p in parts]


def _search(
    task: FleetTask, layout: Layout, speeds: Sequence[float]
) -> Generator[Step, FleetOutcome, Layout]:
    """The knee, then the points that are still missing."""
    found = yield from fleet_search(task, left=14)
    knee = found.best or found.points[0]
    wanted = list(speeds) or [float(f"{s * knee.speed:.5g}") for s in SHARES]
    done = {p.speed: p for p in found.points}
    for i, speed in enumerate(wanted):
        if speed not in done:
            outcome = yield replace(task, trace=task.trace.speed(speed)), len(wanted) - i
            done[speed] = Point(speed, outcome)
    shown = set(wanted) | {knee.speed}
    if not speeds and found.broken is not None:
        shown.add(found.broken.speed)
    points = tuple(done[s] for s in sorted(shown))
    reason = ""
    if found.best is None:
        reason = f"{knee.outcome.binding.sentence()} even at the lowest rate that was tried"
    return replace(layout, carried=replace(found, points=points), reason=reason)
