"""The picture of a load curve: latency, throughput and energy over the rate, knees marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qsim.report.figures.style import COLORS, blank_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qsim.optimize.capacity.curve import FleetCurve, LoadCurve

__all__ = ["curve_figure"]

_LINES = ("-", "--", ":", "-.")


def curve_figure(found: LoadCurve) -> Figure:
    """Small multiples over requests/s, one line a fleet; a dot marks each fleet's knee."""
    latencies: list[tuple[str, str, float | None]] = [
        (str(s), f"{s.metric.upper()} {s.statistic}, ms", s.limit_ms) for s in found.slos
    ] or [("p99_ttft_ms", "TTFT p99, ms", None), ("p99_tpot_ms", "TPOT p99, ms", None)]
    panels = [
        *latencies,
        ("output_throughput", "output tokens/s", None),
        ("joules_per_output_token", "J per output token", None),
    ]
    rows = found.rows()
    wide = 2 if len(panels) <= 4 else 3
    high = -(-len(panels) // wide)
    with style():
        figure = blank_figure(4.6 * wide, 2.7 * high + 0.5)
        grid = figure.subplots(high, wide, squeeze=False, sharex=True)
        axes = list(grid.flat)
        for ax, (key, title, limit) in zip(axes, panels, strict=False):
            for i, fleet in enumerate(found.fleets):
                own = [r for r in rows if r["fleet"] == fleet.name]
                _line(ax, fleet, own, key, i)
            if limit is not None:
                ax.axhline(limit, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
                _log_axis(ax)
            ax.set_title(title)
            ax.margins(x=0.02)
            if limit is None:
                ax.set_ylim(bottom=0)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax in grid[-1]:
            ax.set_xlabel("requests/s")
            ax.set_xlim(left=0)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return figure


def _log_axis(ax: Axes) -> None:
    """A logarithmic axis with numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _line(
    ax: Axes, fleet: FleetCurve, rows: Sequence[dict[str, Any]], key: str, place: int
) -> None:
    color = COLORS[place % len(COLORS)]
    points = [(r["rate_rps"], r[key]) for r in rows if r[key] is not None]
    if not points:
        return
    x, y = zip(*points, strict=True)
    ax.plot(x, y, color=color, linewidth=1.5, linestyle=_LINES[place // len(COLORS) % 4],
            marker=".", markersize=4, label=f"{fleet.name} x {fleet.fleet.replicas}")  # fmt: skip
    best = fleet.fleet.best
    knee = [(r["rate_rps"], r[key]) for r in rows if best and r["speed"] == best.speed]
    if knee and knee[0][1] is not None:
        ax.plot(*knee[0], marker="o", markersize=7, color=color, markeredgecolor="white", zorder=5)
