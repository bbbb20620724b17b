"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qsim.optimize.plan.result import behind_best
from qsim.report.text.remarks import ranges_sentences, run_notes, run_remarks
from qsim.report.text.tables import continued, fill, number, table

if TYPE_CHECKING:
    from qsim.optimize.economics.prices import Price
    from qsim.optimize.plan.candidate import Candidate
    from qsim.optimize.plan.detail import Sensitivity
    from qsim.optimize.plan.result import Plan


def plan_rows(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Headers and a row for each feasible candidate of a plan.

    Money is told per hour and per million output tokens; requests/s are those that were finished.
    """
    keys = list(dict.fromkeys([*(s.figure for s in plan.slos), "p95_e2el_ms"]))
    joules = plan.objective in ("energy", "carbon")
    several = len({(c.gpu, c.model, c.tensor_parallel_size) for c in plan.candidates}) > 1
    spare = bool(plan.settings.get("survive"))
    headers = ["", "profile" if several else "method", "GPUs", "USD/h"]
    headers += [*(["spare\nGPUs", "spare\nUSD/h"] if spare else []), "USD/1M\noutput"]
    headers += ["requests\n/s", *(["energy\nkJ"] if joules else [])]
    headers += ["power\nW", "J/output\ntoken", "within\nlimits"]
    headers += ["gCO2e", "gCO2e\nper h", "gCO2e/1k\noutput"] if plan.carbon else []
    headers += ["quality, %"] if plan.quality_goal else []
    headers += ["goodput"] if plan.goodput else []
    headers += [f"{k.split('_')[1].upper()} {k.split('_')[0]}\nms" for k in keys]
    rows = []
    for c in plan.candidates:
        if not c.feasible or c.outcome is None:
            continue
        energy_j = c.metric("energy_j")
        attained = c.outcome.attainment
        values = {**c.outcome.p95_ms}
        values |= {o.slo.figure: o.value_ms for o in c.outcome.slos}
        rows.append(
            [
                "*" if c is plan.best else "",
                ("~" if c.note else "") + (fleet_name(plan, c) if several else c.method),
                number(c.gpus),
                _usd(c.usd_per_hour),
                *([number(c.spare_gpus), _usd(c.spare_usd_per_hour)] if spare else []),
                number(c.usd_per_1m("output_throughput"), 3),
                number(c.metric("request_throughput")),
                *([number(None if energy_j is None else energy_j / 1000)] if joules else []),
                number(c.metric("avg_power_w")),
                number(c.metric("joules_per_output_token"), 3),
                "-" if attained is None else f"{attained:.1%}",
                *(
                    [
                        number(c.gco2e),
                        number(c.gco2e_per_hour),
                        number(c.gco2e_per_1k_output_tokens, 3),
                    ]
                    if plan.carbon
                    else []
                ),
                *([quality_cell(c)] if plan.quality_goal else []),
                *([f"{c.outcome.goodput.share:.2%}"] if c.outcome.goodput else []),
                *(number(values[k]) for k in keys),
            ]
        )
    return headers, rows


def fleet_name(plan: Plan, candidate: Candidate) -> str:
    """A candidate's profile; mixed fleets are numbered, and remarks say what they are."""
    if not candidate.parts:
        return candidate.profile
    mixes = [c for c in plan.candidates if c.parts]
    return f"mix {mixes.index(candidate) + 1}"


def mix_remarks(plan: Plan) -> list[str]:
    """What the mixed fleets are, whether one beats every pure one, and what was not tried."""
    lines = [
        f"{fleet_name(plan, c)}: {mix_text(c)}" for c in plan.candidates if c.parts and c.feasible
    ]
    report = plan.mixes
    if report is None:
        return lines
    best = plan.best
    pure = next((c for c in plan.candidates if c.feasible and not c.parts), None)
    if best is not None and best.parts and pure is None:
        lines.append(
            "no fleet of one profile meets the limits with the GPUs in stock: it takes a mix"
        )
    elif best is not None and best.parts and pure is not None and report.beats:
        ratio = best.worth(plan.objective) / (pure.worth(plan.objective) or 1.0)
        lines.append(
            f"{fleet_name(plan, best)} beats every fleet of one profile: {1 - ratio:.1%} less "
            f"{_WHAT[plan.objective]} than {pure.profile}, the best of them"
        )
    elif pure is not None and not report.beats:
        lines.append(
            f"no mix that was tried has less {_WHAT[plan.objective]} than the best fleet of one "
            "profile"
        )
    pairs = len(report.pairs)
    tried = f"mixed fleets: {pairs} pair{'s' if pairs != 1 else ''} of profiles"
    tried += f" of {pairs + report.left_out}, the most promising" if report.left_out else ""
    tried += f", {report.simulations} simulations; of each the counts that could be best"
    if report.coarse:
        tried += f"; of {len(report.coarse)} not every count of the smaller pool was tried"
    lines.append(tried + "; no fleets of three pools")
    return lines


_WHAT = {"cost": "cost", "energy": "energy", "gpus": "GPUs", "carbon": "carbon"}


def mix_text(candidate: Candidate) -> str:
    """``4 x PROFILE (weight 2.1) + 2 x PROFILE (weight 1)``."""
    equal = len({p.weight for p in candidate.parts}) == 1
    return " + ".join(
        f"{p.replicas} x {p.blank.profile}" + ("" if equal else f" (weight {p.weight:g})")
        for p in candidate.parts
    )


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def survive_remarks(plan: Plan) -> list[str]:
    """What a fleet that survives servers that are down costs more."""
    count, best = plan.settings.get("survive"), plan.best
    if not count:
        return []
    lines = [
        f"survive: each fleet meets every limit as a whole and with any {count} "
        f"server{'s' if count != 1 else ''} down, from beginning to end; spare: what a fleet would "
        "do without that is all up"
    ]
    if best is not None and best.spare_gpus is not None and best.gpus is not None:
        text = f"{best.gpus - best.spare_gpus} GPUs would do if none were down"
        if best.usd_per_hour and best.spare_usd_per_hour is not None:
            rest = best.usd_per_hour - best.spare_usd_per_hour
            text += f", for {_usd(rest)} USD/h: surviving costs {_usd(best.spare_usd_per_hour)} "
            text += f"USD/h more{f' ({best.spare_usd_per_hour / rest:+.0%})' if rest else ''}"
        lines.append(f"{best.profile}: {text}")
    return lines


def quality_cell(candidate: Candidate) -> str:
    """Mean recovery and its interval, ``~99.6 (98.9-100.3)``; ``~`` if estimated."""
    q = candidate.quality
    if q is None:
        return "-"
    mark = "~" if q.status == "estimated" else ""
    return f"{mark}{q.mean_pct:.1f} ({q.low_pct:.1f}-{q.high_pct:.1f})"


def carbon_remarks(plan: Plan) -> list[str]:
    """Where the carbon figures come from and what they leave out."""
    if plan.carbon is None:
        return []
    grid, pue = plan.carbon.grid, plan.carbon.pue
    where = f"{grid.key} ({grid.name})" if grid.key != grid.name else grid.key
    source = "" if grid.source == "given" else f", {grid.source}"
    year = f", {grid.year}" if grid.year else ""
    return [
        f"carbon: {number(grid.gco2e_per_kwh)} gCO2e per kWh, {where}{source}{year}; PUE "
        f"{pue:.15g}; energy of the GPUs only, without CPUs, memory, network and manufacture"
    ]


def price_remarks(prices: Iterable[Price | None]) -> list[str]:
    """A line for each GPU with a price."""
    known = {p.gpu: p for p in prices if p is not None}
    return [
        fill(f"price of {g}: {p.usd_per_hour:.2f} USD per GPU and hour, {p.source}")
        for g, p in sorted(known.items())
    ]


def tie_remarks(plan: Plan) -> list[str]:
    """What decided, where several fleets share the best one's objective."""
    if plan.tie is None:
        return []
    from qsim.optimize.plan.candidate import deciding_order

    names = {"cost": "cost", "energy": "energy", "gpus": "the number of GPUs",
             "carbon": "carbon", "confidence": "confidence", "headroom": "head-room",
             "name": "the profile's name"}  # fmt: skip
    if plan.headroom is None:  # not asked for: how far a fleet is within its limits stands for it
        names["headroom"] = "the distance to the limits"
    order = ", ".join(names[o] for o in (*deciding_order(plan.objective), "name"))
    text = f"tie: {len(plan.tie.profiles)} fleets are equal in {names[plan.objective]}; "
    if plan.tie.decided_by == "name":
        return [f"{text}the first two are equal in all, and their names decided (order: {order})"]
    room = _within_limits if plan.headroom is None else _room
    how = {"confidence": _replications, "headroom": room}.get(plan.tie.decided_by)
    first, second = plan.candidates[:2]
    reason = "" if how is None else f": {how(first)} against {how(second)}"
    return [f"{text}{names[plan.tie.decided_by]} decided{reason} (order: {order})"]


def _replications(candidate: Candidate) -> str:
    if candidate.replications is None:
        return "none known"
    met, count = candidate.replications
    return f"{candidate.method} met every SLO in {met} of {count} replications"


def _room(candidate: Candidate) -> str:
    if candidate.carries is None:
        return "none known"
    return f"{candidate.method} carries {candidate.carries:.3g} times the traffic"


def _within_limits(candidate: Candidate) -> str:
    if candidate.nearest_limit is None:
        return "none known"
    return f"{candidate.method} takes {candidate.nearest_limit:.1%} of its nearest limit"


def quality_remarks(plan: Plan) -> list[str]:
    """What the quality column is, and a line for each method that needs one."""
    goal = plan.quality_goal
    if goal is None:
        return []
    shown = [c.quality for c in plan.candidates]
    text = (
        f"quality: percent of the 16-bit model's score on {goal.mix_text()}, with its 90% interval"
    )
    if any(q is not None and q.status == "estimated" for q in shown):
        text += "; ~ estimated: for some tasks no number of this model and method is known"
    if any(q is None for q in shown):
        text += "; - not known"
    cautions = [
        f"{c.profile}: {note}"
        for c in plan.candidates
        if c.quality is not None and c.method != "bf16"
        for note in c.quality.note.split("; ")
        if note and not note.startswith("estimated from")
    ]
    floor = f"; its low end must reach {goal.min_pct:.15g}" if goal.min_pct is not None else ""
    return [text + floor, *cautions]


def plan_text(plan: Plan) -> str:
    """The plan as a page of text, with the command that starts the best fleet."""
    t = plan.trace
    rate = f", {number(t['request_rate'])} requests/s" if t["request_rate"] else ""
    head = (
        f"{t['name']}: {number(t['requests'])} requests in {number(t['duration_s'])} s{rate}, "
        f"{number(t['mean_prompt_tokens'])} prompt and {number(t['mean_output_tokens'])} output "
        f"tokens on average\nSLO {', '.join(map(str, plan.goals))}; smallest fleets by simulation, "
        f"sorted by {plan.objective}"
    )
    if plan.forecast.text():
        head += f"\nplanned for {plan.forecast.text()}"
    parts = ["\n".join(fill(line) for line in head.split("\n"))]
    headers, rows = plan_rows(plan)
    if rows:
        parts.append(table(headers, rows, left=2))
    bad = [c for c in plan.candidates if not c.feasible]
    if bad:
        lines = ["  " + fill(f"{c.profile}: {c.reason}", "    ") for c in bad]
        parts.append("infeasible\n" + "\n".join(lines))
    remarks = [fill(t) for t in run_remarks(_notes(plan))]
    remarks += [fill(t) for t in quality_remarks(plan) + carbon_remarks(plan)]
    remarks += price_remarks(c.price for c in plan.candidates)
    more = (
        mix_remarks(plan)
        + survive_remarks(plan)
        + search_remarks(plan)
        + tie_remarks(plan)
        + sample_remarks(plan)
    )
    more += margin_remarks(plan) + machine_remarks(plan) + transfer_remarks(plan)
    remarks += [fill(t) for t in more]
    if remarks:
        parts.append("\n".join(remarks))

    detail = [fill(line, "    ") for line in detail_lines(plan)]
    if detail:
        parts.append("\n".join(detail))
    if plan.best is not None:
        parts.append(_recommendation(plan, plan.best))
    return "\n\n".join(parts)


def _recommendation(plan: Plan, best: Candidate) -> str:
    n = best.replicas or 0
    head = f"* best by {plan.objective}: {n} replica{'s' if n != 1 else ''} of {best.profile}"
    if best.parts:
        head = f"* best by {plan.objective}: {mix_text(best)}"
    down = plan.settings.get("survive")
    head += f", any {down} of which may be down," if down else ""
    if n == 1:
        head += ". Start it with"
    else:
        head += (
            f" behind a {plan.router_of(best)} router. Start each, on its own GPUs and --port, with"
        )
    if plan.headroom is not None:
        head = f"{plan.headroom.text()}\n\n{head}"
    from qsim.optimize.deploy.vllm import unknown_checkpoints

    commands = [continued(c) for c in plan.serve_command(best).split("\n")]
    own = [fill(t) for t in unknown_checkpoints((b.model, b.method) for b in best.blanks)]
    return "\n\n".join([*(fill(h) for h in head.split("\n\n")), *commands, *own])


def search_remarks(plan: Plan) -> list[str]:
    """What was searched, and the settings that a candidate has beside the plan's own."""
    report = plan.search
    if report is None:
        return []
    decisions = ", ".join(n for n in report.space.decisions)
    lines = [
        f"search: {len(report.records)} settings tried ({report.sampler}) of {decisions}; "
        f"{report.simulations} simulations; {report.feasible} met the SLOs with a fleet that was "
        f"not worse than the best {plan.objective} known until then"
    ]
    for c in plan.candidates:
        found = {k: v for k, v in c.options.to_dict().items() if plan.settings.get(k) != v}
        if c.router and c.router != plan.settings["router"]:
            found["router"] = c.router
        if c.feasible and found:
            lines.append(
                f"settings of {c.profile}: {', '.join(f'{k} {v}' for k, v in found.items())}"
            )
    return lines


def _notes(plan: Plan) -> dict[str, list[str]]:
    return run_notes((c.profile, c.outcome) for c in plan.candidates)


def transfer_remarks(plan: Plan) -> list[str]:
    """What the mark of a profile that was not measured means, and what to know of the best one."""
    best = plan.best
    lines = []
    if any(c.note and c.feasible for c in plan.candidates):
        lines.append(
            "~ before a profile: not measured itself, but transferred from other measurements or "
            "carried from another version of vLLM"
        )
    said = _notes(plan)
    notes = dict.fromkeys(b.note for b in best.blanks) if best is not None else ()
    lines += [note for note in notes if note and note not in said]
    lines += [f"{c.profile}: {c.caution}" for c in plan.candidates if c.caution and c.feasible]
    return lines


def sample_remarks(plan: Plan) -> list[str]:
    """What the traffic is too little to tell of the best fleet."""
    best = plan.best
    return [] if best is None or best.outcome is None else best.outcome.doubts()


def margin_remarks(plan: Plan) -> list[str]:
    """A warning for each SLO that the best fleet meets by less than its profile's own error."""
    best = plan.best
    lines = []
    for o in best.outcome.slos if best and best.outcome else ():
        kind = o.slo.statistic if o.slo.statistic in ("mean", "median") else "p99"
        error = best.error_percent.get(kind) if best else None
        spare = (1 - o.ratio) * 100
        if best and error is not None and spare < error:
            lines.append(
                f"margin: {best.profile} meets {o.slo} with {spare:.1f}% to spare, and its profile "
                f"is off by up to {error:.1f}% ({kind}): one replica more is safer"
            )
    return lines


def machine_remarks(plan: Plan) -> list[str]:
    """What the best fleet's figures may be on another machine, and which SLO that misses."""
    best = plan.best
    if best is None or best.outcome is None or plan.machines is None:
        return []
    return ranges_sentences(best.outcome, plan.machines)


_WORDS = {
    "cost": "the cost",
    "energy": "the energy",
    "gpus": "the GPUs",
    "carbon": "the carbon",
}

#: candidates that are told why they lost; the nearest ones
_MOST_EXPLAINED = 8


def detail_lines(plan: Plan) -> list[str]:
    """Lines, those of one matter one after the other; none where no detail was asked for."""
    detail = plan.detail
    if detail is None:
        return []
    if not detail.asked:
        return [] if detail.confidence is None else detail.confidence.text()
    others = [text for text in (why_not_best(plan, c) for c in plan.candidates) if text]
    lines = [f"why not {text}" for text in others[:_MOST_EXPLAINED]]
    if len(others) > _MOST_EXPLAINED:
        lines.append(f"and {len(others) - _MOST_EXPLAINED} more, which are farther off (--json)")
    if plan.best is not None and plan.best.grown_from is not None:
        lines.append(
            f"{plan.best.grown_from} replicas meet every SLO on this trace, but in too few "
            f"replications; the fleet has {plan.best.replicas} for that"
        )
    if detail.confidence is not None:
        lines += detail.confidence.text()
    if detail.sensitivity is not None:
        lines += _sensitivity(detail.sensitivity)
    if detail.shares is not None:
        lines += detail.shares.text()
    if detail.changes is not None:
        lines += detail.changes.text()
    return lines


def why_not_best(plan: Plan, candidate: Candidate) -> str:
    """Why a candidate is not the best; "" where there is nothing to say."""
    found = behind_best(plan.best, plan.objective, candidate)
    if found is None:
        return ""
    several = len({(c.gpu, c.model, c.tensor_parallel_size) for c in plan.candidates}) > 1
    ratio, name = found["ratio"], candidate.profile if several else candidate.method
    if ratio is None or abs(ratio - 1) < 5e-5:
        text = f"{name}: equal in {plan.objective}"
    else:
        text = f"{name}: {ratio:.3g} times {_WORDS[plan.objective]}"
    if found["one_less"] is not None:
        n = candidate.grown_from or candidate.replicas or 0
        fewer = f"{n - 1} replica{'s' if n != 2 else ''}"
        if candidate.parts:
            fewer = "one server less"
        text += f"; with {fewer} {found['one_less']}"
    return text


def _sensitivity(found: tuple[Sensitivity, ...]) -> list[str]:
    parts: dict[str, list[str]] = {}
    for s in found:
        change = f"{abs(s.factor - 1):.0%} {'tighter' if s.factor < 1 else 'looser'}"
        size = f"more than {s.limit}" if s.replicas is None else str(s.replicas)
        parts.setdefault(s.goal, []).append(f"{size} if {change}")
    named = "; ".join(f"{goal}: {', '.join(p)}" for goal, p in parts.items())
    return [f"sensitivity, replicas needed: {named}"]
