"""What the workload level says: where methods cross, and what bursts cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from qsim.optimize.study.comparing import Claim, Side, better, said, sense, shown, side_of
from qsim.optimize.study.levels import AXIS_TITLES, Axis, WorkloadRow

LEVEL = "workload"
#: along which axis which figures can cross
CROSSED: dict[Axis, tuple[str, ...]] = {
    "concurrency": ("mean_tpot_ms", "mean_ttft_ms", "output_throughput", "joules_per_request"),
    "rate": ("mean_e2el_ms", "mean_tpot_ms", "joules_per_request"),
    "batch": ("mean_tpot_ms", "output_throughput", "joules_per_request"),
}


def workload_claims(rows: Sequence[WorkloadRow], usable: frozenset[str]) -> Iterator[Claim]:
    """Every claim that the rows support, in no order."""
    fair = [r for r in rows if r.run in usable and r.kept_up]
    for gpu in dict.fromkeys(r.gpu for r in fair):
        for axis, figures in CROSSED.items():
            lines: dict[str, list[WorkloadRow]] = {}
            for row in fair:
                if row.gpu == gpu and row.axis == axis:
                    lines.setdefault(row.method, []).append(row)
            for figure in figures:
                for a, b in combinations(lines, 2):
                    claim = _crossing(gpu, axis, figure, lines[a], lines[b])
                    if claim is not None:
                        yield claim
        yield from _lengths(gpu, [r for r in fair if r.gpu == gpu and r.axis == "lengths"])
        yield from _bursts(gpu, [r for r in fair if r.gpu == gpu and r.axis == "burstiness"])


def _side(row: WorkloadRow, figure: str, at: str) -> Side | None:
    return side_of(row, figure, f"{row.method} at {at}")


def _number(x: float) -> str:
    return f"{x:.4g}"


def _crossing(
    gpu: str, axis: Axis, figure: str, a: Sequence[WorkloadRow], b: Sequence[WorkloadRow]
) -> Claim | None:
    """One is better at low values of the axis and the other at high ones, beyond the errors."""
    pairs = []
    others = {r.x: r for r in b}
    for row in sorted(a, key=lambda r: r.x):
        if row.x in others:
            one, other = (_side(r, figure, _number(row.x)) for r in (row, others[row.x]))
            if one is not None and other is not None and one.band.value > 0 < other.band.value:
                pairs.append((row.x, one, other))
    ahead = [(x, v) for x, one, other in pairs if (v := better(figure, one, other))]
    behind = [(x, v) for x, one, other in pairs if (v := better(figure, other, one))]
    if not ahead or not behind:
        return None
    if max(x for x, _ in ahead) > min(x for x, _ in behind):
        if max(x for x, _ in behind) > min(x for x, _ in ahead):
            return None  # they cross more than once
        ahead, behind = behind, ahead
    low_x, low = max(ahead, key=lambda p: (p[1].gap, p[0]))
    high_x, high = max(behind, key=lambda p: (p[1].gap, -p[0]))
    at = crossing_at(
        [(x, math.log(one.band.value / other.band.value)) for x, one, other in pairs],
        max(x for x, _ in ahead),
        min(x for x, _ in behind),
    )
    first, second = low.better.label.split(" at ")[0], high.better.label.split(" at ")[0]
    what, unit = said(figure)
    where, word = AXIS_TITLES[axis], sense(figure)[0]
    return Claim(
        "crossing", LEVEL, gpu, (first, second),
        f"On {gpu}, {first} has the {word} {what} below about {at:.2g} {where} "
        f"({low}{unit} at {_number(low_x)}), {second} above ({high}{unit} at {_number(high_x)})",
        figure, (low, high), axis=axis, at=float(f"{at:.3g}"),
    )  # fmt: skip


def crossing_at(ratios: Sequence[tuple[float, float]], after: float, before: float) -> float:
    """Where a logarithm of a ratio is 0 between two points, on a logarithmic axis.

    Parameters
    ----------
    ratios : sequence of (x, log ratio)
        By x.
    after, before : float
        The last point that one side clearly wins, and the first that the other does.
    """
    inside = [(x, r) for x, r in ratios if after <= x <= before]
    for (x, r), (next_x, next_r) in pairwise(inside):
        if r == 0:
            return x
        if r * next_r < 0:
            share = r / (r - next_r)
            return math.exp(math.log(x) + share * (math.log(next_x) - math.log(x)))
    return math.sqrt(after * before)


def _lengths(gpu: str, rows: Sequence[WorkloadRow]) -> Iterator[Claim]:
    """A pair of methods whose order changes with the lengths of prompts and outputs."""
    figure = "output_throughput"
    cells: dict[str, dict[tuple[float, float], WorkloadRow]] = {}
    for row in rows:
        cells.setdefault(row.method, {})[row.x, row.y or 0.0] = row
    what, unit = said(figure)
    for a, b in combinations(cells, 2):
        found = {}
        for name, (one, other) in (("a", (a, b)), ("b", (b, a))):
            best = None
            for cell, row in cells[one].items():
                rival = cells[other].get(cell)
                if rival is None:
                    continue
                at = f"{cell[0]:g} and {cell[1]:g} tokens"
                own, against = _side(row, figure, at), _side(rival, figure, at)
                v = better(figure, own, against)
                if v is not None and (best is None or v.gap > best[1].gap):
                    best = (at, v)
            if best is not None:
                found[name] = best
        if len(found) == 2:
            (at_a, va), (at_b, vb) = found["a"], found["b"]
            yield Claim(
                "crossing", LEVEL, gpu, (a, b),
                f"On {gpu}, {a} has the {sense(figure)[0]} {what} with prompts and outputs of "
                f"{at_a} ({va}{unit}), {b} with {at_b} ({vb}{unit})",
                figure, (va, vb), axis="lengths",
            )  # fmt: skip


def _bursts(gpu: str, rows: Sequence[WorkloadRow]) -> Iterator[Claim]:
    """How much bursts lengthen the tail of a method's TTFT."""
    figure = "p99_ttft_ms"
    lines: dict[str, list[WorkloadRow]] = {}
    for row in rows:
        lines.setdefault(row.method, []).append(row)
    for method, some in lines.items():
        some.sort(key=lambda r: r.x)
        even = _side(some[0], figure, f"CV {some[0].x:g}")
        bursty = _side(some[-1], figure, f"CV {some[-1].x:g}")
        v = better(figure, even, bursty)
        if v is not None:
            yield Claim(
                "bursts", LEVEL, gpu, (method,),
                f"On {gpu}, the p99 TTFT of {method} is {v.ratio:.2f} times as long with gaps of "
                f"CV {some[-1].x:g} as of CV {some[0].x:g}: {shown(v.worse.band.value)} against "
                f"{shown(v.better.band.value)} ms at the same rate",
                figure, (v,), axis="burstiness",
            )  # fmt: skip
