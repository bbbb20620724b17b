"""Sweeps: one simulation for every point of a grid or a Latin hypercube over a scenario."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from qsim import __version__
from qsim.bounds import MAX_RUNS, MAX_SEED
from qsim.checks import check_ending, whole
from qsim.documents import rows_csv
from qsim.errors import ScenarioError
from qsim.files import atomic_path, write_text
from qsim.optimize.economics.prices import Price, price_of, prices_of
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.fleet_task import FleetTask, TaskPool
from qsim.optimize.search.goals import Carbon, QualityGoal, carbon_of, quality_goal
from qsim.optimize.search.journal import Fingerprints, RunJournal, do_runs, open_run_journal
from qsim.optimize.search.measures import Worth, measure_fleet
from qsim.optimize.search.space import Space
from qsim.optimize.sweep.points import Scenarios, is_part
from qsim.optimize.tune.arguments import parse_search
from qsim.profiles.schema import Profile
from qsim.quality.recovery import Recovery
from qsim.scenario import Scenario
from qsim.scenario.arguments import SweepArguments
from qsim.scenario.names import build
from qsim.sim.fleet.admission import text_notes
from qsim.sim.results.slo import Slo
from qsim.traces.trace import Trace


@dataclass(frozen=True)
class Row:
    """One run: what was varied, its figures, and why there are none if it failed."""

    number: int
    values: Mapping[str, Any]
    figures: Mapping[str, Any]
    error: str = ""

    def flat(self) -> dict[str, Any]:
        """Everything in one dict: number, varied values, figures, error."""
        figures = {k: v for k, v in self.figures.items() if k not in self.values}
        return {"run": self.number, **self.values, **figures, "error": self.error or None}


@dataclass(frozen=True)
class SweepResult:
    """The answer of :func:`qsim.sweep`: a row a run, in the order of the design."""

    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    #: what to know of how it went, such as a journal that could not be written
    notes: tuple[str, ...] = ()

    def to_rows(self) -> list[dict[str, Any]]:
        """Flat rows with the same columns in the same order."""
        flat = [r.flat() for r in self.rows]
        names = list(dict.fromkeys(n for r in flat for n in r if n != "error"))
        return [{n: r.get(n) for n in (*names, "error")} for r in flat]

    def write(self, path: str) -> None:
        """Write as .csv, .json or .parquet; whole or not at all.

        Raises
        ------
        ScenarioError
            For another ending.
        MissingExtraError
            For Parquet without pyarrow.
        """

        write_rows(path, self.to_rows(), self.settings)


def latin_hypercube(space: Space, n: int, seed: int) -> list[dict[str, Any]]:
    """``n`` points that are spread evenly over each decision by itself (McKay et al., 1979)."""
    from scipy.stats.qmc import LatinHypercube

    whole("lhs", n, 1, MAX_RUNS)
    names = list(space.decisions)
    shares = LatinHypercube(len(names), seed=np.random.default_rng(seed)).random(n)
    return [
        {name: space.decisions[name].at(float(s)) for name, s in zip(names, row, strict=True)}
        for row in shares
    ]


def sweep(
    base: Scenario | Mapping[str, Any],
    over: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    journal: str | Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    **asked: Unpack[SweepArguments],
) -> SweepResult:
    """Simulate a scenario at every point of a grid, or at ``lhs`` points of a Latin hypercube.

    Parameters
    ----------
    base : Scenario or mapping
        All of what is asked; or what is simulated, by the names of ``qsim simulate``: ``trace`` (a
        file, a preset or a :class:`Trace`), ``profile``, ``replicas``, ``pools``, ``router``,
        ``seed``, engine options, ... and ``over`` and ``asked`` say the rest.
    over : mapping or sequence of str, optional
        What is varied: ``{"max_num_seqs": [64, 128]}`` or ``["max_num_seqs=64,128"]``. Names are
        those of ``base``, or paths of a scenario (``fleet.pools.1.replicas``); and ``gpu``,
        ``model``, ``method``, ``tensor_parallel_size`` (they choose the profile), ``growth``
        (arrivals so many times as fast) and ``rate`` or any other parameter of a preset as
        ``trace.NAME``.
    journal : path, optional
        Each finished run is kept here at once, a line each, so that a sweep can be resumed.
    resume : bool
        Take finished runs from ``journal``; without it there must be none in it.
    jobs, dask
        As for :func:`qsim.plan`; the rows do not depend on them.
    **asked
        Fields of the scenario by name; see :class:`qsim.scenario.arguments.SweepArguments`.
        ``seed`` is that of the Latin hypercube, and of the runs unless it is in ``base`` or
        varied.

    Raises
    ------
    ScenarioError
        If a name is unknown, nothing is varied, or every run fails for the same reason; if the
        journal is damaged, in use by another process, or holds runs and is not to be resumed.
    """
    scenario, parts, seed = _scenario(base, over, asked)
    wanted, accounts = scenario.sweep, scenario.accounts
    lhs = wanted.lhs
    space = Space(parse_search(wanted.over, "--grid"))
    limits = scenario.limits()
    if scenario.goodput:
        raise ScenarioError(
            "goodput is given; qsim sweep judges SLOs only: leave it out (--set goodput=)"
        )
    size = space.size()
    if lhs is None and size is not None and size > MAX_RUNS:
        raise ScenarioError(
            f"the grid has {size:.3g} points; must have at most {MAX_RUNS}: vary less, or draw "
            "points (--lhs N)"
        )
    goal = quality_goal(accounts.tasks)
    carbon = carbon_of(accounts.region, accounts.pue, "")
    prices, provider = prices_of(accounts), accounts.provider
    scenarios = Scenarios(scenario, tuple(space.decisions), parts)
    points = list(space.grid()) if lhs is None else latin_hypercube(space, lhs, seed)
    done: dict[int, Row] = {}
    with (
        open_run_journal(journal, resume, "sweep") as kept,
        open_executor(jobs, at_most=len(points), dask=dask) as executor,
    ):
        runner = _Runner(executor, scenarios, limits, kept, prices, provider, goal, carbon)
        for row in runner.run(points):
            done[row.number] = row
            if progress is not None:
                progress(len(done) / len(points), f"{len(done)} of {len(points)} runs")
        rows = tuple(done[i] for i in range(len(points)))
        reasons = {r.error for r in rows}
        if len(reasons) == 1 and (reason := reasons.pop()):
            kept.discard()
            raise ScenarioError(f"every one of {len(rows)} runs failed: {reason}")
    settings = {
        "over": space.to_dict(),
        "design": "grid" if lhs is None else f"Latin hypercube of {lhs} points, seed {seed}",
        "base": {**scenario.to_dict(), **scenarios.parts},
        "slos": [str(s) for s in limits],
        "qsim_version": __version__,
    }
    notes = text_notes(runner.texts.values()) + ([kept.failure] if kept.failure else [])
    return SweepResult(rows, settings, tuple(notes))


def _scenario(
    base: Scenario | Mapping[str, Any],
    over: Mapping[str, Any] | Sequence[str] | None,
    asked: SweepArguments,
) -> tuple[Scenario, dict[str, Any], int]:
    """What is asked, the parts that are replaced at every point, and the hypercube's seed."""
    if isinstance(base, Scenario):
        if asked or over is not None:
            raise TypeError("sweep() got a scenario and arguments beside it; the scenario says all")
        return base, {}, base.seed
    given = {k: v for k, v in base.items() if v is not None}
    for name in given:
        if name != "pools":
            Scenarios.check(name)
    parts = {k: given.pop(k) for k in list(given) if is_part(k)}
    seed = asked.get("seed", 0)
    own = {k: v for k, v in asked.items() if v is not None}
    whole("seed", seed, 0, MAX_SEED)
    scenario = build("sweep", {"seed": seed, **own, **given, "over": over or []})
    return scenario, parts, seed


@dataclass
class _Runner:
    """Runs points, a window of them at a time."""

    executor: TaskExecutor
    scenarios: Scenarios
    slos: tuple[Slo, ...]
    journal: RunJournal
    prices: Mapping[str, float]
    provider: str
    goal: QualityGoal
    carbon: Carbon | None
    #: by profile
    price: dict[str, Price | None] = field(default_factory=dict)
    quality: dict[str, Recovery | None] = field(default_factory=dict)
    #: those that were given texts
    texts: dict[str, Profile] = field(default_factory=dict)
    latest: Trace | None = None
    prints: Fingerprints = field(default_factory=Fingerprints)

    def run(self, points: Sequence[dict[str, Any]]) -> Iterator[Row]:
        """The rows, as they are finished."""
        runs = do_runs(
            self.executor,
            self.journal,
            enumerate(points),
            task=lambda point: self._task(point[1]),
            key=lambda point, task: self._key(point[1], task),
            submit=self._submit,
            figures=self._figures,
        )
        for (number, values), figures, error in runs:
            yield Row(number, values, figures, error)

    def _submit(self, task: FleetTask) -> Future[Any]:
        if task.trace is self.latest:  # one that is used once goes along with its task
            self.executor.share(task.trace)
        self.latest = task.trace
        for pool in task.pools:
            self.executor.share(pool.profile)
        return self.executor.submit(measure_fleet, task)

    def _task(self, values: Mapping[str, Any]) -> FleetTask:
        point = self.scenarios.at(values)
        pools = [
            TaskPool(profile, pool.replicas, pool.engine.options(), pool.weight)
            for profile, pool in zip(self.scenarios.profiles(point), point.fleet.pools, strict=True)
        ]
        if point.traffic.text_prompts:
            self.texts |= {p.profile.id: p.profile for p in pools}
        first = pools[0]
        return FleetTask(
            self.scenarios.trace(point),
            first.profile,
            first.replicas,
            self.slos,
            first.options,
            point.fleet.router,
            point.seed,
            point.traffic.too_long,
            allow_backlog=point.allow_backlog,
            text_prompts=point.traffic.text_prompts,
        ).of_pools(pools)

    def _figures(self, task: FleetTask, measured: Mapping[str, Any]) -> dict[str, Any]:
        """A row's figures: of its profiles, and what they cost and lose, beside the measured."""
        profiles = [p.profile for p in task.pools]
        for profile in profiles:
            if profile.id not in self.price:
                gpu = profile.identity.gpu
                self.price[profile.id] = price_of(gpu, self.prices, self.provider)
                self.quality[profile.id] = self.goal.of(profile)
        worth = Worth(self.price, self.quality, self.carbon)
        return {
            "profile": " + ".join(p.id for p in profiles),
            "profile_source": " + ".join(dict.fromkeys(p.identity.source for p in profiles)),
            **worth.complete(measured, task.pools),
        }

    def _key(self, values: Mapping[str, Any], task: FleetTask) -> str:
        """What decides a row: if it is in the journal, it is not run again."""
        parts = (
            sorted((k, repr(v)) for k, v in values.items()),
            self.prints.of(task.trace),
            self.prints.of(task.profile),
            (task.replicas, task.slos, task.options, task.router, task.seed, task.too_long),
            task.allow_backlog,
            *(("text_prompts",) if task.text_prompts else ()),
            *(
                [(p.replicas, p.options, p.weight, self.prints.of(p.profile))]
                for p in (task.pools if task.beside else ())
            ),
            (self.prices, self.provider, self.goal, self.carbon, __version__),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


ENDINGS = (".csv", ".json", ".parquet")


def rows_json(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """One JSON object: what was asked for, and the rows."""
    data = {"schema": "qsim-sweep/1", "settings": dict(settings), "rows": [dict(r) for r in rows]}
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_rows(path: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write by the ending of ``path``; whole or not at all."""
    check_ending("--out", path, ENDINGS)
    if path.endswith(".csv"):
        write_text(path, rows_csv(rows))
    elif path.endswith(".json"):
        write_text(path, rows_json(rows, settings))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {n: _column([r[n] for r in rows]) for n in rows[0]}
        metadata = {"qsim": json.dumps(dict(settings), ensure_ascii=False)}
        with atomic_path(Path(path)) as temporary:
            pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)


def _column(values: list[Any]) -> list[Any]:
    """Values of one type: text where they differ in kind, such as numbers and words."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float} and float in kinds:
        return [None if v is None else float(v) for v in values]
    if len(kinds) > 1:
        return [None if v is None else str(v) for v in values]
    return values
