"""What people read about a fit: errors by mode, pictures, and the page of fidelity tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qsim.calibrate.fit import FitResult, predicted_spans
from qsim.calibrate.fit_modes import MODE_NAMES
from qsim.calibrate.validate import METRICS, STATISTICS, Comparison
from qsim.errors import MissingExtraError
from qsim.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_diagnostics", "fidelity_page", "mode_table"]


def mode_table(result: FitResult) -> str:
    """Errors of the GPU spans by execution mode, as text."""
    head = (
        "  GPU spans      steps  mean |error|  error of sum  phases left out: mean |error|  of sum"
    )
    rows = [
        f"  {e.mode:<12} {e.steps:>7}  {e.mean_absolute:>11.1f}%  {e.sum_error:>+11.1f}%  "
        f"{e.held_out:>28.1f}% {e.held_out_sum:>+6.1f}%"
        for e in result.errors
    ]
    return "\n".join([head, *rows])


def draw_diagnostics(result: FitResult, folder: Path) -> list[Path]:
    """Draw predicted against measured spans and residuals over time; returns the files.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError("matplotlib", "report", "--diagnostics") from e

    table, predicted = result.table, predicted_spans(result)
    name = result.profile.id.replace("/", "--")
    spans = Figure(figsize=(12, 4), layout="constrained")
    for ax, (mode, label) in zip(spans.subplots(1, 3), MODE_NAMES.items(), strict=True):
        m = table.usable & (table.mode == mode)
        x, y = table.span_ms[m], predicted[m]
        ax.scatter(x, y, s=3, alpha=0.3, color="#0072B2", linewidths=0, rasterized=True)
        if len(x):
            ends = [float(x.min()), float(x.max())]
            ax.plot(ends, ends, color="#D55E00", linewidth=1)
        ax.set(xscale="log", yscale="log", title=f"{label} ({int(m.sum())} steps)")
        ax.set(xlabel="measured span (ms)", ylabel="predicted (ms)")
    residuals = Figure(figsize=(12, 8), layout="constrained")
    axes = residuals.subplots(len(result.recordings), 1, squeeze=False)[:, 0]
    for number, (ax, recording) in enumerate(zip(axes, result.recordings, strict=True)):
        mine = table.group // 1000 == number
        for mode, color in zip(MODE_NAMES, ("#0072B2", "#009E73", "#D55E00"), strict=True):
            m = mine & table.usable & (table.mode == mode)
            error = (predicted[m] / table.span_ms[m] - 1.0) * 100
            at = table.start_s[m]
            ax.scatter(
                at, error, s=3, alpha=0.4, color=color, linewidths=0, label=MODE_NAMES[mode],
                rasterized=True,
            )  # fmt: skip
        for phase in recording.phases:
            ax.axvline(phase.start_s, color="#bbbbbb", linewidth=0.6)
            ax.text(phase.start_s, 29, phase.label, fontsize=6, rotation=90, va="top")
        ax.set(title=recording.name, ylim=(-30, 30))
        ax.set(xlabel="time (s)", ylabel="predicted - measured (%)")
        ax.legend(markerscale=4, fontsize=8, loc="lower right")
    written = []
    for kind, figure in (("spans", spans), ("residuals", residuals)):
        path = folder / f"{name}--{kind}.png"
        _save(figure, path)
        written.append(path)
    return written


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": "qsim"})


_INTRODUCTION = """\
# How well the profiles predict

This page is written by

    qsim calibrate validate RECORDING... --out docs/fidelity.md

from recordings of real vLLM servers: every engine step, every request as the client saw it, and
the GPU's energy counter. A phase is a load that was sent to the server. Its own send times, prompt
and output lengths go through the simulator, under the engine settings of the recording, and what
comes out is compared with what was measured.

* **left out**: the profile was fitted on all other phases, so the numbers are a prediction. This is
  the error that a profile states in its `fit_error`.
* **fitted**: the profile was fitted on all phases, this one among them. The shipped profiles are of
  this kind, since more data make a better profile.

Every cell is *simulated / measured* and the error in percent. Latencies are in ms, under the
definitions of `vllm bench serve`; energy is that of the GPU from the first send to the last token.
A cell above 5% is bold. The last column shows the band of the simulated p99 TTFT when the send
times are shaken by 1 ms (standard deviation, five times): where a band is wide, so is what a real
server would do.

Now and then a real server's host thread is held for the length of a whole step, by all signs in an
allocation. The update of the step before, and so every output in it, then comes late, by up to
0.4 s. The simulator has no such events. Each phase below tells how many there were in the
recording (updates more than 20 ms later than GPU and launches explain); in phases of a few hundred
requests a single one can move the p99 by 10%.

## How well a real server repeats itself

The same load, sent again to the same server with other token ids, or to a second server on another
GPU (Llama-3.1-8B; largest differences seen). Errors below these mean nothing.

| | same server | two servers |
|---|---|---|
| mean TTFT / TPOT / E2EL under load | 2% / 2% / 2% | 3% (light load) / 0.3% / 0.4% |
| median TTFT / TPOT / E2EL | 2.3% / 2.3% / 1.5% | 5% (light load) / 0.2% / 0.9% |
| p90 | 2.5% | 4.5% TTFT, 1% the others |
| p99 TTFT / TPOT / E2EL | 7.5% / 2.5% / 3% | 4% / 6% (very short outputs) / 0.2% |
| energy | 0.6% | 1% under load, 2-3% in light load |
"""


def fidelity_page(comparisons: Sequence[Comparison], remarks: str = "") -> str:
    """The page of tables in Markdown.

    Parameters
    ----------
    remarks : str
        Markdown to put before the tables.
    """
    lines = [_INTRODUCTION, "## In short", "", *_summary(comparisons)]
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


_TITLES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}


def _facts(c: Comparison) -> str:
    text = f"{c.requests} requests."
    if c.held_updates:
        text += (
            f" The server's host thread was held {c.held_updates} times for more than 20 ms, "
            f"{c.longest_hold_ms:.0f} ms at most."
        )
    return text


def _phase_table(rows: Sequence[Comparison]) -> list[str]:
    lines = [
        "| | | mean | median | p90 | p99 | |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in rows:
        kind = "left out" if c.held_out else "fitted"
        for metric in METRICS:
            cells = []
            for statistic in STATISTICS:
                key = f"{statistic}_{metric}"
                cells.append(_cell(c, key) if key in c.measured else "")
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
    return f"**{text}**" if abs(error) > 5.0 else text
