"""What ``qsim compare`` says, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qsim.calibrate.adapt.comparing import Compared
from qsim.calibrate.adapt.telemetry import Window
from qsim.calibrate.adapt.telemetry_fit import TelemetryFit
from qsim.calibrate.validate.comparison import METRICS, STATISTICS
from qsim.report.text.tables import fill, number, table

_METRIC = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}
_FACTOR = {
    "launch": "launches",
    "scheduler": "scheduling, updates",
    "front_end": "front end",
    "memory": "decode steps (memory)",
    "compute": "prefill steps (arithmetic)",
    "limit": "slowdown at the power limit",
    "idle_power": "idle power",
    "busy_power": "power of a busy GPU",
    "work_power": "energy per token",
}
#: requests whose end-to-end latency is off most
_WORST = 5


def compare_text(c: Compared) -> str:
    """Statistics, single requests, and what would explain the difference."""
    lines = [f"{c.load.name}: {len(c.load):,} requests through {c.profile.id}", ""]
    rows = []
    for metric in METRICS:
        if f"mean_{metric}" not in c.measured:
            continue
        cells = [f"{_METRIC[metric]}, ms"]
        for s in STATISTICS:
            name = f"{s}_{metric}"
            cells.append(
                f"{number(c.simulated[name])} / {number(c.measured[name])} "
                f"{c.error_percent(name):+.1f}%"
            )
        rows.append(cells)
    if "energy_j" in c.measured:
        cell = (
            f"{number(round(c.simulated['energy_j']))} / {number(round(c.measured['energy_j']))} "
            f"{c.error_percent('energy_j'):+.1f}%"
        )
        rows.append(["energy, J", cell, "", "", ""])
    lines += [table(["simulated / measured", *STATISTICS], rows), ""]
    rows = [
        [
            _METRIC[m],
            f"{e['median_absolute_percent']:.1f}%",
            f"{e['median_percent']:+.1f}%",
            f"{e['p5_percent']:+.1f}% to {e['p95_percent']:+.1f}%",
        ]
        for m, e in c.request_errors().items()
    ]
    heads = ["request by request", "median\nof |error|", "median\nerror", "90% of the errors"]
    lines += [table(heads, rows), "", *_worst(c)]
    if c.causes:
        lines += _causes(c)
    if c.beyond:
        lines += ["", fill(f"WARNING: {beyond_text(c.beyond)}")]
    return "\n".join(lines) + "\n"


def _worst(c: Compared) -> list[str]:
    trace = c.load.trace
    off = np.abs(c.replay.e2el_ms / np.maximum(c.load.e2el_ms, 1e-6) - 1)
    rows = [
        [
            f"{trace.arrival_s[i]:.3f}",
            f"{trace.prompt_tokens[i]:,}",
            f"{trace.output_tokens[i]:,}",
            f"{number(float(c.replay.ttft_ms[i]))} / {number(float(c.load.ttft_ms[i]))}",
            f"{number(float(c.replay.e2el_ms[i]))} / {number(float(c.load.e2el_ms[i]))}",
        ]
        for i in np.argsort(-off, kind="stable")[:_WORST]
    ]
    heads = ["off most,\narrival s", "prompt\ntokens", "output\ntokens", "TTFT, ms", "E2EL, ms"]
    return [table(heads, rows), ""]


def _causes(c: Compared) -> list[str]:
    rows = [["nothing, as it is", f"{c.mismatch_percent:.1f}%", ""]]
    for cause in c.causes:
        parts = ", ".join(
            f"{_FACTOR[f]} x{v[0]:.2f}"
            for f, v in cause.factors.items()
            if f != "idle_power" or abs(v[0] - 1) >= 0.02
        )
        rows.append([cause.name, f"{cause.mismatch_percent:.1f}%", parts])
    if c.fitted_mismatch_percent is not None:
        rows.append(["all parts of the machine", f"{c.fitted_mismatch_percent:.1f}%", ""])
    heads = ["what would explain it", "error left", "this machine / the profile's"]
    return [
        table(heads, rows, left=1),
        "",
        fill(
            "error left: mean of the absolute errors of means, medians and energy when this alone "
            "differs; factors are fitted to this load and held to what is known of machines"
        ),
    ]


def beyond_text(beyond: Sequence[str]) -> str:
    """What factors mean that no known machine has."""
    return (
        f"no known machine is like that: {', '.join(beyond)}. Something else holds the host, the "
        "client is far from the server, power was misread, or the server is not the profile's; do "
        "not plan with a profile adapted by this"
    )


def factors_text(factors: Mapping[str, tuple[float, float, float]]) -> str:
    """Factors with their intervals."""
    rows = [
        [_FACTOR.get(name, name), f"x{v[0]:.3f}", f"{v[1]:.3f} to {v[2]:.3f}"]
        for name, v in factors.items()
    ]
    return table(["this machine / the profile's", "factor", "90% interval"], rows)


def adapted_text(stated: dict[str, float], how: str) -> str:
    """What an adapted profile states of its error."""
    if not stated:
        return "too few requests to leave any out: the adapted profile states no error"
    parts = ", ".join(f"{k} {v:.1f}%" for k, v in stated.items())
    return fill(f"largest errors ({how}): {parts}")


def kept_text(kept: str, errors: Mapping[str, float]) -> str:
    """What was kept of an adaptation, beside what else could have been."""
    if not errors:
        return fill(f"kept: {kept}, without anything to judge it by")
    others = ", ".join(f"{name} {e:.1f}%" for name, e in errors.items())
    return fill(f"kept: {kept}; mean error on what was left out: {others}")


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
