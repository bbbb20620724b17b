"""How well a profile adapted by one load predicts the other loads of that machine.

    python tools/adapt_check.py RECORDING...
    python tools/adapt_check.py --leave-out RECORDING...
    python tools/adapt_check.py --live measurements/adapt/NAME

Each load of a recording that is like traffic adapts the shipped profile of its server (one that
was measured on another machine), by its client's times and its energy alone; the adapted profile
predicts the others. Printed are, for each recording and all of them, the absolute errors of means
and medians of TPOT and E2EL, of TTFT, and of energy: median, 90th percentile and share within 5%,
before and after; and how many of the 90% ranges over known machines hold what was measured.

With ``--leave-out`` the recordings are those that the shipped spread is of: each machine (a day's
recordings with a version of vLLM) is left out in turn, the spread is learnt from the others, and
its ranges are held against what was measured on the one left out.

With ``--live`` the profile is adapted by what ``qsim calibrate adapt --keep-loads`` kept of a real
server (``loads``), and predicts traffic that was sent to it afterwards (``slices``).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from qsim.calibrate.adapt.adapting import adapt
from qsim.calibrate.adapt.benchmark import read_benchmark
from qsim.calibrate.adapt.fitting import LEAST_REQUESTS
from qsim.calibrate.adapt.load import Load, replay
from qsim.calibrate.adapt.spread import foreign_profile, learn_spread, loads_of, machine
from qsim.calibrate.recordings.data import Recording
from qsim.calibrate.recordings.read import read_recording
from qsim.optimize.search.executors import open_executor
from qsim.processes import available_cores
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Profile
from qsim.profiles.spread import Spread
from qsim.sim.fleet.pool import Pool
from qsim.sim.machines import quick_ranges
from qsim.sim.scheduler.config import EngineOptions

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


def same_day(recording: Recording) -> tuple[str, str]:
    """What recordings of one machine have in common: their day, and the version of vLLM."""
    return str(recording.server.raw.get("date", "")), recording.server.release


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
        rest = [m for r, m in found if same_day(r) != same_day(recording)]
        own = [
            x
            for load in loads_of(recording)
            for x in covered(load, one.profile, learn_spread(rest))
        ]
        holds[recording.name] = own
        print(f"{recording.name}: {sum(own)} of {len(own)}, {len(rest)} others", flush=True)
    every = [x for own in holds.values() for x in own]
    print(f"\n90% ranges, the machine left out: {100 * np.mean(every):.0f}% of {len(every)} hold")


def live(folder: Path) -> None:
    """A real server's loads, and traffic that came after them."""
    server = json.loads((folder / "server.json").read_text(encoding="utf-8"))
    options = EngineOptions(max_model_len=server["max_model_len"], enable_prefix_caching=False)

    def kept(name: str) -> Load:
        load = read_benchmark(folder / name, options)
        return replace(load, num_gpu_blocks=server["num_gpu_blocks"])

    profile = load_profile(server["profile"], server["vllm_version"])
    loads = [kept(f"loads/{n}.json") for n in ("single", "ladder", "moderate", "full")]
    with open_executor(available_cores(), at_most=10) as executor:
        found = adapt(loads, profile, idle_w=server["idle_w"], executor=executor)
    told = {k: [round(x, 2) for x in v] for k, v in found.factors.items()}
    print(f"kept {found.kept}: {told}", file=sys.stderr)
    print("| traffic | figure | measured | shipped profile | adapted |")
    print("|---|---|---|---|---|")
    for path in sorted((folder / "slices").iterdir()):
        load = kept(f"slices/{path.name}")
        measured = load.measured()
        before, after = errors(load, profile), errors(load, found.profile)
        for name in (n for many in KINDS.values() for n in many):
            cells = f"{measured[name]:,.4g} | {before[name]:+.1f}% | {after[name]:+.1f}%"
            print(f"| {path.stem} | {name} | {cells} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--no-coverage", action="store_true")
    parser.add_argument("--only-coverage", action="store_true")
    parser.add_argument("--leave-out", action="store_true")
    parser.add_argument("--live", action="store_true")
    args = parser.parse_args()
    if args.live:
        live(Path(args.recordings[0]))
        return
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
