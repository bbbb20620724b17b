"""Findings: claims of all levels, the strongest of each kind first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from qsim.optimize.study.application_claims import figure_of, keeps_up, run_of
from qsim.optimize.study.comparing import QUALITY, Claim, maximized
from qsim.optimize.study.levels import ApplicationRow, Axis, Run
from qsim.optimize.study.result import Decision, Finding, Level
from qsim.optimize.study.runner import ANSWERED
from qsim.optimize.study.versions import usual_version
from qsim.profiles.carry import release
from qsim.sim.results.backlog import OVERLOADED

#: kinds of findings; of equal rank within their kind they come in this order
KINDS = (
    "inversion", "crossing", "dominated", "loss of quality", "gain", "loss of speed", "sharding",
    "hardware", "bursts",
)  # fmt: skip
#: kinds that compare GPU types or sizes: told of profiles of one version of vLLM only
_ONE_VERSION = ("inversion", "sharding", "hardware")
#: so many of a kind are told
MOST_OF_A_KIND = 5
#: of the same methods, or of the same figure, as many of a kind
_MOST_ALIKE = 2
#: runs of which more of the steps lie beyond what was measured carry no finding
MOST_BEYOND = 0.01


def usable_runs(runs: Mapping[str, Run], answered: Mapping[str, float]) -> frozenset[str]:
    """Runs that findings and decisions may rest on.

    Left out are those beyond the measured range, those that were overloaded by their traffic (their
    latencies grow with its length), and those that answered less of it in full than others did
    (what is too long for a server is rejected).
    """
    most: dict[str, float] = {}
    for run in runs.values():
        most[run.trace] = max(most.get(run.trace, 0.0), answered[run.id])
    return frozenset(
        r.id
        for r in runs.values()
        if r.beyond_measured <= MOST_BEYOND
        and r.load != OVERLOADED
        and answered[r.id] >= most[r.trace] - ANSWERED
    )


def findings_of(
    claims: Iterable[Claim], runs: Mapping[str, Run], transferred: frozenset[str] = frozenset()
) -> tuple[Finding, ...]:
    """The strongest claims of each kind: first the first of every kind, then the second, ...

    Those that rest on ``transferred`` profiles (ids) say so. Methods of one GPU type whose profiles
    are of several versions of vLLM stand behind all others, with the versions in the sentence; GPU
    types and sizes are not compared across versions at all.
    """
    by_kind: dict[str, list[Claim]] = {k: [] for k in KINDS}
    for claim in claims:
        if claim.kind not in _ONE_VERSION or len(_versions(claim, runs)) < 2:
            by_kind[claim.kind].append(claim)
    chosen = {k: _varied(some, runs) for k, some in by_kind.items()}
    rounds = [
        chosen[kind][place]
        for place in range(MOST_OF_A_KIND)
        for kind in KINDS
        if place < len(chosen[kind])
    ]
    rounds.sort(key=lambda c: len(_versions(c, runs)) > 1)  # stable
    return tuple(_finding(i, c, runs, transferred) for i, c in enumerate(rounds, 1))


def _versions(claim: Claim, runs: Mapping[str, Run]) -> tuple[str, ...]:
    """Of the profiles of a claim's runs, the oldest first; one that is not known is ""."""
    found = {runs[r].vllm_version for r in claim.runs}
    return tuple(sorted(found, key=lambda v: release(v) if v else (0, 0)))


def _with_versions(claim: Claim, runs: Mapping[str, Run]) -> str:
    """A claim's sentence; across versions, with that of each method where it is first named."""
    text = claim.statement
    if len(_versions(claim, runs)) < 2:
        return text
    for method in claim.methods:
        of = dict.fromkeys(runs[r].vllm_version for r in claim.runs if runs[r].method == method)
        if of:
            name = " and ".join(f"vLLM {v}" if v else "unknown vLLM" for v in of)
            word = rf"(?<![\w+-]){re.escape(method)}(?![\w+-])"
            text = re.sub(word, f"{method} ({name})", text, count=1)
    return text


def _varied(claims: Sequence[Claim], runs: Mapping[str, Run]) -> list[Claim]:
    """The strongest of one version, then others, without many that say nearly the same."""
    ordered = sorted(claims, key=lambda c: (len(_versions(c, runs)) > 1, -c.score, c.statement))
    kept: list[Claim] = []
    alike: dict[tuple[object, ...], int] = {}
    for claim in ordered:
        keys = [("methods", claim.gpu, frozenset(claim.methods)),
                ("figure", claim.gpu, claim.figure, claim.axis),
                ("first", claim.gpu, claim.methods[0])]  # fmt: skip
        if any(alike.get(k, 0) >= _MOST_ALIKE for k in keys):
            continue
        for key in keys:
            alike[key] = alike.get(key, 0) + 1
        kept.append(claim)
        if len(kept) == MOST_OF_A_KIND:
            break
    return kept


def _finding(
    rank: int, claim: Claim, runs: Mapping[str, Run], transferred: frozenset[str]
) -> Finding:
    carried = [runs[r] for r in claim.runs if runs[r].profile in transferred]
    of = list(dict.fromkeys(
        f"{r.gpu} with TP{r.tensor_parallel_size}" if r.tensor_parallel_size > 1 else r.gpu
        for r in carried
    ))  # fmt: skip
    note = f" (profiles of {' and '.join(of)} are transferred, not measured)" if of else ""
    weakest = min(claim.verdicts, key=lambda v: v.gap)
    commands = (*(runs[r].command for r in claim.runs), *claim.commands)
    return Finding(
        rank,
        claim.kind,
        cast(Level, claim.level),
        claim.gpu,
        claim.methods,
        _with_versions(claim, runs) + note,
        claim.numbers,
        claim.figure,
        float(f"{weakest.ratio:.4g}"),
        float(f"{weakest.error_percent:.3g}"),
        claim.runs,
        commands,
        cast("Axis | None", claim.axis),
        claim.at,
        _versions(claim, runs),
    )


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

    Only methods whose quality is at least ``floor_pct`` at the low end of its interval are
    considered. ``all_runs``, by id, say which version of vLLM a method's profile is of.
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
