"""A study as one HTML page: findings and decisions first, then the four levels with pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qsim.errors import MissingExtraError
from qsim.files import write_text
from qsim.optimize.study.comparing import title
from qsim.optimize.study.result import LEVELS, Decision, Level, StudyResult
from qsim.report.figures.study import Panel, study_panels
from qsim.report.figures.style import figure_svg, method_look, save_figure
from qsim.report.text.study import study_csvs, study_markdown
from qsim.report.text.study_answers import QUESTIONS, answers, band_text
from qsim.report.text.tables import number

_TITLES: dict[Level, str] = {
    "application": "Application: tasks",
    "workload": "Workload: traffic",
    "parallelism": "Parallelism: shards or replicas",
    "hardware": "Hardware: types of GPU",
}
_NOTES: dict[Level, str] = {
    "application": "Bars are quality's 90% interval, which may go on beyond the panel, and the "
    "profile's stated error. The steps are "
    "the front: no other method has better quality for less; names of those on it are bold.",
    "workload": "Bands are the profiles' stated errors. Pale parts: more arrives than is "
    "finished, so that latencies grow with the traffic's length. Dotted lines: where a finding "
    "says that the order of two methods changes.",
    "parallelism": "Every layout has the same number of GPUs. Bands are the profiles' stated "
    "errors.",
    "hardware": "One server of each type. Bands are the profiles' stated errors.",
}


@dataclass(frozen=True)
class _Table:
    """Cells as text, the first ``left`` columns names."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def study_page(found: StudyResult, panels: Iterable[Panel] | None = None) -> str:
    """The page; nothing in it is loaded from anywhere.

    ``panels`` are its pictures, where they are drawn already.

    Raises
    ------
    MissingExtraError
        If matplotlib or Jinja is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as e:
        raise MissingExtraError("jinja2", "report", "writing the page of a study") from e
    from markupsafe import Markup

    from qsim import __version__

    drawn = list(study_panels(found) if panels is None else panels)
    environment = Environment(
        loader=PackageLoader("qsim.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        number=number,
        band=band_text,
        color=lambda method: method_look(method).color,
        svg=lambda panel: Markup(figure_svg(panel.figure)),  # its text is escaped by matplotlib
        figure_title=title,
        command=lambda decision: _command(found, decision),
    )
    sections = [
        {
            "id": level,
            "title": _TITLES[level],
            "question": QUESTIONS[level],
            "answers": answers(found, level),
            "note": _NOTES[level],
            "groups": _groups([p for p in drawn if p.level == level]),
            "tables": _tables(found, level),
        }
        for level in LEVELS
    ]
    text: str = environment.get_template("study.html").render(
        found=found,
        sections=sections,
        goals=list(dict.fromkeys(d.goal for d in found.decisions)),
        floor=next((d.floor_pct for d in found.decisions), None),
        decisions=_decision_rows(found),
        version=__version__,
    )
    return text


def write_study_pictures(folder: Path, panels: Iterable[Panel]) -> list[str]:
    """Write every picture as SVG and as PNG; their names in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for panel in panels:
        for ending in ("svg", "png"):
            names.append(f"{panel.name}.{ending}")
            save_figure(panel.figure, folder / names[-1])
    return names


def _command(found: StudyResult, decision: Decision) -> str:
    """What repeats the chosen method's number; "" for one that is looked up."""
    runs = [found.runs[r] for r in decision.runs if r in found.runs]
    return next((r.command for r in runs if r.method == decision.method), "")


def _groups(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Panels that share axes, by GPU type and group, in their order."""
    found: dict[tuple[str, str], list[Panel]] = {}
    for p in panels:
        found.setdefault((p.gpu, p.group), []).append(p)
    return [
        {"title": f"{group}, {gpu}" if gpu and gpu not in group else group, "panels": some}
        for (gpu, group), some in found.items()
    ]


def _decision_rows(found: StudyResult) -> list[dict[str, Any]]:
    """A row a GPU type and traffic, with the decision of each goal."""
    cells = dict.fromkeys((d.gpu, d.traffic) for d in found.decisions)
    return [
        {
            "gpu": gpu,
            "traffic": traffic,
            "by_goal": {d.goal: d for d in found.decisions if (d.gpu, d.traffic) == (gpu, traffic)},
        }
        for gpu, traffic in cells
    ]


def _tables(found: StudyResult, level: Level) -> list[_Table]:
    if level == "application":
        return _application_tables(found)
    if level == "parallelism" and found.parallelism:
        names: tuple[str, ...] = (
            "mean_ttft_ms",
            "mean_tpot_ms",
            "output_throughput_per_gpu",
            "joules_per_request",
        )
        return [
            _Table(
                f"Layouts of {gpu}",
                ["method", "layout", "load", "KV tokens", *(title(n) for n in names)],
                [
                    [r.method, f"{r.replicas} x TP{r.tensor_parallel_size}", r.load,
                     band_text(r.kv_tokens), *(band_text(r.figures.get(n)) for n in names)]
                    for r in found.parallelism if r.gpu == gpu
                ],
                left=3,
            )
            for gpu in dict.fromkeys(r.gpu for r in found.parallelism)
        ]  # fmt: skip
    if level == "hardware" and found.hardware:
        names = ("mean_tpot_ms", "output_throughput_per_gpu", "joules_per_request", "avg_power_w",
                 "power_limit_share")  # fmt: skip
        return [
            _Table(
                "Servers; busy W is what any step adds to idle power before its work counts",
                ["GPU", "method", "load", "KV tokens", "idle W", "busy W", "limit W",
                 *(title(n) for n in names)],
                [
                    [r.gpu, r.method, r.load, band_text(r.kv_tokens), number(r.idle_w, 3),
                     number(r.busy_w, 3), number(r.cap_w, 3),
                     *(band_text(r.figures.get(n)) for n in names)]
                    for r in found.hardware
                ],
                left=3,
            )
        ]  # fmt: skip
    return []


def _application_tables(found: StudyResult) -> list[_Table]:
    names = ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "joules_per_request")
    heads = ["method", title("quality"), "quality is", *(title(n) for n in names),
             title("highest_rps"), title("usd_per_1m_at_highest")]  # fmt: skip
    tables = []
    for gpu in found.gpus:
        for task in found.tasks:
            rows = [r for r in found.application if (r.gpu, r.task) == (gpu, task.name)]
            if rows:
                tables.append(_Table(
                    f"{task.name} on {gpu}, {number(rows[0].rate_rps, 3)} requests/s",
                    heads,
                    [
                        [r.method, band_text(r.quality, 4), r.quality_status or "not known",
                         *(band_text(r.figures.get(n)) for n in names),
                         band_text(r.highest_rps), band_text(r.usd_per_1m_at_highest)]
                        for r in rows
                    ],
                ))  # fmt: skip
    return tables


#: folder of the pictures, in that of the study
PICTURES = "pictures"


def write_study(folder: Path, found: StudyResult, json_text: str) -> list[str]:
    """Write everything; what was written, by name.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    files = {"study.md": study_markdown(found), "study.json": json_text, **study_csvs(found)}
    drawn = []
    if all(find_spec(name) is not None for name in ("matplotlib", "jinja2")):
        drawn = list(study_panels(found))
        files = {"study.html": study_page(found, drawn), **files}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
    if drawn:
        pictures = write_study_pictures(folder / PICTURES, drawn)
        return [*files, *(f"{PICTURES}/{name}" for name in pictures)]
    return list(files)
