"""Static pictures of a simulation and of a plan, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.report.figures.style import COLORS, blank_figure, figure_svg, save_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qsim.optimize.plan.candidate import Candidate
    from qsim.optimize.plan.result import Plan
    from qsim.sim.results.result import SimulationResult
    from qsim.sim.results.slo import Slo

__all__ = ["figure_svg", "latency_figure", "plan_figure", "save_figure", "timeline_figure"]

_TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def latency_figure(result: SimulationResult, slos: Sequence[Slo] = ()) -> Figure:
    """Distribution functions of TTFT, TPOT and E2EL, with the limits on them."""
    at = np.linspace(0, 1, 401)
    with style():
        figure = blank_figure(10, 3)
        axes = figure.subplots(1, 3)
        for ax, name in zip(axes, ("ttft", "tpot", "e2el"), strict=True):
            values = result.metric(name)
            if len(values):
                ax.plot(np.quantile(values, at), at, color=COLORS[0], linewidth=1.6)
            _limits(ax, name, slos)
            _latency_axis(ax, name, values)
    return figure


def timeline_figure(result: SimulationResult) -> Figure:
    """Requests running and waiting, use of the KV cache, and power, over time."""
    t = result.timeline
    t_s = t["t_s"]
    with style():
        figure = blank_figure(10, 5.4)
        queue, kv, power = figure.subplots(3, 1, sharex=True)
        queue.plot(t_s, t["running"], color=COLORS[0], linewidth=1.2, label="running")
        queue.plot(t_s, t["waiting"], color=COLORS[1], linewidth=1.2, label="waiting")
        queue.set_title("requests in the fleet")
        queue.legend(loc="upper right", ncols=2)
        kv.fill_between(t_s, t["kv_usage"] * 100, color=COLORS[2], alpha=0.35, linewidth=0)
        kv.plot(t_s, t["kv_usage"] * 100, color=COLORS[2], linewidth=1.0)
        kv.set_title("KV cache in use, %, mean of the replicas")
        power.plot(t_s, t["power_w"], color=COLORS[3], linewidth=1.0)
        power.set_title("power of all GPUs, W")
        power.set_xlabel("time, s")
        for ax in (queue, kv, power):
            ax.set_ylim(bottom=0)
            ax.margins(x=0)
    return figure


def plan_figure(plan: Plan) -> Figure:
    """The fleets of a plan side by side, and how each latency with an SLO is distributed."""
    shown = [c for c in plan.candidates if c.outcome is not None]
    fleets = [c for c in plan.candidates if c.feasible]
    limited = {s.metric for s in plan.slos} | set(dict(plan.goodput.limits if plan.goodput else ()))
    metrics = [m for m in ("ttft", "tpot", "e2el") if m in limited]
    metrics = metrics or ["e2el"]
    color = {c.profile: COLORS[i % len(COLORS)] for i, c in enumerate(plan.candidates)}
    with style():
        bars_height = 0.8 + 0.34 * max(2, len(fleets))
        figure = blank_figure(10, bars_height + 3.7)
        grid = figure.add_gridspec(2, 12, height_ratios=[bars_height, 3.0])
        bars = [figure.add_subplot(grid[0, 3 * k : 3 * k + 3]) for k in range(4)]
        for ax, (title, key) in zip(
            bars[:3],
            (
                ("USD per hour", lambda c: c.usd_per_hour),
                ("mean power, kW", lambda c: _scaled(c.metric("avg_power_w"), 1e-3)),
                ("J per output token", lambda c: c.metric("joules_per_output_token")),
            ),
            strict=True,
        ):
            _bars(ax, title, fleets, key, plan, color)
        _intervals(bars[3], fleets, plan, color)
        for ax in bars[1:]:
            for label in ax.get_yticklabels():
                label.set_visible(False)
        width = 12 // len(metrics)
        for k, name in enumerate(metrics):
            ax = figure.add_subplot(grid[1, k * width : (k + 1) * width])
            for c in shown:
                values = c.outcome.quantiles.get(f"{name}_ms", []) if c.outcome else []
                ax.plot(
                    values,
                    np.linspace(0, 1, len(values)),
                    color=color[c.profile],
                    linestyle="-" if c.feasible else ":",
                    linewidth=1.5,
                    label=_fleet_name(c, plan),
                )
            _limits(ax, name, plan.slos)
            ends = [c.outcome.quantiles.get(f"{name}_ms", []) for c in shown if c.outcome]
            _latency_axis(ax, name, np.array([v for e in ends for v in e]))
            if k == 0 and shown:
                figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        t = plan.trace
        figure.suptitle(
            f"{t['name']}: {t['requests']:,} requests, SLO {', '.join(map(str, plan.goals))}",
            x=0.01,
            ha="left",
            fontsize=11,
        )
    return figure


def _limits(ax: Axes, name: str, slos: Sequence[Slo]) -> None:
    """Each SLO on this latency as a dashed line, with a dot where the curve may not be right of."""
    for slo in slos:
        if slo.metric == name:
            ax.axvline(slo.limit_ms, color="#444444", linestyle="--", linewidth=0.9)
            if slo.quantile is not None:
                ax.plot([slo.limit_ms], [slo.quantile], marker="o", color="#444444", markersize=4)


def _latency_axis(ax: Axes, name: str, values: Any) -> None:
    """A logarithmic axis when values spread over more than a decade and a half."""
    ax.set_title(f"{_TITLES[name]}, share of requests")
    ax.set_xlabel("ms")
    ax.set_ylim(0, 1.01)
    positive = values[values > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    else:
        ax.set_xlim(left=0)


def _bars(
    ax: Axes, title: str, fleets: list[Candidate], key: Any, plan: Plan, color: dict[str, str]
) -> None:
    ax.set_title(title)
    ax.grid(visible=False, axis="y")
    values = [key(c) or 0.0 for c in fleets]
    names = [_fleet_name(c, plan) for c in fleets]
    drawn = ax.barh(names, values, color=[color[c.profile] for c in fleets], height=0.62)
    ax.bar_label(drawn, labels=[f"{v:.3g}" for v in values], padding=3, fontsize=8)
    ax.margins(x=0.18)
    ax.invert_yaxis()  # the best on top
    if not fleets:
        ax.text(0.5, 0.5, "no fleet meets the SLOs", ha="center", transform=ax.transAxes)


def _intervals(ax: Axes, fleets: list[Candidate], plan: Plan, color: dict[str, str]) -> None:
    """Quality with its interval; a hollow dot for an estimate."""
    ax.set_title("quality, % of 16-bit")
    ax.grid(visible=False, axis="y")
    for i, c in enumerate(fleets):
        if c.quality is None:
            continue
        q = c.quality
        ax.plot([q.low_pct, q.high_pct], [i, i], color=color[c.profile], linewidth=1.6)
        face = "white" if q.status == "estimated" else color[c.profile]
        ax.plot([q.mean_pct], [i], "o", color=color[c.profile], markerfacecolor=face, markersize=5)
    if plan.quality_goal is not None and plan.quality_goal.min_pct is not None:
        ax.axvline(plan.quality_goal.min_pct, color="#444444", linestyle="--", linewidth=0.9)
    ax.set_yticks(range(len(fleets)), [_fleet_name(c, plan) for c in fleets])
    ax.set_ylim(max(len(fleets), 1) - 0.5, -0.5)  # the best on top


def _fleet_name(candidate: Candidate, plan: Plan) -> str:
    several = len({(c.gpu, c.model) for c in plan.candidates}) > 1
    name = candidate.profile if several else candidate.method
    count = candidate.outcome.replicas if candidate.outcome else 0
    return f"{count} x {name}" + ("" if candidate.feasible else " (misses)")


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
