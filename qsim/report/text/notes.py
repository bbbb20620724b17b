"""What simulations of several fleets told beside their figures, each text once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsim.optimize.search.fleet_outcome import FleetOutcome

__all__ = ["run_notes", "run_remarks"]


def run_notes(runs: Iterable[tuple[str, FleetOutcome | None]]) -> dict[str, list[str]]:
    """The notes of runs, such as a ``max_model_len`` that the KV cache lowers, and whose they are.

    Parameters
    ----------
    runs : iterable of (str, FleetOutcome or None)
        The profile, and its fleet's run; None if it was not simulated.
    """
    found: dict[str, list[str]] = {}
    for profile, outcome in runs:
        for text in outcome.summary.get("notes", ()) if outcome is not None else ():
            found.setdefault(text, []).append(profile)
    return found


def run_remarks(notes: dict[str, list[str]]) -> list[str]:
    """A sentence a note."""
    return [f"{', '.join(names)}: {text}" for text, names in notes.items()]
