"""``qsim calibrate spread``: how machines differ, from recordings."""

from __future__ import annotations

import json
from math import exp
from pathlib import Path

import click

from qsim.cli._command import Command
from qsim.cli._outputs import Outputs, check_output, tell
from qsim.files import write_text


@click.command("spread", cls=Command)
@click.argument("recordings", nargs=-1, required=True, metavar="RECORDING...")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the table; qsim's own is qsim/profiles/spread.json.")  # fmt: skip
def spread(recordings: tuple[str, ...], out: Path | None) -> None:
    """Learn how machines differ, from RECORDINGs whose profiles were measured elsewhere.

    For each one the factors between its machine and that of the shipped profile are fitted on all
    of its loads. A recording that its own profile was fitted on is compared with a profile of
    another version of vLLM, or left out.
    """
    from qsim.calibrate.adapt.spread import foreign_profile, learn_spread, machine
    from qsim.calibrate.recordings.read import read_recording
    from qsim.profiles.factors import FACTORS
    from qsim.report.text.tables import table

    if out is not None:
        check_output("--out", out)
    found, rows = [], []
    for path in recordings:
        recording = read_recording(path)
        profile = foreign_profile(recording)
        if profile is None:
            tell(f"{recording.name}: no shipped profile that is not its own")
            continue
        tell(f"{recording.name}: fitting its factors")
        one = machine(recording, profile)
        found.append(one)
        rows.append([recording.name, *(f"{exp(x):.3f}" for x in one.log_factors)])
    learnt = learn_spread(found)
    mean = ["all, mean", *(f"{exp(learnt.mean[n]):.3f}" for n in FACTORS)]
    sd = ["all, sd of the logarithm", *(f"{learnt.sd[n]:.3f}" for n in FACTORS)]
    click.echo(table(["machine", *(n.replace("_", "\n") for n in FACTORS)], [*rows, mean, sd]))
    outputs = Outputs()
    if out is not None:
        with outputs.attempt("--out"):
            write_text(out, json.dumps(learnt.to_dict(), indent=1) + "\n")
    outputs.finish()
