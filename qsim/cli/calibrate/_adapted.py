"""What adapting by loads and by metrics share: power by NVML, and what is written and said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsim.errors import CalibrationError, MissingExtraError

if TYPE_CHECKING:
    from qsim.calibrate.adapt.adapting import Adaptation
    from qsim.calibrate.adapt.power import Reader
    from qsim.calibrate.adapt.telemetry_fit import TelemetryFit

__all__ = ["nvml_if_any", "refuse_misfit", "say", "write_adapted"]


def nvml_if_any(gpus: Sequence[int]) -> Reader | None:
    """NVML's counters of energy; None, with a note, where there is no NVML."""
    from qsim.calibrate.adapt.power import nvml_reader
    from qsim.cli._outputs import note

    try:
        return nvml_reader(gpus)
    except (CalibrationError, MissingExtraError) as e:
        note(f"{e}; going on without power (--power none says so, a URL asks DCGM's exporter)")
        return None


def refuse_misfit(percent: float, most: float, what: str, profile: str, hint: str = "") -> None:
    """Refuse a fit that leaves more than ``most`` percent: it is another server.

    Raises
    ------
    CalibrationError
    """
    if not percent <= most:
        raise CalibrationError(
            f"with all factors fitted the {what} are still off by {percent:.0f}% on average, more "
            f"than the {most:g}% of --most-error: this is not the server of {profile} (model, "
            f"quantization, GPU or flags differ{hint}). Nothing was written"
        )


def write_adapted(found: Adaptation | TelemetryFit, out: Path, texts: Sequence[str]) -> None:
    """Write an adapted profile, and say what was found."""
    from qsim.cli._outputs import Outputs

    outputs = Outputs()
    with outputs.attempt("--out"):
        found.profile.save(out)
        click.echo(f"{out}: {found.profile.id}, adapted; kept: {found.kept}")
    for text in texts:
        click.echo(text)
    outputs.finish()


def say(text: str) -> None:
    """Progress."""
    click.echo(f"  {text}", err=True)
