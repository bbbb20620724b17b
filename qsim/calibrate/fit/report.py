"""What people read about a fit: errors by mode, and pictures."""

from __future__ import annotations

from pathlib import Path

from qsim.calibrate.fit.fitting import FitResult, predicted_spans
from qsim.calibrate.fit.modes import MODE_NAMES
from qsim.errors import MissingExtraError
from qsim.files import atomic_path
from qsim.profiles.schema import Profile


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


def fit_text(result: FitResult, profile: Profile) -> str:
    """:func:`mode_table`, and the end-to-end errors that the profile states."""
    text, e = mode_table(result), profile.fit_error
    if e:
        text += (
            f"\n  phases left out, end to end: means within {e['worst_mean']}%, medians "
            f"{e['worst_median']}%, p99 {e['worst_p99']}%, energy {e['worst_energy']}%"
        )
    return text


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
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": "qsim"})
        written.append(path)
    return written
