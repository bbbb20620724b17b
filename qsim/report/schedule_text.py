"""A schedule as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim.report.tables import fill, number, table

if TYPE_CHECKING:
    from qsim.optimize.schedule_result import PolicyResult, Schedule

__all__ = ["schedule_rows", "schedule_text"]


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
                r.name,
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
    parts.append("\n".join(fill(f"{r.name}: {r.description}") for r in found.results))
    parts.append(timetable_text(found))
    remarks = [
        "saved: what the optimized timetable saves against the policy; - where either misses an "
        "SLO in some window, for then they are not to be compared"
    ]
    missed = [r for r in found.results if not r.met]
    for r in missed:
        ratio, window, slo = r.run.worst
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
    remarks += list(found.notes)
    parts.append("\n".join(fill(r) for r in remarks))
    return "\n\n".join(parts)


def _forecast(found: Schedule) -> str:
    if found.forecast == "perfect":
        return "planned from this very trace (a perfect forecast)"
    return f"planned from the day before, for {found.problem.margin:g} times its traffic"


def timetable_text(found: Schedule) -> str:
    """Stretches of windows with the same servers."""
    p = found.problem
    names = [c.method for c in found.choices]
    used = [k for k in range(len(names)) if any(row[k] for row in found.counts)]
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
