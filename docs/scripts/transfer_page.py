"""Write docs/transfer.md: every comparison of transferred profiles; long tables into docs/data.

    python docs/scripts/transfer_page.py h100.json --published LEADERBOARD.csv \\
        --out docs/transfer.md

with ``pip install 'qsim[transfer]'``; the page says where ``h100.json`` and the CSV file are from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import transfer_text as text
from long_tables import move_long_tables
from published_comparisons import (
    Compared,
    energy_crossing,
    median_error,
    old_power,
    prefill_times,
    trtllm_products,
)

from qsim.calibrate.transfer.build import Teacher, learn_from_shipped, transfer
from qsim.calibrate.transfer.check import Difference, compare_profiles, leave_out
from qsim.calibrate.transfer.learn import base_method
from qsim.calibrate.transfer.published import (
    SORT_S_PER_LOGIT,
    Outcome,
    median_percent,
    outcomes,
    summary,
)
from qsim.errors import QsimError
from qsim.files import write_text
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile

#: files of the long tables, by the first words of their heads
TABLES = {
    "profile,quantity": "h200",
    ",decode,piecewise": "before-measured",
    "profile,decode": "h200-own",
    "task,": "leaderboard",
    "model, method, rows": "a100-products",
}


def comparable(teacher: Teacher) -> Sequence[Profile]:
    """The measured profiles that other models can predict."""
    found = []
    for s in teacher.samples:
        rest = teacher.without(s.profile.identity.model).samples
        methods = {base_method(r.profile.identity.method) for r in rest}
        if "bf16" in methods and (s.method in methods or s.method in ("bf16", "fp8-w8a8")):
            found.append(s.profile)
    return found


def transfer_page(
    teacher: Teacher, found: Sequence[Outcome], measured: Sequence[Profile] = ()
) -> str:
    """The whole page; ``measured`` are profiles of GPUs that nothing was learnt from."""
    parts = [
        text.INTRODUCTION,
        *_h200(teacher),
        *_measured(teacher, measured),
        *_leaderboard(found),
        *_crossing(teacher),
        *_others(teacher),
        text.LIMITS,
    ]
    return "\n".join(parts)


def _h200(teacher: Teacher) -> list[str]:
    lines = [
        text.H200,
        "| profile | quantity | median | 90th percentile | worst | mean |",
        "|---|---|---:|---:|---:|---:|",
    ]
    medians: dict[str, list[float]] = {}
    for measured in comparable(teacher):
        differences = compare_profiles(leave_out(teacher, measured), measured)
        lines += _rows(measured, differences)
        for d in differences:
            medians.setdefault(d.quantity, []).append(d.median)
    means = ", ".join(f"{quantity} {mean(v):.1f}%" for quantity, v in medians.items())
    lines += [
        "",
        f"The mean of the medians: {means}.",
        text.H200_OWN,
        "| profile | decode | piecewise | eager | power |",
        "|---|---:|---:|---:|---:|",
    ]
    for s in teacher.samples:
        i = s.profile.identity
        again = transfer(teacher, i.gpu, i.model, i.architecture, i.method, i.tensor_parallel_size)
        by = {d.quantity: f"{d.median:.1f}" for d in compare_profiles(again, s.profile)}
        cells = [by[q] for q in ("decode", "piecewise", "eager", "power")]
        lines.append(f"| {s.profile.id} | {' | '.join(cells)} |")
    return [*lines, ""]


def _rows(measured: Profile, differences: Sequence[Difference]) -> list[str]:
    return [
        f"| {measured.id} | {d.quantity} | {d.median:.1f} | {d.p90:.1f} | {d.worst:+.1f} "
        f"| {d.mean:+.1f} |"
        for d in differences
    ]


def _measured(teacher: Teacher, measured: Sequence[Profile]) -> list[str]:
    if not measured:
        return []
    lines = [
        text.MEASURED,
        "| profile | quantity | median | 90th percentile | worst | mean |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for m in measured:
        i = m.identity
        composed = transfer(
            teacher, i.gpu, i.model, i.architecture, i.method, i.tensor_parallel_size
        )
        lines += _rows(m, compare_profiles(composed, m))
    return [*lines, text.MEASURED_WHY]


def _leaderboard(found: Sequence[Outcome]) -> list[str]:
    said = summary(found)
    lines = [
        text.LEADERBOARD.format(sort=SORT_S_PER_LOGIT * 1e9),
        f"**{said[0].upper()}{said[1:]}.** By the limit, median of absolute errors and mean:",
        "",
        "| limit | rows | ITL | power | energy a token |",
        "|---|---:|---:|---:|---:|",
    ]
    for low, high in ((1, 16), (17, 64), (65, 128), (129, 256), (257, 4096)):
        part = [o for o in found if low <= o.row.max_num_seqs <= high]
        if part:
            columns = zip(
                *((o.itl_error, o.power_error, o.energy_error) for o in part), strict=True
            )
            cells = [f"{median_percent(c):.1f}%, {float(np.mean(c)):+.1f}%" for c in columns]
            name = f"{low} to {high}" if high < 4096 else f"above {low - 1}"
            lines.append(f"| {name} | {len(part)} | {' | '.join(cells)} |")
    lines += [
        "",
        "| task | model | GPUs | limit | ITL ms | theirs | W per GPU | theirs | J/token |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for o in found:
        r = o.row
        lines.append(
            f"| {r.task} | {r.model} {r.method} | {r.tensor_parallel_size} | {r.max_num_seqs} "
            f"| {o.itl_ms:.1f} {o.itl_error:+.0f}% | {r.itl_ms:.1f} "
            f"| {o.watts_per_gpu:.0f} {o.power_error:+.0f}% | {r.watts_per_gpu:.0f} "
            f"| {o.energy_error:+.0f}% |"
        )
    return [*lines, "", "Theirs: github.com/ml-energy/leaderboard, commit 0cd52da.", ""]


def _crossing(teacher: Teacher) -> list[str]:
    lines = [
        text.CROSSING,
        "| model | GPUs | batch | energy a token | ITL | power |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for c in energy_crossing(teacher):
        cells = [f"{100 * c[k] - 100:+.0f}%" for k in ("energy", "itl", "power")]
        lines.append(f"| {c['model']} | {c['tp']} | {c['batch']} | {' | '.join(cells)} |")
    return [*lines, text.CROSSING_WHY]


def _compared(title: str, compared: list[Compared], digits: int) -> list[str]:
    lines = [f"| {title} | ours | published | error |", "|---|---:|---:|---:|"]
    lines += [
        f"| {c.what} | {c.ours:.{digits}f} | {c.published:.{digits}f} | {c.error:+.0f}% |"
        for c in compared
    ]
    return [*lines, "", f"Median error {median_error(compared):.0f}%.", ""]


def _others(teacher: Teacher) -> list[str]:
    return [
        text.PROMPTS,
        *_compared("GPU, size, prompt", prefill_times(teacher), 0),
        text.OLD_POWER,
        *_compared("model, batch", old_power(teacher), 0),
        text.OLD_POWER_WHY,
        text.A100_PRODUCTS,
        *_compared("model, method, rows", trtllm_products(teacher), 2),
    ]


def main() -> int:
    """Write the page; the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/transfer.md.")
    parser.add_argument("measured", nargs="*", help="profiles of GPUs that nothing is learnt from")
    parser.add_argument("--published", type=Path, required=True, metavar="CSV")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args()
    try:
        measured = [load_profile(name) for name in args.measured]
        teacher = learn_from_shipped()
        page, tables = move_long_tables(
            transfer_page(teacher, outcomes(teacher, args.published), measured), "transfer", TABLES
        )
        folder = args.out.parent / "data"
        folder.mkdir(exist_ok=True)
        for name, table in tables.items():
            write_text(folder / name, table)
        write_text(args.out, page)
    except QsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
