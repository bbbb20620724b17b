"""``qsim calibrate table``: what was measured, a line a recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qsim.cli._command import Command
from qsim.cli._outputs import say, to_json

if TYPE_CHECKING:
    from qsim.calibrate.recordings.measured import MeasuredRow


@click.command("table", cls=Command)
@click.argument("recordings", nargs=-1, required=True, metavar="RECORDING...")
@click.option(
    "--phase",
    "phases",
    multiple=True,
    metavar="LABEL",
    help="Add J per output token of this phase, of several the first that a recording has.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON with more detail.")
def table(recordings: tuple[str, ...], phases: tuple[str, ...], as_json: bool) -> None:
    """Print what RECORDINGS show: decode steps, prefill throughput, energy, KV capacity.

    All numbers are of recorded steps, none of a fit. Decode: median ms from result to result of
    steps with that many requests and nothing else, in a burst with short contexts.
    Prefill: tokens per second of large steps back to back, and mJ per token of these. Decode
    energy: mJ per token of all decode steps of that burst. KV: tokens that the cache holds. J per
    output token of a phase (--phase, and in --json that of val_moderate) has prefill and idling in
    it, so it compares only where the loads are alike.
    """
    from qsim.calibrate.recordings.measured import measured_row
    from qsim.calibrate.recordings.read import read_recording

    rows = [measured_row(read_recording(r), energy_phases=phases or ("val_moderate",))
            for r in recordings]  # fmt: skip
    if as_json:
        click.echo(to_json([r.to_dict() for r in rows]))
        return
    say(_markdown(rows, bool(phases)))


def _markdown(rows: list[MeasuredRow], with_phase: bool) -> str:
    from qsim.calibrate.recordings.measured import BATCHES

    heads = ["model", "method", *(f"decode {b}, ms" for b in BATCHES)]
    heads += ["decode, mJ/token", "prefill, tokens/s", "prefill, mJ/token"]
    heads += ["J/output token"] * with_phase + ["KV cache, tokens", "weights, GiB"]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'---:|' * (len(heads) - 2)}"]
    for r in rows:
        tp = f" tp{r.tensor_parallel}" if r.tensor_parallel > 1 else ""
        cells = [r.model, r.method + tp]
        cells += [_text(r.decode[b].step_ms if b in r.decode else None, ".2f") for b in BATCHES]
        cells += [
            _text(r.decode_mj_per_token, ".1f"),
            _text(r.prefill_tokens_per_s, ",.0f"),
            _text(r.prefill_mj_per_token, ".1f"),
            *[_text(r.joules_per_output_token, ".3f")] * with_phase,
            _text(r.kv_cache_tokens, ",d"),
            _text(r.weights_gib, ".2f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)
