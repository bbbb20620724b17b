"""``qsim calibrate host``: how fast this host is, without a GPU."""

from __future__ import annotations

from pathlib import Path

import click

from qsim.cli._command import Command
from qsim.cli._outputs import Outputs, check_output, note
from qsim.files import write_text


@click.command("host", cls=Command)
@click.option("--against", type=click.Path(path_type=Path, exists=True),
              metavar="FILE|RECORDING", help="Another host: what --out wrote "
              "there, or a recording that holds it.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 600.0), default=3.0, show_default=True,
              help="How long.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.json",
              help="Write what was measured.")  # fmt: skip
def host_command(against: Path | None, seconds: float, out: Path | None) -> None:
    """Time what vLLM's Python host thread does, in miniature: seconds, CPU only.

    Beside another host's it is a first guess of the factors by which launches, scheduling and front
    end differ. How good a guess is not known yet: recordings hold their host's speed from now on,
    and 'qsim calibrate adapt' measures the factors themselves.
    """
    import json

    from qsim.calibrate.measure.host_speed import ROWS, host_speed, read_host_speed

    if out is not None:
        check_output("--out", out)
    other = None if against is None else read_host_speed(against)
    here = host_speed(seconds)
    outputs = Outputs()
    if out is not None:
        with outputs.attempt("--out"):
            write_text(out, json.dumps(here.to_dict(), indent=1) + "\n")
    click.echo(
        f"{here.cpu}, Python {here.python}: {here.step_ms:.4f} ms a step of {ROWS} requests "
        f"({here.low_ms:.4f} to {here.high_ms:.4f}, 10th and 90th percentile of {here.rounds})"
    )
    if here.noisy:
        note("these differ by more than half: something else uses this host; try again when idle")
    if other is not None:
        factor = here.step_ms / other.step_ms
        low, high = here.low_ms / other.high_ms, here.high_ms / other.low_ms
        click.echo(f"{other.cpu}, Python {other.python}: {other.step_ms:.4f} ms")
        click.echo(
            f"this host / that one: x{factor:.3f} ({low:.3f} to {high:.3f}), a first guess of the "
            "factors launch, scheduler and front_end; how well it foretells them is not known: no "
            "recorded machine has been measured by both yet"
        )
    outputs.finish()
