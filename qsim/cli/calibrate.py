"""``qsim calibrate``: measure servers, fit profiles, check them against recordings."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsim.cli._command import Group
from qsim.cli._say import say

if TYPE_CHECKING:
    from qsim.calibrate.recordings.read import Recording
    from qsim.profiles.schema import HostTimes, Profile

__all__ = ["group"]

#: commands of other modules, imported when they are used
_OTHERS = {
    "run": ("qsim.cli.calibrate_run", "run"),
    "adapt": ("qsim.cli.calibrate_adapt", "adapt_command"),
    "agreement": ("qsim.cli.calibrate_agreement", "agreement"),
    "quality": ("qsim.cli.calibrate_quality", "quality"),
    "table": ("qsim.cli.calibrate_table", "table"),
    "spread": ("qsim.cli.calibrate_spread", "spread"),
    "versions": ("qsim.cli.calibrate_versions", "versions"),
    "transfer": ("qsim.cli.calibrate_transfer", "transfer"),
}


class _Group(Group):
    """A group with commands that live elsewhere."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        others = [name for name, (module, _) in _OTHERS.items() if find_spec(module)]
        return [*others, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OTHERS and find_spec(_OTHERS[cmd_name][0]):
            module, attribute = _OTHERS[cmd_name]
            command = getattr(import_module(module), attribute, None)
            return command if isinstance(command, click.Command) else None
        return super().get_command(ctx, cmd_name)


@click.group("calibrate", cls=_Group)
def group() -> None:
    """Measure a server, fit a profile of it, and check how well the profile predicts."""


def _say(text: str) -> None:
    say(f"  {text}", err=True)


def _host_from(source: str | None) -> HostTimes | None:
    """Host times of a profile (id or file) or of a recording's folder."""
    if source is None:
        return None
    if (Path(source) / "server.json").exists():
        from qsim.calibrate.fit.fitting import fit
        from qsim.calibrate.recordings.read import read_recording

        say(f"host times from {source}", err=True)
        return fit([read_recording(source)], held_out=False, progress=_say).profile.host
    from qsim.profiles.lookup import load_profile

    return load_profile(source).host


def _profiles_for(recordings: Sequence[Recording], given: Sequence[str]) -> list[Profile]:
    """The named profiles; for 'shipped', the shipped one of each recorded server."""
    from qsim.profiles.lookup import load_profile

    wanted: list[tuple[str, str | None]] = []
    for name in given:
        if name != "shipped":
            wanted.append((name, None))
            continue
        wanted += [(r.server.profile_id, r.server.release or None) for r in recordings]
    return [load_profile(name, version) for name, version in dict.fromkeys(wanted)]


_host_option = click.option(
    "--host-from",
    metavar="PROFILE|RECORDING",
    help="Where the host's launch times come from, for recordings that lack them; by default a "
    "recording of the same model among those given.",
)
_recordings = click.argument(
    "recordings", nargs=-1, required=True, metavar="RECORDING...", type=click.Path(path_type=str)
)


def _check_machines(groups: Sequence[Sequence[Recording]]) -> None:
    """One profile cannot be that of two machines."""
    from qsim.calibrate.fit.host import recorded_own_ms
    from qsim.calibrate.validate.validation import LIKE_MACHINES
    from qsim.errors import ScenarioError

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


@group.command("fit")
@_recordings
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
@_host_option
def fit_command(
    recordings: tuple[str, ...],
    out: Path,
    diagnostics: Path | None,
    exclude: tuple[str, ...],
    no_validation: bool,
    frontend_from: str | None,
    host_like: str | None,
    host_from: str | None,
) -> None:  # fmt: skip
    """Fit profiles from RECORDINGs; several of one server are pooled.

    The profile is fitted on all phases but the warm-up. The error that it states comes from fits
    that did not see the phase they predict.
    """
    from dataclasses import replace

    from qsim.calibrate.fit.host_like import with_host_like
    from qsim.calibrate.fit.report import draw_diagnostics, mode_table
    from qsim.calibrate.recordings.read import HOLDOUT, read_recording
    from qsim.calibrate.validate.validation import fit_error, fit_servers, group_servers, validate
    from qsim.cli._common import need_matplotlib, to_json
    from qsim.cli._outputs import Outputs, check_output
    from qsim.errors import ScenarioError
    from qsim.profiles.lookup import file_name, load_profile

    if diagnostics is not None:
        need_matplotlib("--diagnostics", str(diagnostics / "spans.png"), (".png",))
        check_output("--diagnostics", diagnostics, folder=True)
    check_output("--out", out, folder=out.suffix != ".json")
    read = [read_recording(r) for r in recordings]
    single = out.suffix == ".json"
    groups = group_servers(read)
    _check_machines(groups)
    servers = len(groups)
    if single and servers != 1:
        raise ScenarioError(
            f"--out is {str(out)!r}, one file, but the recordings are of {servers} servers: "
            "give a folder"
        )
    host = _host_from(host_from)
    frontend = None if frontend_from is None else load_profile(frontend_from)
    like = None if host_like is None else load_profile(host_like)
    results = fit_servers(
        read, host_from=host, frontend_from=frontend, exclude_phases=exclude, progress=_say
    )
    outputs = Outputs()
    comparisons = []
    labels = {p.label for r in read for p in r.phases if p.use == HOLDOUT} - set(exclude)
    if not no_validation and labels:
        comparisons = validate(
            read, host_from=host, labels=sorted(labels), in_sample=False, progress=_say
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
        say(mode_table(result))
        if profile.fit_error:
            e = profile.fit_error
            say(
                f"  phases left out, end to end: means within {e['worst_mean']}%, medians "
                f"{e['worst_median']}%, p99 {e['worst_p99']}%, energy {e['worst_energy']}%"
            )
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


@group.command("validate")
@_recordings
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
    "given",
    multiple=True,
    metavar="ID|FILE",
    help="Check this profile as it is, and fit nothing; one for each kind of server, or 'shipped' "
    "for the shipped ones.",
)
@_host_option
def validate_command(
    recordings: tuple[str, ...],
    phases: tuple[str, ...],
    out: Path | None,
    json_path: str | None,
    remarks: Path | None,
    given: tuple[str, ...],
    host_from: str | None,
) -> None:  # fmt: skip
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
    from qsim.cli._common import write_json
    from qsim.cli._outputs import Outputs, check_output
    from qsim.files import write_text
    from qsim.report.text.fidelity import fidelity_page

    if given and host_from is not None:
        raise click.UsageError("--host-from is for fits; --profile fits nothing")
    for option, path in (("--out", out), ("--json", json_path)):
        if path is not None and str(path) != "-":
            check_output(option, path)
    text = "" if remarks is None else remarks.read_text(encoding="utf-8")
    read = [read_recording(r) for r in recordings]
    chosen_phases(read, phases)  # an unknown one is found before the fits
    if given:
        known = _profiles_for(read, given)
        comparisons = check_profiles(read, known, labels=phases, progress=_say)
        profiles = {id(r): profile_of(r, known) for r in read}
    else:
        host = _host_from(host_from)
        _say("fitting on all phases")
        fits = fit_servers(read, host_from=host, held_out=False, progress=_say)
        comparisons = validate(read, host_from=host, labels=phases, fits=fits, progress=_say)
        profiles = {id(r): f.profile for f in fits for r in f.recordings}
    agreement = []
    for r in read:
        _say(f"comparing the scheduler's steps with those of {r.name}")
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
