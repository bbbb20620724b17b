"""A tuning as text for a terminal: the front, what was picked, and what matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsim.profiles.lookup import transfer_note
from qsim.report.text.plan import price_remarks
from qsim.report.text.tables import continued, fill, number, table

if TYPE_CHECKING:
    from qsim.optimize.search.goals import QualityGoal
    from qsim.optimize.search.study import Record
    from qsim.optimize.tune.result import TuneResult

#: heads of decisions in the table
_HEADS = {
    "profile": "method",
    "max_num_seqs": "max-num\n-seqs",
    "max_num_batched_tokens": "max-num-\nbatched-tokens",
}


def tune_text(result: TuneResult, picked: Record | None = None, how: str = "") -> str:
    """The result as a page of text, without importances; the picked point is marked with ``*``."""
    t, s = result.trace, result.settings
    rate = "" if t["request_rate"] is None else f", {t['request_rate']:.2f} requests/s"
    goals = ", ".join(f"{o.name} {'max' if o.maximize else 'min'}" for o in result.objectives)
    simulated = len({r.figures.get("configuration") for r in result.trials if r.complete})
    failed = sum(not r.complete for r in result.trials)
    head = [
        f"{t['name']}: {t['requests']:,} requests in {number(t['duration_s'])} s{rate}",
        f"objectives: {goals}",
    ]
    if result.limits:
        head.append(f"constraints: {', '.join(map(str, result.limits))}")
    search = (
        f"{s['sampler']}, {len(result.trials)} trials, {simulated} configurations simulated"
        + (f", {failed} failed" if failed else "")
        + f"; {sum(r.feasible for r in result.trials)} trials meet every constraint"
    )
    head.append(search)
    if result.unfinished:
        head.append(f"not finished: {result.unfinished}")
    parts = ["\n".join(fill(line) for line in head)]
    front = result.front
    if front:
        heads, rows = front_rows(result, picked)
        parts.append(table(heads, rows, left=2))
        same = sum(len(result.equals(r)) for r in front)
        if same:
            parts.append(fill(f"{same} more configurations equal one of these in every objective"))
    else:
        parts.append(fill(f"no configuration meets every constraint: {result.why_infeasible()}",
                           "  "))  # fmt: skip
    if result.excluded:
        lines = [fill(f"  {id_}: {why}", "    ") for id_, why in result.excluded.items()]
        parts.append("\n".join(["not tried", *lines]))
    parts += [fill(note) for note in result.notes]
    remarks = _remarks(result)
    if remarks:
        parts.append("\n".join(remarks))
    if picked is not None:
        parts.append(picked_text(result, picked, how))
    return "\n\n".join(parts)


def front_rows(result: TuneResult, picked: Record | None) -> tuple[list[str], list[list[str]]]:
    """The front as a table: decisions that vary, objectives, and figures that are limited."""
    front = result.front
    names = profile_names(result)
    varied = [n for n in front[0].params if n == "profile" or len({str(r.params[n]) for r in front})
              > 1 or n == "replicas"]  # fmt: skip
    columns = {o.name: o.title for o in result.objectives}
    # overload is 0 wherever it is limited
    limited = (m.measure for m in result.limits if m.measure.name != "overload")
    columns |= {m.name: m.title for m in limited}
    heads = ["-", *(_HEADS.get(n, n.replace("_", "-")) for n in varied)]
    heads += [_two_lines(t) for t in columns.values()]
    rows = []
    for r in front:
        cells = [_cell(names.get(r.params[n], r.params[n])) for n in varied]
        figures = [_figure(r.figures.get(c), c) for c in columns]
        mark = "*" if picked is not None and r.number == picked.number else ""
        rows.append([mark, *cells, *figures])
    return heads, rows


def profile_names(result: TuneResult) -> dict[str, str]:
    """Each profile by what sets it apart: the method, if GPU and model are the same for all."""
    ids = {id_: id_.split("/") for id_ in result.choices}
    common = len({tuple(parts[:2]) for parts in ids.values()}) == 1
    return {id_: "/".join(parts[2:]) if common else id_ for id_, parts in ids.items()}


def picked_text(result: TuneResult, picked: Record, how: str) -> str:
    """The picked point in a sentence, and the command that starts it."""
    pools = result.pools(picked)
    pool, n = pools[0], sum(p.replicas for p in pools)
    what = f"{n} replica{'s' if n != 1 else ''} of {pool.profile}"
    if len(pools) > 1:
        what = " + ".join(f"{p.replicas} x {p.profile} (weight {p.weight:g})" for p in pools)
    figures = ", ".join(f"{o.name} {number(picked.figures.get(o.name))}" for o in result.objectives)
    head = f"* picked by {how or 'knee'}: {what} ({figures}). "
    if n == 1:
        head += "Start it with"
    else:
        head += f"Behind a {pool.router} router, start each, on its own GPUs and --port, with"
    doubt = [transfer_note(result.choices[p.profile].profile) for p in pools]
    doubts = [fill(text) for text in (*doubt, result.caution(picked)) if text]
    head = "\n\n".join([*doubts, fill(head)])
    commands = [continued(c) for c in result.serve_command(picked).split("\n")]
    from qsim.optimize.deploy.vllm import unknown_checkpoints

    own = [fill(t) for t in unknown_checkpoints((p.model, p.method) for p in pools)]
    return "\n\n".join([head, *commands, *own])


def importance_text(result: TuneResult) -> str:
    """What each decision matters, as a table; it takes some seconds."""
    lines = ["importance of the decisions, share of an objective's variance (fANOVA)"]
    known = [i for i in result.importances if i.shares]
    names = list(dict.fromkeys(n for i in known for n in i.shares))
    if known:
        rows = [[i.objective, *(f"{i.shares.get(n, 0.0):.0%}" for n in names)] for i in known]
        heads = ["", *(_HEADS.get(n, n.replace("_", "-")) for n in names)]
        lines.append(table(heads, rows, indent=2))
    lines += [
        fill(f"  {i.objective}: not known, because {i.reason}", "    ")
        for i in result.importances
        if not i.shares
    ]
    return "\n".join(lines)


def _remarks(result: TuneResult) -> list[str]:
    lines = []
    names = {o.name for o in result.objectives} | {m.measure.name for m in result.limits}
    goal = result.quality_goal
    if goal is not None and (names & {"quality", "quality_low"} or goal.min_pct is not None):
        text = f"quality: percent of the 16-bit model's score on {goal.mix_text()}"
        if goal.min_pct is not None:
            text += f"; its low end must reach {goal.min_pct:.15g}"
        lines.append(fill(text + _known_quality(result, goal)))
    if names & {"usd_per_hour", "cost_usd", "usd_per_1m_output_tokens", "usd_per_1m_tokens"}:
        lines += price_remarks(result.prices.values())
    if result.carbon is not None:
        grid = result.carbon.to_dict()
        lines.append(fill("carbon: " + ", ".join(f"{k} {v}" for k, v in grid.items())))
    return lines


def _known_quality(result: TuneResult, goal: QualityGoal) -> str:
    """Which methods of the front have a measured, published or estimated quality."""
    used = dict.fromkeys(p.profile for r in result.front for p in result.pools(r))
    names = profile_names(result)
    found: dict[str, list[str]] = {}
    for id_ in used:
        quality = goal.of(result.choices[id_].profile)
        found.setdefault(quality.status if quality else "not known", []).append(names[id_])
    return "".join(f"; {status}: {', '.join(ids)}" for status, ids in found.items())


def _figure(value: Any, name: str) -> str:
    if value is None:
        return "-"
    if name.startswith("quality"):
        return f"{value:.1f}"
    return f"{value:.2f}" if name == "usd_per_hour" else number(value)


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _two_lines(title: str) -> str:
    words = title.split()
    if len(title) < 9 or len(words) < 2:
        return title
    half = min(range(1, len(words)), key=lambda k: abs(len(" ".join(words[:k])) - len(title) / 2))
    return " ".join(words[:half]) + "\n" + " ".join(words[half:])
