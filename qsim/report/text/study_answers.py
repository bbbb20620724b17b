"""The question of each level of a study, and what its rows answer, in a sentence a GPU type.

Where the error bands of two methods meet, the sentence names both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qsim.optimize.study.figures import Band
from qsim.optimize.study.levels import ParallelismRow
from qsim.optimize.study.result import Level, StudyResult
from qsim.optimize.study.versions import usual_version
from qsim.report.text.tables import number

QUESTIONS: dict[Level, str] = {
    "application": "Which method keeps the quality of each task, and what does it take in energy, "
    "money and time?",
    "workload": "How do rate, concurrency, lengths, bursts and batch limits change which method "
    "is best?",
    "parallelism": "Is it better to shard a server over GPUs or to run replicas, and what does "
    "that do to each method's advantage?",
    "hardware": "What does the type of GPU change: speed, energy, room for KV cache, power?",
}
#: quality that a method must be expected to keep to be called one that keeps it, percent
_KEEPS_PCT = 99.0


def band_text(band: Band | None, digits: int = 3, to: str = " to ") -> str:
    """A value with its range in brackets; ``-`` for none."""
    if band is None:
        return "-"
    if band.low == band.high:
        return number(float(band.value), digits)
    low, high = number(float(band.low), digits), number(float(band.high), digits)
    return f"{number(float(band.value), digits)} ({low}{to}{high})"


def ratio_band(value: Band, base: Band) -> Band | None:
    """One value over another, as far as the errors of both allow; None over nothing."""
    if base.low <= 0:
        return None
    return Band(value.value / base.value, value.low / base.high, value.high / base.low)


def answers(found: StudyResult, level: Level) -> list[str]:
    """A sentence for each GPU type that the level has rows of; for hardware one in all."""
    if level == "hardware":
        return _hardware(found)
    say = {"application": _application, "workload": _workload, "parallelism": _parallelism}[level]
    return [text for gpu in found.gpus if (text := say(found, gpu))]


def _best(
    rows: Sequence[Any], value: Callable[[Any], Band | None], *, most: bool = False
) -> tuple[Any, Band, str] | None:
    """The row with the best value, and its method with those that are as good, for a sentence."""
    known = [(r, b) for r in rows if (b := value(r)) is not None]
    if not known:
        return None
    row, band = (max if most else min)(known, key=lambda k: k[1].value)
    others = [r.method for r, b in known if r is not row and not b.apart(band)]
    if not others:
        return row, band, row.method
    more = ", ".join(others) if len(others) <= 3 else f"{len(others)} others"
    return row, band, f"{row.method} (within the errors also {more})"


def _versions(found: StudyResult, rows: Sequence[Any]) -> str:
    """Which methods' profiles are of another version of vLLM than most; "" if all are of one."""
    of = {r.method: found.runs[r.run].vllm_version for r in rows}
    usual = usual_version([*of.values()])
    odd = [f"{m} of {v or 'an unknown version'}" for m, v in of.items() if v != usual]
    return f" (profiles of vLLM {usual}, {', '.join(odd)})" if odd else ""


def _get(name: str) -> Callable[[Any], Band | None]:
    def get(row: Any) -> Band | None:
        found: Band | None = row.figures.get(name)
        return found

    return get


def _application(found: StudyResult, gpu: str) -> str:
    rows = [r for r in found.application if r.gpu == gpu]
    if not rows:
        return ""
    base = found.methods[0]
    parts = []
    worth: list[tuple[float, str, float]] = []
    for method in found.methods:
        mine = {r.task: r for r in rows if r.method == method}
        bases = {r.task: r for r in rows if r.method == base}
        kept = [r.quality.value for r in mine.values() if r.quality is not None]
        gains = [
            own.value / other.value
            for task, r in mine.items()
            if task in bases
            and (own := r.figures.get("joules_per_request")) is not None
            and (other := bases[task].figures.get("joules_per_request")) is not None
            and other.value > 0
        ]
        if gains and len(kept) == len(mine) and min(kept) >= _KEEPS_PCT and method != base:
            worth.append((sum(gains) / len(gains), method, min(kept)))
    if worth:
        energy, method, kept_pct = min(worth)
        parts.append(
            f"{method} takes {number(energy, 3)} times the J per request of {base} on average "
            f"over the tasks and is expected to keep {number(kept_pct, 4)}% of the 16-bit score "
            "or more in each, the least energy of all that keep 99%"
        )
    else:
        parts.append(f"no method beside {base} is expected to keep 99% of the 16-bit score")
    known = [r for r in rows if r.quality is not None and r.method != base]
    if known:
        worst = min(known, key=lambda r: r.quality.value if r.quality else 0.0)
        parts.append(
            f"the largest loss is that of {worst.method} on {worst.task}, "
            f"{band_text(worst.quality, 4)}% of the 16-bit score"
        )
    return f"On {gpu}, {'; '.join(parts)}{_versions(found, rows)}."


def _workload(found: StudyResult, gpu: str) -> str:
    rows = [r for r in found.workload if r.gpu == gpu]
    if not rows:
        return ""
    parts = []
    rate = [r for r in rows if r.axis == "rate"]
    rates = sorted({r.x for r in rate})
    shared = [x for x in rates if all(r.kept_up for r in rate if r.x == x)]
    told = dict.fromkeys((*shared[:1], *shared[-1:]))
    for x in told:
        best = _best([r for r in rate if r.x == x], _get("mean_tpot_ms"))
        if best is not None:
            parts.append(
                f"at {number(x, 3)} requests/s {best[2]} has the lowest mean TPOT, "
                f"{band_text(best[1])} ms"
            )
    tops = []
    for method in found.methods:
        own = [r for r in rows if r.method == method and r.axis in ("rate", "concurrency", "batch")]
        top = _best(own, _get("output_throughput"), most=True)
        if top is not None:
            tops.append(top[0])
    best = _best(tops, _get("output_throughput"), most=True)
    if best is not None:
        parts.append(
            f"the most that one server finishes is {band_text(best[1])} tokens/s by {best[2]}"
        )
    crossings = [f for f in found.findings if f.kind == "crossing" and f.gpu == gpu]
    if crossings:
        ranks = ", ".join(str(f.rank) for f in crossings)
        parts.append(f"the order of methods changes where findings {ranks} say")
    else:
        parts.append("no two methods change places by more than their errors")
    return f"On {gpu}, {'; '.join(parts)}{_versions(found, rows)}."


def _parallelism(found: StudyResult, gpu: str) -> str:
    """What sharding does to one method, the first if it has several sizes, and to the others."""
    rows = [r for r in found.parallelism if r.gpu == gpu]
    sizes = {
        m: sorted({r.tensor_parallel_size for r in rows if r.method == m}) for m in found.methods
    }
    several = [m for m in found.methods if len(sizes[m]) > 1]
    if not rows:
        return ""
    gpus, base = rows[0].gpus, found.methods[0]
    if not several:
        return f"On {gpus} {gpu}, no method has servers of several sizes to compare."
    by: dict[tuple[str, int, str], ParallelismRow] = {
        (r.method, r.tensor_parallel_size, r.load): r for r in rows
    }

    def value(method: str, size: int, load: str, name: str) -> Band | None:
        row = by.get((method, size, load))
        return None if row is None else row.figures.get(name)

    told = several[0]
    least, most = sizes[told][0], sizes[told][-1]
    ratios = []
    for load, name, what in (
        ("busy", "mean_tpot_ms", "mean TPOT"),
        ("saturated", "output_throughput_per_gpu", "highest tokens/s"),
    ):
        one, many = value(told, least, load, name), value(told, most, load, name)
        if one is not None and many is not None and (ratio := ratio_band(many, one)) is not None:
            ratios.append(f"{band_text(ratio)} times the {what}")
    parts = []
    if ratios:
        parts.append(
            f"{_layout(gpus, most)} has for {told} {' and '.join(ratios)} of {_layout(gpus, least)}"
        )
    name = "output_throughput_per_gpu"
    changes = []
    for method in several:
        gains = []
        for size in sizes[method]:
            own, other = (value(m, size, "saturated", name) for m in (method, base))
            if method != base and own is not None and other is not None:
                gain = ratio_band(own, other)
                gains += [(gain, size)] if gain is not None else []
        if len(gains) > 1:
            changes.append((method, gains[0], gains[-1]))
    if changes:
        method, (first, low), (last, high) = max(
            changes, key=lambda c: abs(c[2][0].value / c[1][0].value - 1)
        )
        sure = "" if first.apart(last) else ", which the errors could explain"
        parts.append(
            f"the advantage over {base} changes most for {method}, from {number(first.value, 3)} "
            f"times its tokens/s with TP{low} to {number(last.value, 3)} with TP{high}{sure}"
        )
    missing = [m for m in found.methods if m not in several]
    if missing:
        parts.append(f"{', '.join(missing)} cannot be compared: servers of one size or none")
    return f"On {gpus} {gpu}, {'; '.join(parts)}."


def _layout(gpus: int, size: int) -> str:
    count = gpus // size
    return f"one server of TP{size}" if count == 1 else f"{count} replicas of TP{size}"


def _hardware(found: StudyResult) -> list[str]:
    rows = [r for r in found.hardware if r.load == "saturated"]
    gpus = sorted({r.gpu for r in rows})
    if not gpus:
        return []
    base, name = found.methods[0], "output_throughput_per_gpu"
    by = {(r.gpu, r.method): r for r in rows}
    gains: dict[tuple[str, str], Band] = {}
    for (gpu, method), r in by.items():
        own = r.figures.get(name)
        other = by[gpu, base].figures.get(name) if (gpu, base) in by else None
        if own is not None and other is not None and method != base:
            gain = ratio_band(own, other)
            if gain is not None:
                gains[gpu, method] = gain
    parts = []
    for gpu in gpus:
        best = _best([r for r in rows if r.gpu == gpu], _get(name), most=True)
        if best is not None:
            parts.append(f"on {gpu} {best[2]} finishes most, {band_text(best[1])} tokens/s per GPU")
    spans = []
    for method in found.methods[1:]:
        mine = [(gains[g, method], g) for g in gpus if (g, method) in gains]
        if len(mine) > 1:
            low, high = min(mine, key=lambda m: m[0].value), max(mine, key=lambda m: m[0].value)
            spans.append((high[0].value / low[0].value, method, low, high))
    if spans:
        _, method, low, high = max(spans, key=lambda s: s[0])
        sure = "" if low[0].apart(high[0]) else " (which the errors could explain)"
        versions = [found.runs[by[gpu, method].run].vllm_version for gpu in (high[1], low[1])]
        under = f", under vLLM {versions[0]} and {versions[1]}" if len(set(versions)) > 1 else ""
        parts.append(
            f"the advantage over {base} differs most for {method}, {number(high[0].value, 3)} "
            f"times its tokens/s per GPU on {high[1]} and {number(low[0].value, 3)} on {low[1]}"
            f"{under}{sure}"
        )
    elif len(gpus) == 1:
        r = rows[0]
        parts.append(
            f"a server takes {number(r.idle_w, 3)} W when idle and {number(r.cap_w, 3)} W at most"
        )
    text = "; ".join(parts)
    return [f"{text[0].upper()}{text[1:]}."] if parts else []
