"""How well a profile adapted by one load predicts the other loads of that machine.

    python tools/adapt_check.py RECORDING...
    python tools/adapt_check.py --leave-out RECORDING...

Each load of a recording that is like traffic adapts the shipped profile of its server (one that
was measured on another machine), by its client's times and its energy alone; the adapted profile
predicts the others. Printed are, for each recording and all of them, the absolute errors of means
and medians of TPOT and E2EL, of TTFT, and of energy: median, 90th percentile and share within 5%,
before and after; and how many of the 90% ranges over known machines hold what was measured.

With ``--leave-out`` the recordings are those that the shipped spread is of: each machine (a day's
recordings with a version of vLLM) is left out in turn, the spread is learnt from the others, and
its ranges are held against what was measured on the one left out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import numpy as np

from qsim.calibrate.adapt.adapting import adapt
from qsim.calibrate.adapt.fitting import LEAST_REQUESTS
from qsim.calibrate.adapt.load import Load, replay
from qsim.calibrate.adapt.spread import foreign_profile, learn_spread, loads_of, machine
from qsim.calibrate.recordings.read import read_recording
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Spread
from qsim.sim.fleet.pool import Pool
from qsim.sim.machines import quick_ranges

KINDS = {
    "TPOT, E2EL": ("mean_tpot_ms", "median_tpot_ms", "mean_e2el_ms", "median_e2el_ms"),
    "TTFT": ("mean_ttft_ms", "median_ttft_ms"),
    "energy": ("energy_j",),
}


def errors(load: Load, profile: Profile) -> dict[str, float]:
    """Simulated against measured, percent."""
    seen, measured = replay(load, profile).statistics(load), load.measured()
    return {k: (seen[k] / m - 1) * 100 for k, m in measured.items()}


def covered(load: Load, profile: Profile, spread: Spread | None = None) -> list[bool]:
    """Whether each mean, median and the energy lies within the range over known machines."""
    if load.num_gpu_blocks is not None:
        memory = replace(profile.memory, num_gpu_blocks=load.num_gpu_blocks)
        profile = replace(profile, memory=memory)
    ranges = quick_ranges(load.trace, [Pool(profile, options=load.options)], spread=spread)
    known = ranges.of(replay(load, profile).statistics(load))
    measured = load.measured()
    names = [n for many in KINDS.values() for n in many if n in measured and n in known]
    return [bool(known[n][0] <= measured[n] <= known[n][1]) for n in names]


def row(name: str, kind: str, before: list[dict[str, float]], after: list[dict[str, float]]) -> str:
    """One line of the table."""
    cells = []
    for many in (before, after):
        e = np.abs([x[k] for x in many for k in KINDS[kind] if k in x])
        cells.append(
            f"{np.median(e):.1f}%, {np.percentile(e, 90):.1f}%, {100 * np.mean(e <= 5):.0f}%"
        )
    return f"| {name} | {kind} | {cells[0]} | {cells[1]} |"


def leave_out(paths: list[str]) -> None:
    """Ranges of spreads that are learnt without the machine that they are held against."""
    recordings = [read_recording(p) for p in paths]
    found = []
    for recording in recordings:
        profile = foreign_profile(recording)
        if profile is None:
            continue
        print(f"# {recording.name}: fitting its factors", file=sys.stderr, flush=True)
        found.append((recording, machine(recording, profile)))
    holds: dict[str, list[bool]] = {}
    for recording, one in found:
        server = recording.server
        rest = [
            m
            for r, m in found
            if (r.server.date, r.server.release) != (server.date, server.release)
        ]
        own = [
            x
            for load in loads_of(recording)
            for x in covered(load, one.profile, learn_spread(rest))
        ]
        holds[recording.name] = own
        print(f"{recording.name}: {sum(own)} of {len(own)}, {len(rest)} others", flush=True)
    every = [x for own in holds.values() for x in own]
    print(f"\n90% ranges, the machine left out: {100 * np.mean(every):.0f}% of {len(every)} hold")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--no-coverage", action="store_true")
    parser.add_argument("--only-coverage", action="store_true")
    parser.add_argument("--leave-out", action="store_true")
    args = parser.parse_args()
    if args.leave_out:
        leave_out(args.recordings)
        return
    every_before: list[dict[str, float]] = []
    every_after: list[dict[str, float]] = []
    holds: list[bool] = []
    print("| recording | | before: median, 90%, within 5% | adapted by one load |")
    print("|---|---|---|---|")
    for path in args.recordings:
        recording = read_recording(path)
        profile = foreign_profile(recording)
        loads = [x for x in loads_of(recording) if len(x) >= LEAST_REQUESTS]
        if profile is None or len(loads) < 2:
            continue
        plain = [errors(x, profile) for x in loads]
        before, after = [], []
        for i, load in enumerate([] if args.only_coverage else loads):
            found = adapt([load], profile)
            adapted = found.profile
            print(f"# {load.name}: kept {found.kept}", file=sys.stderr, flush=True)
            for j, other in enumerate(loads):
                if j != i:
                    before.append(plain[j])
                    after.append(errors(other, adapted))
        for kind in KINDS if before else ():
            print(row(recording.name, kind, before, after), flush=True)
        every_before += before
        every_after += after
        if not args.no_coverage:
            own = [x for load in loads for x in covered(load, profile)]
            print(f"# {recording.name}: {sum(own)} of {len(own)} ranges hold", file=sys.stderr)
            holds += own
    for kind in KINDS if every_before else ():
        print(row("all", kind, every_before, every_after))
    if holds:
        print(f"\n90% ranges over known machines: {100 * np.mean(holds):.0f}% of {len(holds)} hold")


if __name__ == "__main__":
    main()
