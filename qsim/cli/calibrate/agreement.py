"""``qsim calibrate agreement``: the scheduler's batches beside those of a real server."""

from __future__ import annotations

import click

from qsim.cli._command import Command
from qsim.cli._outputs import say


@click.command(cls=Command)
@click.argument(
    "recordings", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False)
)
@click.option("--profile", "profile_id", help="Whose front end to use; default: the server's own.")
@click.option("--phase", "phases", multiple=True, help="Only these phases (repeatable).")
@click.option("--total", is_flag=True, help="One row a recording instead of one a phase.")
@click.option(
    "--near-ms",
    type=click.FloatRange(min=0.0),
    default=6.0,
    show_default=True,
    metavar="MS",
    help="Take a recorded arrival only if it is less than this later than the model's.",
)
def agreement(
    recordings: tuple[str, ...],
    profile_id: str | None,
    phases: tuple[str, ...],
    total: bool,
    near_ms: float,
) -> None:
    """Compare the scheduler's batches with recorded ones, step by step.

    The recorded send times and step times are fed to the scheduler; a step agrees if it has the
    same prefill tokens and the same number of decodes. The first share takes requests in when the
    front end's model says, the second one when the recording shows them, which leaves the
    scheduler alone to answer for the difference.
    """
    from qsim.calibrate.recordings.read import read_recording
    from qsim.calibrate.validate.agreement import AGREEMENT_HEAD, StepCounts, count_steps
    from qsim.profiles.lookup import load_profile

    click.echo("\n".join(AGREEMENT_HEAD))
    overall: list[StepCounts] = []
    for path in recordings:
        recording = read_recording(path)
        own = recording.server
        version = None if profile_id else own.release or None
        profile = load_profile(profile_id or own.profile_id, version).as_measured()
        counts = count_steps(recording, profile, phases or None, near_s=near_ms / 1e3)
        if not counts:
            continue
        for c in [StepCounts.sum(counts, recording.name, "all")] if total else counts:
            say(c.row())
        overall += counts
    if overall:
        click.echo(StepCounts.sum(overall, "all", "").row())
