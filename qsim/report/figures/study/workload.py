"""Traffic: curves over rate, concurrency, burstiness and batch limits; gains over lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qsim.optimize.study.figures import FIGURES
from qsim.optimize.study.levels import AXIS_TITLES, WorkloadRow
from qsim.optimize.study.result import StudyResult
from qsim.report.figures.study.panel import Panel, Point, finish, line, new_panel
from qsim.report.figures.style import method_look, style, text_color

#: by axis the figures that are drawn over it
_DRAWN: Mapping[str, tuple[str, ...]] = {
    "rate": ("mean_ttft_ms", "mean_tpot_ms", "output_throughput", "joules_per_output_token"),
    "concurrency": ("mean_tpot_ms", "output_throughput", "joules_per_output_token"),
    "burstiness": ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms"),
    "batch": ("mean_tpot_ms", "output_throughput", "joules_per_output_token"),
}
_GAIN = "output_throughput"


def workload_panels(found: StudyResult) -> Iterator[Panel]:
    """For each GPU and axis a panel a figure; over lengths the gain of each method."""
    for gpu in found.gpus:
        mine = [r for r in found.workload if r.gpu == gpu]
        for axis, names in _DRAWN.items():
            rows = [r for r in mine if r.axis == axis]
            if rows:
                yield from _curves(found, gpu, axis, names, rows)
        rows = [r for r in mine if r.axis == "lengths"]
        if rows:
            yield from _lengths(found, gpu, rows)


def _curves(
    found: StudyResult, gpu: str, axis: str, names: Sequence[str], rows: Sequence[WorkloadRow]
) -> list[Panel]:
    panels = []
    for name in names:
        title = FIGURES[name].title
        panel = new_panel(
            f"workload-{gpu}-{axis}-{name}", "workload", gpu, f"over {AXIS_TITLES[axis]}", title,
            f"{title} of each method over {AXIS_TITLES[axis]} on {gpu}, with error bands",
        )  # fmt: skip
        for method in found.methods:
            points = [
                Point(r.x, band, r.kept_up or axis in ("batch", "concurrency"))
                for r in sorted(rows, key=lambda r: r.x)
                if r.method == method and (band := r.figures.get(name)) is not None
            ]
            line(panel, method, points)
        panel.ax.set_xlabel(AXIS_TITLES[axis])
        panels.append(panel)
        finish([panel], log="xy" if axis in ("concurrency", "batch") else "y", share="")
        _crossings(panel, found, gpu, axis, name)
    return panels


def _crossings(panel: Panel, found: StudyResult, gpu: str, axis: str, name: str) -> None:
    """Mark where findings say that the order of two methods changes, with the finding's number."""
    with style():
        for f in found.findings:
            if f.at is None or (f.gpu, f.axis, f.figure) != (gpu, axis, name):
                continue
            panel.ax.axvline(f.at, color="#555555", linewidth=0.8, linestyle=":", zorder=1)
            panel.ax.annotate(
                f"finding {f.rank}", xy=(f.at, 0.98), xycoords=("data", "axes fraction"),
                xytext=(2, 0), textcoords="offset points", fontsize=7, color="#555555",
                rotation=90, va="top", annotation_clip=True,
            )  # fmt: skip


def _lengths(found: StudyResult, gpu: str, rows: Sequence[WorkloadRow]) -> Iterator[Panel]:
    """The gain over the first method by prompt length, a panel for each output length."""
    by = {(r.method, r.x, r.y): r.figures.get(_GAIN) for r in rows}
    base = found.methods[0]
    group = "over prompt and output tokens"
    panels = []
    for output in sorted({r.y for r in rows if r.y is not None}):
        panel = new_panel(
            f"workload-{gpu}-lengths-{output:g}", "workload", gpu, group,
            f"{output:g} output tokens: tokens/s, times {base}",
            f"Highest output tokens/s of each method over that of {base} by prompt length, with "
            f"{output:g} output tokens, on {gpu}",
        )  # fmt: skip
        for method in found.methods:
            points = []
            for x in sorted({r.x for r in rows}):
                own, other = by.get((method, x, output)), by.get((base, x, output))
                if own is not None and other is not None and other.value > 0:
                    ratio = own.value / other.value
                    points.append(Point(x, type(own).exact(ratio)))
            line(panel, method, points)
        panel.ax.set_xlabel("prompt tokens")
        panels.append(panel)
    yield from finish(panels, log="x", share="xy")
    yield _best_by_length(found, gpu, rows, group)


def _best_by_length(found: StudyResult, gpu: str, rows: Sequence[WorkloadRow], group: str) -> Panel:
    """Which method finishes most at each prompt and output length, and how much more."""
    xs = sorted({r.x for r in rows})
    ys = sorted({r.y for r in rows if r.y is not None})
    base = found.methods[0]
    panel = new_panel(
        f"workload-{gpu}-lengths-best", "workload", gpu, group,
        f"most tokens/s, times {base}; ~ within the errors",
        f"The method with the highest output tokens/s by prompt and output tokens on {gpu}",
    )  # fmt: skip
    ax = panel.ax
    with style():
        ax.set_position((0.13, 0.165, 0.84, 0.71))
        for i, x in enumerate(xs):
            for j, y in enumerate(ys):
                cell = [
                    (band, r.method)
                    for r in rows
                    if (r.x, r.y) == (x, y) and (band := r.figures.get(_GAIN)) is not None
                ]
                if not cell:
                    continue
                best, method = max(cell, key=lambda c: c[0].value)
                open_ = any(not best.apart(b) for b, m in cell if m != method)
                own = [b.value for b, m in cell if m == base]
                color = method_look(method).color
                ax.fill([i - 0.5, i + 0.5, i + 0.5, i - 0.5], [j - 0.5, j - 0.5, j + 0.5, j + 0.5],
                        facecolor=color, alpha=0.22, edgecolor="white", linewidth=2)  # fmt: skip
                gain = f"\n{best.value / own[0]:.2f}" if own and own[0] else ""
                ax.text(i, j, f"{'~' if open_ else ''}{method}{gain}", ha="center", va="center",
                        fontsize=6.5, color=text_color(color))  # fmt: skip
        ax.set_xlim(-0.5, len(xs) - 0.5)
        ax.set_ylim(-0.5, len(ys) - 0.5)
        ax.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
        ax.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
        ax.set_xlabel("prompt tokens")
        ax.set_ylabel("output tokens", fontsize=8)
        ax.grid(visible=False)
    return panel
