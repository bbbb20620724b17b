"""The trials of a tuning as points, with the front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.report.figures.style import COLORS, blank_figure, style
from qsim.report.text.tune import profile_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qsim.optimize.search.study import Record
    from qsim.optimize.tune.result import TuneResult

__all__ = ["tune_figure"]

#: markers of the profiles, told apart without colour
_MARKERS = "osD^vPX*<>hp"


def tune_figure(result: TuneResult, picked: Record | None = None) -> Figure:
    """Trials by their first two objectives, the third as colour, and the front.

    With one objective its values are drawn over the trials' numbers. Of more than three, the
    others are not shown.
    """
    objectives = result.objectives
    front = result.front
    with style():
        figure = blank_figure(8.4, 5.2)
        ax = figure.add_subplot()
        if len(objectives) == 1:
            _progress(ax, result)
        else:
            _scatter(figure, ax, result, front, picked)
        t = result.trace
        figure.suptitle(
            f"{t['name']}: {t['requests']:,} requests, {len(result.trials)} trials, "
            f"{len(front)} on the front",
            x=0.01,
            ha="left",
            fontsize=11,
        )
    return figure


def _scatter(
    figure: Figure, ax: Axes, result: TuneResult, front: list[Record], picked: Record | None
) -> None:
    x, y = result.objectives[:2]
    third = result.objectives[2] if len(result.objectives) > 2 else None
    complete = [t for t in result.trials if t.complete]
    missed = [t for t in complete if not t.feasible]
    inside = [t for t in complete if t.feasible]
    xs, ys = _column(missed, 0), _column(missed, 1)
    ax.scatter(xs, ys, marker="x", s=22, color="#bbbbbb", linewidths=0.9,
               label="misses a constraint" if missed else None)  # fmt: skip
    names = profile_names(result)
    numbers = {t.number for t in front}
    shades: dict[str, Any] = {}
    if third is not None:
        values = _column(inside, 2)
        if len(values):
            shades = {"vmin": values.min(), "vmax": values.max(), "cmap": "viridis"}
    drawn = None
    for i, id_ in enumerate(result.choices):
        mine = [t for t in inside if t.params["profile"] == id_]
        if not mine:
            continue
        on = np.array([t.number in numbers for t in mine])
        color: Any = _column(mine, 2) if third is not None else COLORS[i % len(COLORS)]
        for part, size, alpha in ((~on, 20, 0.45), (on, 62, 1.0)):
            if part.any():
                drawn = ax.scatter(
                    _column(mine, 0)[part], _column(mine, 1)[part], s=size, alpha=alpha,
                    c=color[part] if third is not None else None,
                    color=None if third is not None else color,
                    marker=_MARKERS[i % len(_MARKERS)], linewidths=0.6,
                    edgecolors="#222222" if size > 50 else "none", **shades,
                )  # fmt: skip
        ax.scatter([], [], marker=_MARKERS[i % len(_MARKERS)], s=40, label=names[id_],
                   color="#666666" if third is not None else color)  # fmt: skip
    if third is None and front:
        line = sorted((t.values or ())[:2] for t in front)
        ax.plot([p[0] for p in line], [p[1] for p in line], color="#444444", linewidth=0.9,
                zorder=0, label="front")  # fmt: skip
    elif drawn is not None and third is not None:
        bar = figure.colorbar(drawn, ax=ax)
        bar.set_label(f"{third.title} ({_better(third.maximize)})")
    if picked is not None and picked.values:
        ax.scatter([picked.values[0]], [picked.values[1]], s=190, facecolors="none",
                   edgecolors=COLORS[1], linewidths=1.8, label="picked")  # fmt: skip
    for limit in result.limits:
        if limit.measure.name == x.name:
            ax.axvline(limit.value, color="#444444", linestyle="--", linewidth=0.9)
        if limit.measure.name == y.name:
            ax.axhline(limit.value, color="#444444", linestyle="--", linewidth=0.9)
    for axis, column, measure in ((ax.xaxis, 0, x), (ax.yaxis, 1, y)):
        values = _column(inside or complete, column)
        wide = len(values) and values.min() > 0 and values.max() > 30 * values.min()
        if wide:
            (ax.set_xscale if column == 0 else ax.set_yscale)("log")
            axis.set_major_formatter("{x:g}")
        axis.set_label_text(f"{measure.title} ({_better(measure.maximize)})")
    _zoom(ax, inside)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)


def _zoom(ax: Axes, inside: list[Record]) -> None:
    """Leave overloaded fleets, which miss constraints by orders of magnitude, outside."""
    if not inside:
        return
    for column, scale, set_limits in ((0, ax.get_xscale(), ax.set_xlim),
                                      (1, ax.get_yscale(), ax.set_ylim)):  # fmt: skip
        values = _column(inside, column)
        low, high = float(values.min()), float(values.max())
        if high > low:
            if scale == "log":
                factor = (high / low) ** 0.08
                set_limits(low / factor, high * factor)
            else:
                set_limits(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _progress(ax: Axes, result: TuneResult) -> None:
    objective = result.objectives[0]
    inside = [t for t in result.trials if t.feasible]
    numbers = [t.number for t in inside]
    values = _column(inside, 0)
    ax.plot(numbers, values, "o", color=COLORS[0], markersize=4, alpha=0.6)
    if len(values):
        best = (
            np.maximum.accumulate(values) if objective.maximize else np.minimum.accumulate(values)
        )
        ax.step(numbers, best, where="post", color=COLORS[1], label="best so far")
        ax.legend()
    ax.set_xlabel("trial")
    ax.set_ylabel(f"{objective.title} ({_better(objective.maximize)})")


def _column(trials: list[Record], objective: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([(t.values or ())[objective] for t in trials], dtype=np.float64)


def _better(maximize: bool) -> str:
    return "more is better" if maximize else "less is better"
