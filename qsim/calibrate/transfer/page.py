"""docs/transfer.md: every comparison of transferred profiles, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from qsim.calibrate.transfer import page_text as text
from qsim.calibrate.transfer.build import Teacher, transfer
from qsim.calibrate.transfer.check import Difference, comparable, compare_profiles, leave_out
from qsim.calibrate.transfer.others import (
    Compared,
    energy_crossing,
    median_error,
    old_power,
    prefill_times,
    trtllm_products,
)
from qsim.calibrate.transfer.published import (
    PUBLISHED_MODELS,
    SORT_S_PER_LOGIT,
    Outcome,
    evaluate,
    needed,
    read_published,
)
from qsim.errors import QsimError
from qsim.profile import Profile

__all__ = ["outcomes", "summary", "transfer_page"]


def outcomes(teacher: Teacher, path: Path) -> list[Outcome]:
    """Every dense row of a leaderboard file, evaluated."""
    rows = read_published(path)
    profiles: dict[tuple[str, str, str, int], Profile | None] = {}
    for key in needed(rows):
        gpu, model, method, tp = key
        try:
            profiles[key] = transfer(teacher, gpu, model, PUBLISHED_MODELS[model], method, tp)
        except QsimError:
            profiles[key] = None  # a table lacks its shapes, or it does not fit
    found = []
    for r in rows:
        profile = profiles[(r.gpu, r.model, r.method, r.tensor_parallel_size)]
        if profile is not None:
            found.append(evaluate(profile, r))
    return found


def _median(values: Sequence[float]) -> float:
    return float(np.median(np.abs(values)))


def summary(found: Sequence[Outcome]) -> str:
    """The median errors in words."""
    return (
        f"median error over {len(found)} rows: ITL {_median([o.itl_error for o in found]):.1f}%, "
        f"power {_median([o.power_error for o in found]):.1f}%, energy a token "
        f"{_median([o.energy_error for o in found]):.1f}%"
    )


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
            cells = [f"{_median(c):.1f}%, {float(np.mean(c)):+.1f}%" for c in columns]
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
