"""Reports as one HTML file each: pictures inside, nothing loaded from anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from qsim.files import write_text
from qsim.report.figures.results import latency_figure, plan_figure, timeline_figure
from qsim.report.figures.style import figure_svg
from qsim.report.text.plan import (
    carbon_remarks,
    detail_lines,
    margin_remarks,
    mix_remarks,
    mix_text,
    plan_rows,
    quality_remarks,
    search_remarks,
    survive_remarks,
    tie_remarks,
    transfer_remarks,
)
from qsim.report.text.simulation import latency_rows
from qsim.report.text.tables import number
from qsim.sim.results.slo import MET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qsim.optimize.plan.candidate import Candidate
    from qsim.optimize.plan.result import Plan
    from qsim.sim.results.backlog import Load
    from qsim.sim.results.result import SimulationResult
    from qsim.sim.results.slo import SloOutcome

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d1d1f; max-width: 66rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th { vertical-align: bottom; } td.l, th.l { text-align: left; }
tr.best { background: #eef6ee; font-weight: 600; }
.missed { color: #b3261e; font-weight: 600; } .met { color: #1b6e2c; }
pre { background: #f5f5f7; padding: .8rem; overflow-x: auto; font-size: 13px; }
.picture, .wide { overflow-x: auto; } p, li, h1, h2 { overflow-wrap: anywhere; }
.picture svg { width: 100%; min-width: 48rem; height: auto; } small { color: #6e6e73; }
@media print { .picture svg { min-width: 0; } .picture, .wide { overflow: visible; }
               pre { white-space: pre-wrap; } }
"""


def write_simulation_report(
    path: str | os.PathLike[str],
    result: SimulationResult,
    summary: Mapping[str, Any],
    slos: Sequence[SloOutcome],
    title: str,
    load: Load | None = None,
) -> None:
    """Write a page about one simulation: latencies, SLOs, fleet, timeline, scenario.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    s = summary
    facts = [
        ["completed, failed", f"{number(s['completed'])}, {number(s['failed'])}"],
        ["duration", f"{number(s['duration'])} s"],
        ["request throughput", f"{number(s['request_throughput'])} requests/s"],
        ["output throughput", f"{number(s['output_throughput'])} tokens/s"],
        ["GPUs", number(s["gpus"])],
        ["energy", f"{number(s['energy_j'])} J"],
        ["mean power", f"{number(s['avg_power_w'])} W"],
        ["energy per output token", f"{number(s['joules_per_output_token'])} J"],
        ["preemptions", number(s["preemptions"])],
    ]
    if load is not None and load.sentence():
        facts.append(["load", load.sentence()])
    parts = [_table(["", "value"], facts)]
    if slos:
        parts += ["<h2>Service-level objectives</h2>", _slo_table(slos)]
    parts += [
        "<h2>Latency</h2>",
        _table(["ms", "mean", "median", "p90", "p99"], latency_rows(s)),
        _picture(latency_figure(result, [o.slo for o in slos])),
        "<h2>Over time</h2>",
        _picture(timeline_figure(result)),
    ]
    if 1 < len(result.replica_stats) <= 64:
        keys = list(result.replica_stats[0])
        rows = [[number(r[k]) for k in keys] for r in result.replica_stats]
        parts += ["<h2>Replicas</h2>", _table(keys, rows)]
    if result.notes:
        parts += ["<h2>Notes</h2>", *(f"<p>{escape(n)}</p>" for n in result.notes)]
    write_text(path, _page(title, parts, s.get("scenario", {})))


def _fleet(best: Candidate) -> str:
    return mix_text(best) if best.parts else f"{best.replicas} x {best.profile}"


def write_plan_report(path: str | os.PathLike[str], plan: Plan) -> None:
    """Write a page about a plan: fleets, reasons, pictures, search, command.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    t = plan.trace
    headers, rows = plan_rows(plan)
    parts = [
        f"<p>{number(t['requests'])} requests in {number(t['duration_s'])} s, "
        f"{number(t['mean_prompt_tokens'])} prompt and {number(t['mean_output_tokens'])} output "
        f"tokens on average. SLO {escape(', '.join(map(str, plan.goals)))}. Sorted by "
        f"{escape(plan.objective)}; every figure is simulated.</p>"
    ]
    if plan.forecast.text():
        parts.append(f"<p>Planned for {escape(plan.forecast.text())}.</p>")
    from qsim.optimize.deploy.vllm import unknown_checkpoints

    if plan.best is not None:
        parts += [
            f"<h2>Recommended: {escape(_fleet(plan.best))}</h2>",
            f"<pre>{escape(plan.serve_command())}</pre>",
            *(
                f"<p>{escape(text)}.</p>"
                for text in unknown_checkpoints((b.model, b.method) for b in plan.best.blanks)
            ),
            *([f"<p>{escape(plan.headroom.text())}</p>"] if plan.headroom else []),
            *(f"<p>{escape(text)}</p>" for text in tie_remarks(plan) + margin_remarks(plan)),
        ]
    else:
        parts.append('<p class="missed">No candidate meets the SLOs.</p>')
    if rows:
        parts += ["<h2>Smallest fleets</h2>", _table(headers[1:], [r[1:] for r in rows], best=0)]
    parts += [
        f"<p><small>{escape(text)}.</small></p>"
        for text in mix_remarks(plan)
        + survive_remarks(plan)
        + quality_remarks(plan)
        + carbon_remarks(plan)
    ]
    parts.append(_picture(plan_figure(plan)))
    detail = [*transfer_remarks(plan), *search_remarks(plan), *detail_lines(plan)]
    if detail:
        items = "\n".join(f"<li>{escape(line.strip())}</li>" for line in detail)
        parts += ["<h2>In detail</h2>", f"<ul>\n{items}\n</ul>"]
    bad = [[c.profile, c.reason] for c in plan.candidates if not c.feasible]
    if bad:
        parts += ["<h2>Infeasible</h2>", _table(["profile", "reason"], bad, left=2)]
    search = [
        [c.profile, number(e.replicas), "yes" if e.met else "no", e.binding.sentence()]
        for c in plan.candidates
        for e in c.evaluations
    ]
    if search:
        heads = ["profile", "replicas", "meets the SLOs", "SLO nearest to its limit"]
        parts += ["<h2>Simulated fleets</h2>", _table(heads, search)]
    prices = {c.price.gpu: c.price for c in plan.candidates if c.price}
    for gpu, price in sorted(prices.items()):
        parts.append(
            f"<p><small>Price of {escape(gpu)}: {price.usd_per_hour:.2f} USD per GPU and hour, "
            f"{escape(price.source)}.</small></p>"
        )
    write_text(path, _page(f"Capacity plan for {t['name']}", parts, plan.settings))


def _page(title: str, parts: Sequence[str], scenario: Mapping[str, Any]) -> str:
    from qsim import __version__

    body = "\n".join(parts)
    settings = escape(json.dumps(dict(scenario), indent=1, ensure_ascii=False, default=str))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n"
        f"<h2>Settings</h2>\n<pre>{settings}</pre>\n"
        f"<p><small>qsim {escape(__version__)}</small></p>\n</body>\n</html>\n"
    )


def _picture(figure: Figure) -> str:
    """Wider than a phone, where it is moved sideways: text in it stays large enough to read."""
    return f'<div class="picture">{figure_svg(figure)}</div>'


def _table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    best: int | None = None,
) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        out = []
        for i, value in enumerate(values):
            attribute = ' class="l"' if i < left else ""
            out.append(f"<{tag}{attribute}>{escape(value).replace(chr(10), '<br>')}</{tag}>")
        return "".join(out)

    lines = []
    for i, row in enumerate(rows):
        attribute = ' class="best"' if i == best else ""
        lines.append(f"<tr{attribute}>{cells('td', row)}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<tr>{cells("th", headers)}</tr>\n{body}\n</table></div>'


def _slo_table(slos: Sequence[SloOutcome]) -> str:
    rows = "\n".join(
        f'<tr><td class="l">{escape(str(o.slo))}</td><td>{number(o.value_ms)}</td>'
        f'<td class="{"met" if o.verdict == MET else "missed"}">{o.verdict}</td>'
        f'<td class="l">{escape(o.doubt() or o.sentence())}</td></tr>'
        for o in slos
    )
    return (
        '<div class="wide"><table>\n<tr><th class="l">SLO</th><th>ms</th><th></th><th></th></tr>\n'
        f"{rows}\n</table></div>"
    )
