"""The times of a decode run: turns of the host thread between which the batch stays the same.

With S(k) the start of turn k, L(k) the end of its launch, G(k) the GPU's end of the step that it
launches and U(k) the update that it awaits,

    L(k) = S(k) + schedule + launch
    G(k) = max(max(G(k-1) + gap, S(k) + schedule) + span(k), L(k))
    U(k) = max(L(k), G(k-1)) + result        (synchronous scheduling: G(k) instead of G(k-1))
    S(k+1) = U(k) + update + turn

Where the GPU is the bottleneck every ``max`` is decided alike in all turns, and with a span that
grows by the same amount from step to step G(k) is a quadratic in k (:class:`SteadyRun`). Spans only
grow, so once the GPU is the bottleneck it stays so. Other runs are spelled out turn by turn
(:class:`ListedRun`). All is in whole picoseconds, so both give what single steps give.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from math import sqrt

__all__ = ["ListedRun", "SteadyRun", "list_run"]


class SteadyRun:
    """A run in closed form: G(k) = G(0) + k (step + growth (k + 1) / 2).

    Parameters
    ----------
    turns
        How many turns the run has.
    start_ps
        S(0).
    gpu_end_ps
        G(0).
    step_ps
        What G would grow by from step to step at the context of the run's first step.
    growth_ps
        What the span grows by from step to step.
    lag
        Turn k awaits step k - lag: 1 in asynchronous mode, 0 in synchronous mode.
    result_ps
        From the end of the awaited step to its update.
    after_ps
        From there to the start of the next turn.
    span_ps
        GPU time of the first step.
    """

    __slots__ = (
        "_after_ps",
        "_gpu_end_ps",
        "_growth_ps",
        "_lag",
        "_result_ps",
        "_span_ps",
        "_start_ps",
        "_step_ps",
        "turns",
    )

    def __init__(
        self,
        turns: int,
        start_ps: int,
        gpu_end_ps: int,
        step_ps: int,
        growth_ps: int,
        lag: int,
        result_ps: int,
        after_ps: int,
        span_ps: int,
    ) -> None:
        self.turns = turns
        self._start_ps = start_ps
        self._gpu_end_ps = gpu_end_ps
        self._step_ps = step_ps
        self._growth_ps = growth_ps
        self._lag = lag
        self._result_ps = result_ps
        self._after_ps = after_ps
        self._span_ps = span_ps

    def _gpu_end(self, k: int) -> int:
        return self._gpu_end_ps + k * self._step_ps + self._growth_ps * (k * (k + 1) // 2)

    def start_ps(self, turn: int) -> int:
        """When a turn starts; turn ``turns`` is the one after the run."""
        if not turn:
            return self._start_ps
        return self._gpu_end(turn - 1 - self._lag) + self._result_ps + self._after_ps

    def turns_before(self, time_ps: int) -> int:
        """How many of the turns start before ``time_ps``."""
        most = self.turns
        if self.start_ps(most - 1) < time_ps:
            return most
        if self._start_ps >= time_ps:
            return 0
        # the largest k with G(k) < limit: the root of a quadratic in its stable form ...
        limit = time_ps - self._result_ps - self._after_ps
        ahead = limit - self._gpu_end_ps
        k = -1
        if ahead > 0:
            linear = self._step_ps + 0.5 * self._growth_ps
            root = linear + sqrt(linear * linear + 2.0 * self._growth_ps * ahead)
            k = int(2.0 * ahead / root) if root else most
        # ... and as it was found with floats, corrected against the integers
        k = min(k, most - 2 - self._lag)
        while k >= -self._lag and self._gpu_end(k) >= limit:
            k -= 1
        k = max(k, -self._lag - 1)
        while k < most - 2 - self._lag and self._gpu_end(k + 1) < limit:
            k += 1
        return k + 2 + self._lag

    def outcome(self) -> tuple[int, int, int, int]:
        """First and last update, the GPU's last end, and the GPU time of all steps."""
        turns, lag, growth, result = self.turns, self._lag, self._growth_ps, self._result_ps
        gpu_end = self._gpu_end
        return (
            gpu_end(-lag) + result,
            gpu_end(turns - 1 - lag) + result,
            gpu_end(turns - 1),
            turns * self._span_ps + growth * (turns * (turns - 1) // 2),
        )

    def add_gaps(self, gaps: array[int], rows: int) -> None:
        """Append the gaps between the run's updates, as an entry of ``qsim.sim.gaps.Gaps``."""
        turns = self.turns
        if turns > 1:
            growth = self._growth_ps
            first = self._step_ps + growth * (1 - self._lag)
            gaps.extend((first, growth, turns - 1, rows))


class ListedRun:
    """A run turn by turn: where each starts, its update, the GPU's end and busy time by then."""

    __slots__ = ("_busy_ps", "_gpu_end_ps", "_next_ps", "_start_ps", "_update_ps", "turns")

    def __init__(self) -> None:
        self.turns = 0
        self._start_ps: list[int] = []
        self._update_ps: list[int] = []
        self._gpu_end_ps: list[int] = []
        self._busy_ps: list[int] = []
        self._next_ps = 0

    def append(
        self, start_ps: int, update_ps: int, gpu_end_ps: int, busy_ps: int, next_ps: int
    ) -> None:
        """Add a turn; ``busy_ps`` is the GPU time of the run so far."""
        self.turns += 1
        self._start_ps.append(start_ps)
        self._update_ps.append(update_ps)
        self._gpu_end_ps.append(gpu_end_ps)
        self._busy_ps.append(busy_ps)
        self._next_ps = next_ps

    def start_ps(self, turn: int) -> int:
        return self._start_ps[turn] if turn < len(self._start_ps) else self._next_ps

    def turns_before(self, time_ps: int) -> int:
        return bisect_left(self._start_ps, time_ps, 0, self.turns)

    def outcome(self) -> tuple[int, int, int, int]:
        """First and last update, the GPU's last end, and the GPU time of all steps."""
        last = self.turns - 1
        update = self._update_ps
        return update[0], update[last], self._gpu_end_ps[last], self._busy_ps[last]

    def add_gaps(self, gaps: array[int], rows: int) -> None:
        update = self._update_ps
        for k in range(1, self.turns):
            gaps.extend((update[k] - update[k - 1], 0, 1, rows))


def list_run(
    now_ps: int,
    turns: int,
    stop_ps: int,
    gpu_free_ps: int,
    gap_ps: int,
    host_ps: tuple[int, int, int, int],
    asynchronous: bool,
    span_ps: Callable[[int], int],
) -> ListedRun | None:
    """A run in which the GPU waits for the host; in asynchronous mode it ends where that ends.

    Parameters
    ----------
    now_ps
        When the first turn starts.
    turns, stop_ps
        The run has at most so many turns, all of which start before ``stop_ps``.
    gpu_free_ps
        The GPU's end of the step before the run.
    gap_ps
        The least time between two steps on the GPU.
    host_ps
        Of schedule, launch, result, and update with the way to the next turn.
    asynchronous
        Whether a turn awaits the step before the one that it launches.
    span_ps
        GPU time of the step that a turn (0, 1, ...) launches.
    """
    schedule, launch, result, after = host_ps
    enough = schedule + launch + result + after - gap_ps  # a span that keeps the GPU busy
    gpu_free = gpu_free_ps
    busy = 0
    time = now_ps
    run = ListedRun()
    for turn in range(turns):
        if time >= stop_ps:
            break
        start = time
        launch_start = time + schedule
        time = launch_start + launch
        span = span_ps(turn)
        if asynchronous and turn and time <= gpu_free and span >= enough:
            break  # the GPU is the bottleneck from here on
        gpu_start = gpu_free + gap_ps
        if launch_start > gpu_start:
            gpu_start = launch_start
        awaited = gpu_free
        gpu_free = gpu_start + span
        if gpu_free < time:
            gpu_free = time
        busy += gpu_free - gpu_start
        if not asynchronous:
            awaited = gpu_free
        if awaited > time:
            time = awaited
        time += result
        update = time
        time += after
        run.append(start, update, gpu_free, busy, time)
    return run if run.turns else None
