"""How well fitted GPU spans describe recordings, load by load; and what their contexts were like.

    python tools/spans.py recordings/qwen2.5-14b--w4a8-fp8--2026-11-25 \\
        --check recordings/qwen2.5-14b--w4a8-fp8--check--2026-11-29

Fits the recordings of one server. For each load of these and of the ``--check`` recordings it shows
by how much the predicted spans of a mode are longer than the recorded ones in sum, with the
contexts as recorded, which is how the simulator takes them. *Share* is the blocks of the busiest
processor over those of usual traffic (``qsim/calibrate/fit/contexts.py``), weighted by context;
*clock* the median SM clock; *held* how many updates came over 20 ms late, and what that cost a
request in the mean. ``--part 0`` fits the contexts as recorded; other values weigh the busiest
processor otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from qsim.calibrate.fit import contexts
from qsim.calibrate.fit.fitting import FitResult, fit
from qsim.calibrate.fit.modes import pool_steps, predict_ms
from qsim.calibrate.fit.report import mode_table
from qsim.calibrate.fit.span import GRAPH_SIZES
from qsim.calibrate.fit.timeline import DECODE, EAGER, PIECEWISE, late_updates_ms, timeline_of
from qsim.calibrate.recordings.data import SKIP, Recording
from qsim.calibrate.recordings.read import read_recording
from qsim.errors import QsimError
from qsim.profiles.lookup import load_profile

#: fewer steps of a mode in a load say nothing
ENOUGH = 5
HELD_MS = 20.0


def rows(recording: Recording, fitted: FitResult) -> list[str]:
    """A row of the table for each load."""
    profile, spans, s = fitted.profile, fitted.spans, recording.steps
    timeline = timeline_of(recording, GRAPH_SIZES[-1], profile.host)
    table = pool_steps([recording], [timeline], profile.power, [frozenset()])
    predicted = predict_ms(table.with_level(spans.start_w, spans.full_w), spans)
    counted = contexts.context_of_traffic(recording, recording.server.kv_heads, part=1.0)
    late = late_updates_ms(recording, timeline, profile.host)
    power = recording.power
    result = []
    for i, phase in enumerate(recording.phases):
        here = s.phase == i
        if phase.use == SKIP or not here.any():
            continue
        cells = []
        for mode in (DECODE, PIECEWISE, EAGER):
            m = here & (table.mode == mode) & table.usable
            error = predicted[m].sum() / table.span_ms[m].sum() - 1 if m.sum() >= ENOUGH else np.nan
            cells.append("" if np.isnan(error) else f"{error:+.1%} of {m.sum():,}")
        decode = here & (table.mode == DECODE)
        context = s.decode_context_tokens[decode].sum()
        cells.append(f"{counted[decode].sum() / context:.2f}" if context else "")
        then = (power.t_s >= phase.start_s) & (power.t_s <= phase.end_s)
        cells.append(f"{np.median(power.sm_clock_mhz[then]):.0f}" if then.any() else "")
        held, requests = here & (late > HELD_MS), int((recording.requests.phase == i).sum())
        lost_ms = float((late[held] * s.running[held]).sum())
        cells.append(f"{held.sum()}, {lost_ms / requests:.0f}" if requests and held.any() else "")
        result.append(f"| {recording.name} | {phase.label} | {' | '.join(cells)} |")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recordings", nargs="+", metavar="RECORDING")
    parser.add_argument("--check", action="append", default=[], metavar="RECORDING")
    parser.add_argument("--part", type=float, default=contexts.PART)
    parser.add_argument("--host-from", metavar="PROFILE", help="for recordings without launches")
    args = parser.parse_args(argv)
    if not 0.0 <= args.part <= 1.0:
        parser.error(f"--part is {args.part:g}; must be 0 to 1")
    contexts.PART = args.part
    try:
        host = None if args.host_from is None else load_profile(args.host_from).host
        fitted = fit([read_recording(r) for r in args.recordings], host_from=host)
        checked = [read_recording(r) for r in args.check]
    except QsimError as e:
        parser.error(str(e))
    print(mode_table(fitted))
    print("\n| recording | load | decode | piecewise | eager | share | clock, MHz | held, ms |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for recording in [*fitted.recordings, *checked]:
        print("\n".join(rows(recording, fitted)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
