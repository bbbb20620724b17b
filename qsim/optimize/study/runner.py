"""Runs the points of a study, each once, and keeps what came of them.

How much is simulated, requests of each run and the points of each axis, :class:`Sizes` say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from qsim import __version__
from qsim.errors import ScenarioError
from qsim.optimize.economics.prices import usd_per_1m
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.journal import Fingerprints, RunJournal, do_runs
from qsim.optimize.study.contenders import Contender
from qsim.optimize.study.figures import Band, rounded
from qsim.optimize.study.levels import Run
from qsim.optimize.study.point import Point, PointTask, Traffic, run_point
from qsim.profiles.measured_range import MeasuredRange
from qsim.traces.trace import Trace

#: a point, and the server that it is of
Asked = tuple[Contender, Point]


@dataclass(frozen=True)
class Outcome:
    """What came of a point."""

    run: Run
    #: the run's values with their bands
    figures: Mapping[str, Band | None]
    #: share of the requests that were answered in full; those that are too long are rejected
    answered: float


@dataclass
class Runner:
    """Simulates points."""

    executor: TaskExecutor
    #: finished points; those that are in it are not simulated again
    journal: RunJournal
    #: the trace of a traffic; the same object for the same traffic
    load: Callable[[Traffic], Trace]
    seed: int
    router: str
    too_long: str
    sizes: Sizes
    text_prompts: bool = False
    progress: Progress | None = None
    outcomes: dict[Point, Outcome] = field(default_factory=dict)
    #: why points have no outcome, by point
    failures: dict[Point, str] = field(default_factory=dict)
    _prints: Fingerprints = field(default_factory=Fingerprints)

    def run(self, level: str, asked: Sequence[Asked], begin: float, end: float) -> None:
        """Simulate what was not yet; ``begin`` and ``end`` are shares of the whole work.

        Raises
        ------
        ScenarioError
            If every one failed for the same reason.
        """
        wanted = {p: c for c, p in asked if p not in self.outcomes and p not in self.failures}
        results = self._results(wanted, level, begin, end)
        for point, contender in wanted.items():  # in this order, whatever was finished first
            found = results[point]
            if isinstance(found, str):
                self.failures[point] = found
            else:
                self._keep(level, contender, point, found)
        reasons = {results[p] for p in wanted if isinstance(results[p], str)}
        if len(reasons) == 1 and all(isinstance(r, str) for r in results.values()):
            raise ScenarioError(f"every one of {len(wanted)} runs failed: {reasons.pop()}")

    def get(self, point: Point) -> Outcome | None:
        """What came of a point; None if it failed."""
        return self.outcomes.get(point)

    @property
    def runs(self) -> dict[str, Run]:
        """Every run by id."""
        return {o.run.id: o.run for o in self.outcomes.values()}

    def _results(
        self, wanted: Mapping[Point, Contender], level: str, begin: float, end: float
    ) -> dict[Point, Any]:
        """Figures, or why there are none, by point."""
        results: dict[Point, Any] = {}
        runs = do_runs(
            self.executor,
            self.journal,
            wanted,
            task=lambda point: self._task(wanted[point], point),
            key=self._key,
            submit=self._submit,
            figures=lambda task, figures: figures,
        )
        for point, figures, error in runs:
            results[point] = error or figures
            if self.progress is not None:
                share = begin + (end - begin) * len(results) / len(wanted)
                self.progress(share, f"{level}: {len(results)} of {len(wanted)} runs")
        return results

    def _submit(self, task: PointTask) -> Future[Any]:
        self.executor.share(task.trace)
        self.executor.share(task.profile)
        return self.executor.submit(run_point, task)

    def _task(self, contender: Contender, point: Point) -> PointTask:
        return PointTask(
            self.load(point.traffic),
            contender.profile,
            point.replicas,
            (),
            contender.options_of(point),
            self.router,
            self.seed,
            self.too_long,
            concurrency=point.concurrency,
            text_prompts=self.text_prompts,
            settle=point.settle,
        )

    def _keep(self, level: str, contender: Contender, point: Point, found: Any) -> None:
        values = dict(found["values"])
        gpus = point.replicas * contender.tensor_parallel_size
        usd = contender.usd_per_hour
        values["usd_per_1m_output_tokens"] = usd_per_1m(
            None if usd is None else usd * gpus, values["output_throughput"]
        )
        run = Run(
            f"r{len(self.outcomes) + 1:04d}",
            level,
            contender.id,
            contender.gpu,
            contender.method,
            contender.tensor_parallel_size,
            point.replicas,
            point.traffic.text,
            point.command(self.seed, self.router, self.too_long, self.text_prompts),
            {k: None if v is None else rounded(v) for k, v in values.items()},
            found["load"],
            found["beyond_measured"],
            found["requests"],
            contender.version,
        )
        bands = contender.bands(values, found["intervals"])
        self.outcomes[point] = Outcome(run, bands, found["answered"])

    def _key(self, point: Point, task: PointTask) -> str:
        """What decides a point's figures."""
        parts = (
            point, task.options, task.seed, task.router, task.too_long,
            self._prints.of(task.trace), self._prints.of(task.profile), __version__,
            *(("text_prompts",) if task.text_prompts else ()),
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


#: a method that answers so much less of the same requests in full is not compared with the others
ANSWERED = 0.01


def full_clients(runner: Runner, line: Sequence[Contender], traffic: Traffic) -> int:
    """Clients that fill the batches of every server of a line with such requests."""
    trace = runner.load(traffic)
    tokens = float(trace.prompt_tokens.mean() + trace.output_tokens.mean())
    return clients_of(line, tokens, runner.sizes)


def saturated(line: Sequence[Contender], traffic: Traffic, clients: int) -> list[Asked]:
    """Each server with full batches."""
    return [(c, c.point(traffic, concurrency=clients)) for c in line]


def busy_rate(runner: Runner, asked: Sequence[Asked]) -> float | None:
    """Requests/s that all of them carry: a share of what the slowest does under saturation.

    None if there is nothing to compare.
    """
    known = [o for _, p in asked if (o := runner.get(p)) is not None]
    rates = [o.run.values["request_throughput"] for o in comparable(known)]
    slowest = min((r for r in rates if r), default=None)
    if slowest is None:
        return None
    return float(f"{runner.sizes.busy_share * slowest:.3g}")


def comparable(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that answered as many of the requests in full as the best of them."""
    most = max((o.answered for o in outcomes), default=0.0)
    return [o for o in outcomes if o.answered >= most - ANSWERED]


@dataclass(frozen=True)
class Sizes:
    """Points and requests."""

    #: of a run at a rate: enough for a p99 that the sample bounds at both ends
    requests: int = 800
    #: requests a client sends one after the other under saturation
    answers: int = 3
    #: the rate that all methods get, over the throughput of the slowest under saturation
    busy_share: float = 0.6
    #: rates of the load curve, over the throughput of the quickest under saturation
    rate_shares: tuple[float, ...] = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.1)
    #: clients, and ``max_num_seqs``
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    batch: tuple[int, ...] = (16, 32, 64, 128, 256)
    #: under saturation, of one server
    most_clients: int = 512
    #: of the gaps between arrivals
    cvs: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    #: tokens of the grid of lengths
    prompts: tuple[int, ...] = (256, 1024, 4096)
    outputs: tuple[int, ...] = (64, 256, 1024)
    #: clients of the grid of lengths
    grid_clients: int = 32

    def closed_requests(self, clients: int) -> int:
        """Requests of a run with so many clients."""
        return max(100, self.answers * clients)


SIZES = Sizes()


#: of the measured context of a step as much is filled: requests with long outputs stay longer, so
#: that a batch has more context than as many requests of the mean length
_OF_CONTEXT = 0.75


def clients_of(
    contenders: Sequence[Contender], tokens_per_request: float, sizes: Sizes = SIZES
) -> int:
    """Clients that fill one server of each.

    As many as the smallest batch takes, as the KV cache of the middle one holds (with more, all
    that grows is the work that is done twice because requests are preempted), and as keep the
    steps within what the profiles were measured for.
    """
    tokens = max(tokens_per_request, 1.0)
    rooms = sorted(c.kv_tokens.value for c in contenders)
    limits = [sizes.most_clients, rooms[len(rooms) // 2] / tokens]
    for c in contenders:
        measured = MeasuredRange.of(c.profile)
        limits.append(c.seats)
        if measured.step_requests is not None:
            limits.append(measured.step_requests)
        if measured.step_context_tokens is not None:
            limits.append(_OF_CONTEXT * measured.step_context_tokens / tokens)
    return max(1, int(min(limits)))
