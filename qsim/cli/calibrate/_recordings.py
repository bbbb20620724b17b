"""What commands on recordings share: the arguments, and where host times and profiles come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsim.cli._outputs import say, tell

if TYPE_CHECKING:
    from qsim.calibrate.recordings.data import Recording
    from qsim.profiles.schema import HostTimes, Profile


def host_times_from(source: str | None) -> HostTimes | None:
    """Host times of a profile (id or file) or of a recording's folder."""
    if source is None:
        return None
    if (Path(source) / "server.json").exists():
        from qsim.calibrate.fit.fitting import fit
        from qsim.calibrate.recordings.read import read_recording

        say(f"host times from {source}", err=True)
        return fit([read_recording(source)], held_out=False, progress=tell).profile.host
    from qsim.profiles.lookup import load_profile

    return load_profile(source).host


def profiles_for(recordings: Sequence[Recording], given: Sequence[str]) -> list[Profile]:
    """The named profiles; for 'shipped', the shipped one of each recorded server."""
    from qsim.profiles.lookup import load_profile

    wanted: list[tuple[str, str | None]] = []
    for name in given:
        if name != "shipped":
            wanted.append((name, None))
            continue
        wanted += [(r.server.profile_id, r.server.release or None) for r in recordings]
    return [load_profile(name, version) for name, version in dict.fromkeys(wanted)]


host_option = click.option(
    "--host-from",
    metavar="PROFILE|RECORDING",
    help="Where the host's launch times come from, for recordings that lack them; by default a "
    "recording of the same model among those given.",
)
recordings_argument = click.argument(
    "recordings", nargs=-1, required=True, metavar="RECORDING...", type=click.Path(path_type=str)
)
