"""What ``qsim calibrate adapt`` says of a server's metrics, for people."""

from __future__ import annotations

from collections.abc import Sequence

from qsim.calibrate.adapt.telemetry import Window
from qsim.calibrate.adapt.telemetry_fit import TelemetryFit
from qsim.report.text.tables import fill, number, table

__all__ = ["windows_text", "workload_text"]

_FIGURE = {"first_ms": "first token\nms", "token_ms": "a token\nms", "power_w": "power\nW"}


def windows_text(windows: Sequence[Window], found: TelemetryFit) -> str:
    """The windows: what was measured, and how far off they are when they are left out."""
    figures = [k for k in _FIGURE if any(k in w.measured for w in windows)]
    rows = []
    for w in windows:
        cells = [w.name, f"{w.finished:,.0f}", number(w.rate_rps)]
        for k in figures:
            error = found.left_out.get(w.name, {}).get(k)
            text = number(w.measured[k]) if k in w.measured else "-"
            cells.append(text if error is None else f"{text} {error:+.1f}%")
        rows.append(cells)
    heads = ["window", "finished", "requests\n/s", *(_FIGURE[k] for k in figures)]
    told = "measured; behind it how far off the profile is that was adapted without this window"
    return table(heads, rows, left=1) + ("\n" + fill(told) if found.left_out else "")


def workload_text(found: TelemetryFit) -> str:
    """The workload that was estimated with the machine."""
    cv, rho = found.cv, found.correlation
    text = (
        f"workload: gaps of requests of CV {cv[0]:.2f} ({cv[1]:.2f} to {cv[2]:.2f}), rank "
        f"correlation of prompt and output {rho[0]:.2f} ({rho[1]:.2f} to {rho[2]:.2f}), with 90% "
        "intervals"
    )
    if found.error_percent is not None and found.error_as_is_percent is not None:
        text += (
            f"; mean error on what was left out {found.error_percent:.1f}%, of the profile as it "
            f"was {found.error_as_is_percent:.1f}%"
        )
    return fill(text)
