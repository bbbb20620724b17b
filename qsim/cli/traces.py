"""``qsim traces``: describe, convert and synthesise request traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.bounds import shown
from qsim.cli import _options as options
from qsim.cli._command import Group
from qsim.cli._outputs import check_output, note, say, tell_reading, to_json
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.traces.synth.synthesize import Span, Tiers, Workload
    from qsim.traces.trace import Trace

_SEED = click.option(
    "--seed", type=int, default=0, show_default=True, help="Of whatever is drawn at random."
)
_TO = click.option(
    "--to",
    metavar="NAME",
    help="Format of OUT: csv, parquet, mooncake or timed-trace; by its ending unless given.",
)


def _load(given: dict[str, Any]) -> Trace:
    """Read TRACE, say on stderr what was skipped, then cut and scale it."""
    from qsim.traces.load import load_reshaped
    from qsim.traces.reshape import Reshaping

    trace, merge, sort = (given.pop(k) for k in ("trace", "merge", "sort"))
    reading = {k: given.pop(k) for k in ("format", "columns", "seed")}
    return load_reshaped(
        trace, Reshaping(**given), merge, sort=bool(sort), tell=tell_reading, **reading
    )


def _check_out(out: Path, to: str | None) -> None:
    """Fail before the work if a trace cannot be written to OUT."""
    from qsim.traces.write import format_for

    format_for(out, to)
    check_output("OUT", out)


def _tell_written(out: Path, requests: int, seconds: float) -> None:
    note(f"{out}: {requests:,} requests over {seconds:,.0f} s")


@click.group("traces", cls=Group)
def group() -> None:
    """Describe, convert and synthesise request traces.

    TRACE is a file (a table, a log, a benchmark's result or a public trace; compressed or not: see
    docs/traces.md) or a preset, such as azure-conv-2023 or azure-conv-2023:rate=20,duration=600.
    """


@group.command()
@options.trace
@_SEED
@click.option("--json", "as_json", is_flag=True, help="The statistics as JSON on stdout.")
def info(as_json: bool, **given: Any) -> None:
    """Show the rate, burstiness, lengths and shared prefixes of TRACE."""
    from qsim.traces.statistics import trace_statistics

    trace = _load(given)
    statistics = {
        "name": trace.name,
        "format": trace.meta.get("format"),
        "skipped": trace.meta.get("skipped", {}),
        **({"columns": trace.meta["columns"]} if "columns" in trace.meta else {}),
        **trace_statistics(trace),
    }
    if as_json:
        click.echo(to_json(statistics), nl=False)
    else:
        say(_table(statistics), nl=False)


@group.command()
@options.trace
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@_TO
@_SEED
def convert(out: Path, to: str | None, **given: Any) -> None:
    """Write TRACE, cut, scaled and merged, to OUT (.csv, .csv.gz, .parquet, .jsonl or .jsonl.gz).

    Merged traces start together; what cuts and scales applies to each of them.
    """
    from qsim.traces.write import write_trace

    _check_out(out, to)
    trace = _load(given)
    write_trace(trace, out, format=to)
    _tell_written(out, len(trace), trace.duration_s)


@group.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout, with the sources.")
def presets(as_json: bool) -> None:
    """List the presets and what was measured from the real traces."""
    from qsim.traces.synth.presets import PARAMS, PRESETS, load_preset

    workloads = [load_preset(name) for name in PRESETS]
    if as_json:
        rows = [{"name": w.name, "description": w.description, **w.facts} for w in workloads]
        click.echo(to_json({"presets": rows, "parameters": dict(PARAMS)}), nl=False)
        return
    for workload in workloads:
        facts = workload.facts
        click.echo(
            f"{workload.name}\n"
            f"    {workload.description}\n"
            f"    {facts['requests']:,} requests at {facts['mean_rps']:.3g}/s; "
            f"mean {facts['prompt_tokens_mean']:,.0f} prompt and "
            f"{facts['output_tokens_mean']:,.0f} output tokens"
        )
    click.echo("\nParameters, as in azure-conv-2023:rate=20,duration=600:")
    for key, meaning in PARAMS.items():
        click.echo(f"    {key:9} {meaning}")


_synth_options = options.group(
    click.option("--rate", type=float, metavar="RPS", help="Mean requests a second."),
    click.option("--duration", type=float, metavar="S", help="Seconds of traffic."),
    click.option("--requests", type=int, metavar="N", help="Exactly so many requests."),
    click.option("--start", type=float, metavar="S",
                 help="Where in the rate profile to begin."),
    click.option("--scale", type=float, metavar="X", help="Multiply the rate."),
    click.option("--arrivals", metavar="KIND", help="Instead of a preset: poisson, gamma, "
                 "weibull, diurnal or bursty."),
    click.option("--cv", type=float, metavar="X",
                 help="CV of the gaps (gamma, weibull; diurnal: gamma gaps)."),
    click.option("--peak-to-trough", type=float, default=3.0, show_default=True,
                 metavar="X", help="Diurnal: highest over lowest rate."),
    click.option("--peak-hour", type=float, default=15.0, show_default=True, metavar="H",
                 help="Diurnal: hour of the highest rate."),
    click.option("--rate-profile", type=click.Path(path_type=Path), metavar="FILE",
                 help="Diurnal: CSV with t_s,rate_rps in equal steps, instead of a sine."),
    click.option("--fano", type=float, default=10.0, show_default=True, metavar="X",
                 help="Bursty: variance over mean of the arrivals in a window."),
    click.option("--fano-window", type=float, default=60.0, show_default=True,
                 metavar="S", help="Bursty: that window."),
    click.option("--busy-fraction", type=float, default=0.25, show_default=True,
                 metavar="X", help="Bursty: share of the time in busy spells."),
    click.option("--busy-seconds", type=float, default=30.0, show_default=True,
                 metavar="S", help="Bursty: mean length of a busy spell."),
    click.option("--prompt-tokens", metavar="DIST", help="N, lognormal:MEDIAN,SIGMA[,MAX], "
                 "exponential:MEAN or quantiles:0=10,0.5=200,1=4000."),
    click.option("--output-tokens", metavar="DIST", help="The same for outputs."),
    click.option("--correlation", type=float, metavar="X",
                 help="Rank correlation (Gaussian copula) of the two lengths."),
    click.option("--lengths", metavar="PRESET", default="azure-conv-2023",
                 show_default=True, help="Lengths where the options above give none."),
    click.option("--tier", "tiers", multiple=True, metavar="KEY=VALUE,...",
                 help="A kind of clients: share, and priority (the smaller goes first) or timeout "
                 "(s), as in share=0.8,timeout=60; repeatable."),
)  # fmt: skip


@group.command()
@click.argument("names", nargs=-1, metavar="[PRESET] OUT")
@_synth_options
@_TO
@_SEED
def synth(
    names: tuple[str, ...], to: str | None, seed: int, arrivals: str | None, **given: Any
) -> None:
    """Draw a trace from PRESET, or from --arrivals and length distributions, and write it to OUT.

    \b
    qsim traces synth azure-conv-2023 out.csv.gz --rate 20 --duration 600
    qsim traces synth azure-conv-2024-week:day=2,scale=0.1 tuesday.parquet
    qsim traces synth --arrivals gamma --cv 2 --rate 5 --duration 600 out.csv
    qsim traces synth azure-conv-2023 out.csv --tier share=1,timeout=20 --tier share=4,priority=1
    """
    from qsim.traces.synth.synthesize import iter_chunks
    from qsim.traces.write import write_chunks

    wanted = 1 if arrivals else 2
    if len(names) != wanted:
        raise click.UsageError(
            "give OUT alone with --arrivals"
            if arrivals
            else "give PRESET and OUT, or --arrivals KIND and OUT; see 'qsim traces presets'"
        )
    out = Path(names[-1])
    _check_out(out, to)
    if seed < 0:
        raise click.UsageError(f"--seed is {seed}; must be >= 0")
    tiers = _tiers(given.pop("tiers"))
    if arrivals:
        workload, span = _own_workload(arrivals, given)
    else:
        workload, span, seed = _preset_workload(names[0], seed, given)
    workload = replace(workload, tiers=tiers)
    last_s = 0.0

    def watched() -> Iterator[Trace]:
        nonlocal last_s
        for chunk in iter_chunks(workload, span, seed):
            last_s = float(chunk.arrival_s[-1])
            yield chunk

    count = write_chunks(watched(), out, format=to)
    _tell_written(out, count, last_s)


@group.command()
@click.argument("paths", nargs=-1, metavar="[METRICS]... OUT")
@click.option("--seconds", type=float, metavar="S", help="Between two scrapes, or from the "
              "server's start to the only one.")  # fmt: skip
@click.option(
    "--rate", type=float, metavar="RPS", help="Requests a second; needed without METRICS."
)
@click.option("--prompt", metavar="MEAN,P95", help="Tokens of prompts, without METRICS.")
@click.option("--output", metavar="MEAN,P95", help="Tokens of outputs, without METRICS.")
@click.option("--model-name", metavar="NAME", help="Of METRICS of several models.")
@click.option("--cv", type=float, default=1.0, show_default=True, metavar="X",
              help="CV of the gaps between requests; 1 is Poisson.")  # fmt: skip
@click.option("--correlation", type=float, default=0.0, show_default=True, metavar="X",
              help="Rank correlation of the two lengths.")  # fmt: skip
@click.option("--duration", type=float, metavar="S", help="Seconds of traffic; as long as what "
              "was seen by default.")  # fmt: skip
@click.option("--requests", type=int, metavar="N", help="Exactly so many requests.")
@_TO
@_SEED
def reconstruct(
    paths: tuple[str, ...], to: str | None, seed: int, duration: float | None,
    requests: int | None, **given: Any,
) -> None:  # fmt: skip
    """Put a trace together anew from aggregates, and write it to OUT.

    METRICS is one scrape of vLLM's /metrics, two (the earlier first), or answers of Prometheus's
    API as JSON. Without METRICS, say --rate, --prompt and --output. What was assumed is told.

    \b
    qsim traces reconstruct before.txt after.txt --seconds 600 out.csv
    qsim traces reconstruct range.json out.csv
    qsim traces reconstruct --rate 5 --prompt 800,2500 --output 200,600 out.csv
    """
    from qsim.traces.reconstruct.reconstruct import (
        reconstruct_from_metrics,
        reconstruct_from_numbers,
    )
    from qsim.traces.synth.synthesize import Span
    from qsim.traces.write import write_trace

    if not paths:
        raise click.UsageError("give OUT, and METRICS or --rate, --prompt and --output before it")
    *metrics, last = paths
    out = Path(last)
    _check_out(out, to)
    span = Span(duration_s=duration, requests=requests)
    lengths = {k: _mean_and_p95(k, given.pop(k)) for k in ("prompt", "output")}
    rate, seconds, model = (given.pop(k) for k in ("rate", "seconds", "model_name"))
    if metrics:
        told = [f"--{k}" for k, v in lengths.items() if v is not None]
        if told:
            raise click.UsageError(f"{told[0]} is told by METRICS; leave one of them out")
        made = reconstruct_from_metrics(
            metrics, seconds=seconds, rate_rps=rate, model_name=model, span=span, **given
        )
    else:
        prompt, output = lengths["prompt"], lengths["output"]
        if rate is None or prompt is None or output is None:
            raise click.UsageError("without METRICS, give --rate, --prompt and --output")
        if seconds is not None or model is not None:
            raise click.UsageError("--seconds and --model-name are of METRICS")
        made = reconstruct_from_numbers(
            rate_rps=rate, prompt=prompt, output=output, span=span, **given
        )
    for text in made.notes:
        note(text)
    trace = made.draw(seed)
    write_trace(trace, out, format=to)
    _tell_written(out, len(trace), trace.duration_s)


def _mean_and_p95(option: str, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        mean, p95 = (float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(
            f"--{option} is {text!r}; must be MEAN,P95 in tokens, such as 800,2500"
        ) from None
    return mean, p95


def _tiers(texts: Sequence[str]) -> Tiers | None:
    from qsim.cli._values import Reader, read_pairs
    from qsim.traces.synth.synthesize import Tier, Tiers

    readers: dict[str, Reader] = {
        "share": (float, "a number"), "priority": (int, "a whole number"),
        "timeout": (float, "a number"),
    }  # fmt: skip
    tiers = []
    for text in texts:
        where = f"--tier {shown(text)}"
        given = read_pairs(text, where, readers, click.UsageError)
        if "share" not in given:
            raise click.UsageError(f"{where}: share is missing, as in share=0.8")
        try:
            tiers.append(Tier(given["share"], given.get("priority", 0), given.get("timeout")))
        except ScenarioError as e:
            raise ScenarioError(f"{where}: {e}") from None
    return Tiers(tiers) if tiers else None


_SPAN_OPTIONS = ("rate", "duration", "requests", "start", "scale")


def _preset_workload(text: str, seed: int, given: Mapping[str, Any]) -> tuple[Workload, Span, int]:
    """The preset, with the options taking precedence over its parameters."""
    from qsim.traces.load import split_params
    from qsim.traces.synth.presets import resolve_preset

    for option in ("prompt_tokens", "output_tokens", "correlation", "rate_profile", "cv"):
        if given[option] is not None:
            raise click.UsageError(
                f"--{option.replace('_', '-')} does not go with a preset; use --arrivals KIND "
                f"--lengths {text.partition(':')[0]}"
            )
    name, params = split_params(text)
    params |= {key: repr(given[key]) for key in _SPAN_OPTIONS if given[key] is not None}
    asked = resolve_preset(name, params, seed)
    return asked.workload, asked.span, asked.seed


def _own_workload(kind: str, given: Mapping[str, Any]) -> tuple[Workload, Span]:
    from qsim.traces.synth.custom import custom_workload
    from qsim.traces.synth.synthesize import Span

    span = Span(
        start_s=given["start"] or 0.0,
        duration_s=given["duration"],
        requests=given["requests"],
        rate_rps=given["rate"],
        scale=1.0 if given["scale"] is None else given["scale"],
    )
    options = {k: v for k, v in given.items() if k not in _SPAN_OPTIONS}
    return custom_workload(kind, span, **options), span


def _table(s: Mapping[str, Any]) -> str:
    def number(value: float | None, digits: int = 4) -> str:
        return "-" if value is None else f"{value:,.{digits}g}" if value < 1e4 else f"{value:,.0f}"

    lines = [
        f"{s['name']} ({s['format']})",
        f"  requests    {s['requests']:,} over {s['duration_s']:,.1f} s"
        f" = {number(s['mean_rps'])} requests/s",
        f"  gaps        CV {number(s['iat_cv'])}; within 60 s "
        f"{number(s['iat_cv_within_60s_median'])}, within 600 s "
        f"{number(s['iat_cv_within_600s_median'])} (medians)",
        f"  counts      1 s: Fano {number(s['count_fano_1s'])}, peak {s['peak_count_1s']}; "
        f"60 s: Fano {number(s['count_fano_60s'])}, peak {s['peak_count_60s']}",
        "",
        f"  {'tokens':10}" + "".join(f"{h:>10}" for h in ("mean", "p50", "p90", "p99", "max")),
    ]
    for column in ("prompt_tokens", "output_tokens"):
        values = (s[f"{column}_{key}"] for key in ("mean", "p50", "p90", "p99", "max"))
        lines.append(f"  {column[:6]:10}" + "".join(f"{v:>10,.0f}" for v in values))
    lines.append(f"  correlation of the logarithms {number(s['log_length_corr'], 3)}")
    if "columns" in s:
        lines += ["", "  columns     " + ", ".join(f"{r}: {c}" for r, c in s["columns"].items())]
    if "prefix_block_hit_rate" in s:
        lines += [
            "",
            f"  prefixes    {number(100 * (s['prefix_block_hit_rate'] or 0), 3)}% of "
            f"{s['prefix_blocks']:,} blocks of {s['hash_block_tokens']} tokens were seen before "
            f"(endless cache); {s['unique_prefix_blocks']:,} are distinct",
        ]
    return "\n".join(lines) + "\n"
