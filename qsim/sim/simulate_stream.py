"""``simulate_stream``: a trace that comes part by part, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Unpack

from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.sim.fleet.admission import FleetArguments, resolve_fleet
from qsim.sim.fleet.fleet import Fleet
from qsim.sim.results.backlog import Flow
from qsim.sim.results.histogram import Latency
from qsim.sim.results.outages import Windows
from qsim.sim.results.pools import PoolLatencies
from qsim.sim.results.requests import RowWriter
from qsim.sim.results.slo import Slo, attainment
from qsim.sim.results.streaming import Feed, Sums
from qsim.sim.results.summary import Run
from qsim.sim.run_facts import outages_s, pool_uses, run_facts
from qsim.traces.trace import Trace


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamResult(Run):
    """What is known of a run whose requests were let go.

    Percentiles are within :data:`qsim.sim.results.histogram.RELATIVE_ERROR` of the exact ones, all
    else is exact.
    """

    _sums: Sums

    @property
    def counts(self) -> dict[str, int]:
        return self._sums.counts

    @property
    def flow(self) -> Flow:
        return self._sums.flow

    def sample(self, metric: str) -> int:
        return self._latency(metric).histogram.total

    def mean(self, metric: str) -> float:
        return self._latency(metric).mean()

    def percentiles(self, metric: str, qs: Sequence[float]) -> list[float]:
        return self._latency(metric).percentiles(qs)

    def _latency(self, metric: str) -> Latency:
        latencies = self._sums.latencies
        if metric not in latencies:
            raise ScenarioError(f"metric is {metric!r}; must be ttft, tpot, itl or e2el")
        return latencies[metric]

    def count_good(self, slos: Sequence[Slo]) -> int:
        """As of a whole run; of the SLOs that were given to the run."""
        if tuple(slos) != self._sums.slos:
            raise ScenarioError(
                f"SLOs are {', '.join(map(str, slos)) or 'none'}; the run counted requests for "
                f"{', '.join(map(str, self._sums.slos)) or 'none'}: give them to simulate_stream"
            )
        return self._sums.good

    def attainment(self) -> float | None:
        """The share of all requests within every limit that the run was given; None without one."""
        return attainment(self, self._sums.slos)

    def windows(self, slos: Sequence[Slo]) -> Windows:
        self.count_good(slos)
        return self._sums.windows


def simulate_stream(
    parts: Iterable[Trace],
    profile: Profile | str | None = None,
    *,
    slos: Sequence[Slo] = (),
    rows: RowWriter | None = None,
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
    by_pool = PoolLatencies(pool_uses(setup)) if len(setup.pools) > 1 else None
    sums = Sums(tuple(slos), setup.replicas, feed, rows, by_pool)
    fleet = Fleet(*first, setup, progress=progress, more=feed, release=sums.release)
    sums.gaps = fleet.gaps
    if setup.concurrency is not None:
        sums.closed_origin_s = fleet.origin_s
    if setup.failures is not None:
        sums.outages = lambda: outages_s(fleet)
    fleet.run()
    sums.end()
    if progress is not None:
        progress(feed.taken)
    return StreamResult(
        **run_facts(
            setup,
            fleet,
            feed.admission,
            first[0],
            requests=feed.taken,
            begin_ps=sums.begin_ps,
            served=sums.served,
            outcomes=sums.outcomes,
            latencies=() if by_pool is None else by_pool.values(),
            in_fleet=sums.in_fleet,
        ),
        _sums=sums,
    )
