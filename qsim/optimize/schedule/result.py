"""What a schedule says: the timetable, and what it and the other policies did on the trace."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qsim.optimize.schedule.problem import UNITS, PoolChoice, ScheduleProblem
from qsim.optimize.schedule.tasks import RunOutcome
from qsim.quality.recovery import Recovery


@dataclass(frozen=True)
class PolicyResult:
    """One policy on the whole trace."""

    name: str
    #: for people
    description: str
    #: the pools that it had
    choices: tuple[PoolChoice, ...]
    #: what was searched, and found
    params: Mapping[str, Any]
    run: RunOutcome
    #: energy_j, cost_usd, gco2e (None where unknown) and gpu_hours
    totals: Mapping[str, float | None]
    #: the objective
    value: float
    #: mean over the requests as they were routed
    quality: Recovery | None
    #: simulations of the whole trace that the search took
    trials: int = 1

    @property
    def met(self) -> bool:
        """Whether every SLO is met in every window, by servers that keep up."""
        return not self.run.missed and not self.run.overload

    @property
    def worst_attainment(self) -> float:
        """Share of requests within every limit, in the worst window."""
        return min(self.run.window_attainment)

    def to_dict(self, problem: ScheduleProblem) -> dict[str, Any]:
        """JSON-ready."""
        ratio, window, slo = self.run.worst
        return {
            "policy": self.name,
            "description": self.description,
            "pools": [c.name for c in self.choices],
            "params": dict(self.params),
            "trials": self.trials,
            "met_in_every_window": self.met,
            "missed_windows": list(self.run.missed),
            "overload": self.run.overload,
            "binding": {
                "slo": str(problem.slos[slo]),
                "window": window,
                "value_ms": ratio * problem.slos[slo].limit_ms,
                "over_limit": ratio - 1,
            },
            **self.totals,
            "attainment": self.run.attainment,
            "worst_window_attainment": self.worst_attainment,
            "quality": None if self.quality is None else self.quality.to_dict(),
            "requests": dict(zip([c.name for c in self.choices], self.run.requests, strict=True)),
            "starts": self.run.starts,
            "wakes": self.run.wakes,
            "slos": {
                str(s): r * s.limit_ms for s, r in zip(problem.slos, self.run.ratios, strict=True)
            },
            "windows": [
                {
                    "energy_j": e,
                    "requests": list(n),
                    "attainment": a,
                    "ratios": list(r),
                }
                for e, n, a, r in zip(
                    self.run.window_energy_j,
                    self.run.window_requests,
                    self.run.window_attainment,
                    self.run.window_ratios,
                    strict=True,
                )
            ],
        }


@dataclass(frozen=True)
class Schedule:
    """The answer of :func:`qsim.optimize.schedule.scheduling.schedule`."""

    #: the traffic that the policies were run on
    problem: ScheduleProblem
    #: the pools of the timetable, with the weights by which requests are routed
    choices: tuple[PoolChoice, ...]
    #: servers by window (outer) and pool
    counts: tuple[tuple[int, ...], ...]
    #: how long before its window a server is started
    lead_s: float
    #: routing: 0 for the fewest requests outstanding by weight, else the first server that has
    #: fewer than so many times its weight
    pack: int
    #: the optimized timetable last
    results: tuple[PolicyResult, ...]
    #: ``perfect`` (the timetable was made from the very trace that it ran on) or ``day-before``
    forecast: str
    notes: tuple[str, ...] = ()
    #: how much was simulated
    search: Mapping[str, Any] = field(default_factory=dict)
    trace_facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> PolicyResult:
        """The optimized timetable."""
        return self.results[-1]

    @property
    def unit(self) -> str:
        """Of the objective."""
        return UNITS[self.problem.objective]

    def saving(self, name: str) -> float | None:
        """Share of the objective that the timetable saves against a policy.

        None if either misses an SLO in some window: then they are not to be compared.
        """
        other = next(r for r in self.results if r.name == name)
        if not (other.met and self.best.met) or not other.value:
            return None
        return 1 - self.best.value / other.value

    def objection(self) -> str:
        """Which SLO the timetable misses, where and by how much; "" if it misses none."""
        if self.best.met:
            return ""
        if not self.best.run.missed:
            return (
                f"the timetable's servers are overloaded: {self.best.run.overload:.1%} of the "
                "requests are not finished as they arrive"
            )
        ratio, window, slo = self.best.run.worst
        limit = self.problem.slos[slo]
        return (
            f"the timetable misses {len(self.best.run.missed)} of {self.problem.windows} windows: "
            f"worst is {limit} in window {window}, {ratio * limit.limit_ms:.4g} ms, "
            f"{ratio - 1:.1%} over its limit"
        )

    def shares(self, window: int) -> tuple[float, ...]:
        """The share of requests that each pool had in a window."""
        row = self.best.run.window_requests[window]
        total = sum(row)
        return tuple(n / total if total else 0.0 for n in row)

    def to_csv(self) -> str:
        """A row a window: begin, end, then servers and share of requests of each pool."""
        out = io.StringIO()
        names = [c.name for c in self.choices]
        heads = ["start_s", "end_s", *(f"servers {n}" for n in names)]
        heads += [f"share {n}" for n in names]
        out.write(",".join(heads) + "\n")
        for t, row in enumerate(self.counts):
            begin = t * self.problem.window_s
            cells = [f"{begin:.0f}", f"{begin + self.problem.window_s:.0f}", *map(str, row)]
            cells += [f"{x:.4f}" for x in self.shares(t)]
            out.write(",".join(cells) + "\n")
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        from qsim import __version__

        p = self.problem
        prices = {c.pool.profile.identity.gpu: c for c in self.choices if c.usd_per_gpu_hour}
        return {
            "schema": "qsim-schedule/1",
            "qsim_version": __version__,
            "objective": p.objective,
            "slos": [str(s) for s in p.slos],
            "trace": dict(self.trace_facts),
            "window_s": p.window_s,
            "forecast": self.forecast,
            "forecast_margin": p.margin,
            "min_quality": p.min_quality,
            "max_gpus": p.max_gpus,
            "owned_gpus": p.owned_gpus,
            "off_w": p.off_w if p.owned_gpus is not None else None,
            "carbon": None if p.grid is None else {**p.grid.to_dict(), "pue": p.pue},
            "prices": [
                {"gpu": g, "usd_per_hour": c.usd_per_gpu_hour, "source": c.price_source}
                for g, c in sorted(prices.items())
            ],
            "schedule": {
                "pools": [
                    {
                        "profile": c.name,
                        "weight": c.pool.weight,
                        "start_s": c.pool.lifecycle.start_s,
                        "stop_s": c.pool.lifecycle.stop_s,
                    }
                    for c in self.choices
                ],
                "lead_s": self.lead_s,
                "pack": self.pack,
                "windows": [
                    {
                        "start_s": t * p.window_s,
                        "end_s": (t + 1) * p.window_s,
                        "servers": list(row),
                        "shares": list(self.shares(t)),
                    }
                    for t, row in enumerate(self.counts)
                ],
            },
            "savings": {r.name: self.saving(r.name) for r in self.results[:-1]},
            "policies": [r.to_dict(p) for r in self.results],
            "notes": list(self.notes),
            "search": dict(self.search),
        }
