"""What the application level says: gains, losses of quality, methods that others dominate."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence

from qsim.optimize.study.comparing import QUALITY, Claim, Side, Verdict, better, said, sense, shown
from qsim.optimize.study.contenders import BASELINE
from qsim.optimize.study.figures import Band
from qsim.optimize.study.levels import ApplicationRow
from qsim.optimize.study.result import TaskShape

LEVEL = "application"
#: what a method is for
GAINS = ("highest_rps", "joules_per_request", "mean_e2el_ms")
#: what a dominated method is beaten in
SPEEDS = ("highest_rps", "joules_per_request", "mean_e2el_ms", "mean_ttft_ms")


def figure_of(row: ApplicationRow, figure: str) -> Band | None:
    """A figure of a row, whether it is of one of its runs or not."""
    if figure in (QUALITY, "highest_rps", "usd_per_1m_at_highest"):
        found: Band | None = getattr(row, figure)
        return found
    return row.figures.get(figure)


def run_of(row: ApplicationRow, figure: str) -> str:
    """The run that a figure of a row is of; "" for quality."""
    if figure == QUALITY:
        return ""
    return row.highest_run if figure in ("highest_rps", "usd_per_1m_at_highest") else row.run


def keeps_up(row: ApplicationRow, figure: str) -> bool:
    """Whether a figure is not one of a server that more arrives at than it finishes."""
    if run_of(row, figure) != row.run:
        return True
    return row.highest_rps is not None and row.rate_rps < row.highest_rps.value


def _side(row: ApplicationRow, figure: str, usable: frozenset[str]) -> Side | None:
    band, run = figure_of(row, figure), run_of(row, figure)
    if band is None or (run and run not in usable) or not keeps_up(row, figure):
        return None
    return Side(f"{row.method}, {row.task}", band, run)


def application_claims(
    model: str,
    rows: Sequence[ApplicationRow],
    tasks: Sequence[TaskShape],
    usable: frozenset[str],
) -> Iterator[Claim]:
    """Every claim that the rows support, in no order."""
    for gpu in dict.fromkeys(r.gpu for r in rows):
        some = [r for r in rows if r.gpu == gpu]
        yield from _gains(gpu, some, usable)
        yield from _dominated(gpu, some, usable)
    yield from _losses(model, rows, tasks)


def _by(rows: Sequence[ApplicationRow]) -> dict[str, dict[str, ApplicationRow]]:
    found: dict[str, dict[str, ApplicationRow]] = {}
    for row in rows:
        found.setdefault(row.method, {})[row.task] = row
    return found


def _verdicts(
    figure: str,
    a: Mapping[str, ApplicationRow],
    b: Mapping[str, ApplicationRow],
    usable: frozenset[str],
) -> dict[str, Verdict]:
    """By task, where ``a`` is better than ``b``."""
    found = {}
    for task in a:
        if task in b:
            one, other = _side(a[task], figure, usable), _side(b[task], figure, usable)
            if verdict := better(figure, one, other):
                found[task] = verdict
    return found


def _gains(gpu: str, rows: Sequence[ApplicationRow], usable: frozenset[str]) -> Iterator[Claim]:
    """Where a method gains most on the baseline, and where it loses."""
    by_method = _by(rows)
    base = by_method.pop(BASELINE, None)
    if base is None:
        return
    for figure in GAINS:
        what, unit = said(figure)
        for method, own in by_method.items():
            wins = _verdicts(figure, own, base, usable)
            fails = _verdicts(figure, base, own, usable)
            for kind, found in (("gain", wins), ("loss of speed", fails)):
                if not found:
                    continue
                task = max(found, key=lambda t: found[t].gap)
                v = found[task]
                mine, its = (v.better, v.worse) if kind == "gain" else (v.worse, v.better)
                word = sense(figure)[kind != "gain"]
                count = len([t for t in own if t in base])
                yield Claim(
                    kind, LEVEL, gpu, (method, BASELINE),
                    f"On {gpu}, the {what} of {method} is {v.ratio:.2f} times {word} than that of "
                    f"{BASELINE} on {task}: {shown(mine.band.value)} against "
                    f"{shown(its.band.value)}{unit} ({word} beyond the errors in {len(found)} of "
                    f"{count} tasks)",
                    figure, (v,),
                )  # fmt: skip


def _dominated(gpu: str, rows: Sequence[ApplicationRow], usable: frozenset[str]) -> Iterator[Claim]:
    """Methods that another one beats on every task, and that are better at nothing."""
    by_method = _by(rows)
    for method, own in by_method.items():
        best: tuple[float, str, list[Verdict]] | None = None
        for other, its in by_method.items():
            if other == method or set(own) != set(its):
                continue
            found = _beats(its, own, usable)
            if found is not None:
                score = math.fsum(math.log(v.gap) for v in found)
                if best is None or score > best[0]:
                    best = (score, other, found)
        if best is None or not own:
            continue
        _, other, found = best
        ratios = [v.ratio for v in found]
        yield Claim(
            "dominated", LEVEL, gpu, (method, other),
            f"On {gpu}, {other} is better than {method} everywhere: {min(ratios):.2f} to "
            f"{max(ratios):.2f} times the requests/s under saturation on all {len(own)} tasks, "
            "with no worse latency, energy or quality",
            "highest_rps", tuple(found),
        )  # fmt: skip


def _beats(
    a: Mapping[str, ApplicationRow], b: Mapping[str, ApplicationRow], usable: frozenset[str]
) -> list[Verdict] | None:
    """Throughput by task, if ``a`` is better in it on every task and worse in nothing."""
    found = _verdicts("highest_rps", a, b, usable)
    if len(found) < len(b):
        return None
    for task, row in b.items():
        for figure in (*SPEEDS, QUALITY):
            one, other = figure_of(a[task], figure), figure_of(row, figure)
            if one is None or other is None:
                return None
            more = figure in ("highest_rps", QUALITY)
            if (one.value < other.value) if more else (one.value > other.value):
                return None
    return list(found.values())


def _losses(
    model: str, rows: Sequence[ApplicationRow], tasks: Sequence[TaskShape]
) -> Iterator[Claim]:
    """The task on which a method loses most quality, where its interval leaves out 100%."""
    benchmarks = {t.name: t.benchmarks for t in tasks}
    first = rows[0].gpu if rows else ""
    by_method = _by([r for r in rows if r.gpu == first])
    base = by_method.get(BASELINE, {})
    for row in rows:  # methods that only another GPU has
        if row.method not in by_method:
            by_method.setdefault(row.method, {})[row.task] = row
    for method, own in by_method.items():
        known = {t: r.quality for t, r in own.items() if r.quality is not None and t in base}
        if method == BASELINE or not known:
            continue
        worst = min(known, key=lambda t: known[t].value)
        least = max(known, key=lambda t: known[t].value)
        full, low = base[worst].quality, known[worst]
        if full is None:
            continue
        verdict = better(
            QUALITY, Side(f"{BASELINE}, {worst}", full, ""), Side(f"{method}, {worst}", low, "")
        )
        if verdict is None:
            continue
        text = (
            f"{method} keeps {low.value:.1f}% ({low.low:.1f} to {low.high:.1f}) of the 16-bit "
            f"quality on {worst}"
        )
        verdicts = [verdict]
        most = better(QUALITY, Side(f"{method}, {least}", known[least], ""), verdict.worse)
        if most is not None:
            text += f", where it loses most, and {known[least].value:.1f}% on {least}"
            verdicts.append(most)
        mixes = [worst] if most is None else [worst, least]
        commands = tuple(
            shlex.join(["qsim", "quality", model, "--method", method, "--tasks",
                        ",".join(f"{b}:{s:.6g}" for b, s in benchmarks[t].items()), "--json"])
            for t in mixes
        )  # fmt: skip
        yield Claim(
            "loss of quality", LEVEL, "", (method,),
            f"{text} ({own[worst].quality_status})", QUALITY, tuple(verdicts), commands=commands,
        )  # fmt: skip
