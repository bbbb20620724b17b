"""The workload level: each method over rate, clients, lengths, burstiness and batch limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsim.optimize.study.contenders import Contender, Line
from qsim.optimize.study.levels import Axis, Load, WorkloadRow
from qsim.optimize.study.point import Point
from qsim.optimize.study.runner import Asked, Runner, busy_rate, full_clients, saturated
from qsim.optimize.study.traffics import MainTraffic, steady
from qsim.sim.results.backlog import OVERLOADED

LEVEL = "workload"
#: rates within these shares of a server's highest throughput are looked at more closely: does it
#: keep up? Below it does, above it does not
_SURELY, _NEVER = 0.8, 1.1


@dataclass(frozen=True)
class _Wanted:
    axis: Axis
    contender: Contender
    x: float
    y: float | None
    load: Load
    point: Point


def main_clients(runner: Runner, line: Sequence[Contender], traffic: MainTraffic) -> int:
    """Clients that fill the batches of one server of each."""
    return full_clients(runner, line, traffic.closed(runner.sizes.requests))


def main_saturation(runner: Runner, line: Line, traffic: MainTraffic) -> list[Asked]:
    """Runs with full batches, from which the rates of the other levels follow."""
    clients = main_clients(runner, line, traffic)
    return saturated(line, traffic.closed(runner.sizes.closed_requests(clients)), clients)


def workload_rows(
    runner: Runner, lines: Mapping[str, Line], traffic: MainTraffic, begin: float, end: float
) -> tuple[WorkloadRow, ...]:
    """Simulate every axis for each method of each GPU, and put the rows together."""
    wanted = [w for line in lines.values() for w in _wanted(runner, line, traffic)]
    runner.run(LEVEL, [(w.contender, w.point) for w in wanted], begin, end)
    highest = {
        c.id: o.run.values["request_throughput"]
        for line in lines.values()
        for c, p in main_saturation(runner, line, traffic)
        if (o := runner.get(p)) is not None
    }
    rows = []
    for w in wanted:
        outcome = runner.get(w.point)
        if outcome is None:
            continue
        kept_up = True
        if w.load == "busy":
            kept_up = outcome.run.load != OVERLOADED
        if w.axis == "rate":
            kept_up = kept_up and w.x <= _NEVER * (highest.get(w.contender.id) or 0.0)
        rows.append(WorkloadRow(
            w.axis, w.contender.gpu, w.contender.method, w.x, w.y, w.load, kept_up,
            outcome.run.id, outcome.figures,
        ))  # fmt: skip
    return tuple(rows)


def _wanted(runner: Runner, line: Line, traffic: MainTraffic) -> list[_Wanted]:
    sizes = runner.sizes
    full = main_saturation(runner, line, traffic)
    throughputs = {
        c.id: t
        for c, p in full
        if (o := runner.get(p)) is not None and (t := o.run.values["request_throughput"])
    }
    rate_rps = busy_rate(runner, full)
    if rate_rps is None:
        return []
    clients = main_clients(runner, line, traffic)
    found: list[_Wanted] = []
    rates = [float(f"{s * max(throughputs.values()):.3g}") for s in sizes.rate_shares]
    for c in line:
        own = throughputs.get(c.id, 0.0)
        for rate in rates:
            settle = _SURELY * own <= rate <= _NEVER * own
            point = c.point(traffic.at(rate, sizes.requests), settle=settle)
            found.append(_Wanted("rate", c, rate, None, "busy", point))
        for n in sorted({*(n for n in sizes.concurrency if n < clients), clients}):
            point = c.point(traffic.closed(sizes.closed_requests(n)), concurrency=n)
            found.append(_Wanted("concurrency", c, n, None, "saturated", point))
        for prompt in sizes.prompts:
            for output in sizes.outputs:
                n = sizes.grid_clients
                point = c.point(steady(prompt, output, sizes.closed_requests(n)), concurrency=n)
                found.append(_Wanted("lengths", c, prompt, output, "saturated", point))
        if traffic.preset is not None:
            for cv in sizes.cvs:
                point = c.point(traffic.at(rate_rps, sizes.requests, cv))
                found.append(_Wanted("burstiness", c, cv, None, "busy", point))
        requests = traffic.closed(sizes.closed_requests(clients))
        for seqs in sizes.batch:
            if seqs < clients:
                point = c.point(requests, concurrency=clients, max_num_seqs=seqs)
                found.append(_Wanted("batch", c, seqs, None, "saturated", point))
        point = c.point(requests, concurrency=clients)
        found.append(_Wanted("batch", c, clients, None, "saturated", point))
    return found
