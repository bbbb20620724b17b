"""A schedule over time: traffic, servers, latency and power."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.arrays import FloatArray
from qsim.optimize.schedule.tasks import BIN_S
from qsim.report.figures.labels import EndLabel, label_ends
from qsim.report.figures.style import Look, blank_figure, method_look, policy_look, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qsim.optimize.schedule.result import PolicyResult, Schedule

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
    """Rate, the timetable, servers of each policy, worst SLO by window and power over time."""
    p = found.problem
    shown = _shown(found)
    hours = (np.arange(p.windows) + 0.5) * p.window_s / 3600
    with style():
        rows = [1.0, 1.0, *([0.55] * len(shown)), 1.0, 1.0, 1.2]
        figure = blank_figure(10.5, 1.55 * sum(rows) + 0.5)
        rate, pools, *policies, ttft, slo, power = figure.subplots(
            len(rows), 1, sharex=True, height_ratios=rows
        )
        edges = np.arange(p.windows * round(p.window_s / 600) + 1) * 600.0
        if len(edges) < 3:
            edges = np.arange(p.windows + 1) * p.window_s
        counts, _ = np.histogram(p.trace.arrival_s, edges)
        rate.plot(edges[:-1] / 3600, counts / np.diff(edges), color="#444444", linewidth=1.0)
        rate.set_title("requests per second, mean of 10 minutes")
        ends: list[tuple[Axes, list[EndLabel]]] = [(pools, _pools(pools, found))]
        series: dict[str, list[EndLabel]] = {"ttft": [], "slo": [], "power": []}
        most = 1.0
        for ax, r in zip(policies, shown, strict=True):
            look = policy_look(r.name)
            most = max(most, _servers(ax, r, look))
            ax.set_title(f"{r.name}: servers that are on, draining ones included", color=look.text)
        for r in shown:
            look = policy_look(r.name)
            drawn: Any = {"color": look.color}
            worst = [max(row) * 100 for row in r.run.window_ratios]
            at, mean = _power_kw(r)
            for ax, name, x, y in (
                (ttft, "ttft", hours, r.run.window_ttft_ms),
                (slo, "slo", hours, worst),
                (power, "power", at, mean),
            ):
                small: Any = {} if ax is power else {"marker": ".", "markersize": 3}
                ax.plot(x, y, linewidth=1.0, **drawn, **small)
                known = [(u, v) for u, v in zip(x, y, strict=True) if v is not None and v == v]
                if known:
                    series[name].append(
                        EndLabel(r.name, float(known[-1][0]), float(known[-1][1]), look.text)
                    )
        ends += [(ttft, series["ttft"]), (slo, series["slo"]), (power, series["power"])]
        ttft.set_title("TTFT p99 by window, ms")
        slo.set_title(f"worst of {', '.join(map(str, p.slos))} by window, % of its limit")
        slo.axhline(100, color="#444444", linestyle="--", linewidth=0.9)
        power.set_title("power of all GPUs, kW, mean of 10 minutes")
        power.set_xlabel("time, h")
        for ax in (rate, pools, *policies, ttft, slo, power):
            ax.set_ylim(bottom=0)
            ax.margins(x=0)
        for ax in policies:
            ax.set_ylim(0, most * 1.1)
        label_ends(figure, ends)
    return figure


def _power_kw(result: PolicyResult) -> tuple[FloatArray, FloatArray]:
    """Hours and the mean power of ten minutes, kW."""
    watts = np.array(result.run.power_w)
    each = max(1, round(600 / BIN_S))
    whole = len(watts) // each * each
    mean = watts[:whole].reshape(-1, each).mean(axis=1) / 1000
    return (np.arange(len(mean)) + 0.5) * each * BIN_S / 3600, mean


def _shown(found: Schedule) -> list[PolicyResult]:
    """The timetable, the cheapest static fleet and the autoscalers."""
    others = found.results[:-1]
    static = [r for r in others if r.name.startswith("static")]
    chosen = [min(static, key=lambda r: r.value)] if static else []
    chosen += [r for r in others if r.name in ("reactive", "predictive")]
    return [found.best, *(chosen or list(others))[:_BESIDE]]


def _pools(ax: Axes, found: Schedule) -> list[EndLabel]:
    """The timetable's servers by pool, stacked; a name beside each that is used."""
    p = found.problem
    edges = np.arange(p.windows + 1) * p.window_s / 3600
    base = np.zeros(p.windows)
    table = np.array(found.counts, float)
    labels = []
    for k, choice in enumerate(found.choices):
        if table[:, k].any():
            look = method_look(choice.name)
            ax.stairs(
                base + table[:, k], edges, baseline=base, fill=True, alpha=0.75,
                facecolor=look.color, edgecolor="white", hatch="//" if look.hollow else None,
            )  # fmt: skip
            last = int(np.nonzero(table[:, k])[0][-1])
            middle = float(base[last] + table[last, k] / 2)
            labels.append(EndLabel(choice.shown, float(edges[last + 1]), middle, look.text))
            base = base + table[:, k]
    ax.set_title("the timetable: servers of each method")
    return labels


def _servers(ax: Axes, result: PolicyResult, look: Look) -> float:
    """Servers of all pools over time; the most of them."""
    series = [servers_over_time(result, k) for k in range(len(result.choices))]
    at = np.unique(np.concatenate([s[0] for s in series]))
    total = np.zeros(len(at))
    for times, counts in series:
        total += counts[np.searchsorted(times, at, side="right") - 1]
    ax.fill_between(at / 3600, total, step="post", color=look.color, alpha=0.3, linewidth=0)
    ax.step(at / 3600, total, where="post", linewidth=0.8, color=look.color)
    return float(total.max())
