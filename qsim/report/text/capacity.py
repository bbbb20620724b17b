"""A capacity and a load curve as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim.report.text.remarks import ranges_sentences, run_notes, run_remarks
from qsim.report.text.tables import fill, number, table

if TYPE_CHECKING:
    from qsim.optimize.capacity.curve import LoadCurve
    from qsim.optimize.capacity.layout import Capacity, Layout
    from qsim.optimize.search.fleet_outcome import FleetOutcome
    from qsim.quality.recovery import Recovery


def capacity_text(found: Capacity) -> str:
    """Every layout, the best first; then what the best one rests on, and how to see it again."""
    stock = ", ".join(f"{n} {gpu}" for gpu, n in found.stock.items())
    facts = found.traffic.facts
    goals = ", ".join([*map(str, found.slos), *([str(found.goodput)] if found.goodput else [])])
    users = found.think_time_s is not None
    order = "users" if users and found.objective == "rate" else _ORDER[found.objective]
    title = f"the most {'users ' if users else ''}that {stock} carry within {goals}, in order of "
    title += order + "\n"
    title += fill(
        f"traffic: {facts['name']}, {facts['requests']:,} requests, "
        f"{facts['mean_prompt_tokens']:,.0f} prompt and {facts['mean_output_tokens']:,.0f} output "
        "tokens on average, "
        + (_users_words(found.think_time_s) if users else "made faster or slower")
    )
    most = ["users"] if users else []
    heads = ["layout", "replicas", "GPUs", *most, "requests/s", "output\ntokens/s",
             "USD per 1M\noutput", "J per\ntoken", "quality\n%", "then misses"]  # fmt: skip
    rows = [_row(found, y) for y in found.layouts if y.best is not None]
    parts = [title]
    if rows:
        parts.append(table(heads, rows))
    if any(y.best is not None and _guess(y.blank.quality) for y in found.layouts):
        parts.append(
            fill("~ quality estimated: for some tasks no number of this model and method is known")
        )
    nothing = [y for y in found.layouts if y.best is None]
    if nothing:
        parts.append("\n".join(fill(f"{y.profile}: {y.reason}", "    ") for y in nothing))
    notes = run_notes((y.profile, _run(y)) for y in found.layouts)
    if notes:
        parts.append("\n".join(fill(t) for t in run_remarks(notes)))
    best = found.best
    if best is None:
        return "\n\n".join(parts)
    carried = best.carried
    assert carried is not None
    assert carried.best is not None
    said = [
        f"best: {best.profile} x {best.replicas}, "
        + (f"{number(best.users)} users, " if users else "")
        + f"{number(best.rate_rps(found.traffic))} requests/s; {_broken(found, best)}"
    ]
    said += [str(t) for t in (best.blank.note, best.blank.caution) if t and t not in notes]
    said += carried.best.outcome.doubts()
    if found.machines is not None:
        said += ranges_sentences(carried.best.outcome, found.machines, "a slower rate")
    if best.idle_gpus:
        said.append(f"{best.idle_gpus} of its GPUs are left over, and paid for")
    command = best.simulate_command(found)
    if command:
        said.append(f"its figures: {command}")
    parts.append("\n".join(s if s.startswith("its figures") else fill(s) for s in said))
    return "\n\n".join(parts)


def _run(layout: Layout) -> FleetOutcome | None:
    """The simulation that a layout is told by: at its highest rate, or the slowest that missed."""
    if layout.carried is None:
        return None
    return (layout.carried.best or layout.carried.points[0]).outcome


_ORDER = {"rate": "requests/s", "cost": "USD per output token", "energy": "J per output token"}


def _users_words(think_time_s: float | None) -> str:
    if not think_time_s:
        return (
            "sent by users that each wait for the answer to the last one; all begin at once, and "
            "those first requests count"
        )
    return (
        "sent by users that each wait for the answer to the last one and think for "
        f"{think_time_s:g} s on average"
    )


def _row(found: Capacity, layout: Layout) -> list[str]:
    quality = layout.blank.quality
    return [
        layout.profile + ("*" if layout.blank.note else ""),
        number(layout.replicas),
        number(layout.gpus),
        *([number(layout.users)] if found.think_time_s is not None else []),
        number(layout.rate_rps(found.traffic), 3),
        number(layout.metric("output_throughput"), 3),
        number(layout.usd_per_1m("output_throughput"), 3),
        number(layout.metric("joules_per_output_token"), 3),
        "-" if quality is None else f"{_guess(quality)}{quality.mean_pct:.1f}",
        layout.breaks_first or "-",
    ]


def _guess(quality: Recovery | None) -> str:
    return "~" if quality is not None and quality.status == "estimated" else ""


def _broken(found: Capacity, layout: Layout) -> str:
    broken = None if layout.carried is None else layout.carried.broken
    if broken is None and layout.users is not None:
        return (
            f"{found.traffic.facts['requests']:,} requests are too few to tell of more: give a "
            "longer trace"
        )
    if broken is None:
        return "no faster rate was found that misses a limit"
    if broken.users is not None:
        return f"with {number(broken.users)} users {broken.outcome.binding.sentence()}"
    rate = number(broken.speed * found.traffic.rate_rps)
    return f"at {rate} {broken.outcome.binding.sentence()}"


def curve_text(found: LoadCurve) -> str:
    """A table a fleet: its rates, and what it does at each; the knee is marked."""
    facts = found.traffic.facts
    limits = ", ".join(map(str, found.slos))
    parts = [
        fill(
            f"traffic: {facts['name']}, {facts['requests']:,} requests, made faster or slower"
            + (f"; SLOs {limits}" if limits else "")
        )
    ]
    names = [str(s) for s in found.slos] or ["p99_ttft_ms", "p99_tpot_ms"]
    latencies = [n.replace("_ms", ", ms").replace("_", " ") for n in names]
    heads = ["requests/s", *latencies, "mean\nE2EL, ms", "output\ntokens/s", "J per\ntoken",
             "USD per 1M\noutput", "load"]  # fmt: skip
    rows = found.rows()
    for fleet in found.fleets:
        knee = None if fleet.fleet.best is None else fleet.fleet.best.speed
        own = [r for r in rows if r["fleet"] == fleet.name]
        lines = [
            [
                number(r["rate_rps"], 3) + (" knee" if r["speed"] == knee else ""),
                *(number(r[n], 3) for n in names),
                number(r["mean_e2el_ms"], 3),
                number(r["output_throughput"], 3),
                number(r["joules_per_output_token"], 3),
                number(r["usd_per_1m_output_tokens"], 3),
                str(r["load"]) + ("" if r["met"] is not False else ", missed"),
            ]
            for r in own
        ]
        mark = "*" if fleet.fleet.blank.note else ""
        head = f"{fleet.fleet.profile}{mark} x {fleet.fleet.replicas}"
        if fleet.fleet.reason:
            head += f": {fleet.fleet.reason}"
        parts.append(fill(head) + "\n" + table(heads, lines))
    notes = run_notes((f.fleet.profile, _run(f.fleet)) for f in found.fleets)
    parts += [fill(t) for t in run_remarks(notes)]
    said = dict.fromkeys(f.fleet.blank.note for f in found.fleets if f.fleet.blank.note)
    parts += [fill(f"* {text}") for text in said]
    return "\n\n".join(parts)
