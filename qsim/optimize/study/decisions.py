"""The decision table: which method for which traffic and goal."""

from __future__ import annotations

from collections.abc import Sequence

from qsim.optimize.study.application_claims import figure_of, keeps_up, run_of
from qsim.optimize.study.comparing import QUALITY, maximized
from qsim.optimize.study.levels import ApplicationRow
from qsim.optimize.study.result import Decision

__all__ = ["GOALS", "decide"]

#: goal -> figure of the application level
GOALS = {
    "latency": "mean_e2el_ms",
    "first token": "mean_ttft_ms",
    "throughput": "highest_rps",
    "energy": "joules_per_request",
    "cost": "usd_per_1m_at_highest",
    "quality": QUALITY,
}


def decide(
    rows: Sequence[ApplicationRow], usable: frozenset[str], floor_pct: float | None
) -> tuple[Decision, ...]:
    """For each GPU type, task and goal the best method, and those that are as good.

    Parameters
    ----------
    floor_pct : float or None
        Only methods whose quality is at least this at the low end of its interval.
    """
    found = []
    cells = dict.fromkeys((r.gpu, r.task) for r in rows)
    for gpu, task in cells:
        some = [r for r in rows if (r.gpu, r.task) == (gpu, task) and _allowed(r, floor_pct)]
        for goal, figure in GOALS.items():
            known = [
                (r, band)
                for r in some
                if (band := figure_of(r, figure)) is not None
                and (not (run := run_of(r, figure)) or run in usable)
                and keeps_up(r, figure)
            ]
            if not known:
                continue
            sign = -1 if maximized(figure) else 1
            best, value = min(known, key=lambda p: sign * p[1].value)
            as_good = tuple(
                r.method for r, band in known if r is not best and not band.apart(value)
            )
            runs = tuple(run for r, _ in known if (run := run_of(r, figure)))
            found.append(
                Decision(gpu, task, goal, best.method, value, figure, as_good, floor_pct, runs)
            )
    return tuple(found)


def _allowed(row: ApplicationRow, floor_pct: float | None) -> bool:
    if floor_pct is None:
        return True
    return row.quality is not None and row.quality.low >= floor_pct
