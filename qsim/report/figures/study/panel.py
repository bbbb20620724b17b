"""One small picture, and what all of a study's have in common: size, room for names, axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.optimize.study.figures import Band
from qsim.report.figures.labels import EndLabel, label_ends
from qsim.report.figures.style import Look, method_look, plain_log_axis, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: inches; names stand in the right third. Read at 400 pixels and three abreast at 1,400
_SIZE = (4.6, 3.0)
_BOX = (0.15, 0.165, 0.50, 0.71)
_BARS_BOX = (0.33, 0.165, 0.60, 0.71)


@dataclass
class Panel:
    """One picture of a study."""

    #: of its files, without an ending
    name: str
    #: where it belongs: panels of one group share axes. ``gpu`` is "" for several
    level: str
    gpu: str
    group: str
    title: str
    #: what it shows, for those who do not see it
    caption: str
    figure: Figure
    ax: Axes
    #: names still to be written, when limits are final
    labels: list[EndLabel] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    """A value with its band at ``x``; ``sure`` is False where the fleet did not keep up."""

    x: float
    band: Band
    sure: bool = True


def new_panel(
    name: str,
    level: str,
    gpu: str,
    group: str,
    title: str,
    caption: str,
    *,
    named_left: bool = False,
) -> Panel:
    """An empty panel."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with style():
        figure = Figure(figsize=_SIZE)
        ax = figure.add_axes(_BARS_BOX if named_left else _BOX)
        ax.set_title(title, fontsize=9.5)
        ax.tick_params(labelsize=8)
        ax.xaxis.label.set_fontsize(8.5)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    return Panel(name, level, gpu, group, title, caption, figure, ax)


def line(panel: Panel, method: str, points: Sequence[Point]) -> None:
    """A method's line with its error band; pale where the fleet does not keep up."""
    if not points:
        return
    look = method_look(method)
    ax = panel.ax
    x = [p.x for p in points]
    value = [p.band.value for p in points]
    with style():
        ax.fill_between(x, [p.band.low for p in points], [p.band.high for p in points],
                        color=look.color, alpha=0.10, linewidth=0)  # fmt: skip
        drawn: Any = {"color": look.color, "linestyle": look.dashes, "markersize": 3.5,
                      "marker": look.marker, "markerfacecolor": look.face}  # fmt: skip
        ax.plot(x, value, alpha=0.35, linewidth=1.0, **drawn)
        sure = [p for p in points if p.sure]
        ax.plot([p.x for p in sure], [p.band.value for p in sure], linewidth=1.4, **drawn)
    panel.labels.append(EndLabel(method, x[-1], value[-1], look.text))


def bars(panel: Panel, rows: Sequence[tuple[str, Band]]) -> None:
    """A bar a method with its error, the first on top; names at the left."""
    with style():
        looks: list[Look] = [method_look(m) for m, _ in rows]
        values = np.array([b.value for _, b in rows])
        error = np.array([[b.value - b.low for _, b in rows], [b.high - b.value for _, b in rows]])
        drawn = panel.ax.barh(
            range(len(rows)), values, height=0.65,
            color=["white" if v.hollow else v.color for v in looks],
            edgecolor=[v.color for v in looks], linewidth=1.2,
            xerr=error, ecolor="#555555", error_kw={"elinewidth": 0.9},
        )  # fmt: skip
        panel.ax.bar_label(
            drawn, labels=[f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in values],
            padding=3, fontsize=7.5,
        )  # fmt: skip
        panel.ax.set_yticks(range(len(rows)), [m for m, _ in rows])
        panel.ax.set_ylim(len(rows) - 0.5, -0.5)
        panel.ax.grid(visible=False, axis="y")
        panel.ax.margins(x=0.22)
        panel.ax.set_xlim(left=0)


def finish(panels: Sequence[Panel], *, log: str = "", share: str = "y") -> list[Panel]:
    """Give the panels common limits and their names.

    ``log`` names the axes (of "xy") that are logarithmic if their values spread by more than five
    times, ``share`` those that are the same in all panels.
    """
    from matplotlib.axes import Axes

    with style():
        for axis in "xy":
            get, put = (Axes.get_xlim, Axes.set_xlim) if axis == "x" else (
                Axes.get_ylim, Axes.set_ylim)  # fmt: skip
            if axis in share and panels:
                limits = [get(p.ax) for p in panels]
                low, high = min(v[0] for v in limits), max(v[1] for v in limits)
                for p in panels:
                    put(p.ax, low, high)
            for p in panels:
                low, high = _extent(p if axis not in share else None, panels, axis)
                if axis in log and low > 0 and high > 5 * low:
                    put(p.ax, low / (high / low) ** 0.06, high * (high / low) ** 0.06)
                    plain_log_axis(p.ax, axis)
        for p in panels:
            label_ends(p.figure, [(p.ax, p.labels)])
            p.labels = []
    return list(panels)


def _extent(one: Panel | None, panels: Sequence[Panel], axis: str) -> tuple[float, float]:
    """The least and the largest value drawn as lines or points along an axis."""
    found: list[float] = []
    for p in [one] if one is not None else panels:
        for drawn in p.ax.lines:
            data = drawn.get_xdata() if axis == "x" else drawn.get_ydata()
            if drawn.get_transform() == p.ax.transData:  # not a limit across the panel
                found += [float(v) for v in np.asarray(data, np.float64) if np.isfinite(v)]
    return (min(found), max(found)) if found else (0.0, 0.0)
