"""A whole trace through a fleet, in the parts that it takes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qsim.arrays import BoolArray, IntArray
from qsim.sim.engine.steplog import Step
from qsim.sim.fleet.admission import Admission, Setup
from qsim.sim.fleet.fleet import Fleet
from qsim.sim.fleet.history import with_history
from qsim.sim.results.finished import Finished, joined
from qsim.sim.results.itl import Gaps
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.sim.fleet.policy import Policy

#: requests that the fleet takes at a time
PART = 1 << 15


def in_parts(
    trace: Trace, output_tokens: IntArray, size: int | None = None
) -> Iterator[tuple[Trace, list[int]]]:
    """The parts with their output tokens, of ``size`` requests each; :data:`PART` by default."""
    n = len(trace)
    size = PART if size is None else size
    for begin in range(0, n, size):
        end = min(begin + size, n)
        part = trace if end - begin == n else trace.take(np.arange(begin, end))
        yield part, output_tokens[begin:end].tolist()


@dataclass(frozen=True, eq=False)
class WholeRun:
    """A fleet that has run, and what became of the trace's requests."""

    fleet: Fleet
    admission: Admission
    #: which requests the fleet got
    admissible: BoolArray
    #: of the admissible ones
    output_tokens: IntArray
    #: how the admissible ones fared
    finished: Finished
    #: between tokens; empty unless kept
    gaps: Gaps
    #: what a reader should know of what its sessions' turns share
    notes: list[str]


def run_whole(
    trace: Trace,
    setup: Setup,
    *,
    keep_gaps: bool = True,
    jump: bool = True,
    step_log: list[Step] | None = None,
    progress: Callable[[float], None] | None = None,
    policy: Policy | None = None,
    end_s: float = 0.0,
    bin_s: float | None = None,
) -> WholeRun:
    """Run all admissible requests of a trace; ``keep_gaps`` keeps the gaps between tokens.

    ``progress`` is told the share of requests that have arrived, now and then; the other arguments
    are those of :class:`qsim.sim.fleet.fleet.Fleet`.

    Raises
    ------
    TraceError
        If a prompt is too long and such prompts are an error, or there are no others.
    """
    admission = setup.admission()
    run, output, admissible = admission.admit(trace)
    if run is None:
        raise admission.too_long_error()
    caching = [p.config.block_size for p in setup.pools if p.config.enable_prefix_caching]
    run, notes = with_history(run, caching)
    n = len(run)
    gaps = Gaps(np.empty(0, np.int64))
    had: list[Finished] = []

    def release(finished: Finished) -> None:
        had.append(finished)
        if keep_gaps:
            gaps.pack(fleet.gaps)
        else:
            del fleet.gaps[:]

    # in parts, so that the fleet's columns are those of the requests that are in it
    parts = in_parts(run, output, None if run.turns is None else n)
    fleet = Fleet(
        *next(parts),
        setup,
        release=release,
        jump=jump,
        step_log=step_log,
        progress=None if progress is None else lambda arrived: progress(arrived / n),
        more=parts,
        span_s=(float(run.arrival_s[0]), float(run.arrival_s[-1])),
        policy=policy,
        end_s=end_s,
        bin_s=bin_s,
    )
    fleet.run()
    return WholeRun(fleet, admission, admissible, output, joined(had), gaps, notes)
