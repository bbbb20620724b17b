"""``qsim calibrate agreement``: the scheduler's batches beside those of a real server."""

from __future__ import annotations

import click

__all__ = ["agreement"]


@click.command()
@click.argument(
    "recordings", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False)
)
@click.option("--profile", "profile_id", help="Whose front end to use; default: the server's own.")
@click.option("--phase", "phases", multiple=True, help="Only these phases (repeatable).")
@click.option("--total", is_flag=True, help="One row a recording instead of one a phase.")
def agreement(
    recordings: tuple[str, ...], profile_id: str | None, phases: tuple[str, ...], total: bool
) -> None:
    """Compare the scheduler's batches with recorded ones, step by step.

    The recorded send times and step times are fed to the scheduler; a step agrees if it has the
    same prefill tokens and the same number of decodes. The first share takes requests in when the
    front end's model says, the second one when the recording shows them, which leaves the
    scheduler alone to answer for the difference.
    """
    from qsim.calibrate.agreement import compare_steps
    from qsim.calibrate.recording import read_recording
    from qsim.profiles import load_profile

    click.echo("| recording | phase | steps | agree | agree, arrivals as recorded |")
    click.echo("|---|---|---:|---:|---:|")
    overall = [0, 0, 0]
    for path in recordings:
        recording = read_recording(path)
        s = recording.server
        tp = f"/tp{s.tensor_parallel}" if s.tensor_parallel > 1 else ""
        profile = load_profile(profile_id or f"{s.gpu}/{s.model}/{s.method}{tp}")
        pairs = zip(
            compare_steps(recording, profile, phases or None),
            compare_steps(recording, profile, phases or None, recorded_arrivals=True),
            strict=True,
        )
        own = [0, 0, 0]
        for model, recorded in pairs:
            counts = [model.steps, model.agreeing, recorded.agreeing]
            own = [a + b for a, b in zip(own, counts, strict=True)]
            if not total:
                click.echo(_row(recording.name, model.phase, counts))
        if total and own[0]:
            click.echo(_row(recording.name, "all", own))
        overall = [a + b for a, b in zip(overall, own, strict=True)]
    if overall[0]:
        click.echo(_row("all", "", overall))


def _row(name: str, phase: str, counts: list[int]) -> str:
    steps, agreeing, given = counts
    return f"| {name} | {phase} | {steps} | {agreeing / steps:.1%} | {given / steps:.1%} |"
