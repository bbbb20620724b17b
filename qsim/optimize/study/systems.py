"""The levels of systems: tensor parallelism against replicas, and every GPU type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qsim.optimize.study.contenders import Contender, Line
from qsim.optimize.study.figures import Band
from qsim.optimize.study.levels import HardwareRow, Load, ParallelismRow
from qsim.optimize.study.runner import Asked, Runner, busy_rate
from qsim.optimize.study.traffics import MainTraffic
from qsim.optimize.study.workload import main_clients, main_saturation


def sharded(contenders: Sequence[Contender], gpu: str) -> tuple[Contender, ...]:
    """All sizes of a GPU type, if there are several."""
    some = tuple(c for c in contenders if c.gpu == gpu)
    return some if len({c.tensor_parallel_size for c in some}) > 1 else ()


def _gpus(some: Sequence[Contender]) -> int:
    """GPUs of every layout: those of the largest server."""
    return max(c.tensor_parallel_size for c in some)


def _layouts(some: Sequence[Contender]) -> list[tuple[Contender, int]]:
    """Servers that fill these GPUs, and how many of each."""
    gpus = _gpus(some)
    return [(c, gpus // c.tensor_parallel_size) for c in some if gpus % c.tensor_parallel_size == 0]


def parallel_saturation(
    runner: Runner, some: Sequence[Contender], traffic: MainTraffic
) -> list[Asked]:
    """Every layout of one GPU type with so many clients that all batches are full."""
    if not some:
        return []
    clients = main_clients(runner, some, traffic) * _gpus(some)
    requests = traffic.closed(runner.sizes.closed_requests(clients))
    return [(c, c.point(requests, replicas=n, concurrency=clients)) for c, n in _layouts(some)]


def parallelism_rows(
    runner: Runner,
    groups: Mapping[str, Sequence[Contender]],
    traffic: MainTraffic,
    begin: float,
    end: float,
) -> tuple[ParallelismRow, ...]:
    """Simulate all layouts at one rate that each carries, and put the rows together."""
    wanted: list[tuple[Load, Asked]] = []
    for some in groups.values():
        full = parallel_saturation(runner, some, traffic)
        rate_rps = busy_rate(runner, full)
        if rate_rps is None:
            continue
        busy = traffic.at(rate_rps, runner.sizes.requests)
        wanted += [("busy", (c, c.point(busy, replicas=n))) for c, n in _layouts(some)]
        wanted += [("saturated", asked) for asked in full]
    runner.run("parallelism", [asked for _, asked in wanted], begin, end)
    rows = []
    for load, (contender, point) in wanted:
        outcome = runner.get(point)
        if outcome is not None:
            size, tokens = contender.tensor_parallel_size, contender.kv_tokens
            n = point.replicas
            rows.append(ParallelismRow(
                contender.gpu, contender.method, size, n, size * n, load,
                Band(n * tokens.value, n * tokens.low, n * tokens.high),
                outcome.run.id, outcome.figures,
            ))  # fmt: skip
    return tuple(rows)


def hardware_saturation(
    runner: Runner, lines: Mapping[str, Line], traffic: MainTraffic
) -> list[Asked]:
    """Every method on every type with full batches."""
    return [a for line in lines.values() for a in main_saturation(runner, line, traffic)]


def hardware_rows(
    runner: Runner, lines: Mapping[str, Line], traffic: MainTraffic, begin: float, end: float
) -> tuple[HardwareRow, ...]:
    """Simulate one server of each at one rate that all of them carry, and put the rows together."""
    full = hardware_saturation(runner, lines, traffic)
    rate_rps = busy_rate(runner, full)
    wanted: list[tuple[Load, Asked]] = [("saturated", asked) for asked in full]
    if rate_rps is not None:
        busy = traffic.at(rate_rps, runner.sizes.requests)
        wanted += [("busy", (c, c.point(busy))) for line in lines.values() for c in line]
    runner.run("hardware", [asked for _, asked in wanted], begin, end)
    rows = []
    for load, (contender, point) in wanted:
        outcome = runner.get(point)
        if outcome is not None:
            power = contender.profile.power
            rows.append(HardwareRow(
                contender.gpu, contender.method, contender.tensor_parallel_size, load,
                contender.kv_tokens, power.idle_w, power.busy_w, power.cap_w,
                outcome.run.id, outcome.figures,
            ))  # fmt: skip
    return tuple(rows)
