"""The page of fidelity: what was predicted beside what was measured, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np

from qsim.calibrate.validate.agreement import AGREEMENT_HEAD, StepCounts
from qsim.calibrate.validate.comparison import METRICS, STATISTICS, Comparison
from qsim.calibrate.validate.fidelity import (
    OFF_PERCENT,
    Cell,
    Group,
    aims,
    cells_of,
    count,
    groups,
    off,
    repeats_percent,
)

_HEAD = """\
# Simulated and measured

Each cell is *simulated / measured* and the error in percent, bold above 5%. qsim's docs/fidelity.md
says what the columns mean."""

_TITLES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}


def fidelity_page(
    comparisons: Sequence[Comparison], remarks: str = "", agreement: Sequence[StepCounts] = ()
) -> str:
    """The page of tables in Markdown.

    ``remarks``, in Markdown, stand before the tables of single recordings; ``agreement`` counts the
    steps that the scheduler reproduced, once for each recording.
    """
    lines = [_HEAD, "", "## In short", ""]
    lines += [*_counts(comparisons), "", *_summary(comparisons)]
    if any(c.held_out for c in comparisons):
        lines += ["", *_aims(comparisons), "", *_groups(comparisons), "", *_off(comparisons)]
    if agreement:
        lines += ["", "## Does the scheduler run the same steps?", "", *AGREEMENT_HEAD]
        lines += [c.row() for c in (*agreement, StepCounts.sum(agreement, "all", ""))]
    if remarks:
        lines += ["", remarks.strip()]
    for name in dict.fromkeys(c.recording for c in comparisons):
        mine = [c for c in comparisons if c.recording == name]
        lines += ["", f"## {name}", "", f"Profile `{mine[0].profile}`."]
        for phase in dict.fromkeys(c.phase for c in mine):
            rows = [c for c in mine if c.phase == phase]
            lines += ["", f"### {phase}: {rows[0].what}", "", _facts(rows[0]), ""]
            lines += _phase_table(rows)
    return "\n".join(lines) + "\n"


def _counts(comparisons: Sequence[Comparison]) -> list[str]:
    """How many cells there are, and how many are off."""
    servers = len({c.recording for c in comparisons})
    loads = len({(c.recording, c.phase) for c in comparisons})
    lines = [
        f"{_many(servers, 'server')}, {_many(loads, 'load')}. A cell is one statistic of one load:",
        "",
        f"| | cells | off by more than {OFF_PERCENT:g}% | largest |",
        "|---|---:|---:|---|",
    ]
    left_out = cells_of([c for c in comparisons if c.held_out])
    fitted = cells_of([c for c in comparisons if not c.held_out])
    rows = [("left out", left_out), ("fitted", fitted), ("together", [*left_out, *fitted])]
    for title, cells in rows if left_out and fitted else [r for r in rows[:2] if r[1]]:
        n = count(cells)
        share = f"{n.off:,} ({n.off / n.cells:.1%})"
        w = n.largest
        largest = "" if w is None else f"{w.error:+.1f}%: {_where(w)}"
        lines.append(f"| {title} | {n.cells:,} | {share} | {largest} |")
    return lines


def _where(cell: Cell) -> str:
    c = cell.comparison
    return f"{_statistic(cell)} of {c.phase}, {c.recording}"


def _statistic(cell: Cell) -> str:
    title = _TITLES.get(cell.metric)
    return "energy" if title is None else f"{cell.statistic} {title}"


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _aims(comparisons: Sequence[Comparison]) -> list[str]:
    lines = [
        "What is aimed at, and what was seen on the loads left out, over all servers (absolute",
        "errors; mean, median and p99 are those of TTFT, TPOT and E2EL):",
        "",
        "| | | aim | seen | |",
        "|---|---|---:|---:|---|",
    ]
    for a in aims(comparisons):
        bound = "at least" if a.at_least else "at most"
        seen = "" if np.isnan(a.seen) else f"{a.seen:.1f}% | {'met' if a.met else '**missed**'}"
        lines.append(
            f"| {a.what} | {a.quantity} | {bound} {a.limit:g}% | {seen or ' | not measured'} |"
        )
    return lines


def _groups(comparisons: Sequence[Comparison]) -> list[str]:
    lines = [
        "The same for each quantization method and each model (medians of the absolute errors of",
        "loads left out, and the share of means and medians within 5%):",
    ]
    tables = (
        ("method", groups(comparisons, lambda c: c.method)),
        ("model", groups(comparisons, lambda c: c.model)),
    )
    for title, rows in tables:
        lines += [
            "",
            f"| {title} | servers | mean and median | within 5% | p99 | energy |",
            "|---|---:|---:|---:|---:|---:|",
            *(_group_row(g) for g in rows),
        ]
    return lines


def _group_row(g: Group) -> str:
    energy = "" if np.isnan(g.energy) else f"{g.energy:.1f}%"
    center = f"{g.center:.1f}% | {g.center_within:.0f}%"
    return f"| {g.name} | {g.servers} | {center} | {g.p99:.1f}% | {energy} |"


def _off(comparisons: Sequence[Comparison]) -> list[str]:
    """The cells that are off, with what helps to judge them."""
    left_out = cells_of([c for c in comparisons if c.held_out])
    cells = off(left_out)
    lines = [f"## Loads left out: what is off by more than {OFF_PERCENT:g}%", ""]
    if not cells:
        return [*lines, f"None of {_many(len(left_out), 'cell')}."]
    percentiles = [c for c in cells if c.name in c.comparison.nearby]
    inside = [c for c in percentiles if c.comparison.inside(c.name)]
    few = sum(c.comparison.nearby[c.name].between <= 2 for c in inside)
    noise = sum(abs(c.error) <= repeats_percent(c.statistic, c.metric) for c in cells)
    held = sum(c.comparison.held_updates > 0 for c in cells)
    late = sum(c.comparison.late_arrivals > 0 for c in cells)
    launches = sum(c.comparison.launches_differ for c in cells)
    disturbed = sum(c.comparison.disturbed for c in cells)
    text = (
        f"{len(cells):,} of {_many(len(left_out), 'cell')}, {len(percentiles):,} of them medians "
        f"or percentiles. In {len(inside):,} of these the simulated value lies within *nearby*, "
        f"and in {few:,} of those at most two requests lie *between*. In {noise:,} of all the "
        "error is no more than the same server differs from itself (*repeats*). Of all, "
        f"{held:,} are of loads in which the server's host thread was held, {late:,} of loads with "
        f"late arrivals, {launches:,} of loads whose launches took over 10% more or less "
        "time than the profile's; "
        f"{disturbed:,} of loads with one of these at least (*held*)."
    )
    return [
        *lines,
        *wrap(text, 100),
        "",
        "| recording | load | requests | | simulated / measured | error | nearby | between "
        "| repeats | held |",
        "|---|---|---:|---|---:|---:|---|---:|---|---|",
        *(_off_row(cell) for cell in cells),
    ]


def _off_row(cell: Cell) -> str:
    c, name = cell.comparison, cell.name
    unit = "J" if cell.statistic == "energy" else "ms"
    values = f"{_plain(c.simulated[name])} / {_plain(c.measured[name])}"
    near = between = ""
    if name in c.nearby:
        n = c.nearby[name]
        verdict = "inside" if c.inside(name) else "outside"
        near = f"{_plain(n.low_ms)} to {_plain(n.high_ms)}: {verdict}"
        between = f"{n.between}"
    repeats = f"{repeats_percent(cell.statistic, cell.metric):g}%"
    if name == "p99_ttft_ms":
        low, high = c.p99_ttft_band_ms
        repeats += f"; {_plain(low)} to {_plain(high)}"
    return (
        f"| {c.recording} | {c.phase} | {c.requests} | {_statistic(cell)}, {unit} | {values} "
        f"| {cell.error:+.1f}% | {near} | {between} | {repeats} | {_held(c)} |"
    )


def _held(c: Comparison) -> str:
    """What the host did in that load, in a cell of a table."""
    parts = []
    if c.held_updates:
        parts.append(f"{c.held_updates}, {c.longest_hold_ms:.0f} ms")
    if c.late_arrivals:
        parts.append(f"{c.late_arrivals} late, {c.longest_arrival_ms:.0f} ms")
    if c.launches_differ:
        parts.append(f"host x{c.launch_ratio:.2f}")
    return "; ".join(parts)


def _summary(comparisons: Sequence[Comparison]) -> list[str]:
    """Largest and mean absolute errors over phases, by metric."""
    lines = [
        "Absolute errors over all phases and servers, mean and largest:",
        "",
        "| | mean | median | p90 | p99 |",
        "|---|---|---|---|---|",
    ]
    for held_out in (True, False):
        chosen = [c for c in comparisons if c.held_out == held_out]
        if not chosen:
            continue
        kind = "left out" if held_out else "fitted"
        for metric in METRICS:
            cells = []
            for statistic in STATISTICS:
                key = f"{statistic}_{metric}"
                errors = [abs(c.error_percent(key)) for c in chosen if key in c.measured]
                cells.append(f"{np.mean(errors):.1f}%, {max(errors):.1f}%" if errors else "")
            lines.append(f"| {kind}: {_TITLES[metric]} | {' | '.join(cells)} |")
        energy = [abs(c.error_percent("energy_j")) for c in chosen if "energy_j" in c.measured]
        if energy:
            lines.append(f"| {kind}: energy | {np.mean(energy):.1f}%, {max(energy):.1f}% | | | |")
    return lines


def _facts(c: Comparison) -> str:
    text = f"{c.requests} requests."
    if c.held_updates:
        text += (
            f" The server's host thread was held {c.held_updates} times for more than 20 ms, "
            f"{c.longest_hold_ms:.0f} ms at most."
        )
    if c.late_arrivals:
        text += (
            f" {_many(c.late_arrivals, 'request')} came to the engine more than 20 ms late, "
            f"{c.longest_arrival_ms:.0f} ms at most."
        )
    if c.launches_differ:
        text += f" The host's launches took {c.launch_ratio:.2f} times as long as the profile's."
    return text


def _phase_table(rows: Sequence[Comparison]) -> list[str]:
    lines = [
        "| | | mean | median | p90 | p99 | |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in rows:
        kind = "left out" if c.held_out else "fitted"
        for metric in METRICS:
            keys = [f"{statistic}_{metric}" for statistic in STATISTICS]
            cells = [_cell(c, key) if key in c.measured else "" for key in keys]
            band = ""
            if metric == "ttft_ms":
                low, high = c.p99_ttft_band_ms
                band = f"p99 {_plain(low)} to {_plain(high)}"
            lines.append(f"| {kind} | {_TITLES[metric]} ms | {' | '.join(cells)} | {band} |")
        if "energy_j" in c.measured:
            lines.append(f"| {kind} | energy J | {_cell(c, 'energy_j')} | | | | |")
    return lines


def _plain(value: float) -> str:
    """Four significant digits, never with an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cell(c: Comparison, key: str) -> str:
    error = c.error_percent(key)
    text = f"{_plain(c.simulated[key])} / {_plain(c.measured[key])} {error:+.1f}%"
    return f"**{text}**" if abs(error) > OFF_PERCENT else text
