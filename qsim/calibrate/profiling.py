"""From a finished recording to its profile: fit, state the error on held-out phases, draw.

The recording stays as it is whatever happens here; the profile is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qsim.errors import MissingExtraError, QsimError
from qsim.files import write_text
from qsim.profiles.schema import Profile


def profile_recording(
    folder: Path, out: Path, progress: Callable[[str], None] | None = None
) -> Profile:
    """Fit a recording, work out the error of the profile, and write it to ``out``.

    The profile is fitted on all phases but the warm-up. Its ``fit_error`` comes from fits without
    the held-out phase that they predict (``qsim.calibrate.validate.validation``). Beside the
    recording's files go ``fit.txt``, a table of the errors by mode, and two pictures if matplotlib
    is installed.

    Raises
    ------
    RecordingError
        If the recording is damaged.
    CalibrationError
        If too little was recorded for a fit.
    """
    from qsim.calibrate.fit.fitting import fit
    from qsim.calibrate.fit.report import draw_diagnostics, fit_text
    from qsim.calibrate.recordings.data import HOLDOUT
    from qsim.calibrate.recordings.read import read_recording
    from qsim.calibrate.validate.validation import fit_error, validate

    recording = read_recording(folder)
    fitted = fit([recording], progress=progress)
    profile = fitted.profile
    held_out = sorted(p.label for p in recording.phases if p.use == HOLDOUT)
    if held_out:
        comparisons = validate([recording], labels=held_out, in_sample=False, progress=progress)
        profile = replace(profile, fit_error=fit_error(comparisons, profile.id))
    profile.save(out)
    write_text(folder / "fit.txt", f"{profile.id}\n{fit_text(fitted, profile)}\n")
    try:
        draw_diagnostics(fitted, folder)
    except MissingExtraError as e:
        if progress is not None:
            progress(f"no pictures: {e}")
    return profile


def is_newer(profile: Path, folder: Path) -> bool:
    """Whether a profile was written after its recording was, and can be read."""
    try:
        if profile.stat().st_mtime < (folder / "server.json").stat().st_mtime:
            return False
        Profile.load(profile)
    except (OSError, QsimError):
        return False
    return True
