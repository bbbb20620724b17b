"""A simulation, a plan or a profile as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qsim.profiles.lookup import carry_note, stated_errors
from qsim.report.text.tables import WIDTH, fill, number, table
from qsim.sim.results.intervals import share_interval
from qsim.sim.results.slo import NOTHING, TOO_FEW

if TYPE_CHECKING:
    from qsim.optimize.economics.prices import Price
    from qsim.optimize.plan.candidate import Candidate
    from qsim.optimize.plan.result import Plan
    from qsim.profiles.schema import Profile
    from qsim.sim.results.backlog import Load
    from qsim.sim.results.slo import SloOutcome

__all__ = [
    "carbon_remarks",
    "continued",
    "latency_rows",
    "margin_remarks",
    "plan_rows",
    "plan_text",
    "pools_table",
    "price_remarks",
    "profile_text",
    "quality_remarks",
    "simulation_text",
    "slo_verdict",
    "tie_remarks",
]

_LATENCIES = (
    ("ttft", "TTFT, time to first token"),
    ("tpot", "TPOT, time per output token"),
    ("itl", "ITL, inter-token latency"),
    ("e2el", "E2EL, end-to-end latency"),
)
#: percentiles of fewer requests are told with their intervals
_FEW = 1000
_PERCENTILES = ("median", "p90", "p99")


def latency_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A row a latency: its name, mean, median, p90 and p99 in ms."""
    return [
        [title, *(number(summary[f"{s}_{key}_ms"]) for s in ("mean", "median", "p90", "p99"))]
        for key, title in _LATENCIES
    ]


def simulation_text(
    summary: Mapping[str, Any],
    slos: Sequence[SloOutcome],
    attained: float | None,
    title: str,
    load: Load | None = None,
) -> str:
    """The summary of a simulation as a page of text."""
    s = summary
    facts = [
        f"requests    {number(s['completed'])} completed, {number(s['failed'])} failed, "
        f"in {number(s['duration'])} s",
        f"throughput  {number(s['request_throughput'])} requests/s, "
        f"{number(s['output_throughput'])} output tokens/s, "
        f"{number(s['total_token_throughput'])} tokens/s in all",
        f"energy      {number(s['energy_j'])} J, {number(s['avg_power_w'])} W on average, "
        f"{number(s['joules_per_output_token'])} J per output token",
        f"fleet       {number(s['gpus'])} GPU{'s' if s['gpus'] != 1 else ''}, "
        f"{number(s['preemptions'])} preemptions, "
        f"{number(s['cached_tokens'])} prompt tokens from the prefix cache",
    ]
    if s.get("outcomes"):
        facts.append(f"clients     {_outcomes(s['outcomes'])}")
    if s.get("failures"):
        facts += _failure_lines(s["failures"])
    if load is not None and load.sentence():
        facts.append(fill(f"load        {load.sentence()}", " " * 12))
    latencies = table(["latency (ms)", "mean", "median", "p90", "p99"], latency_rows(s))
    parts = [title, "\n".join(facts), latencies]
    if s.get("pools"):
        parts.append(pools_table(s["pools"]))
    few = _few_requests(s)
    if few:
        parts.append(few)
    if slos:
        rows = [
            [
                str(o.slo),
                f"{o.slo.limit_ms:,.15g}",
                number(o.value_ms),
                slo_verdict(o) + (" (on this trace)" if o.met and load and load.overloaded else ""),
            ]
            for o in slos
        ]
        parts.append(table(["SLO", "limit (ms)", "value (ms)", "result"], rows))
        parts += [fill(o.doubt()) for o in slos if o.doubt()]
        if attained is not None:
            text = f"{attained:.2%} of the requests are within every limit by themselves"
            if few:
                low, high = share_interval(attained, s["completed"] + s["failed"])
                text += f" ({low:.1%} to {high:.1%})"
            parts.append(text)
    return "\n\n".join(parts)


def _outcomes(outcomes: Mapping[str, int]) -> str:
    words = {"timed_out": "timed out", "failed": "failed with a server", "rejected": "rejected"}
    return ", ".join(f"{number(outcomes[k])} {word}" for k, word in words.items())


def _failure_lines(failures: Mapping[str, Any]) -> list[str]:
    f = failures
    lines = [
        f"failures    {number(f['failures'])} of servers, availability {f['availability']:.3%}; "
        f"{number(f['lost'])} requests lost, {number(f['retried'])} sent again"
    ]
    phases = [
        f"{f[key]:.2%} {phase}"
        for phase in ("before", "during", "after")
        if f.get(key := f"attainment_{phase}") is not None
    ]
    if phases:
        lines.append(f"            within every limit: {', '.join(phases)} outages")
    return lines


def pools_table(pools: Sequence[Mapping[str, Any]]) -> str:
    """What each pool of a mixed fleet did."""
    keys = ("p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "p99_e2el_ms")
    heads = ["pool", "servers", "GPUs", "requests", "output\ntokens/s", "energy\nkJ", "busy"]
    heads += [f"{k.split('_')[1].upper()} {k.split('_')[0]}\nms" for k in keys]
    rows = [
        [
            p["pool"],
            number(p["replicas"]),
            number(p["gpus"]),
            number(p["requests"]),
            number(p["output_throughput"], 3),
            number(p["energy_j"] / 1000, 3),
            f"{p['utilisation']:.0%}" if p["utilisation"] is not None else "-",
            *(number(p[k], 3) for k in keys),
        ]
        for p in pools
    ]
    return table(heads, rows)


def _few_requests(summary: Mapping[str, Any]) -> str:
    """The intervals of percentiles of few requests; "" for many."""
    if not 0 < summary["completed"] < _FEW:
        return ""
    rows = [
        [key.upper(), *(_ends(summary["intervals_90"][f"{s}_{key}_ms"]) for s in _PERCENTILES)]
        for key, _ in _LATENCIES
        if key != "itl" and summary[f"mean_{key}_ms"] is not None
    ]
    return table(["90% interval (ms)", "median", "p90", "p99"], rows)


def _ends(interval: Sequence[float | None]) -> str:
    low, high = (number(end) for end in interval)
    return f"{low} to {high}" if (low, high) != ("-", "-") else "-"


def slo_verdict(outcome: SloOutcome) -> str:
    """What is said of an SLO, for tables."""
    if outcome.verdict in (NOTHING, TOO_FEW):
        return outcome.verdict
    word = "met" if outcome.met else "MISSED"
    share = f"{abs(outcome.ratio - 1):.1%} {'under' if outcome.met else 'over'}"
    return f"{word}, {share if outcome.ratio < 10 else number(outcome.ratio) + ' times the limit'}"


def plan_rows(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Headers and a row for each feasible candidate of a plan."""
    keys = list(dict.fromkeys(f"{s.statistic}_{s.metric}_ms" for s in plan.slos))
    several = len({(c.gpu, c.model, c.tensor_parallel_size) for c in plan.candidates}) > 1
    headers = ["", "profile" if several else "method", "GPUs", "USD/h", "energy\nkJ", "power\nW"]
    headers += ["J/output\ntoken", "within\nlimits"]
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
        values = {f"{o.slo.statistic}_{o.slo.metric}_ms": o.value_ms for o in c.outcome.slos}
        rows.append(
            [
                "*" if c is plan.best else "",
                ("~" if c.note else "") + (c.profile if several else c.method),
                number(c.gpus),
                "-" if c.usd_per_hour is None else f"{c.usd_per_hour:,.2f}",
                number(None if energy_j is None else energy_j / 1000),
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
    order = ", ".join(names[o] for o in (*deciding_order(plan.objective), "name"))
    text = f"tie: {len(plan.tie.profiles)} fleets are equal in {names[plan.objective]}; "
    if plan.tie.decided_by == "name":
        return [f"{text}the first two are equal in all, and their names decided (order: {order})"]
    how = {"confidence": _replications, "headroom": _room}.get(plan.tie.decided_by)
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
    remarks = [fill(f"{', '.join(names)}: {text}") for text, names in _run_notes(plan).items()]
    remarks += [fill(t) for t in quality_remarks(plan) + carbon_remarks(plan)]
    remarks += price_remarks(c.price for c in plan.candidates)
    more = search_remarks(plan) + tie_remarks(plan) + sample_remarks(plan)
    more += margin_remarks(plan) + transfer_remarks(plan)
    remarks += [fill(t) for t in more]
    if remarks:
        parts.append("\n".join(remarks))
    from qsim.report.text.plan_detail import detail_lines

    detail = [fill(line, "    ") for line in detail_lines(plan)]
    if detail:
        parts.append("\n".join(detail))
    if plan.best is not None:
        parts.append(_recommendation(plan, plan.best))
    return "\n\n".join(parts)


def _recommendation(plan: Plan, best: Candidate) -> str:
    n = best.replicas or 0
    head = f"* best by {plan.objective}: {n} replica{'s' if n != 1 else ''} of {best.profile}"
    if n == 1:
        head += ". Start it with"
    else:
        head += (
            f" behind a {plan.router_of(best)} router. Start each, on its own GPUs and --port, with"
        )
    if plan.headroom is not None:
        head = f"{plan.headroom.text()}\n\n{head}"
    return (
        "\n\n".join(fill(h) for h in head.split("\n\n"))
        + "\n\n"
        + continued(plan.serve_command(best))
    )


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


def _run_notes(plan: Plan) -> dict[str, list[str]]:
    """What the runs of the fleets told, and whose fleets' they were."""
    found: dict[str, list[str]] = {}
    for c in plan.candidates:
        for text in c.outcome.summary.get("notes", ()) if c.outcome is not None else ():
            found.setdefault(text, []).append(c.profile)
    return found


def transfer_remarks(plan: Plan) -> list[str]:
    """What the mark of a profile that was not measured means, and what to know of the best one."""
    best = plan.best
    lines = []
    if any(c.note and c.feasible for c in plan.candidates):
        lines.append(
            "~ before a profile: not measured itself, but transferred from other measurements or "
            "carried from another version of vLLM"
        )
    if best is not None and best.note and best.note not in _run_notes(plan):
        lines.append(best.note)
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


def continued(command: str) -> str:
    """A shell command over several lines, broken before options."""
    lines, line = [], ""
    for i, part in enumerate(command.split(" --")):
        word = part if i == 0 else f"--{part}"
        if line and len(line) + len(word) + 7 > WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "  " + " \\\n    ".join([*lines, line])


def _adapted(profile: Profile) -> list[tuple[str, str]]:
    """What a profile was adapted by, and with which factors."""
    a = profile.adapted
    if a is None:
        return []
    factors = [
        f"{name.replace('_', ' ')} x{value:.2f} ({low:.2f} to {high:.2f})"
        for name, (value, low, high) in a.factors.items()
    ]
    return [
        ("adapted", f"from {a.profile} by {', '.join(a.loads)}"),
        ("factors", ", ".join(factors)),
        *(("note", text) for text in a.notes),
    ]


def profile_text(profile: Profile) -> str:
    """A profile in readable form."""
    i, m, lat, power = profile.identity, profile.memory, profile.latency, profile.power
    decode = lat.decode
    prefill = lat.eager
    tokens = (m.num_gpu_blocks - 1) * m.block_size
    facts = [
        (
            "source",
            f"{i.source}; vLLM {i.vllm_version or '?'}, driver {i.driver or '?'}, "
            f"{i.date or 'no date'}",
        ),
        ("recordings", ", ".join(i.recordings) or "-"),
        *_adapted(profile),
        ("vllm args", " ".join(i.vllm_args) or "-"),
        (
            "KV cache",
            f"{number(tokens)} tokens in {number(m.num_gpu_blocks)} blocks of "
            f"{m.block_size}, {number(m.kv_bytes_per_token)} bytes a token",
        ),
        ("weights", f"{m.weight_bytes / 2**30:.1f} GiB"),
        ("engine", ", ".join(f"{k} {v}" for k, v in vars(profile.engine).items())),
        (
            "decode step",
            ", ".join(
                f"{number(b, 3)} ms at {r}"
                for r, b in _some(list(zip(decode.rows, decode.base_ms, strict=True)))
            )
            + " requests, no context",
        ),
        (
            "prefill step",
            ", ".join(
                f"{number(b, 3)} ms at {t}"
                for t, b in _some(list(zip(prefill.tokens, prefill.base_ms, strict=True)))
            )
            + " tokens",
        ),
        (
            "power",
            f"idle {number(power.idle_w)} W, busy {number(power.busy_w)} W and "
            f"{number(power.j_per_prefill_token * 1000, 3)} mJ a prefill token, "
            f"{number(power.j_per_decode_token * 1000, 3)} mJ a decode token; "
            f"at most {number(power.cap_w)} W",
        ),
    ]
    if profile.measured_host is not None:
        host = profile.measured_host
        facts.append(
            (
                "host",
                f"that of {host.like}; the one measured takes {host.slower:.2f} times as long",
            )
        )
    if profile.fit_error:
        errors = ", ".join(f"{k} {v:.1f}%" for k, v in stated_errors(profile).items())
        how = "estimated" if profile.transferred else "worst case; loads left out of the fit"
        facts.append(("error", f"{errors} ({how})"))
    if (note := carry_note(profile)) is not None:
        facts.append(("carried", note))
    if profile.transfer is not None:
        t = profile.transfer
        facts.append(("transferred", "from " + ", ".join([*t.profiles, *t.tables])))
        facts.extend(_leaves("estimated error %", t.error_percent))
        if t.error_from:
            facts.append(("estimated from", t.error_from))
        facts.extend(("rule", r) for r in t.rules)
    for title, data in (("quality", profile.quality), ("measured", profile.measured_range)):
        facts.extend(_leaves(title, data or {}))
    facts.extend(("note", n) for n in i.notes)
    width = max(len(k) for k, _ in facts)
    lines = [
        textwrap.fill(
            v,
            WIDTH,
            initial_indent=k.ljust(width + 2),
            subsequent_indent=" " * (width + 2),
            break_on_hyphens=False,
        )
        for k, v in facts
    ]
    return "\n".join([profile.id, "", *lines, *_error_table(profile)])


def _error_table(profile: Profile) -> list[str]:
    """A row a load that was left out of the fit: simulated against measured, in percent."""
    names = [f"{s}_{m}_ms" for m in ("ttft", "tpot", "e2el") for s in ("mean", "median", "p99")]
    phases = profile.fit_error.get("phases") or {}
    rows = [
        [
            phase,
            recording.rpartition("--")[2],
            *(_signed(errors.get(n)) for n in (*names, "energy_j")),
        ]
        for phase, recordings in phases.items()
        for recording, errors in recordings.items()
    ]
    if not rows:
        return []
    heads = [f"{n.split('_')[1].upper()}\n{n.split('_')[0]}" for n in names]
    title = "error in % of the measured value, on loads that were left out of the fit"
    return ["", title, table(["load", "recording", *heads, "energy"], rows, left=2)]


def _signed(value: Any) -> str:
    return f"{value:+.1f}" if isinstance(value, int | float) else "-"


def _some(pairs: list[tuple[int, float]], count: int = 5) -> list[tuple[int, float]]:
    """At most ``count`` of the pairs, the first and the last among them."""
    if len(pairs) <= count:
        return pairs
    return [pairs[round(k * (len(pairs) - 1) / (count - 1))] for k in range(count)]


def _leaves(title: str, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested data as lines: groups of plain values, each under its path."""
    plain = {k: v for k, v in data.items() if not isinstance(v, Mapping)}
    lines = []
    if plain:
        lines.append((title, ", ".join(f"{k} {_plain(v)}" for k, v in plain.items())))
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines.extend(_leaves(f"{title} {key}", value))
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(_plain(v) for v in value) if len(value) == 2 else str(value)
    return number(value)
