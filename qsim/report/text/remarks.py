"""What is told beside the figures of any result: ranges over machines, notes of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from qsim.report.text.tables import number

if TYPE_CHECKING:
    from qsim.optimize.search.fleet_outcome import FleetOutcome
    from qsim.sim.results.machine_ranges import MachineRanges

Ranges = Mapping[str, tuple[float, float]]
_STATISTICS = ("mean", "median", "p90", "p99")


def range_text(ranges: Ranges, name: str) -> str:
    """``11.5 to 13.4``; a dash where it is not known."""
    found = ranges.get(name)
    return "-" if found is None else f"{number(found[0], 3)} to {number(found[1], 3)}"


def range_row(ranges: Ranges, metric: str) -> list[str]:
    """Below a latency: the range of each of its statistics."""
    return ["   90%", *(range_text(ranges, f"{s}_{metric}_ms") for s in _STATISTICS)]


def ranges_sentences(
    outcome: FleetOutcome, machines: MachineRanges, safer: str = "one replica more"
) -> list[str]:
    """What a fleet's SLOs and energy may be on another machine, which SLO misses, what is safer."""
    ranges = machines.of(outcome.figures)
    parts, missed = [], []
    for o in outcome.slos:
        name = o.slo.figure
        if name in ranges:
            parts.append(f"{o.slo.metric.upper()} {o.slo.statistic} {range_text(ranges, name)} ms")
            if o.met and ranges[name][1] > o.slo.limit_ms:
                missed.append(str(o.slo))
    if "joules_per_output_token" in ranges:
        parts.append(f"energy {range_text(ranges, 'joules_per_output_token')} J per output token")
    if not parts:
        return []
    where = "within the intervals of its factors" if machines.adapted else "on yours it may have"
    text = f"machine: {where} (90%) {', '.join(parts)}"
    if missed:
        text += f"; {', '.join(missed)} may be missed: {safer} is safer"
        if not machines.adapted:
            text += ", and 'qsim calibrate adapt' makes the profile one of your machine"
    return [text]


def run_notes(runs: Iterable[tuple[str, FleetOutcome | None]]) -> dict[str, list[str]]:
    """The notes of runs, such as a ``max_model_len`` that the KV cache lowers, and whose they are.

    ``runs`` are profiles, each with its fleet's run; None if it was not simulated.
    """
    found: dict[str, list[str]] = {}
    for profile, outcome in runs:
        for text in outcome.summary.get("notes", ()) if outcome is not None else ():
            found.setdefault(text, []).append(profile)
    return found


def run_remarks(notes: dict[str, list[str]]) -> list[str]:
    """A sentence a note."""
    return [f"{', '.join(names)}: {text}" for text, names in notes.items()]
