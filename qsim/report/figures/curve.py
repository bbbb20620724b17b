"""The picture of a load curve: latency, throughput and energy over the rate, knees marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.report.figures.labels import EndLabel, label_ends
from qsim.report.figures.style import (
    Look,
    blank_figure,
    gpu_dashes,
    method_look,
    plain_log_axis,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qsim.optimize.capacity.curve import FleetCurve, LoadCurve


def curve_figure(found: LoadCurve) -> Figure:
    """Small multiples over requests/s, one line a fleet; a large dot marks each fleet's knee.

    Bands are the errors that the profiles state: of mean and p99 latencies, and of energy.
    """
    latencies: list[tuple[str, str, float | None, str]] = [
        (str(s), f"{s.metric.upper()} {s.statistic}, ms", s.limit_ms, s.statistic)
        for s in found.slos
    ] or [
        ("p99_ttft_ms", "TTFT p99, ms", None, "p99"),
        ("p99_tpot_ms", "TPOT p99, ms", None, "p99"),
    ]
    panels = [
        *latencies,
        ("output_throughput", "output tokens/s", None, ""),
        ("joules_per_output_token", "J per output token", None, "energy"),
    ]
    rows = found.rows()
    wide = 2 if len(panels) <= 4 else 3
    high = -(-len(panels) // wide)
    single = len({f.fleet.blank.gpu for f in found.fleets}) == 1
    banded = False
    with style():
        named = 0.075 * max((len(f.name) + 4 for f in found.fleets), default=0)
        figure = blank_figure((3.5 + named) * wide, 2.7 * high + 0.3)
        grid = figure.subplots(high, wide, squeeze=False, sharex=True)
        axes = list(grid.flat)
        ends: list[tuple[Axes, list[EndLabel]]] = []
        for ax, (key, title, limit, kind) in zip(axes, panels, strict=False):
            labels = []
            for fleet in found.fleets:
                own = [r for r in rows if r["fleet"] == fleet.name]
                error = fleet.fleet.blank.error_percent.get(kind)
                dashes = (
                    method_look(fleet.fleet.profile).dashes
                    if single
                    else gpu_dashes(fleet.fleet.blank.gpu)
                )
                labels += _line(ax, fleet, own, key, error, dashes)
                banded = banded or bool(error and labels)
            if limit is not None:
                ax.axhline(limit, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
            ax.margins(x=0.02)
            if key != "output_throughput":
                plain_log_axis(ax)
            else:
                ax.set_ylim(bottom=0)
            ax.set_title(title)
            ends.append((ax, labels))
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax in grid[-1]:
            ax.set_xlabel("requests/s")
            ax.set_xlim(left=0)
        notes = [
            *(["large dot: the highest rate within the SLOs"] if found.slos else []),
            *(["band: the profile's stated error"] if banded else []),
        ]
        if notes:
            figure.supxlabel("; ".join(notes), fontsize=8, color="#555555")
        label_ends(figure, ends)
    return figure


def _line(
    ax: Axes,
    fleet: FleetCurve,
    rows: Sequence[dict[str, Any]],
    key: str,
    error_percent: float | None,
    dashes: Any,
) -> list[EndLabel]:
    """Draw one fleet; where its name belongs."""
    look: Look = method_look(fleet.fleet.profile)
    points = [(r["rate_rps"], r[key]) for r in rows if r[key] is not None]
    if not points:
        return []
    x, y = (np.array(v, np.float64) for v in zip(*points, strict=True))
    if error_percent:
        share = error_percent / 100
        ax.fill_between(x, y / (1 + share), y * (1 + share), color=look.color, alpha=0.13,
                        linewidth=0)  # fmt: skip
    ax.plot(x, y, color=look.color, linewidth=1.5, linestyle=dashes, marker=look.marker,
            markersize=3.5, markerfacecolor=look.face)  # fmt: skip
    best = fleet.fleet.best
    knee = [(r["rate_rps"], r[key]) for r in rows if best and r["speed"] == best.speed]
    if knee and knee[0][1] is not None:
        ax.plot(*knee[0], marker=look.marker, markersize=8, color=look.color,
                markerfacecolor=look.face, zorder=5)  # fmt: skip
    name = f"{fleet.name} x {fleet.fleet.replicas}"
    return [EndLabel(name, float(x[-1]), float(y[-1]), look.text)]
