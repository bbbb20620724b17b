"""``qsim calibrate validate``: recorded loads through the simulator, beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qsim.cli._command import Command
from qsim.cli._outputs import Outputs, check_output, say, tell, write_json
from qsim.cli.calibrate._recordings import (
    host_option,
    host_times_from,
    profiles_for,
    recordings_argument,
)
from qsim.files import write_text


@click.command("validate", cls=Command)
@recordings_argument
@click.option(
    "--phase",
    "phases",
    multiple=True,
    metavar="LABEL",
    help="Phase to replay; by default those held out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.md",
    help="Write the tables there instead of to stdout.",
)
@click.option("--json", "json_path", metavar="FILE", help="Write the numbers; - for stdout.")
@click.option(
    "--remarks",
    type=click.Path(path_type=Path),
    metavar="FILE.md",
    help="Text to put before the tables.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="ID|FILE",
    help="Check this profile as it is, and fit nothing; one for each kind of server, or 'shipped' "
    "for the shipped ones.",
)
@host_option
def validate_command(**given: Any) -> None:
    """Replay recorded phases through the simulator and compare with what was measured.

    Every phase is predicted by a profile fitted without it, and by one fitted on all; or, with
    --profile, by a profile that exists. How many cells are off, the aims, errors by method and
    model, and how many of the scheduler's steps agree with the recorded ones, come before the
    tables of single phases.
    """
    from qsim.calibrate.recordings.read import read_recording
    from qsim.calibrate.validate.agreement import StepCounts, count_steps
    from qsim.calibrate.validate.fidelity import fidelity_dict
    from qsim.calibrate.validate.validation import (
        check_profiles,
        chosen_phases,
        fit_servers,
        profile_of,
        validate,
    )
    from qsim.report.text.fidelity import fidelity_page

    out, json_path, phases = given["out"], given["json_path"], given["phases"]
    if given["profiles"] and given["host_from"] is not None:
        raise click.UsageError("--host-from is for fits; --profile fits nothing")
    for option, path in (("--out", out), ("--json", json_path)):
        if path is not None and str(path) != "-":
            check_output(option, path)
    text = "" if given["remarks"] is None else given["remarks"].read_text(encoding="utf-8")
    read = [read_recording(r) for r in given["recordings"]]
    chosen_phases(read, phases)  # an unknown one is found before the fits
    if given["profiles"]:
        known = profiles_for(read, given["profiles"])
        comparisons = check_profiles(read, known, labels=phases, progress=tell)
        profiles = {id(r): profile_of(r, known) for r in read}
    else:
        host = host_times_from(given["host_from"])
        tell("fitting on all phases")
        fits = fit_servers(read, host_from=host, held_out=False, progress=tell)
        comparisons = validate(read, host_from=host, labels=phases, fits=fits, progress=tell)
        profiles = {id(r): f.profile for f in fits for r in f.recordings}
    agreement = []
    for r in read:
        tell(f"comparing the scheduler's steps with those of {r.name}")
        agreement.append(StepCounts.sum(count_steps(r, profiles[id(r)]), r.name, "all"))
    outputs = Outputs()
    if json_path is not None:
        with outputs.attempt("--json"):
            write_json(fidelity_dict(comparisons, agreement), json_path)
    page = fidelity_page(comparisons, text, [a for a in agreement if a.steps])
    if out is not None:
        with outputs.attempt("--out"):
            write_text(out, page)
            say(f"{out}", err=True)
    if (out is None or outputs.failed) and json_path != "-":
        outputs.echo(page, nl=False)
    outputs.finish()
