"""Names written beside what they name: at the right of a panel, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_PT = 8.0
_LINE_PT = 1.25 * _SIZE_PT


@dataclass(frozen=True)
class EndLabel:
    """A name and the point that it belongs to, in the panel's data coordinates."""

    text: str
    x: float
    y: float
    color: str
    bold: bool = False


def label_ends(figure: Figure, panels: Sequence[tuple[Axes, Sequence[EndLabel]]]) -> None:
    """Write each panel's names at its right, level with their points where there is room.

    A thin line leads from a point to its name. Call it when scales and limits are final.
    """
    panels = [(ax, labels) for ax, labels in panels if labels]
    if not panels:
        return
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()  # the layout, to know how much room a panel has
    for ax, labels in panels:
        ax.get_xlim(), ax.get_ylim()  # limits that are still to be found are found now
        box = ax.get_window_extent()
        height_pt = box.height / figure.dpi * 72
        inside = ax.transAxes.inverted()
        points = [inside.transform(ax.transData.transform((v.x, v.y))) for v in labels]
        at = spread([float(p[1]) for p in points], _LINE_PT / max(height_pt, 1.0))
        for label, place, point in zip(labels, at, points, strict=True):
            ax.annotate(
                label.text,
                xy=(min(max(float(point[0]), 0.0), 1.0), min(max(float(point[1]), 0.0), 1.0)),
                xycoords="axes fraction",
                xytext=(1.035, place),
                textcoords="axes fraction",
                fontsize=_SIZE_PT,
                color=label.color,
                fontweight="bold" if label.bold else "normal",
                va="center",
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-",
                    "color": label.color,
                    "linewidth": 0.5,
                    "alpha": 0.65,
                    "shrinkA": 1,
                    "shrinkB": 0,
                    "relpos": (0, 0.5),
                },
            )


def spread(at: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Places at least ``gap`` apart and as near to ``at`` as can be, in the same order.

    Least squares, by pooling neighbours that are too near (isotonic regression of
    ``at[k] - k * gap``). Between ``low`` and ``high``, or evenly beyond both if there is no room.
    """
    order = sorted(range(len(at)), key=lambda i: (at[i], i))
    room = gap * (len(at) - 1)
    if room > high - low:
        low = (low + high - room) / 2
        high = low + room
    blocks: list[tuple[float, int]] = []  # mean of at - k * gap, and how many
    for k, i in enumerate(order):
        mean, count = at[i] - k * gap, 1
        while blocks and blocks[-1][0] >= mean:
            before, n = blocks.pop()
            mean, count = (before * n + mean * count) / (n + count), n + count
        blocks.append((mean, count))
    places = [0.0] * len(at)
    k = 0
    for mean, count in blocks:
        for _ in range(count):
            places[order[k]] = min(max(mean, low), high - room) + k * gap
            k += 1
    return places
