"""Static pictures of a simulation, of a plan and of a load, measured and simulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.optimize.search.fleet_outcome import QUANTILES
from qsim.report.figures.labels import EndLabel, label_ends
from qsim.report.figures.style import (
    COLORS,
    Look,
    blank_figure,
    distinct_names,
    method_look,
    style,
    text_color,
)
from qsim.report.figures.tails import Curve, percentile_axis, tail_of_quantiles, tail_of_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qsim.calibrate.adapt.comparing import Compared
    from qsim.optimize.plan.candidate import Candidate
    from qsim.optimize.plan.result import Plan
    from qsim.sim.results.result import SimulationResult
    from qsim.sim.results.slo import Slo


def latency_figure(result: SimulationResult, slos: Sequence[Slo] = ()) -> Figure:
    """TTFT, TPOT and E2EL by percentile, the tail spread out, with the limits on them."""
    with style():
        figure = blank_figure(10, 3)
        axes = figure.subplots(1, 3)
        for ax, name in zip(axes, ("ttft", "tpot", "e2el"), strict=True):
            values = result.metric(name)
            curve = tail_of_values(values)
            if len(values):
                ax.step(*curve, where="pre", color=COLORS[0], linewidth=1.6)
            percentile_axis(ax, name, [curve], slos)
    return figure


def timeline_figure(result: SimulationResult) -> Figure:
    """Requests running and waiting, use of the KV cache, and power, over time."""
    t = result.timeline
    t_s = t["t_s"]
    with style():
        figure = blank_figure(10, 5.4)
        queue, kv, power = figure.subplots(3, 1, sharex=True)
        shown = (("running", COLORS[0]), ("waiting", COLORS[1]))
        for name, color in shown:
            queue.plot(t_s, t[name], color=color, linewidth=1.2)
        queue.set_title("requests in the fleet")
        kv.fill_between(t_s, t["kv_usage"] * 100, color=COLORS[2], alpha=0.35, linewidth=0)
        kv.plot(t_s, t["kv_usage"] * 100, color=COLORS[2], linewidth=1.0)
        kv.set_title("KV cache in use, %, mean of the replicas")
        power.plot(t_s, t["power_w"], color=COLORS[3], linewidth=1.0)
        power.set_title("power of all GPUs, W")
        power.set_xlabel("time, s")
        for ax in (queue, kv, power):
            ax.set_ylim(bottom=0)
            ax.margins(x=0)
        if len(t_s):
            label_ends(figure, [(queue, [
                EndLabel(name, float(t_s[-1]), float(t[name][-1]), text_color(color))
                for name, color in shown
            ])])  # fmt: skip
    return figure


def plan_figure(plan: Plan) -> Figure:
    """The fleets of a plan side by side, and each latency with an SLO by percentile.

    Thin lines on bars are the errors that the profiles state; dotted curves miss an SLO. A mixed
    fleet has the colours of both its methods.
    """
    shown = [c for c in plan.candidates if c.outcome is not None]
    fleets = [c for c in plan.candidates if c.feasible]
    limited = {s.metric for s in plan.slos} | set(dict(plan.goodput.limits if plan.goodput else ()))
    metrics = [m for m in ("ttft", "tpot", "e2el") if m in limited]
    metrics = metrics or ["e2el"]
    names = _fleet_names(plan)
    longest = 0.068 * max((len(n) for n in names.values()), default=0)
    with style():
        bars_height = 0.8 + 0.34 * max(2, len(fleets))
        tails_height = max(3.0, 0.15 * len(shown) + 0.8)
        figure = blank_figure(9 + 2 * longest, bars_height + tails_height + 0.4)
        halves: Any = figure.subfigures(2, 1, height_ratios=[bars_height, tails_height])
        above, below = halves
        bars = above.subplots(1, 4, sharey=True)
        for ax, (title, key) in zip(
            bars[:3],
            (
                ("USD per hour", lambda c: c.usd_per_hour),
                ("mean power, kW", lambda c: (c.metric("avg_power_w") or 0.0) * 1e-3),
                ("J per output token", lambda c: c.metric("joules_per_output_token")),
            ),
            strict=True,
        ):
            _bars(ax, title, fleets, key)
        _intervals(bars[3], fleets, plan)
        bars[0].set_yticks(range(len(fleets)), [names[c.profile, id(c)] for c in fleets])
        bars[0].set_ylim(max(len(fleets), 1) - 0.5, -0.5)  # the best on top
        if not fleets:
            bars[0].text(
                0.02, 0.5, "no fleet meets the SLOs", ha="left", transform=bars[0].transAxes
            )
        panels = below.subplots(1, len(metrics), squeeze=False)[0]
        ends: list[tuple[Axes, list[EndLabel]]] = []
        for ax, name in zip(panels, metrics, strict=True):
            curves, labels = [], []
            for c in shown:
                if (curve := _tail(c, name)) is None:
                    continue
                look, *others = _looks(c)
                ax.plot(*curve, color=look.color, linewidth=1.5,
                        linestyle=look.dashes if c.feasible else ":")  # fmt: skip
                for other in others:  # a mixed fleet's line has the colours of its pools
                    ax.plot(*curve, color=other.color, linewidth=1.5, linestyle=(0, (4, 4)))
                curves.append(curve)
                labels.append(
                    EndLabel(
                        names[c.profile, id(c)], float(curve[0][-1]), float(curve[1][-1]), look.text
                    )
                )
            percentile_axis(ax, name, curves, plan.slos)
            ends.append((ax, labels))
        t = plan.trace
        figure.suptitle(
            f"{t['name']}: {t['requests']:,} requests, SLO {', '.join(map(str, plan.goals))}",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        label_ends(figure, ends)
    return figure


def _tail(candidate: Candidate, name: str) -> Curve | None:
    """1 / (1 - F) and ms of a fleet's latency; None without one."""
    outcome = candidate.outcome
    values = outcome.quantiles.get(f"{name}_ms", []) if outcome else []
    if outcome is None or not values:
        return None
    return tail_of_quantiles(QUANTILES, values, int(outcome.summary["completed"]))


def _bars(ax: Axes, title: str, fleets: list[Candidate], key: Any) -> None:
    """A bar a fleet, with the error of energy that the profile states where it is of energy."""
    ax.set_title(title)
    ax.grid(visible=False, axis="y")
    values = np.array([key(c) or 0.0 for c in fleets])
    looks = [_looks(c) for c in fleets]
    error = np.array([c.error_percent.get("energy") or 0.0 for c in fleets]) / 100
    around = np.array([values - values / (1 + error), values * error])
    energy = not title.startswith("USD") and bool(error.any())
    drawn = ax.barh(
        range(len(fleets)), values, height=0.62,
        color=["white" if v.hollow else v.color for v, *_ in looks],
        edgecolor=[v[-1].color for v in looks], linewidth=1.4,
        hatch=["///" if len(v) > 1 else None for v in looks],
        xerr=around if energy else None, ecolor="#555555", error_kw={"elinewidth": 0.9},
    )  # fmt: skip
    ax.bar_label(drawn, labels=[f"{v:.3g}" for v in values], padding=3, fontsize=8)
    ax.margins(x=0.2)
    ax.set_xlim(left=0)


def _intervals(ax: Axes, fleets: list[Candidate], plan: Plan) -> None:
    """Quality with its interval; a hollow dot for an estimate."""
    ax.set_title("quality, % of 16-bit")
    ax.grid(visible=False, axis="y")
    for i, c in enumerate(fleets):
        if c.quality is None:
            continue
        q, look = c.quality, _looks(c)[0]
        ax.plot([q.low_pct, q.high_pct], [i, i], color=look.color, linewidth=1.6)
        face = "white" if q.status == "estimated" else look.color
        ax.plot([q.mean_pct], [i], "o", color=look.color, markerfacecolor=face, markersize=5)
    if plan.quality_goal is not None and plan.quality_goal.min_pct is not None:
        ax.axvline(plan.quality_goal.min_pct, color="#444444", linestyle="--", linewidth=0.9)


def _looks(candidate: Candidate) -> tuple[Look, ...]:
    """The look of each pool's method; of one pool that of the fleet."""
    return tuple(method_look(b.profile) for b in candidate.blanks)


def _fleet_names(plan: Plan) -> dict[tuple[str, int], str]:
    """How many servers of what each fleet is; no two fleets have one name."""
    profiles = list(dict.fromkeys(b.profile for c in plan.candidates for b in c.blanks))
    short = dict(zip(profiles, distinct_names(profiles), strict=True))
    names = []
    for c in plan.candidates:
        sizes = [p.replicas for p in c.parts] or ([c.outcome.replicas] if c.outcome else [])
        said = [short[b.profile] for b in c.blanks]
        counted = [f"{n} x {name}" for n, name in zip(sizes, said, strict=True)] if sizes else said
        names.append(" + ".join(counted) + ("" if c.feasible else " (misses)"))
    return {
        (c.profile, id(c)): name if names.count(name) == 1 else f"{name} ({k + 1})"
        for k, (c, name) in enumerate(zip(plan.candidates, names, strict=True))
    }


_TITLE = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}


def compare_figure(c: Compared) -> Figure:
    """Each request, simulated over measured, and both distributions, for each metric."""
    with style():
        pairs = c.pairs()
        figure = blank_figure(4.2 * len(pairs), 6.4)
        axes = figure.subplots(2, len(pairs), squeeze=False)
        ends = []
        for i, (metric, (measured, simulated)) in enumerate(pairs.items()):
            low = max(float(min(measured.min(), simulated.min())), 1e-3)
            high = max(float(max(measured.max(), simulated.max())), low * 1.01)
            above, below = axes[0][i], axes[1][i]
            above.plot([low, high], [low, high], color="0.6", linewidth=0.8)
            above.plot(np.maximum(measured, 1e-3), np.maximum(simulated, 1e-3), ".", markersize=3)
            above.set(xscale="log", yscale="log", title=f"{_TITLE[metric]}, one request a point",
                      xlabel="measured, ms", ylabel="simulated, ms")  # fmt: skip
            curves = [tail_of_values(v) for v in (measured, simulated)]
            labels = []
            for curve, name, color in zip(curves, ("measured", "simulated"), COLORS, strict=False):
                below.step(*curve, where="pre", color=color, linewidth=1.4)
                labels.append(
                    EndLabel(name, float(curve[0][-1]), float(curve[1][-1]), text_color(color))
                )
            percentile_axis(below, metric.removesuffix("_ms"), curves, ())
            ends.append((below, labels))
        figure.suptitle(f"{c.load.name} through {c.profile.id}")
        label_ends(figure, ends)
    return figure
