"""The decision table: which method for which traffic and goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qsim.optimize.study.application_claims import figure_of, keeps_up, run_of
from qsim.optimize.study.comparing import QUALITY, maximized
from qsim.optimize.study.levels import ApplicationRow, Run
from qsim.optimize.study.result import Decision
from qsim.optimize.study.versions import usual_version

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
    rows: Sequence[ApplicationRow],
    usable: frozenset[str],
    floor_pct: float | None,
    all_runs: Mapping[str, Run],
) -> tuple[Decision, ...]:
    """For each GPU type, task and goal the best method, and those that are as good.

    Parameters
    ----------
    floor_pct : float or None
        Only methods whose quality is at least this at the low end of its interval.
    all_runs : mapping
        By id: which version of vLLM a method's profile is of.
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
            of = {r.method: all_runs[run].vllm_version for r, _ in known
                  if (run := run_of(r, figure))}  # fmt: skip
            usual = usual_version([*of.values()])
            odd = {m: v or "unknown" for m, v in of.items() if v != usual}
            found.append(Decision(
                gpu, task, goal, best.method, value, figure, as_good, floor_pct, runs, odd
            ))  # fmt: skip
    return tuple(found)


def _allowed(row: ApplicationRow, floor_pct: float | None) -> bool:
    if floor_pct is None:
        return True
    return row.quality is not None and row.quality.low >= floor_pct
