"""The application level: tasks by method, with quality beside speed, energy and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from qsim.optimize.search.goals import QualityGoal
from qsim.optimize.search.pareto import front_mask
from qsim.optimize.study.contenders import Contender, Line
from qsim.optimize.study.figures import Band
from qsim.optimize.study.levels import ApplicationRow
from qsim.optimize.study.point import Point
from qsim.optimize.study.result import TaskShape
from qsim.optimize.study.runner import (
    Asked,
    Runner,
    busy_rate,
    comparable,
    full_clients,
    saturated,
)
from qsim.optimize.study.shapes import Shape
from qsim.optimize.study.traffics import task_traffic
from qsim.quality.tasks import normalise_mix

LEVEL = "application"


def task_shapes(runner: Runner, shapes: Sequence[Shape]) -> tuple[TaskShape, ...]:
    """The tasks, with the lengths that were drawn."""
    found = []
    for shape in shapes:
        traffic = task_traffic(shape, None, runner.sizes.requests)
        trace = runner.load(traffic)
        found.append(TaskShape(
            shape.name,
            traffic.text,
            float(trace.prompt_tokens.mean()),
            float(trace.output_tokens.mean()),
            normalise_mix(shape.benchmarks),
            shape.source,
        ))  # fmt: skip
    return tuple(found)


def application_saturation(runner: Runner, line: Line, shapes: Sequence[Shape]) -> list[Asked]:
    """Runs with full batches, from which the rates follow."""
    return [a for shape in shapes for a in _saturated(runner, line, shape)]


def _saturated(runner: Runner, line: Line, shape: Shape) -> list[Asked]:
    clients = full_clients(runner, line, task_traffic(shape, None, runner.sizes.requests))
    traffic = task_traffic(shape, None, runner.sizes.closed_requests(clients))
    return saturated(line, traffic, clients)


def application_rows(
    runner: Runner, lines: Mapping[str, Line], shapes: Sequence[Shape], begin: float, end: float
) -> tuple[ApplicationRow, ...]:
    """Simulate every task at one rate for all methods of a GPU, and put the rows together."""
    wanted: list[tuple[Shape, str, float, list[Asked]]] = []
    for shape in shapes:
        for gpu, line in lines.items():
            rate = busy_rate(runner, _saturated(runner, line, shape))
            if rate is not None:
                traffic = task_traffic(shape, rate, runner.sizes.requests)
                wanted.append((shape, gpu, rate, [(c, c.point(traffic)) for c in line]))
    runner.run(LEVEL, [a for *_, asked in wanted for a in asked], begin, end)
    rows: list[ApplicationRow] = []
    for shape, gpu, rate, asked in wanted:
        highest = {c.method: p for c, p in _saturated(runner, lines[gpu], shape)}
        some = [_row(runner, shape, rate, c, p, highest) for c, p in asked]
        rows += _with_front([r for r in some if r is not None], runner)
    return tuple(rows)


def _row(
    runner: Runner,
    shape: Shape,
    rate_rps: float,
    contender: Contender,
    point: Point,
    highest: Mapping[str, Point],
) -> ApplicationRow | None:
    busy = runner.get(point)
    full = runner.get(highest[contender.method])
    if busy is None or full is None:
        return None
    recovery = QualityGoal(normalise_mix(shape.benchmarks)).of(contender.profile)
    quality = None
    if recovery is not None:
        quality = Band(recovery.mean_pct, recovery.low_pct, recovery.high_pct)
    return ApplicationRow(
        shape.name,
        contender.gpu,
        contender.method,
        rate_rps,
        quality,
        "" if recovery is None else recovery.status,
        busy.run.id,
        busy.figures,
        full.figures["request_throughput"],
        full.run.id,
        full.figures["usd_per_1m_output_tokens"],
        False,
    )


def _with_front(rows: list[ApplicationRow], runner: Runner) -> list[ApplicationRow]:
    """Mark the rows of a task and GPU that no other one beats in quality and J per request."""
    by_run = {o.run.id: o for o in runner.outcomes.values()}
    fair = {o.run.id for o in comparable([by_run[r.run] for r in rows])}
    able = [
        (i, r.quality.value, energy.value)
        for i, r in enumerate(rows)
        if r.run in fair and r.quality and (energy := r.figures["joules_per_request"])
    ]
    if not able:
        return rows
    mask = front_mask(np.array([(-quality, energy) for _, quality, energy in able]))
    on = {able[k][0] for k in np.flatnonzero(mask)}
    return [replace(r, on_front=i in on) for i, r in enumerate(rows)]
