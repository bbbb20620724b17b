"""A trace that is too short to tell whether a fleet keeps up with it goes on: it is repeated.

With the same arrivals in every period nothing of what comes on top is chance: a fleet that keeps
up has as many requests in it after each period once its batches have filled, one that does not has
more by what it leaves behind. So bursts, also one at the end of a trace, are told from overload.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qsim.sim.results.backlog import BURST_S, UNCLEAR, Load, judge
from qsim.sim.results.result import SimulationResult
from qsim.traces.trace import Trace, joined

#: a trace goes on for so many requests, or for three times its own if that is more
MOST_REQUESTS = 30_000
#: of traffic with long outputs for fewer: so many tokens a request are taken for usual
_USUAL_TOKENS = 250
#: and for so many seconds to begin with
_FIRST_S = 60.0
#: of the rate that a fleet carries
_PRECISION = 1.05


def repeated(trace: Trace, times: int) -> tuple[Trace, float]:
    """The trace so many times, and the end of the last period, s.

    A mean gap lies between two copies, so that the rate stays. Prefix ids of different copies are
    not the same text: a cache must not know a prompt because it came before.
    """
    n = len(trace)
    period_s = trace.duration_s * n / max(1, n - 1)
    at = trace.arrival_s - float(trace.arrival_s[0])
    arrival_s = (at + np.arange(times)[:, None] * period_s).reshape(-1)
    columns = {**joined([trace] * times), "arrival_s": np.maximum.accumulate(arrival_s)}
    return replace(trace, **columns), period_s * times


def settled(
    load: Load,
    trace: Trace,
    simulate: Callable[[Trace], SimulationResult],
    most_requests: int | None = None,
) -> Load:
    """``load``, or where that is not clear what comes of the trace repeated until it is.

    ``simulate`` runs another trace on the same fleet. The trace goes on for ``most_requests`` at
    most, :data:`MOST_REQUESTS` or three times its own unless given; if they do not tell, it is not
    clear.
    """
    if not load.unclear or trace.duration_s < BURST_S:
        return load
    most = max(MOST_REQUESTS, 3 * len(trace)) if most_requests is None else most_requests
    long = max(1.0, float(trace.output_tokens.mean()) / _USUAL_TOKENS)
    most = max(min(most, 3 * len(trace)), int(most / long))
    times = 3 * max(1, math.ceil(_FIRST_S / 3 / trace.duration_s))
    times = max(3, min(times, most // len(trace) // 3 * 3))
    found = load
    while times * len(trace) <= most:
        longer, end_s = repeated(trace, times)
        result = simulate(longer)
        again = judge(result.flow, end_s=float(result.flow.start_s) + end_s, exact=True)
        found = replace(
            again,
            arriving_rps=load.arriving_rps,
            unfinished=load.unfinished,
            continued_s=end_s - trace.duration_s,
        )
        if not found.unclear:
            break
        times *= 2
    return found


def find_carried(
    load: Load,
    trace: Trace,
    simulate: Callable[[Trace], SimulationResult],
    most_requests: int | None = None,
) -> Load:
    """``load`` of an overloaded fleet with the highest rate that it keeps up with, to 5%.

    The trace is slowed down, between what the fleet finishes while it is overloaded and what
    arrives. As it is where three times its requests are more than ``most_requests``.
    """
    if load.finished_rps is None or load.arriving_rps is None or load.finished_rps <= 0:
        return load
    if 3 * len(trace) > (MOST_REQUESTS if most_requests is None else most_requests):
        return load
    low, high = 0.9 * load.finished_rps / load.arriving_rps, 1.0
    found = None
    while high > low * _PRECISION:
        middle = (low * high) ** 0.5
        slower = trace.speed(middle)
        unclear = replace(load, verdict=UNCLEAR)
        if settled(unclear, slower, simulate, most_requests).overloaded:
            high = middle
        else:
            low = found = middle
    return load if found is None else replace(load, carried_rps=load.arriving_rps * found)
