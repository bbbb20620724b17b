"""``simulate_stream``: a trace that comes part by part, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from qsim.errors import ScenarioError
from qsim.profiles.measured_range import BeyondMeasured
from qsim.profiles.schema import Profile
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import FleetArguments, resolve_fleet
from qsim.sim.fleet.fleet import Fleet
from qsim.sim.results.backlog import CLOSED_LOOP, Load, judge
from qsim.sim.results.finished import outcome_notes
from qsim.sim.results.latency import Latency
from qsim.sim.results.outages import Outages, Windows
from qsim.sim.results.pools import PoolSums
from qsim.sim.results.scaling import Scaling
from qsim.sim.results.slo import Slo, has_something
from qsim.sim.results.streaming import Feed, Rows, Sums
from qsim.sim.results.summary import parse_statistic, summarise
from qsim.sim.run_facts import (
    beyond_measured,
    outages_of,
    outages_s,
    pool_uses,
    replica_stats,
    scaling_of,
    tells_outcomes,
)
from qsim.traces.trace import Trace

__all__ = ["StreamResult", "simulate_stream"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StreamResult:
    """What is known of a run whose requests were let go.

    As of :class:`qsim.sim.results.result.SimulationResult`; percentiles are within
    :data:`qsim.sim.results.histogram.RELATIVE_ERROR` of the exact ones, all else is exact.
    """

    counts: dict[str, int]
    duration_s: float
    replica_stats: list[dict[str, Any]]
    timeline: dict[str, FloatArray]
    gpus: int
    scenario: dict[str, Any]
    notes: list[str]
    beyond: BeyondMeasured | None
    _latencies: Mapping[str, Latency]
    _slos: tuple[Slo, ...]
    _good: int
    #: whether the fleet kept up with the trace
    load: Load
    #: one dict a pool, if there are several
    pools: list[dict[str, Any]] = field(default_factory=list)
    #: how many requests have no answer, by why, where clients give up or servers fail
    outcomes: dict[str, int] = field(default_factory=dict)
    #: where servers fail
    outages: Outages | None = None
    #: where an autoscaler says how many servers are on
    scaling: Scaling | None = None
    _windows: Windows = field(default_factory=Windows)

    @property
    def energy_j(self) -> float:
        """Energy of all GPUs from the first arrival to the last token, idle included."""
        return float(sum(r["energy_j"] for r in self.replica_stats))

    def sample(self, metric: str) -> int:
        """How many requests have a latency; how many gaps between tokens there are for ITL."""
        return self._latency(metric).histogram.total

    def statistic(self, metric: str, statistic: str) -> float:
        """``mean``, ``median`` or ``pNN`` of ``ttft``, ``tpot``, ``itl`` or ``e2el``, in ms."""
        q = parse_statistic(statistic)
        return self._latency(metric).mean() if q is None else self.percentiles(metric, [q])[0]

    def percentiles(self, metric: str, qs: Sequence[float]) -> list[float]:
        """Several percentiles of a latency, in ms; nan over nothing."""
        return self._latency(metric).percentiles(qs)

    def _latency(self, metric: str) -> Latency:
        if metric not in self._latencies:
            raise ScenarioError(f"metric is {metric!r}; must be ttft, tpot, itl or e2el")
        return self._latencies[metric]

    def count_good(self, slos: Sequence[Slo]) -> int:
        """Requests within every limit by themselves; of the SLOs that were given to the run."""
        if tuple(slos) != self._slos:
            raise ScenarioError(
                f"SLOs are {', '.join(map(str, slos)) or 'none'}; the run counted requests for "
                f"{', '.join(map(str, self._slos)) or 'none'}: give them to simulate_stream"
            )
        return self._good

    def attainment(self) -> float | None:
        """The share of all requests within every limit; None as of a whole run."""
        if not has_something(self, self._slos):
            return None
        return self._good / (self.counts["completed"] + self.counts["failed"])

    def windows(self, slos: Sequence[Slo]) -> Windows:
        """As of a whole run; of the SLOs that were given to the run."""
        self.count_good(slos)
        return self._windows

    def summary(self, slos: Sequence[Slo] = ()) -> dict[str, Any]:
        """As :meth:`qsim.sim.results.result.SimulationResult.summary`."""
        return summarise(self, slos)


def simulate_stream(
    parts: Iterable[Trace],
    profile: Profile | str | None = None,
    *,
    slos: Sequence[Slo] = (),
    rows: Rows | None = None,
    progress: Callable[[int], None] | None = None,
    **asked: Unpack[FleetArguments],
) -> StreamResult:
    """Replay a trace that comes in parts; the requests fare as in :func:`qsim.simulate`.

    A part is taken when the last request before it has arrived, and let go when its requests and
    those of the parts before have finished. Memory is that of the requests in the fleet, of one
    or two parts, and of the histograms, 16 MiB.

    Parameters
    ----------
    parts : iterable of Trace
        On one clock, in order of arrival.
    profile, **asked
        As of :func:`qsim.simulate`.
    slos : sequence of Slo
        What ``attainment`` and goodput are counted for.
    rows : callable, optional
        Takes the columns of the requests file, for the next requests in order of arrival.
    progress : callable, optional
        Called now and then with the number of requests that have arrived.

    Raises
    ------
    ScenarioError, ProfileError, TraceError
        As :func:`qsim.simulate`; also when parts are not in order of arrival.
    """
    setup = resolve_fleet(profile, **asked)
    feed = Feed(parts, setup.admission())
    first = next(feed, None)
    if first is None:
        raise feed.nothing()
    by_pool = PoolSums(pool_uses(setup)) if len(setup.pools) > 1 else None
    sums = Sums(tuple(slos), setup.replicas, feed, rows, by_pool)
    fleet = Fleet(*first, setup, progress=progress, more=feed, release=sums.release)
    sums.gaps = fleet.gaps
    if setup.concurrency is not None:
        sums.closed_origin_s = fleet.origin_s
    if setup.failures is not None:
        sums.outages = lambda: outages_s(fleet)
    tells = tells_outcomes(setup, first[0])
    fleet.run()
    sums.end()
    if progress is not None:
        progress(feed.taken)
    notes = feed.admission.notes() + setup.router_notes(first[0])
    served = feed.taken - feed.admission.rejected
    beyond, told = beyond_measured(setup, fleet, served, feed.admission.longer)
    notes += told
    if fleet.limits is not None:
        notes += fleet.limits.notes()
    notes += outcome_notes(sums.outcomes)
    duration_s = (fleet.end_ps - sums.begin_ps) / PS_PER_S
    stats = replica_stats(setup, fleet, sums.served)
    return StreamResult(
        counts={**sums.counts, "truncated": feed.admission.truncated},
        duration_s=duration_s,
        replica_stats=stats,
        timeline=fleet.timeline.columns(fleet.end_ps, setup.replicas, fleet.origin_s),
        gpus=setup.gpus,
        scenario=setup.scenario(feed.name, feed.taken),
        notes=notes,
        beyond=beyond,
        _latencies=sums.latencies,
        _slos=tuple(slos),
        _good=sums.good,
        load=judge(sums.flow) if setup.concurrency is None else CLOSED_LOOP,
        outcomes=sums.outcomes if tells else {},
        outages=outages_of(setup, fleet, sums.in_fleet),
        scaling=scaling_of(setup, fleet, sums.begin_ps),
        _windows=sums.windows,
        pools=[] if by_pool is None else by_pool.rows(stats, duration_s),
    )
