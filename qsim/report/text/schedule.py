"""A schedule as text for a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qsim.profiles.lookup import transfer_note
from qsim.report.text.tables import continued, fill, number, table

if TYPE_CHECKING:
    from qsim.optimize.schedule.problem import PoolChoice
    from qsim.optimize.schedule.result import PolicyResult, Schedule


def schedule_rows(found: Schedule) -> tuple[list[str], list[list[str]]]:
    """Headers and a row a policy."""
    carbon = found.problem.grid is not None
    headers = ["policy", "energy\nMJ", f"{found.problem.objective}\nsaved", "GPU\nhours", "USD"]
    headers += ["gCO2e"] if carbon else []
    headers += ["within limits\nall / worst window", "windows\nmissed", "quality\n%", "starts"]
    rows = []
    for r in found.results:
        saved = None if r is found.best else found.saving(r.name)
        energy, usd = r.totals["energy_j"], r.totals["cost_usd"]
        starts = f"{r.run.starts}" + (f" + {r.run.wakes} wakes" if r.run.wakes else "")
        rows.append(
            [
                _marked(r.name, found),
                number(None if energy is None else energy / 1e6),
                "-" if saved is None else f"{saved:.1%}",
                number(r.totals["gpu_hours"]),
                number(usd),
                *([number(r.totals["gco2e"])] if carbon else []),
                f"{r.run.attainment:.2%} / {r.worst_attainment:.2%}",
                str(len(r.run.missed)),
                _quality(r),
                starts,
            ]
        )
    return headers, rows


def _quality(result: PolicyResult) -> str:
    q = result.quality
    if q is None:
        return "-"
    return f"{'~' if q.status == 'estimated' else ''}{q.mean_pct:.1f}"


def schedule_text(found: Schedule) -> str:
    """The policies side by side, the timetable, and what it rests on."""
    p, t = found.problem, found.trace_facts
    slos = ", ".join(map(str, p.slos))
    head = (
        f"{t['name']}: {number(t['requests'])} requests in {number(t['duration_s'])} s, "
        f"{number(t['request_rate'])} requests/s\nSLO {slos}, in each of {p.windows} windows of "
        f"{p.window_s / 60:g} minutes; {_forecast(found)}"
    )
    headers, rows = schedule_rows(found)
    parts = ["\n".join(fill(line) for line in head.split("\n")), table(headers, rows)]
    told = (_marked(f"{r.name}: {r.description}", found) for r in found.results)
    parts.append("\n".join(map(fill, told)))
    parts.append(timetable_text(found))
    remarks = [
        "saved: what the optimized timetable saves against the policy; - where either misses an "
        "SLO in some window, for then they are not to be compared"
    ]
    missed = [r for r in found.results if not r.met]
    for r in missed:
        ratio, window, slo = r.run.worst
        if r.run.overload:
            remarks.append(
                f"{r.name} is overloaded: {r.run.overload:.1%} of the requests are not finished as "
                "they arrive"
            )
        if not r.run.missed:
            continue
        remarks.append(
            f"{r.name} misses {len(r.run.missed)} of {p.windows} windows, {p.slos[slo]} in window "
            f"{window} by {ratio - 1:.1%}"
        )
    cycle = found.choices[0].pool.lifecycle
    owned = (
        f"{p.owned_gpus} GPUs are owned and draw {p.off_w:g} W each without a server"
        if p.owned_gpus is not None
        else "a GPU without a server is given back: 0 W, no rent"
    )
    remarks.append(
        f"assumed: a server starts in {cycle.start_s:g} s at "
        f"{'idle power' if cycle.start_w is None else f'{cycle.start_w:g} W'}, stops in "
        f"{cycle.stop_s:g} s and wakes in {cycle.wake_s:g} s; {owned}; clocks are not controlled"
    )
    prices = sorted({(c.pool.profile.identity.gpu, c.usd_per_gpu_hour, c.price_source)
                     for c in found.choices if c.usd_per_gpu_hour is not None})  # fmt: skip
    remarks += [f"price of {g}: {usd:.2f} USD per GPU and hour, {s}" for g, usd, s in prices]
    if any(c.pool.profile.transferred for c in found.choices):
        remarks.append(
            "~ before a pool: its profile is transferred from other measurements, not measured"
        )
    used = [found.choices[k] for k in _used(found)]
    remarks += [note for c in used if (note := transfer_note(c.pool.profile)) is not None]
    remarks += list(found.notes)
    parts.append("\n".join(fill(r) for r in remarks))
    return "\n\n".join([*parts, *map(_command, used)])


def _marked(text: str, found: Schedule) -> str:
    """The text with the mark of pools that were not measured."""
    for c in {c.label: c for r in found.results for c in r.choices}.values():
        if c.pool.profile.transferred:
            text = re.sub(rf"(?<![~\w.+/-]){re.escape(c.label)}(?![\w.+/-])", c.shown, text)
    return text


def _used(found: Schedule) -> list[int]:
    """The pools that the timetable has servers of."""
    return [k for k in range(len(found.choices)) if any(row[k] for row in found.counts)]


def _command(choice: PoolChoice) -> str:
    """What starts a server of a pool."""
    from qsim.optimize.deploy.deployment import Pool
    from qsim.optimize.deploy.vllm import serve_command, unknown_checkpoint

    pool = choice.pool
    server = Pool.of(pool.profile, pool.options, 1)
    head = f"Start each server of {choice.shown}, on its own GPUs and --port, with"
    own = unknown_checkpoint(server.model, server.method)
    texts = [fill(head), continued(serve_command(server)), fill(own)]
    return "\n\n".join(t for t in texts if t)


def _forecast(found: Schedule) -> str:
    if found.forecast == "perfect":
        return "planned from this very trace (a perfect forecast)"
    return f"planned from the day before, for {found.problem.margin:g} times its traffic"


def timetable_text(found: Schedule) -> str:
    """Stretches of windows with the same servers."""
    p = found.problem
    names = [c.shown for c in found.choices]
    used = _used(found)
    rows = []
    first = 0
    for t in range(1, len(found.counts) + 1):
        if t < len(found.counts) and found.counts[t] == found.counts[first]:
            continue
        run = found.best.run.window_requests[first:t]
        total = [sum(row[k] for row in run) for k in range(len(names))]
        rate = sum(total) / ((t - first) * p.window_s)
        shares = [f"{total[k] / max(1, sum(total)):.0%}" for k in used] if len(used) > 1 else []
        rows.append(
            [
                f"{_clock(first * p.window_s)} - {_clock(t * p.window_s)}",
                number(rate, 3),
                *(str(found.counts[first][k]) for k in used),
                *shares,
            ]
        )
        first = t
    headers = ["day hh:mm", "requests/s", *(f"{names[k]}\nservers" for k in used)]
    headers += [f"{names[k]}\nrequests" for k in used] if len(used) > 1 else []
    routing = (
        f"to the first server with fewer than {found.pack} requests (times its weight)"
        if found.pack
        else "to the server with the fewest requests outstanding, by weight"
    )
    lead = f"each server is started {found.lead_s:g} s before its window; requests go {routing}"
    return "timetable\n" + table(headers, rows, indent=2) + "\n" + fill(f"  {lead}")


def _clock(time_s: float) -> str:
    minutes = round(time_s / 60)
    return f"{minutes // 1440 + 1} {minutes % 1440 // 60:02d}:{minutes % 60:02d}"
