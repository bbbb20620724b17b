"""The trials of a tuning as points, with the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.report.figures.labels import EndLabel, label_ends
from qsim.report.figures.style import COLORS, blank_figure, method_look, plain_log_axis, style
from qsim.report.text.tune import profile_names

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qsim.optimize.search.measures import Measure
    from qsim.optimize.search.study import Record
    from qsim.optimize.tune.result import TuneResult

_MOST_PANELS = 3
_LIMIT = "#444444"
_PICKED = "#000000"


def tune_figure(result: TuneResult, picked: Record | None = None) -> Figure:
    """Trials by their first objective and each further one, and the front of each pair as steps.

    With one objective its values are drawn over the trials' numbers. Of more than four, the
    others are not shown. A trial on the front of all objectives has a dark edge.
    """
    objectives = result.objectives
    front = result.front
    pairs = min(len(objectives) - 1, _MOST_PANELS)
    with style():
        figure = blank_figure(8.4, 4.6 if pairs < 2 else 1.0 + 3.1 * pairs)
        t = result.trace
        figure.suptitle(
            f"{t['name']}: {t['requests']:,} requests, {len(result.trials)} trials, "
            f"{len(front)} on the front",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        if not pairs:
            _progress(figure.add_subplot(), result)
            return figure
        axes = figure.subplots(pairs, 1, sharex=True, squeeze=False)[:, 0]
        ends = [(ax, _scatter(ax, result, k + 1, front, picked)) for k, ax in enumerate(axes)]
        axes[-1].set_xlabel(_axis_title(objectives[0]))
        figure.legend(handles=_key(result, picked), loc="outside lower left", ncols=4)
        label_ends(figure, ends)
    return figure


def _scatter(
    ax: Axes, result: TuneResult, row: int, front: list[Record], picked: Record | None
) -> list[EndLabel]:
    """Draw the trials by the first objective and objective ``row``; names of the steps' corners."""
    x, y = result.objectives[0], result.objectives[row]
    complete = [t for t in result.trials if t.complete]
    missed = [t for t in complete if not t.feasible]
    inside = [t for t in complete if t.feasible]
    ax.scatter(_column(missed, 0), _column(missed, row), marker="x", s=22, color="#bbbbbb",
               linewidths=0.9)  # fmt: skip
    names = profile_names(result)
    numbers = {t.number for t in front}
    for id_ in result.choices:
        look = method_look(id_)
        for on, size in ((False, 20), (True, 52)):
            mine = [t for t in inside if t.params["profile"] == id_ and (t.number in numbers) == on]
            ax.scatter(_column(mine, 0), _column(mine, row), s=size, marker=look.marker,
                       color=look.face, alpha=1.0 if on else 0.6, zorder=3 if on else 2,
                       edgecolors="#222222" if on and not look.hollow else look.color,
                       linewidths=1.6 if on and look.hollow else 0.7)  # fmt: skip
    steps = _steps(inside, row, x.maximize, y.maximize)
    corners = [(t.values or ()) for t in steps]
    if corners:
        ax.step([c[0] for c in corners], [c[row] for c in corners], color=_LIMIT, linewidth=0.9,
                where="pre" if x.maximize else "post", zorder=1)  # fmt: skip
    if picked is not None and picked.values:
        ax.scatter([picked.values[0]], [picked.values[row]], s=190, facecolors="none",
                   edgecolors=_PICKED, linewidths=1.5, zorder=4)  # fmt: skip
    for limit in result.limits:
        if limit.measure.name == x.name:
            ax.axvline(limit.value, color=_LIMIT, linestyle="--", linewidth=0.9)
        if limit.measure.name == y.name:
            ax.axhline(limit.value, color=_LIMIT, linestyle="--", linewidth=0.9)
    for axis, column in (("x", 0), ("y", row)):
        values = _column(inside or complete, column)
        wide = len(values) and values.min() > 0 and values.max() > 5 * values.min()
        if wide:
            plain_log_axis(ax, axis)
    ax.set_title(_axis_title(y))
    _zoom(ax, inside, row)
    labels: list[EndLabel] = []
    for t in steps:
        id_ = str(t.params["profile"])
        text = f"{sum(p.replicas for p in result.pools(t))} x {names[id_]}"
        if not labels or labels[-1].text != text:  # one name for neighbours of one fleet
            at = t.values or ()
            labels.append(EndLabel(text, at[0], at[row], method_look(id_).text))
    return labels


def _steps(trials: Sequence[Record], row: int, more_x: bool, more_y: bool) -> list[Record]:
    """The trials that no other is at least as good as in both objectives, in the order of x."""
    sign_x, sign_y = (-1 if more_x else 1), (-1 if more_y else 1)

    def both(trial: Record) -> tuple[float, float]:
        values = trial.values or ()
        return sign_x * values[0], sign_y * values[row]

    found: list[Record] = []
    for t in sorted(trials, key=both):
        if not found or both(t)[1] < both(found[-1])[1]:
            found.append(t)
    return found if not more_x else found[::-1]


def _key(result: TuneResult, picked: Record | None) -> list[Artist]:
    """What the markers are; names beside the front say only which of them are on it."""
    from matplotlib.lines import Line2D

    names = profile_names(result)
    drawn = {str(t.params["profile"]) for t in result.trials if t.feasible}
    handles: list[Artist] = []
    for id_ in result.choices:
        if id_ in drawn:
            look = method_look(id_)
            handles.append(
                Line2D([], [], linestyle="", marker=look.marker, color=look.color,
                       markerfacecolor=look.face, label=names[id_])
            )  # fmt: skip
    handles.append(Line2D([], [], linestyle="", marker="o", color="#ffffff", markersize=7,
                          markeredgecolor="#222222", label="on the front of all"))  # fmt: skip
    if any(t.complete and not t.feasible for t in result.trials):
        handles.append(
            Line2D([], [], linestyle="", marker="x", color="#bbbbbb", label="misses a constraint")
        )
    if picked is not None:
        handles.append(Line2D([], [], linestyle="", marker="o", markersize=11, label="picked",
                              markerfacecolor="none", markeredgecolor=_PICKED))  # fmt: skip
    return handles


def _zoom(ax: Axes, inside: list[Record], row: int) -> None:
    """Leave overloaded fleets, which miss constraints by orders of magnitude, outside."""
    if not inside:
        return
    for column, scale, set_limits in ((0, ax.get_xscale(), ax.set_xlim),
                                      (row, ax.get_yscale(), ax.set_ylim)):  # fmt: skip
        values = _column(inside, column)
        low, high = float(values.min()), float(values.max())
        if high > low:
            if scale == "log":
                factor = (high / low) ** 0.08
                set_limits(low / factor, high * factor)
            else:
                set_limits(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _axis_title(measure: Measure) -> str:
    return f"{measure.title} ({_better(measure.maximize)})"


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
