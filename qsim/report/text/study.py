"""A study as text: a summary for the terminal, Markdown with every level, and rows as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsim.documents import rows_csv
from qsim.optimize.study.comparing import title
from qsim.optimize.study.figures import FIGURES, Band
from qsim.optimize.study.findings import GOALS
from qsim.optimize.study.levels import AXES, AXIS_TITLES
from qsim.optimize.study.result import LEVELS, StudyResult
from qsim.report.text.study_answers import band_text
from qsim.report.text.tables import fill, number, table

#: figures of the tables in Markdown
_APPLICATION = ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "joules_per_request")
_SYSTEM = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput_per_gpu", "joules_per_request")
#: methods behind the best one in a cell of the decision table
_MOST_AS_GOOD = 3
#: of a finding in Markdown
_MOST_COMMANDS = 4
_HARDWARE = (*_SYSTEM, "avg_power_w", "power_limit_share")


def study_text(found: StudyResult) -> str:
    """Findings and decisions for the terminal."""
    lines = [f"{found.model} on {', '.join(found.gpus)}: {len(found.methods)} methods, "
             f"{len(found.runs):,} simulations", ""]  # fmt: skip
    if found.findings:
        lines.append("Findings (differences beyond the profiles' stated errors)")
        lines += [fill(f"{f.rank:>3}. {f.statement}", "     ") for f in found.findings]
    else:
        lines.append("No difference is larger than the profiles' stated errors.")
    for gpu in found.gpus:
        decisions = [d for d in found.decisions if d.gpu == gpu]
        if decisions:
            heads, body = _decision_cells(found, gpu, plain=True)
            lines += [
                "",
                f"Which method on {gpu}{_transferred(found, gpu)}, and how many others are as good "
                "as far as is known",
                "",
                table(heads, body, left=len(heads)),
            ]
    lines += ["", *(fill(f"Note: {n}") for n in found.notes)] if found.notes else []
    return "\n".join(lines) + "\n"


def study_markdown(found: StudyResult) -> str:
    """The whole study in Markdown: findings, decisions, levels, what it rests on."""
    parts = [
        f"# {found.model}: what quantization does",
        f"Made by `{found.command}`: {len(found.runs):,} simulations on "
        f"{', '.join(found.gpus)}. Values in brackets are the range that the profile's stated "
        "error leaves. Every number, with the command that simulates it again, is in "
        "`study.json` and the CSV files beside it.",
        *(f"> {n}" for n in found.notes),
        "## Findings",
        "Computed from the levels below. A difference is told only if the error bands of both "
        "sides have nothing in common." if found.findings
        else "No difference is larger than the profiles' stated errors.",
        "\n".join(_finding(f) for f in found.findings),
        "## Which method",
        *_decisions(found),
        *_application(found),
        *_workload(found),
        *_parallelism(found),
        *_hardware(found),
        *_rests_on(found),
    ]  # fmt: skip
    return "\n\n".join(p for p in parts if p) + "\n"


def _finding(finding: Any) -> str:
    commands = "".join(f"\n   - `{c}`" for c in finding.commands[:_MOST_COMMANDS])
    more = len(finding.commands) - _MOST_COMMANDS
    commands += f"\n   - and {more} more, in `findings.csv`" if more > 0 else ""
    return (
        f"{finding.rank}. **{finding.kind}**: {finding.statement}. Errors explain up to "
        f"{number(finding.error_percent, 3)}%.{commands}"
    )


def _md_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(r)} |" for r in rows]
    return "\n".join(lines)


def _cell(band: Band | None) -> str:
    return band_text(band, to="-")


def _decision_cells(
    found: StudyResult, gpu: str, *, plain: bool
) -> tuple[list[str], list[list[str]]]:
    heads = ["traffic", *GOALS]
    cells = {(d.traffic, d.goal): d for d in found.decisions if d.gpu == gpu}
    rows = []
    for task in dict.fromkeys(d.traffic for d in found.decisions if d.gpu == gpu):
        row = [task]
        for goal in GOALS:
            d = cells.get((task, goal))
            if d is None:
                row.append("-")
            elif d.decided:
                row.append(d.named(d.method) if plain else f"**{d.named(d.method)}**")
            else:
                names = [d.named(m) for m in d.as_good[:_MOST_AS_GOOD]]
                rest = len(d.as_good) - len(names)
                more = f"or {', '.join(names)}" + (f" and {rest} more" if rest else "")
                more = f"+{len(d.as_good)}" if plain else more
                row.append(f"{d.named(d.method)} {more}")
        rows.append(row)
    return heads, rows


def _decisions(found: StudyResult) -> list[str]:
    if not found.decisions:
        return ["Decisions need the application level."]
    floor = found.decisions[0].floor_pct
    parts = []
    if floor is not None:
        parts.append(
            f"Among methods whose quality is at least {floor:g}% of the 16-bit score at the low "
            "end of its interval. In bold where the errors leave one method; otherwise the best "
            "value stands first and those as good as it, as far as is known, behind it."
        )
    for gpu in found.gpus:
        heads, rows = _decision_cells(found, gpu, plain=False)
        if rows:
            parts += [f"### {gpu}{_transferred(found, gpu)}", _md_table(heads, rows)]
    return parts


def _transferred(found: StudyResult, gpu: str) -> str:
    """Behind the name of a GPU type of which nothing was measured."""
    sources = {p.source for p in found.provenance if p.gpu == gpu}
    return " (transferred profiles, not measured)" if sources == {"transferred"} else ""


def _application(found: StudyResult) -> list[str]:
    if not found.application:
        return []
    parts = ["## Application: tasks", _md_table(
        ["task", "prompt tokens", "output tokens", "quality is of", "source"],
        [[t.name, number(t.mean_prompt_tokens), number(t.mean_output_tokens),
          ", ".join(t.benchmarks), t.source] for t in found.tasks],
    )]  # fmt: skip
    heads = ["method", title("quality"), *(FIGURES[n].title for n in _APPLICATION),
             title("highest_rps"), title("usd_per_1m_at_highest"), "front"]  # fmt: skip
    for gpu in found.gpus:
        for task in found.tasks:
            rows = [r for r in found.application if (r.gpu, r.task) == (gpu, task.name)]
            if rows:
                parts += [
                    f"### {task.name} on {gpu}, {number(rows[0].rate_rps, 3)} requests/s",
                    _md_table(heads, [
                        [r.method, f"{_cell(r.quality)} {r.quality_status}".strip(),
                         *(_cell(r.figures[n]) for n in _APPLICATION), _cell(r.highest_rps),
                         _cell(r.usd_per_1m_at_highest), "yes" if r.on_front else ""]
                        for r in rows
                    ]),
                ]  # fmt: skip
    return parts


def _workload(found: StudyResult) -> list[str]:
    if not found.workload:
        return []
    parts = ["## Workload", f"Traffic: `{found.traffic}`. Each table has the mean TPOT, ms, by "
             "method; the other figures are in `workload.csv`."]  # fmt: skip
    for gpu in found.gpus:
        for axis in AXES:
            rows = [r for r in found.workload if (r.gpu, r.axis) == (gpu, axis)]
            if not rows:
                continue
            xs = list(dict.fromkeys((r.x, r.y) for r in rows))
            by = {(r.method, r.x, r.y): r for r in rows}
            heads = ["method", *(_at(x, y) for x, y in xs)]
            body = [
                [m, *(_point(by.get((m, x, y))) for x, y in xs)]
                for m in dict.fromkeys(r.method for r in rows)
            ]
            parts += [f"### {axis} on {gpu}: {AXIS_TITLES[axis]}", _md_table(heads, body)]
    if not all(r.kept_up for r in found.workload):
        parts.append("\\* More arrives than is finished: latencies grow with the traffic's length.")
    return parts


def _at(x: float, y: float | None) -> str:
    return number(x, 3) if y is None else f"{x:g} + {y:g}"


def _point(row: Any) -> str:
    if row is None:
        return "-"
    band = row.figures["mean_tpot_ms"]
    return number(None if band is None else band.value, 3) + ("" if row.kept_up else "\\*")


def _parallelism(found: StudyResult) -> list[str]:
    if not found.parallelism:
        return []
    parts = ["## Parallelism", _under(found, found.parallelism)]
    heads = ["method", "layout", "load", "KV tokens", *(FIGURES[n].title for n in _SYSTEM)]
    for gpu in dict.fromkeys(r.gpu for r in found.parallelism):
        rows = [r for r in found.parallelism if r.gpu == gpu]
        parts += [f"### {rows[0].gpus} {gpu}", _md_table(heads, [
            [r.method, f"{r.replicas} x TP{r.tensor_parallel_size}", r.load, _cell(r.kv_tokens),
             *(_cell(r.figures[n]) for n in _SYSTEM)]
            for r in sorted(rows, key=lambda r: found.methods.index(r.method))
        ])]  # fmt: skip
    return parts


def _hardware(found: StudyResult) -> list[str]:
    if not found.hardware:
        return []
    heads = ["GPU", "method", "load", "KV tokens", "idle W", "busy W", "limit W",
             *(FIGURES[n].title for n in _HARDWARE)]  # fmt: skip
    rows = [
        [r.gpu, r.method, r.load, _cell(r.kv_tokens), number(r.idle_w, 3), number(r.busy_w, 3),
         number(r.cap_w, 3), *(_cell(r.figures[n]) for n in _HARDWARE)]
        for r in found.hardware
    ]  # fmt: skip
    return [
        "## Hardware",
        "One server of each; *busy W* is what any step adds to idle power before its work counts. "
        + _under(found, found.hardware),
        _md_table(heads, rows),
    ]


def _under(found: StudyResult, rows: Sequence[Any]) -> str:
    """The version of vLLM of all rows, or that there are several."""
    versions = sorted({found.runs[r.run].vllm_version for r in rows})
    if len(versions) == 1:
        return f"All profiles are of vLLM {versions[0]}." if versions[0] else ""
    return f"Profiles are of several versions of vLLM ({', '.join(versions)}): see `runs.csv`."


def _rests_on(found: StudyResult) -> list[str]:
    rows = [
        [p.profile, p.source, p.vllm_version,
         *(number(p.error_percent.get(k), 3) for k in ("mean", "p99", "energy", "kv_tokens"))]
        for p in found.provenance
    ]  # fmt: skip
    heads = ["profile", "source", "vLLM", "error of means, %", "of p99, %", "of energy, %",
             "of KV tokens, %"]  # fmt: skip
    return ["## What it rests on", _md_table(heads, rows)]


def study_csvs(found: StudyResult) -> dict[str, str]:
    """Every number as CSV, by file name: a file for each level, and more for what is above."""
    files = {f"{level}.csv": _rows_csv(getattr(found, level)) for level in LEVELS}
    files["findings.csv"] = rows_csv([
        {**{k: v for k, v in f.to_dict().items() if k not in ("numbers", "runs", "commands")},
         "methods": " ".join(f.methods), "runs": " ".join(f.runs),
         "commands": "\n".join(f.commands), "versions": " ".join(f.versions)}
        for f in found.findings
    ])  # fmt: skip
    files["decisions.csv"] = rows_csv([
        {**d.to_dict(), **_band("value", d.value), "as_good": " ".join(d.as_good),
         "versions": " ".join(f"{m}={v}" for m, v in d.versions.items()),
         "runs": " ".join(d.runs)}
        for d in found.decisions
    ])  # fmt: skip
    files["runs.csv"] = rows_csv([
        {**{k: v for k, v in r.to_dict().items() if k != "values"}, **r.values}
        for r in found.runs.values()
    ])  # fmt: skip
    return {name: text for name, text in files.items() if text.strip()}


def _rows_csv(rows: Sequence[Any]) -> str:
    flat = []
    for row in rows:
        cells: dict[str, Any] = {}
        for key, value in vars(row).items():
            if key == "figures":
                continue
            if isinstance(value, Band) or key in ("quality", "highest_rps",
                                                  "usd_per_1m_at_highest"):  # fmt: skip
                cells |= _band(key, value)
            else:
                cells[key] = value
        for name, band in row.figures.items():
            cells |= _band(name, band)
        flat.append(cells)
    return rows_csv(flat)


def _band(name: str, band: Band | None) -> dict[str, Any]:
    data: Mapping[str, Any] = {} if band is None else band.to_dict()
    return {name: data.get("value"), f"{name}_low": data.get("low"),
            f"{name}_high": data.get("high")}  # fmt: skip
