"""How good the predictions are, over many comparisons: what is aimed at and what was seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.as_json import JsonReady, json_ready
from qsim.calibrate.validate.agreement import StepCounts
from qsim.calibrate.validate.comparison import METRICS, STATISTICS, Comparison, percent

#: a cell with a larger error is listed, percent
OFF_PERCENT = 5.0
_REPEATS_PERCENT = {
    "mean": {"ttft_ms": 2.0, "tpot_ms": 2.0, "e2el_ms": 2.0},
    "median": {"ttft_ms": 2.3, "tpot_ms": 2.3, "e2el_ms": 1.5},
    "p90": {"ttft_ms": 2.5, "tpot_ms": 2.5, "e2el_ms": 2.5},
    "p99": {"ttft_ms": 7.5, "tpot_ms": 2.5, "e2el_ms": 3.0},
    "energy": {"j": 0.6},
}


@dataclass(frozen=True)
class Cell:
    """One number of one comparison, such as its ``p99_ttft_ms`` or ``energy_j``."""

    comparison: Comparison
    name: str

    @property
    def error(self) -> float:
        """Simulated against measured, percent."""
        return self.comparison.error_percent(self.name)

    @property
    def statistic(self) -> str:
        """``mean``, ``median``, ``p90``, ``p99`` or ``energy``."""
        return self.name.split("_", 1)[0]

    @property
    def metric(self) -> str:
        """``ttft_ms``, ``tpot_ms``, ``e2el_ms``, or ``j`` for energy."""
        return self.name.split("_", 1)[1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, with what helps to judge the error."""
        c = self.comparison
        return {
            "recording": c.recording,
            "phase": c.phase,
            "requests": c.requests,
            "name": self.name,
            "measured": round(c.measured[self.name], 4),
            "simulated": round(c.simulated[self.name], 4),
            "error_percent": percent(self.error),
            "server_repeats_within_percent": repeats_percent(self.statistic, self.metric),
            "nearby": c.nearby_dict(self.name) if self.name in c.nearby else None,
            **c.host_dict(),
        }


@dataclass(frozen=True)
class Count(JsonReady):
    """How many cells there are, how many are off, and the one that is off most."""

    cells: int
    off: int
    largest: Cell | None


@dataclass(frozen=True)
class Aim:
    """A limit on absolute errors over all comparisons, and what was seen."""

    #: The cells: "mean and median", "p99" (of TTFT, TPOT and E2EL) or "energy".
    what: str
    #: "median" or "90th percentile" of the absolute errors, or "within 5%", a share.
    quantity: str
    #: Percent; ``seen`` is NaN if there is no such cell.
    limit: float
    seen: float

    @property
    def at_least(self) -> bool:
        """Whether the limit is a lower one."""
        return self.quantity.startswith("within")

    @property
    def met(self) -> bool:
        return self.seen >= self.limit if self.at_least else self.seen <= self.limit

    def to_dict(self) -> dict[str, Any]:
        bound = "at_least_percent" if self.at_least else "at_most_percent"
        return {
            "what": self.what,
            "quantity": self.quantity,
            bound: self.limit,
            "seen_percent": percent(self.seen),
            "met": self.met if np.isfinite(self.seen) else None,
        }


@dataclass(frozen=True)
class Group:
    """Errors of the comparisons with one method, or one model; percent, NaN if there are none.

    ``servers`` counts recordings. ``center`` and ``center_within`` are the median of the absolute
    errors of means and medians, and how many of them are within 5%.
    """

    name: str
    servers: int
    center: float
    center_within: float
    p99: float
    energy: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "servers": self.servers,
            "mean_and_median_percent": percent(self.center),
            "mean_and_median_within_5_percent": percent(self.center_within),
            "p99_percent": percent(self.p99),
            "energy_percent": percent(self.energy),
        }


def repeats_percent(statistic: str, metric: str) -> float:
    """By how much a server differs from itself at most when it gets the same load again.

    Measured on an H200 with Llama-3.1-8B; the largest differences seen.
    """
    return _REPEATS_PERCENT[statistic][metric]


def cells_of(
    comparisons: Sequence[Comparison], statistics: Sequence[str] = (*STATISTICS, "energy")
) -> list[Cell]:
    """All numbers that have an error, or those of some statistics."""
    names = [f"{s}_{m}" for s in statistics if s != "energy" for m in METRICS]
    names += ["energy_j"] if "energy" in statistics else []
    cells = [Cell(c, n) for c in comparisons for n in names if n in c.measured]
    return [c for c in cells if np.isfinite(c.error)]


def off(cells: Sequence[Cell]) -> list[Cell]:
    """Those that are off by more than ``OFF_PERCENT``."""
    return [c for c in cells if abs(c.error) > OFF_PERCENT]


def count(cells: Sequence[Cell]) -> Count:
    """Count cells and those that are off."""
    largest = max(cells, key=lambda c: abs(c.error), default=None)
    return Count(len(cells), len(off(cells)), largest)


#: cells by the name of what is aimed at
_WHAT = {"mean and median": ("mean", "median"), "p99": ("p99",), "energy": ("energy",)}
_AIMS = (
    ("mean and median", "median", 2.0),
    ("mean and median", "within 5%", 90.0),
    ("p99", "median", 4.0),
    ("p99", "90th percentile", 10.0),
    ("energy", "median", 1.5),
    ("energy", "90th percentile", 3.0),
)


def aims(comparisons: Sequence[Comparison]) -> list[Aim]:
    """What is aimed at and what was seen on the phases that were left out of the fit."""
    left_out = [c for c in comparisons if c.held_out]
    return [
        Aim(what, quantity, limit, _seen(left_out, what, quantity))
        for what, quantity, limit in _AIMS
    ]


def _seen(comparisons: Sequence[Comparison], what: str, quantity: str) -> float:
    errors = np.abs([c.error for c in cells_of(comparisons, _WHAT[what])])
    if not len(errors):
        return float("nan")
    if quantity == "within 5%":
        return float((errors <= OFF_PERCENT).mean() * 100)
    return float(np.percentile(errors, 50 if quantity == "median" else 90))


def groups(comparisons: Sequence[Comparison], key: Callable[[Comparison], str]) -> list[Group]:
    """Errors of phases left out of the fit, by method or by model; in the order of the names."""
    left_out = [c for c in comparisons if c.held_out]
    result = []
    for name in sorted({key(c) for c in left_out}, key=_natural):
        mine = [c for c in left_out if key(c) == name]
        result.append(
            Group(
                name,
                servers=len({c.recording for c in mine}),
                center=_seen(mine, "mean and median", "median"),
                center_within=_seen(mine, "mean and median", "within 5%"),
                p99=_seen(mine, "p99", "median"),
                energy=_seen(mine, "energy", "median"),
            )
        )
    return result


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts 8b before 70b."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def fidelity_dict(
    comparisons: Sequence[Comparison], agreement: Sequence[StepCounts] = ()
) -> dict[str, Any]:
    """Everything as JSON-ready data."""
    left_out = cells_of([c for c in comparisons if c.held_out])
    fitted = cells_of([c for c in comparisons if not c.held_out])
    found: dict[str, Any] = {
        "cells": {
            "left_out": count(left_out),
            "fitted": count(fitted),
            "together": count([*left_out, *fitted]),
        },
        "aims": aims(comparisons),
        "methods": groups(comparisons, lambda c: c.method),
        "models": groups(comparisons, lambda c: c.model),
        "off": off(left_out),
        "agreement": list(agreement),
        "comparisons": list(comparisons),
    }
    return {key: json_ready(value) for key, value in found.items()}
