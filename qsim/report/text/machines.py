"""Ranges of figures over machines, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qsim.report.text.tables import number

__all__ = ["range_row", "range_text"]

Ranges = Mapping[str, tuple[float, float]]
_STATISTICS = ("mean", "median", "p90", "p99")


def range_text(ranges: Ranges, name: str) -> str:
    """``11.5 to 13.4``; a dash where it is not known."""
    found = ranges.get(name)
    return "-" if found is None else f"{number(found[0], 3)} to {number(found[1], 3)}"


def range_row(ranges: Ranges, metric: str, statistics: Sequence[str] = _STATISTICS) -> list[str]:
    """Below a latency: the range of each of its statistics."""
    return ["   90%", *(range_text(ranges, f"{s}_{metric}_ms") for s in statistics)]
