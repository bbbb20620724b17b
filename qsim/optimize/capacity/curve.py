"""A load curve: what fleets do from light load to beyond what they carry."""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qsim.bounds import MAX_REPLICAS
from qsim.checks import finite, whole
from qsim.errors import ScenarioError
from qsim.optimize.capacity.capacity import sized_traffic
from qsim.optimize.capacity.layout import DEFAULT_TRAFFIC, Layout, Traffic
from qsim.optimize.capacity.rate_search import (
    Point,
    base_rate_rps,
    fleet_search,
)
from qsim.optimize.capacity.scenario import curve_arguments
from qsim.optimize.economics.prices import DEFAULT_CLASS, usd_per_1m
from qsim.optimize.plan.profile_choice import Choice, blank_candidate
from qsim.optimize.search.drive import Progress, Step, drive_with
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, describe
from qsim.optimize.search.goals import check_goals, quality_goal
from qsim.profiles.lookup import load_profile, version_of
from qsim.profiles.schema import Profile
from qsim.scenario import Scenario
from qsim.sim.results.slo import Slo, parse_slos
from qsim.sim.scheduler.config import EngineOptions, refuse_queue_limits
from qsim.traces.trace import Trace

__all__ = ["SHARES", "FleetCurve", "LoadCurve", "curve"]

#: shares of the highest rate that a fleet carries at which it is also simulated
SHARES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.1, 1.25, 1.5)
_MOST_FLEETS, _MOST_RATES = 16, 200
_LATENCIES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True)
class FleetCurve:
    """One fleet over load.

    Attributes
    ----------
    fleet : Layout
        With every simulation in ``fleet.carried.points``, by speed.
    """

    name: str
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
                for name in _LATENCIES
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
        rows = self.rows()
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

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
    replicas: int | None = None,
    gpus: int | None = None,
    rates: Sequence[float] = (),
    slos: Sequence[Slo | str] = (),
    prices: Mapping[str, float] | None = None,
    provider: str = DEFAULT_CLASS,
    router: str = "least-requests",
    options: EngineOptions | None = None,
    seed: int = 0,
    too_long: str = "error",
    words: Sequence[str] = (),
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> LoadCurve:
    """Simulate fleets at many rates of the same traffic, and find where each breaks.

    The knee of a fleet is the highest rate, to 2%, at which it keeps up with the traffic and meets
    every SLO. It is simulated at shares of that (:data:`SHARES`), or at ``rates``.

    Parameters
    ----------
    profiles : sequence of Profile or str, or Scenario
        One fleet each: profiles, ids or files; or all of what is asked: then ``jobs``, ``dask``
        and ``progress`` may follow.
    trace : Trace or str
        The traffic's shape, as for :func:`qsim.capacity`.
    replicas, gpus : int, optional
        Servers of each fleet, or GPUs of each (as many servers as fit); 1 server by default.
    rates : sequence of float
        Requests a second; by default they are chosen.
    slos, prices, provider, router, options, seed, too_long, words, jobs, dask, progress
        As for :func:`qsim.capacity`.

    Raises
    ------
    ScenarioError
        If an argument is wrong, or the trace has no rate.
    ProfileError
        If there is no such profile.
    """
    if isinstance(profiles, Scenario):
        if slos or rates or replicas or gpus or trace != DEFAULT_TRAFFIC:
            raise TypeError("curve() got a scenario and more; change the scenario")
        return curve(**curve_arguments(profiles), jobs=jobs, dask=dask, progress=progress)
    limits = parse_slos(slos)
    options = options or EngineOptions()
    refuse_queue_limits(options.to_dict(), "qsim curve")
    for rate in rates:
        finite("rates", rate, 0.0, 1e6, above=True)
    if not profiles or len(profiles) > _MOST_FLEETS or len(rates) > _MOST_RATES:
        raise ScenarioError(
            f"{len(profiles)} profiles and {len(rates)} rates are given; there must be 1 to "
            f"{_MOST_FLEETS} profiles, and at most {_MOST_RATES} rates"
        )
    if replicas is not None and gpus is not None:
        raise ScenarioError("replicas and gpus are both given; one says how large each fleet is")
    choices = [
        Choice(load_profile(p, options.vllm_version), p)
        if isinstance(p, str)
        else Choice(version_of(p, options.vllm_version))
        for p in profiles
    ]
    goal = quality_goal(None)
    fleets: list[tuple[Layout, Profile]] = []
    for choice in choices:
        profile = choice.profile
        size = profile.identity.tensor_parallel_size
        blank = blank_candidate(choice, options, prices, "rate", goal, None, provider)
        if blank.reason:
            raise ScenarioError(blank.reason)
        count = _replicas(profile.id, size, replicas, gpus)
        fleets.append((Layout(blank, count, 0 if gpus is None else gpus - count * size), profile))

    def task_of(layout: Layout, profile: Profile, trace: Trace) -> FleetTask:
        return FleetTask(
            trace, profile, layout.replicas, limits, layout.blank.options, router, seed, too_long
        )

    if isinstance(trace, str):
        trace, words = sized_traffic(
            trace, seed, lambda t: [task_of(y, p, t) for y, p in fleets], tuple(words)
        )
    check_goals(trace, limits)
    base_rps = base_rate_rps(trace)
    speeds = [float(f"{r / base_rps:.5g}") for r in sorted(set(rates))]
    searches = [_search(task_of(y, p, trace), y, speeds) for y, p in fleets]
    names = _names([y.profile for y, _ in fleets])
    found = drive_with(jobs, dask, trace, [p for _, p in fleets], searches, names, progress)
    settings = {"router": router, "seed": seed, "too_long": too_long, **options.to_dict()}
    return LoadCurve(
        tuple(FleetCurve(n, y) for n, y in zip(names, found, strict=True)),
        Traffic(describe(trace), base_rps, tuple(words)),
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
