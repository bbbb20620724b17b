"""A schedule over time: traffic, servers, latency and power."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qsim.optimize.schedule.tasks import BIN_S
from qsim.report.figures.style import COLORS, blank_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qsim.optimize.schedule.result import PolicyResult, Schedule

__all__ = ["schedule_figure", "servers_over_time"]

FloatArray = npt.NDArray[np.float64]

#: policies that are drawn beside the timetable, in this order of preference
_BESIDE = 3


def servers_over_time(result: PolicyResult, pool: int) -> tuple[FloatArray, FloatArray]:
    """Times (s) at which the servers of a pool that are on or drain change, and how many then."""
    at, count = [0.0], [0.0]
    for time_s, number, on, _, draining, _ in result.run.changes:
        if number == pool:
            at.append(time_s)
            count.append(on + draining)
    at.append(max(result.run.end_s, at[-1]))
    count.append(count[-1])
    return np.array(at), np.array(count)


def schedule_figure(found: Schedule) -> Figure:
    """Rate, servers that are on, worst SLO by window and power of the timetable and others."""
    p = found.problem
    shown = _shown(found)
    color = {r.name: COLORS[k % len(COLORS)] for k, r in enumerate(shown)}
    hours = (np.arange(p.windows) + 0.5) * p.window_s / 3600
    with style():
        figure = blank_figure(10, 9.5)
        rate, pools, servers, ttft, slo, power = figure.subplots(
            6, 1, sharex=True, height_ratios=[1, 1, 1.2, 1, 1, 1.2]
        )
        edges = np.arange(p.windows * round(p.window_s / 600) + 1) * 600.0
        if len(edges) < 3:
            edges = np.arange(p.windows + 1) * p.window_s
        counts, _ = np.histogram(p.trace.arrival_s, edges)
        rate.plot(edges[:-1] / 3600, counts / np.diff(edges), color="#444444", linewidth=1.0)
        rate.set_title("requests per second, mean of 10 minutes")
        _pools(pools, found)
        for r in shown:
            look: Any = {"color": color[r.name], "label": r.name}
            _servers(servers, r, look)
            ttft.plot(hours, r.run.window_ttft_ms, marker=".", markersize=3, linewidth=0.9, **look)
            worst = [max(row) * 100 for row in r.run.window_ratios]
            slo.plot(hours, worst, marker=".", markersize=3, linewidth=0.9, **look)
            watts = np.array(r.run.power_w)
            each = max(1, round(600 / BIN_S))
            whole = len(watts) // each * each
            mean = watts[:whole].reshape(-1, each).mean(axis=1) / 1000
            at = (np.arange(len(mean)) + 0.5) * each * BIN_S / 3600
            power.plot(at, mean, linewidth=1.1, **look)
        servers.set_title("servers that are on, draining ones included")
        servers.legend(loc="upper left", ncols=len(shown))
        ttft.set_title("TTFT p99 by window, ms")
        slo.set_title(f"worst of {', '.join(map(str, p.slos))} by window, % of its limit")
        slo.axhline(100, color="#444444", linestyle="--", linewidth=0.9)
        power.set_title("power of all GPUs, kW, mean of 10 minutes")
        power.set_xlabel("time, h")
        for ax in (rate, pools, servers, ttft, slo, power):
            ax.set_ylim(bottom=0)
            ax.margins(x=0)
    return figure


def _shown(found: Schedule) -> list[PolicyResult]:
    """The timetable, the cheapest static fleet and the autoscalers."""
    others = found.results[:-1]
    static = [r for r in others if r.name.startswith("static")]
    chosen = [min(static, key=lambda r: r.value)] if static else []
    chosen += [r for r in others if r.name in ("reactive", "predictive")]
    return [found.best, *(chosen or list(others))[:_BESIDE]]


def _pools(ax: Axes, found: Schedule) -> None:
    """The timetable's servers by pool, stacked."""
    p = found.problem
    edges = np.arange(p.windows + 1) * p.window_s / 3600
    base = np.zeros(p.windows)
    table = np.array(found.counts, float)
    for k, choice in enumerate(found.choices):
        if table[:, k].any():
            ax.stairs(
                base + table[:, k], edges, baseline=base, fill=True, alpha=0.6,
                color=COLORS[(k + 2) % len(COLORS)], label=choice.shown,
            )  # fmt: skip
            base = base + table[:, k]
    ax.set_title("the timetable: servers of each method")
    ax.legend(loc="upper left", ncols=len(found.choices))


def _servers(ax: Axes, result: PolicyResult, look: Any) -> None:
    series = [servers_over_time(result, k) for k in range(len(result.choices))]
    at = np.unique(np.concatenate([s[0] for s in series]))
    total = np.zeros(len(at))
    for times, counts in series:
        total += counts[np.searchsorted(times, at, side="right") - 1]
    ax.step(at / 3600, total, where="post", linewidth=1.2, **look)
