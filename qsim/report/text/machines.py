"""Ranges of figures over machines, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsim.report.text.tables import fill, number, table

__all__ = ["machines_text"]

_METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def machines_text(
    summary: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]], draws: int
) -> str:
    """The range of each figure beside it."""
    rows = []
    for key, name in _METRICS.items():
        cells = [f"{name}, ms"]
        for statistic in ("mean", "median", "p90", "p99"):
            found = ranges.get(f"{statistic}_{key}_ms")
            cells.append("-" if found is None else f"{number(found[0])} to {number(found[1])}")
        rows.append(cells)
    if "energy_j" in ranges:
        low, high = (f"{round(x):,}" for x in ranges["energy_j"])
        rows.append(["energy, J", f"{low} to {high}", "", "", ""])
    heads = ["on other machines, 90%", "mean", "median", "p90", "p99"]
    text = (
        f"{draws} simulations with factors of host, GPU and power drawn as known machines differ; "
        "'qsim calibrate adapt' makes the profile one of yours"
    )
    return f"\n{table(heads, rows)}\n\n{fill(text)}"
