"""Tasks: quality against energy, cost and latency, with the front of each pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qsim.optimize.study.figures import FIGURES, Band
from qsim.optimize.study.levels import ApplicationRow
from qsim.optimize.study.result import StudyResult
from qsim.report.figures.labels import EndLabel
from qsim.report.figures.study.panel import Panel, finish, new_panel
from qsim.report.figures.style import method_look, style

#: name: title and the words of a caption
MEASURES = {
    "joules_per_request": (FIGURES["joules_per_request"].title, "energy"),
    "usd_per_1m_at_highest": ("USD per million output tokens, full", "cost"),
    "mean_e2el_ms": (FIGURES["mean_e2el_ms"].title, "latency"),
}


def measure(row: ApplicationRow, name: str) -> Band | None:
    """A figure of a row, by its name in :data:`MEASURES`."""
    if name == "usd_per_1m_at_highest":
        return row.usd_per_1m_at_highest
    return row.figures.get(name)


def application_panels(found: StudyResult) -> Iterator[Panel]:
    """For each GPU and measure a panel a task, quality on the same axis."""
    for gpu in found.gpus:
        for name, (title, word) in MEASURES.items():
            panels = []
            for task in found.tasks:
                rows = [
                    r
                    for r in found.application
                    if (r.gpu, r.task) == (gpu, task.name)
                    and r.quality is not None
                    and measure(r, name) is not None
                ]
                if not rows:
                    continue
                panel = new_panel(
                    f"application-{gpu}-{word}-{task.name}", "application", gpu,
                    f"quality against {word}", task.name,
                    f"{task.name} on {gpu}: quality, percent of the 16-bit score, against {title}; "
                    "the front as steps",
                )  # fmt: skip
                _draw(panel, rows, name)
                panel.ax.set_xlabel(title)
                panels.append(panel)
            kept = [r.quality.value for r in found.application if r.quality and r.gpu == gpu]
            for p in panels:
                p.ax.set_ylabel("quality, % of 16-bit", fontsize=8)
                room = 0.08 * (max(kept) - min(kept)) + 0.2  # wide intervals end at the edge
                p.ax.set_ylim(min(kept) - room, max(kept) + room)
            yield from finish(panels, log="x")


def _draw(panel: Panel, rows: Sequence[ApplicationRow], name: str) -> None:
    points: list[tuple[float, float, ApplicationRow]] = []
    with style():
        for row in rows:
            x, y, look = measure(row, name), row.quality, method_look(row.method)
            assert x is not None
            assert y is not None
            points.append((x.value, y.value, row))
            thin: Any = {"color": look.color, "alpha": 0.45, "linewidth": 0.9}
            panel.ax.plot([x.low, x.high], [y.value, y.value], **thin)
            panel.ax.plot([x.value, x.value], [y.low, y.high], **thin)
            panel.ax.plot([x.value], [y.value], marker=look.marker, markersize=5, linestyle="",
                          color=look.color, markerfacecolor=look.face, zorder=3)  # fmt: skip
        on = _front(points)
        if on:
            xs, ys = [p[0] for p in on], [p[1] for p in on]
            right = max([p[0] for p in points])
            panel.ax.step([*xs, right], [*ys, ys[-1]], where="post", color="#444444",
                          linewidth=0.9, zorder=1)  # fmt: skip
        methods = {p[2].method for p in on}
        for x_at, y_at, row in points:
            panel.labels.append(
                EndLabel(row.method, x_at, y_at, method_look(row.method).text,
                         row.method in methods)
            )  # fmt: skip


def _front(
    points: Sequence[tuple[float, float, ApplicationRow]],
) -> list[tuple[float, float, ApplicationRow]]:
    """Points that no other has at most the x and at least the quality of, by x."""
    on: list[tuple[float, float, ApplicationRow]] = []
    for p in sorted(points, key=lambda p: (p[0], -p[1])):
        if not on or p[1] > on[-1][1]:
            on.append(p)
    return on
