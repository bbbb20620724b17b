"""Parallelism and hardware: what sharding and the type of GPU do to each method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from qsim.optimize.study.figures import FIGURES, Band
from qsim.optimize.study.levels import HardwareRow, Load, ParallelismRow
from qsim.optimize.study.result import StudyResult
from qsim.report.figures.study.panel import Panel, Point, bars, finish, line, new_panel
from qsim.report.figures.style import style

Row = ParallelismRow | HardwareRow
#: what is drawn: name of the file, title, load, and the value of a row
_Drawn = tuple[str, str, Load, Callable[[Row], Band | None]]


def _figure(name: str) -> Callable[[Row], Band | None]:
    return lambda row: row.figures.get(name)


_BOTH: tuple[_Drawn, ...] = (
    ("tpot", FIGURES["mean_tpot_ms"].title, "busy", _figure("mean_tpot_ms")),
    ("throughput", "highest output tokens/s per GPU", "saturated",
     _figure("output_throughput_per_gpu")),
    ("energy", "J per output token, full", "saturated", _figure("joules_per_output_token")),
)  # fmt: skip
_PARALLELISM: tuple[_Drawn, ...] = (
    ("ttft", FIGURES["mean_ttft_ms"].title, "busy", _figure("mean_ttft_ms")),
    *_BOTH,
    ("kv", "tokens of KV cache, all replicas", "saturated", lambda row: row.kv_tokens),
)  # fmt: skip
_HARDWARE: tuple[_Drawn, ...] = (
    *_BOTH,
    ("kv", "tokens of KV cache", "saturated", lambda row: row.kv_tokens),
    ("limit", "share of time at the power limit, full", "saturated", _figure("power_limit_share")),
)  # fmt: skip


def parallelism_panels(found: StudyResult) -> Iterator[Panel]:
    """For each GPU type figures over the tensor-parallel size, and each method's gain."""
    for gpu in found.gpus:
        rows = [r for r in found.parallelism if r.gpu == gpu]
        if not rows:
            continue
        sizes = sorted({r.tensor_parallel_size for r in rows})
        group = f"on {rows[0].gpus} GPUs"
        layouts = [f"{rows[0].gpus // s} x TP{s}" for s in sizes]
        panels = [
            _over(found, rows, f"parallelism-{gpu}-{name}", "parallelism", gpu, group, title, load,
                  value, [float(s) for s in sizes], layouts,
                  lambda r: float(r.tensor_parallel_size), "y")
            for name, title, load, value in _PARALLELISM
        ]  # fmt: skip
        panels.append(
            _over(found, _gains(found, rows), f"parallelism-{gpu}-gain", "parallelism", gpu, group,
                  f"tokens/s per GPU, times {found.methods[0]}", "saturated",
                  _figure("output_throughput_per_gpu"), [float(s) for s in sizes], layouts,
                  lambda r: float(r.tensor_parallel_size), "")
        )  # fmt: skip
        for panel in panels:
            with style():
                panel.ax.set_xlabel("replicas x tensor-parallel size")
            yield panel


def hardware_panels(found: StudyResult) -> Iterator[Panel]:
    """Figures by GPU type, a line a method; a bar a method if there is one type only."""
    rows = found.hardware
    gpus = sorted({r.gpu for r in rows})  # more than the study's own, to compare with
    if not gpus:
        return
    group = "by GPU type" if len(gpus) > 1 else f"on {gpus[0]}"
    places = {g: float(i) for i, g in enumerate(gpus)}
    names = [g.removesuffix("_sxm").upper() for g in gpus]
    drawn: list[tuple[Sequence[Row], str, str, Load, Callable[[Row], Band | None]]] = [
        (rows, *d) for d in _HARDWARE
    ]
    drawn.append((
        _gains(found, rows), "gain", f"tokens/s per GPU, times {found.methods[0]}", "saturated",
        _figure("output_throughput_per_gpu"),
    ))  # fmt: skip
    for some, name, title, load, value in drawn:
        stem = f"hardware-{name}"
        if len(gpus) > 1:
            yield _over(found, some, stem, "hardware", "", group, title, load, value,
                        list(places.values()), names, lambda r: places[r.gpu],
                        "" if name in ("gain", "limit") else "y")  # fmt: skip
        else:
            panel = new_panel(stem, "hardware", gpus[0], group, title,
                              f"{title} of each method on {gpus[0]}", named_left=True)  # fmt: skip
            shown = [
                (m, band)
                for m in found.methods
                for r in some
                if (r.method, r.load) == (m, load) and (band := value(r)) is not None
            ]
            bars(panel, shown)
            yield panel


def _over(
    found: StudyResult, rows: Sequence[Row], name: str, level: str, gpu: str, group: str,
    title: str, load: Load, value: Callable[[Row], Band | None], at: Sequence[float],
    names: Sequence[str], place: Callable[[Row], float], log: str,
) -> Panel:  # fmt: skip
    """One line a method over named places."""
    on = f" on {gpu}" if gpu else ""
    panel = new_panel(name, level, gpu, group, title, f"{title} of each method {group}{on}")
    for method in found.methods:
        points = [
            Point(place(r), band)
            for r in sorted(rows, key=place)
            if (r.method, r.load) == (method, load) and (band := value(r)) is not None
        ]
        line(panel, method, points)
    if log == "y" or not rows:
        finish([panel], log="y", share="")
    else:
        with style():
            panel.ax.set_ylim(bottom=0)
        finish([panel], share="")
    with style():
        span = (at[-1] - at[0]) or 1.0
        panel.ax.set_xlim(at[0] - 0.06 * span, at[-1] + 0.06 * span)
        panel.ax.set_xticks(at, names)
    return panel


def _gains(found: StudyResult, rows: Sequence[Row]) -> list[Row]:
    """The rows that are saturated with tokens/s per GPU over those of the first method."""
    key = "output_throughput_per_gpu"
    base = {
        (r.gpu, r.tensor_parallel_size): r.figures.get(key)
        for r in rows
        if r.method == found.methods[0] and r.load == "saturated"
    }
    out: list[Row] = []
    for r in rows:
        own = r.figures.get(key)
        other = base.get((r.gpu, r.tensor_parallel_size))
        if r.load == "saturated" and own is not None and other is not None and other.value > 0:
            ratio = {key: Band.exact(own.value / other.value)}
            out.append(replace(r, figures=ratio))
    return out
