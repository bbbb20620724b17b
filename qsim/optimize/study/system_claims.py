"""What the parallelism and hardware levels say: sharding, GPU types, and methods on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations

from qsim.optimize.study.comparing import (
    Claim,
    Side,
    Verdict,
    better,
    gain_of,
    said,
    sense,
    shown,
    side_of,
)
from qsim.optimize.study.contenders import BASELINE
from qsim.optimize.study.figures import Band
from qsim.optimize.study.levels import HardwareRow, Load, ParallelismRow
from qsim.profiles.spread import shipped_spread

#: at which load a figure is compared
COMPARED: tuple[tuple[str, Load], ...] = (
    ("mean_tpot_ms", "busy"),
    ("mean_ttft_ms", "busy"),
    ("joules_per_request", "busy"),
    ("output_throughput_per_gpu", "saturated"),
    ("joules_per_request", "saturated"),
)
#: half-width of a 90% interval in standard deviations
_Z90 = 1.645


def machine_spread_percent(figure: str) -> float:
    """How far two machines of one type differ in a figure, percent (90%).

    GPU types are compared across machines; methods of one type are not.
    """
    sd = shipped_spread().sd
    names = ("busy_power", "work_power") if figure.startswith("joules") else ("memory", "compute")
    return 100 * (math.exp(_Z90 * max(sd[n] for n in names)) - 1)


def parallelism_claims(rows: Sequence[ParallelismRow], usable: frozenset[str]) -> Iterator[Claim]:
    """What sharding does to a method, and to what it gains on the baseline."""
    fair = [r for r in rows if r.run in usable]
    for gpu in dict.fromkeys(r.gpu for r in fair):
        for figure, load in COMPARED:
            some = [r for r in fair if r.gpu == gpu and r.load == load]
            by_method: dict[str, dict[int, ParallelismRow]] = {}
            for row in some:
                by_method.setdefault(row.method, {})[row.tensor_parallel_size] = row
            for method, sizes in by_method.items():
                yield from _sharding(gpu, figure, load, method, sizes)
            base = by_method.get(BASELINE, {})
            for method, sizes in by_method.items():
                if method != BASELINE:
                    yield from _advantage(gpu, figure, load, method, sizes, base)


def _layout(row: ParallelismRow) -> str:
    return f"{row.replicas} x TP{row.tensor_parallel_size}"


def _parallel_side(row: ParallelismRow, figure: str) -> Side | None:
    return side_of(row, figure, f"{row.method}, {_layout(row)}")


def _sharding(
    gpu: str, figure: str, load: Load, method: str, sizes: dict[int, ParallelismRow]
) -> Iterator[Claim]:
    if len(sizes) < 2:
        return
    few, many = sizes[min(sizes)], sizes[max(sizes)]
    what, unit = said(figure)
    for a, b in ((few, many), (many, few)):
        one, other = _parallel_side(a, figure), _parallel_side(b, figure)
        v = better(figure, one, other)
        if v is not None:
            yield Claim(
                "sharding", "parallelism", gpu, (method,),
                f"On {a.gpus} {gpu}, the {what} of {method} is {v.ratio:.2f} times "
                f"{sense(figure)[0]} as {_layout(a)} than as {_layout(b)} "
                f"({v}{unit}, {_loaded(load)})",
                figure, (v,),
            )  # fmt: skip


def _loaded(load: Load) -> str:
    return "at one rate" if load == "busy" else "under saturation"


def _advantage(
    gpu: str,
    figure: str,
    load: Load,
    method: str,
    sizes: dict[int, ParallelismRow],
    base: dict[int, ParallelismRow],
) -> Iterator[Claim]:
    """Whether the gain on the baseline is another one at a larger tensor-parallel size."""
    shared = sorted(set(sizes) & set(base))
    if len(shared) < 2:
        return
    gains: list[tuple[int, Band, Side, Side]] = []
    for size in (shared[0], shared[-1]):
        one, other = _parallel_side(sizes[size], figure), _parallel_side(base[size], figure)
        if one is None or other is None:
            return
        gains.append((size, gain_of(figure, one.band, other.band), one, other))
    (few, gain, *first), (many, later, *second) = gains
    if not gain.apart(later):
        return
    what, _ = said(figure)
    larger, smaller = (gain, later) if gain.value > later.value else (later, gain)
    verdict = Verdict.of(first[0], first[1], larger, smaller)
    yield Claim(
        "sharding", "parallelism", gpu, (method, BASELINE),
        f"On {gpu}, {method} gains a factor of {gain.value:.2f} in {what} on {BASELINE} with "
        f"TP{few}, and of {later.value:.2f} with TP{many} ({_loaded(load)})",
        figure, (verdict,), beside=tuple(second),
    )  # fmt: skip


def hardware_claims(rows: Sequence[HardwareRow], usable: frozenset[str]) -> Iterator[Claim]:
    """Methods whose order changes between GPU types, and what a type gains on another."""
    fair = [r for r in rows if r.run in usable]
    gpus = list(dict.fromkeys(r.gpu for r in fair))
    for figure, load in COMPARED:
        table: dict[str, dict[str, HardwareRow]] = {}
        for row in fair:
            if row.load == load and row.figures.get(figure) is not None:
                table.setdefault(row.gpu, {})[row.method] = row
        for x, y in combinations(gpus, 2):
            if x in table and y in table:
                yield from _inversions(figure, load, table[x], table[y])
                yield from _between(figure, load, table[x], table[y])


def _hardware_side(row: HardwareRow, figure: str) -> Side | None:
    return side_of(row, figure, f"{row.method} on {row.gpu}")


def _inversions(
    figure: str, load: Load, here: dict[str, HardwareRow], there: dict[str, HardwareRow]
) -> Iterator[Claim]:
    what, unit = said(figure)
    for a, b in permutations([m for m in here if m in there], 2):
        wins = better(figure, _hardware_side(here[a], figure), _hardware_side(here[b], figure))
        fails = better(figure, _hardware_side(there[b], figure), _hardware_side(there[a], figure))
        if wins is None or fails is None:
            continue
        x, y = here[a].gpu, there[a].gpu
        yield Claim(
            "inversion", "hardware", "", (a, b),
            f"{a} has a {sense(figure)[0]} {what} than {b} on {x} ({wins}{unit}), a "
            f"{sense(figure)[1]} one on {y} ({shown(fails.worse.band.value)} against "
            f"{shown(fails.better.band.value)}{unit}), {_loaded(load)}",
            figure, (wins, fails),
        )  # fmt: skip


def _between(
    figure: str, load: Load, here: dict[str, HardwareRow], there: dict[str, HardwareRow]
) -> Iterator[Claim]:
    """What one type gains on another with a method, beyond how machines of a type differ."""
    what, unit = said(figure)
    spread = machine_spread_percent(figure)
    for method in here:
        if method not in there:
            continue
        sides = [_hardware_side(t[method], figure) for t in (here, there)]
        one, other = (s and replace(s, band=s.band.wider(spread)) for s in sides)
        v = better(figure, one, other) or better(figure, other, one)
        if v is None:
            continue
        x, y = (s.label.split(" on ")[1] for s in (v.better, v.worse))
        yield Claim(
            "hardware", "hardware", "", (method,),
            f"With {method}, the {what} of {x} is {v.ratio:.2f} times {sense(figure)[0]} than that "
            f"of {y} ({v}{unit}, {_loaded(load)})",
            figure, (v,),
        )  # fmt: skip
