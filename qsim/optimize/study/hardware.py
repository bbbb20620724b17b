"""The hardware level: the same methods and requests on every GPU type."""

from __future__ import annotations

from collections.abc import Mapping

from qsim.optimize.study.common import Context, busy_rate
from qsim.optimize.study.contenders import Line
from qsim.optimize.study.levels import HardwareRow, Load
from qsim.optimize.study.runner import Asked
from qsim.optimize.study.traffics import MainTraffic
from qsim.optimize.study.workload import main_saturation

__all__ = ["hardware_rows", "hardware_saturation"]

LEVEL = "hardware"


def hardware_saturation(
    context: Context, lines: Mapping[str, Line], traffic: MainTraffic
) -> list[Asked]:
    """Every method on every type with full batches."""
    return [a for line in lines.values() for a in main_saturation(context, line, traffic)]


def hardware_rows(
    context: Context, lines: Mapping[str, Line], traffic: MainTraffic, begin: float, end: float
) -> tuple[HardwareRow, ...]:
    """Simulate one server of each at one rate that all of them carry, and put the rows together."""
    full = hardware_saturation(context, lines, traffic)
    rate_rps = busy_rate(context, full)
    wanted: list[tuple[Load, Asked]] = [("saturated", asked) for asked in full]
    if rate_rps is not None:
        busy = traffic.at(rate_rps, context.sizes.requests)
        wanted += [("busy", (c, c.point(busy))) for line in lines.values() for c in line]
    context.runner.run(LEVEL, [asked for _, asked in wanted], begin, end)
    rows = []
    for load, (contender, point) in wanted:
        outcome = context.outcome(point)
        if outcome is not None:
            power = contender.profile.power
            rows.append(HardwareRow(
                contender.gpu, contender.method, contender.tensor_parallel_size, load,
                contender.kv_tokens, power.idle_w, power.busy_w, power.cap_w,
                outcome.run.id, outcome.figures,
            ))  # fmt: skip
    return tuple(rows)
