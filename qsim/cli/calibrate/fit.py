"""``qsim calibrate fit``: profiles of recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.cli._command import Command
from qsim.cli._outputs import Outputs, check_output, need_matplotlib, say, tell, to_json
from qsim.cli.calibrate._recordings import (
    host_option,
    host_times_from,
    recordings_argument,
)
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.calibrate.recordings.data import Recording


def _check_machines(groups: Sequence[Sequence[Recording]]) -> None:
    """One profile cannot be that of two machines."""
    from qsim.calibrate.fit.host import recorded_own_ms
    from qsim.calibrate.validate.validation import LIKE_MACHINES

    seen: dict[tuple[str, str], Sequence[Recording]] = {}
    for g in groups:
        before = seen.setdefault((g[0].server.profile_id, g[0].server.release), g)
        if before is not g:
            own = [f"{recorded_own_ms(x[0]):.2f}" for x in (before, g)]
            raise ScenarioError(
                f"{', '.join(r.name for r in before)} and {', '.join(r.name for r in g)} are of "
                f"one server on machines whose hosts differ: scheduling and updating a step of 32 "
                f"requests took {own[0]} and {own[1]} ms, more than {LIKE_MACHINES} times as long. "
                "A profile has the host times of one. Fit one machine's recordings (and put the "
                "profile on another one with --host-like)"
            )


@click.command("fit", cls=Command)
@recordings_argument
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="FILE.json for one server; DIR takes <gpu>/<model>/<method>.json of each.",
)
@click.option(
    "--diagnostics",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures: predicted against measured spans, and residuals over time.",
)
@click.option(
    "--exclude-phase",
    "exclude",
    multiple=True,
    metavar="LABEL",
    help="Do not use this phase; may be given several times.",
)
@click.option(
    "--no-validation",
    is_flag=True,
    help="Do not work out the error that the profile states (it takes most of the time).",
)
@click.option(
    "--frontend-from",
    metavar="PROFILE",
    help="Where the front end's times come from, for a recording that was cut off and holds no "
    "requests: a profile (id or file) of a server with a like host.",
)
@click.option(
    "--host-like",
    metavar="PROFILE",
    help="Put the profile on the machine of this one (id or file), for methods that were measured "
    "on machines of different speed: launches are divided by how much slower the host was, the "
    "rest of the host and the front end are taken over. The stated error stays that of the "
    "measured machine.",
)
@host_option
def fit_command(**given: Any) -> None:
    """Fit profiles from RECORDINGs; several of one server are pooled.

    The profile is fitted on all phases but the warm-up. The error that it states comes from fits
    that did not see the phase they predict.
    """
    from qsim.calibrate.fit.host import with_host_like
    from qsim.calibrate.fit.report import draw_diagnostics, fit_text
    from qsim.calibrate.recordings.data import HOLDOUT
    from qsim.calibrate.recordings.read import read_recording
    from qsim.calibrate.validate.validation import fit_error, fit_servers, group_servers, validate
    from qsim.profiles.lookup import file_name, load_profile

    out, diagnostics, exclude = given["out"], given["diagnostics"], given["exclude"]
    single = out.suffix == ".json"
    if diagnostics is not None:
        need_matplotlib("--diagnostics", str(diagnostics / "spans.png"), (".png",))
        check_output("--diagnostics", diagnostics, folder=True)
    check_output("--out", out, folder=not single)
    read = [read_recording(r) for r in given["recordings"]]
    groups = group_servers(read)
    _check_machines(groups)
    servers = len(groups)
    if single and servers != 1:
        raise ScenarioError(
            f"--out is {str(out)!r}, one file, but the recordings are of {servers} servers: "
            "give a folder"
        )
    host = host_times_from(given["host_from"])
    frontend, like = (
        None if given[name] is None else load_profile(given[name])
        for name in ("frontend_from", "host_like")
    )
    results = fit_servers(
        read, host_from=host, frontend_from=frontend, exclude_phases=exclude, progress=tell
    )
    outputs = Outputs()
    comparisons = []
    labels = {p.label for r in read for p in r.phases if p.use == HOLDOUT} - set(exclude)
    if not given["no_validation"] and labels:
        comparisons = validate(
            read, host_from=host, labels=sorted(labels), in_sample=False, progress=tell
        )
    for result in results:
        names = result.profile.identity.recordings
        own = [c for c in comparisons if c.recording in names]
        profile = replace(result.profile, fit_error=fit_error(own, result.profile.id))
        if like is not None:
            profile = with_host_like(profile, like)
        path = out if single else out / file_name(profile)
        written = False
        with outputs.attempt("--out"):
            profile.save(path)
            written = True
        say(f"{profile.id}: {path if written else 'not written, so it follows here'}")
        if not written:
            click.echo(to_json(profile.to_dict()), nl=False)
        say(fit_text(result, profile))
        if profile.measured_host is not None:
            say(
                f"  host as that of {profile.measured_host.like}; the measured one takes "
                f"{profile.measured_host.slower:.2f} times as long"
            )
        if diagnostics is not None:
            with outputs.attempt("--diagnostics"):
                for picture in draw_diagnostics(result, diagnostics):
                    say(f"  {picture}")
    outputs.finish()
