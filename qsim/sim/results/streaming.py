"""What a run that lets its requests go keeps of them: rows as they come, sums, and counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from qsim.arrays import BoolArray, IntArray
from qsim.errors import TraceError
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.admission import Admission
from qsim.sim.results.backlog import Flow
from qsim.sim.results.finished import Finished, as_sent, outcomes, request_columns, without_rejected
from qsim.sim.results.histogram import Latency
from qsim.sim.results.itl import Gaps
from qsim.sim.results.outages import TimeCounts, Windows
from qsim.sim.results.pools import PoolLatencies
from qsim.sim.results.requests import RowWriter
from qsim.sim.results.servers import Served
from qsim.sim.results.slo import Slo, within
from qsim.traces.trace import Trace


class Feed(Iterator[tuple[Trace, list[int]]]):
    """Hands the admissible requests to the fleet; remembers each part until it has finished."""

    def __init__(self, parts: Iterable[Trace], admission: Admission) -> None:
        self._parts = iter(parts)
        self._last_s = 0.0
        self.admission = admission
        self.name = "trace"
        self.taken = 0
        #: parts in the fleet: all requests, their output tokens, and which were admitted
        self.open: deque[tuple[Trace, IntArray, BoolArray]] = deque()

    def __next__(self) -> tuple[Trace, list[int]]:
        for part in self._parts:
            self._check(part)
            admitted, output, admissible = self.admission.admit(part)
            self.taken += len(part)
            self.open.append((part, output, admissible))
            if admitted is not None:
                return admitted, output.tolist()
        raise StopIteration

    def _check(self, part: Trace) -> None:
        self.name = part.name
        if part.turns is not None:
            raise TraceError(
                f"{part.name}: later turns of its sessions wait for answers, so it is simulated as "
                "a whole: give --no-stream"
            )
        begin_s = float(part.arrival_s[0])
        if begin_s < self._last_s:
            raise TraceError(
                f"{part.name}: arrival_s of request {self.taken} is {begin_s!r}, before that of "
                f"the part before it ({self._last_s!r}); parts must be in order of arrival"
            )
        self._last_s = float(part.arrival_s[-1])

    def nothing(self) -> TraceError:
        """Why there is no request to begin with."""
        if self.admission.rejected:
            return self.admission.too_long_error()
        return TraceError("the trace has no request: no part came")


class Sums:
    """Takes finished requests, and keeps what the summary needs."""

    def __init__(
        self,
        slos: tuple[Slo, ...],
        replicas: int,
        feed: Feed,
        rows: RowWriter | None,
        pools: PoolLatencies | None = None,
    ) -> None:
        self._pools = pools
        self.flow = Flow()
        self.slos = slos
        self._feed = feed
        self._rows = rows
        self._numbered = 0
        self.begin_ps: int = 0
        self._begun = False
        self.gaps: Any = None
        self.served = Served(replicas)
        self.latencies = {name: Latency() for name in ("ttft", "tpot", "itl", "e2el")}
        self.good = 0
        #: where clients wait for answers: the trace's time at which the run's clock is 0
        self.closed_origin_s: float | None = None
        #: where servers fail: when they were down so far
        self.outages: Callable[[], Sequence[tuple[int, float, float]]] | None = None
        self.windows = Windows()
        self.in_fleet = TimeCounts()
        self.outcomes = dict.fromkeys(("rejected", "timed_out", "failed"), 0)
        names = ("completed", "failed", "input_tokens", "output_tokens", "preemptions")
        self.counts = dict.fromkeys((*names, "cached_tokens", "truncated"), 0)

    def release(self, finished: Finished) -> None:
        """The next part has finished."""
        if not self._begun:
            self.begin_ps, self._begun = int(finished.arrival_ps[0]), True
            self.flow = Flow(self.begin_ps / PS_PER_S)
        self._take_gaps()
        part, output, admissible = self._feed.open.popleft()
        while not admissible.any():  # nothing of it was in the fleet
            self._count(part, output, admissible, None)
            part, output, admissible = self._feed.open.popleft()
        if self.closed_origin_s is not None:
            part = as_sent(part, admissible, finished, self.closed_origin_s)
        if self.outages is not None:
            self.in_fleet.add(finished.arrival_ps / PS_PER_S, finished.last_token_ps / PS_PER_S)
        for name, count in outcomes(finished).items():
            self.outcomes[name] += count
        output, admissible, finished = without_rejected(output, admissible, finished)
        self._count(part, output, admissible, finished)
        self.flow.add(
            finished.arrival_ps / PS_PER_S,
            finished.first_token_ps / PS_PER_S,
            finished.last_token_ps / PS_PER_S,
        )
        self.served.add(
            finished.replica, part.prompt_tokens[admissible], output, finished.cached_tokens
        )

    def end(self) -> None:
        """All have finished."""
        self._take_gaps()
        while self._feed.open:
            self._count(*self._feed.open.popleft(), None)
        self.counts["truncated"] = self._feed.admission.truncated

    def _take_gaps(self) -> None:
        if len(self.gaps):
            self.latencies["itl"].add_gaps(Gaps(np.array(self.gaps, np.int64)))
            del self.gaps[:]

    def _count(
        self, part: Trace, output: IntArray, admissible: BoolArray, finished: Finished | None
    ) -> None:
        columns = request_columns(part, output, admissible, finished, self._numbered)
        self._numbered += len(part)
        counts = self.counts
        done = int(admissible.sum())
        counts["completed"] += done
        counts["failed"] += len(part) - done
        counts["input_tokens"] += int(part.prompt_tokens[admissible].sum())
        counts["output_tokens"] += int(output.sum())
        counts["preemptions"] += int(columns["preemptions"].sum())
        counts["cached_tokens"] += int(columns["cached_tokens"].sum())
        good = within(self.slos, columns, admissible)
        self.good += int(good.sum())
        if self.outages is not None:
            self.windows.add(columns["arrival_s"], good, self.outages())
        for name in ("ttft", "tpot", "e2el"):
            self.latencies[name].add(columns[f"{name}_ms"])
        if self._pools is not None:
            self._pools.add(columns)
        if self._rows is not None:
            self._rows(columns)
