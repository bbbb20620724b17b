"""A simulation as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qsim.report.text.remarks import range_row, range_text
from qsim.report.text.tables import fill, number, table
from qsim.sim.results.intervals import share_interval
from qsim.sim.results.servers import hot_sentence
from qsim.sim.results.slo import MET, NOTHING, TOO_FEW

if TYPE_CHECKING:
    from qsim.sim.results.backlog import Load
    from qsim.sim.results.slo import SloOutcome

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
    machines: str = "",
) -> str:
    """The summary of a simulation as a page of text.

    ``machines`` says where the ranges of ``summary["machines"]`` are from.
    """
    s = summary
    most = "up to " if s.get("autoscaler") else ""
    ranges = (s.get("machines") or {}).get("range_90", {})
    facts = [
        f"requests    {number(s['completed'])} completed, {number(s['failed'])} failed, "
        f"in {number(s['duration'])} s",
        f"throughput  {number(s['request_throughput'])} requests/s, "
        f"{number(s['output_throughput'])} output tokens/s, "
        f"{number(s['total_token_throughput'])} tokens/s in all",
        f"energy      {number(s['energy_j'])} J, {number(s['avg_power_w'])} W on average, "
        f"{number(s['joules_per_output_token'])} J per output token"
        + (f" (90%: {range_text(ranges, 'joules_per_output_token')})" if ranges else ""),
        f"fleet       {most}{number(s['gpus'])} GPU{'s' if s['gpus'] != 1 else ''}, "
        f"{number(s['preemptions'])} preemptions, "
        f"{number(s['cached_tokens'])} prompt tokens from the prefix cache",
    ]
    if s.get("outcomes"):
        facts.append(f"clients     {_outcomes(s['outcomes'])}")
    if s.get("failures"):
        facts += _failure_lines(s["failures"])
    if s.get("autoscaler"):
        facts += _autoscaler_lines(s["autoscaler"])
    if load is not None and load.sentence():
        facts.append(fill(f"load        {load.sentence()}", " " * 12))
    rows = latency_rows(s)
    if ranges:
        pairs = zip(rows, _LATENCIES, strict=True)
        rows = [r for row, (key, _) in pairs for r in (row, range_row(ranges, key))]
    latencies = table(["latency (ms)", "mean", "median", "p90", "p99"], rows)
    parts = [title, "\n".join(facts), latencies]
    if ranges and machines:
        parts.append(fill(machines))
    if s.get("pools"):
        parts.append(pools_table(s["pools"]))
    if s.get("hot_spots"):
        parts.append(servers_table(s["replicas"], s["hot_spots"]))
        if hot := hot_sentence(s["hot_spots"], s["replicas"]):
            parts.append(fill(hot))
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
                *([range_text(ranges, o.slo.figure)] if ranges else []),
            ]
            for o in slos
        ]
        heads = ["SLO", "limit (ms)", "value (ms)", "result", *(["90%"] if ranges else [])]
        parts.append(table(heads, rows))
        parts += [fill(text) for text in _unsure(slos, ranges)]
        parts += [fill(o.doubt()) for o in slos if o.doubt()]
        if attained is not None:
            text = f"{attained:.2%} of the requests are within every limit by themselves"
            if few:
                low, high = share_interval(attained, s["completed"] + s["failed"])
                text += f" ({low:.1%} to {high:.1%})"
            parts.append(text)
    return "\n\n".join(parts)


def _unsure(slos: Sequence[SloOutcome], ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """SLOs that are met here and may be missed on another machine."""
    return [
        f"{o.slo} may be missed on your machine: up to {number(ranges[o.slo.figure][1], 3)} ms"
        for o in slos
        if o.verdict == MET and ranges.get(o.slo.figure, (0.0, 0.0))[1] > o.slo.limit_ms
    ]


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
    if f["outages"]:
        told = [("requests in the fleet", "recovery_s"), ("attainment", "attainment_recovery_s")]
        times = [
            f"{what} {_recovery([o[key] for o in f['outages']])}"
            for what, key in told
            if key in f["outages"][0]
        ]
        lines.append(fill(f"            back as before: {'; '.join(times)}", " " * 12))
    return lines


def _autoscaler_lines(scaling: Mapping[str, Any]) -> list[str]:
    lines = []
    for p in scaling["pools"]:
        name = f"{p['pool']}: " if len(scaling["pools"]) > 1 else ""
        lines += [
            f"autoscaler  {name}{number(p['least_servers'])} to {number(p['most_servers'])} servers"
            f" on, {number(p['mean_servers'])} on average; {number(p['scale_ups'])} times up, "
            f"{number(p['scale_downs'])} down, {number(p['reversals'])} undone within 600 s",
            f"            {number(p['server_hours'])} server-hours, {number(p['starting_hours'])} "
            f"of them in {number(p['starts'])} starts ({number(p['starting_energy_j'])} J); "
            f"{number(p['gpu_hours'])} GPU-hours",
        ]
    if scaling["held_requests"]:
        lines.append(
            f"            {number(scaling['held_requests'])} requests waited for a server to be "
            f"on, {number(scaling['mean_held_s'])} s on average, at most "
            f"{number(scaling['most_held_s'])} s; none was on for {number(scaling['none_on_s'])} s"
        )
    return lines


def _recovery(times_s: Sequence[float | None]) -> str:
    """Times to recover, in words."""
    known = sorted(t for t in times_s if t is not None)
    left = len(times_s) - len(known)
    if not known:
        return "not by the end, or nothing to compare with"
    text = f"{number(known[-1], 3)} s after the failure"
    if len(known) > 1:
        middle = known[len(known) // 2]
        text = f"{number(middle, 3)} s (median) and {number(known[-1], 3)} s (longest) after"
    return text + (f", not known of {left}" if left else "")


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


def servers_table(rows: Sequence[Mapping[str, Any]], uneven: Mapping[str, Any]) -> str:
    """What each server did, or those with the most tokens, and the largest over the mean."""
    requests = max(1, sum(r["requests"] for r in rows))
    tokens = max(1, sum(r["input_tokens"] + r["output_tokens"] for r in rows))
    shown = list(rows)
    if len(rows) > _MOST_SERVERS:
        shown = sorted(rows, key=lambda r: (-r["input_tokens"] - r["output_tokens"], r["replica"]))
        shown = shown[: _MOST_SERVERS - 1]
    named = ["pool"] if "pool" in rows[0] else []
    body = [
        [
            str(r["replica"]),
            *(r[k] for k in named),
            number(r["requests"]),
            _percent(r["requests"] / requests),
            _percent((r["input_tokens"] + r["output_tokens"]) / tokens),
            _percent(r["utilisation"]),
            _percent(r["peak_kv_usage"]),
            _percent(r["cached_tokens"] / r["input_tokens"] if r["input_tokens"] else None),
        ]
        for r in shown
    ]
    if len(shown) < len(rows):
        body.append([f"{len(rows) - len(shown)} others", *[""] * (6 + len(named))])
    ratios = [uneven["largest_over_mean"][k] for k in ("tokens", "utilisation", "peak_kv_usage")]
    most = number(uneven["largest_over_mean"]["requests"], 3)
    body.append(
        ["largest / mean", *[""] * len(named), most, "", *(number(r, 3) for r in ratios), ""]
    )
    heads = ["requests", "of all", "of all\ntokens", "busy", "KV\npeak", "prefix\nhits"]
    return table(["server", *named, *heads], body, left=1 + len(named))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


#: servers in the table; of more those with the most tokens
_MOST_SERVERS = 12


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
