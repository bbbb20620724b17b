"""Simulations that a schedule is made of, as tasks that any process can do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import BoolArray, FloatArray
from qsim.sim.fleet.dynamic import DynamicResult, simulate_dynamic
from qsim.sim.fleet.policy import Constant, Policy
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.results.slo import Slo, SloOutcome, attainment
from qsim.traces.trace import Trace

#: width of the bins in which power is kept, s; a divisor of every window
BIN_S = 60.0


@dataclass(frozen=True)
class WindowTask:
    """One window of the trace on a fleet that does not change.

    The traffic of ``warm_s`` before the window comes first, so that the fleet is in full swing;
    it does not count. With a ``speed`` above 1 the traffic comes so many times as fast.
    """

    trace: Trace
    start_s: float
    window_s: float
    pools: tuple[ServerPool, ...]
    counts: tuple[int, ...]
    slos: tuple[Slo, ...]
    pack: int = 0
    too_long: str = "error"
    warm_s: float = 120.0
    speed: float = 1.0
    allow_backlog: bool = False
    text_prompts: bool = False


@dataclass(frozen=True)
class WindowOutcome:
    """What a fleet did in one window."""

    #: each SLO's value over its limit; at most 1 where it is met
    ratios: tuple[float, ...]
    energy_j: float
    #: answered by each pool
    requests: tuple[int, ...]
    #: share of what arrives that the fleet does not finish; 0 if it keeps up, or the window is too
    #: short to tell
    overload: float = 0.0

    @property
    def met(self) -> bool:
        """Whether every SLO is met, by a fleet that keeps up."""
        return not self.overload and all(r <= 1 for r in self.ratios)


def run_window(task: WindowTask) -> WindowOutcome:
    """Simulate one window."""
    warm_s = min(task.warm_s, task.start_s)
    begin_s, end_s = task.start_s - warm_s, task.start_s + task.window_s
    at = task.trace.arrival_s
    low, high = np.searchsorted(at, [begin_s, begin_s + (end_s - begin_s) * task.speed])
    pools = tuple(
        replace(p, replicas=max(1, n)) for p, n in zip(task.pools, task.counts, strict=True)
    )
    watts = sum(n * p.profile.power.idle_w for p, n in zip(task.pools, task.counts, strict=True))
    if low == high:  # nobody comes
        empty = tuple(0.0 for _ in task.slos)
        return WindowOutcome(empty, watts * task.window_s, tuple(0 for _ in pools))
    part = task.trace.take(np.arange(low, high))
    part = replace(part, arrival_s=(part.arrival_s - begin_s) / task.speed)
    result = simulate_dynamic(
        part,
        pools,
        Constant(task.counts),
        end_s=end_s - begin_s,
        bin_s=task.window_s / 60,
        pack=task.pack,
        too_long=task.too_long,
        text_prompts=task.text_prompts,
    )
    counted = part.arrival_s >= warm_s
    requests = tuple(int(((result.pool == k) & counted).sum()) for k in range(len(pools)))
    bins = result.energy_bins_j
    edges = np.arange(len(bins) + 1) * result.bin_s
    share = np.clip(edges[1:] - np.maximum(edges[:-1], warm_s), 0, result.bin_s) / result.bin_s
    share *= edges[:-1] < end_s - begin_s - 1e-6
    return WindowOutcome(
        tuple(_ratio(result, slo, counted) for slo in task.slos),
        float((bins * share).sum()),
        requests,
        0.0 if task.allow_backlog else result.requests.load.overload or 0.0,
    )


def _ratio(result: DynamicResult, slo: Slo, counted: BoolArray) -> float:
    value_ms = slo.of(getattr(result.requests, f"{slo.metric}_ms")[counted])
    # a window may have no request that has the latency; a trace may not (check_judgeable)
    return 0.0 if np.isnan(value_ms) else SloOutcome(slo, value_ms).ratio


@dataclass(frozen=True)
class RunTask:
    """The whole trace under one policy."""

    trace: Trace
    pools: tuple[ServerPool, ...]
    policy: Policy
    slos: tuple[Slo, ...]
    window_s: float
    end_s: float
    pack: int = 0
    too_long: str = "error"
    allow_backlog: bool = False
    text_prompts: bool = False


@dataclass(frozen=True)
class RunOutcome:
    """What a policy did on the whole trace; lists by window or by bin of :data:`BIN_S`."""

    energy_j: float
    window_energy_j: tuple[float, ...]
    power_w: tuple[float, ...]
    #: each SLO's value over its limit, over the whole trace
    ratios: tuple[float, ...]
    #: the same by window (outer) and SLO; 0 in a window without requests
    window_ratios: tuple[tuple[float, ...], ...]
    attainment: float
    #: share of requests within every limit; 1 in a window without requests
    window_attainment: tuple[float, ...]
    #: by window and pool
    window_requests: tuple[tuple[int, ...], ...]
    #: p99 of TTFT, nan in a window without requests
    window_ttft_ms: tuple[float, ...]
    #: (time_s, pool, on, starting, draining, asleep) after every change
    changes: tuple[tuple[float, int, int, int, int, int], ...]
    state_s: tuple[dict[str, float], ...]
    starts: int
    wakes: int
    #: GPU-seconds that are paid for
    billed_gpu_s: float
    end_s: float
    #: share of what arrives that is not finished, over the whole trace; 0 if the fleet keeps up
    overload: float = 0.0

    @property
    def requests(self) -> tuple[int, ...]:
        """Answered by each pool."""
        return tuple(int(n) for n in np.sum(self.window_requests, axis=0))

    @property
    def missed(self) -> tuple[int, ...]:
        """The windows in which an SLO is missed."""
        return tuple(t for t, r in enumerate(self.window_ratios) if max(r) > 1)

    @property
    def worst(self) -> tuple[float, int, int]:
        """The highest ratio, its window and its SLO."""
        return max((r, t, k) for t, row in enumerate(self.window_ratios) for k, r in enumerate(row))


def run_policy(task: RunTask, progress: Callable[[float], None] | None = None) -> RunOutcome:
    """Simulate the whole trace under a policy."""
    result = simulate_dynamic(
        task.trace,
        task.pools,
        copy.deepcopy(task.policy),  # some keep notes
        end_s=task.end_s,
        bin_s=BIN_S,
        pack=task.pack,
        too_long=task.too_long,
        text_prompts=task.text_prompts,
        progress=progress,
    )
    windows = round(task.end_s / task.window_s)
    energy = result.energy_by(task.window_s)
    tail = energy[windows - 1 :].sum()
    values = [_padded(result.values(s, task.window_s), windows) / s.limit_ms for s in task.slos]
    reached = _padded(result.attainment(task.slos, task.window_s), windows)
    at = np.minimum(result.windows(task.window_s), windows - 1)
    overall = attainment(result.requests, task.slos)
    requests = [
        np.bincount(at[result.pool == k], minlength=windows) for k in range(len(task.pools))
    ]
    return RunOutcome(
        result.energy_j,
        (*energy[: windows - 1].tolist(), float(tail)),
        tuple((result.energy_bins_j / BIN_S).tolist()),
        tuple(s.value(result.requests) / s.limit_ms for s in task.slos),
        _rows(np.where(np.isnan(values), 0.0, values)),
        1.0 if overall is None else overall,
        tuple(np.where(np.isnan(reached), 1.0, reached).tolist()),
        _rows(np.array(requests)),
        tuple(_padded(result.values(Slo("ttft", "p99", 1.0), task.window_s), windows).tolist()),
        tuple(result.changes),
        tuple(p.state_s for p in result.pools),
        result.starts,
        result.wakes,
        result.gpu_hours * 3600,
        result.end_s,
        0.0 if task.allow_backlog else result.requests.load.overload or 0.0,
    )


def _rows(columns: npt.NDArray[Any]) -> tuple[tuple[Any, ...], ...]:
    """What stands at each place of all columns."""
    return tuple(map(tuple, columns.T.tolist()))


def _padded(values: FloatArray, windows: int) -> FloatArray:
    found = np.full(max(windows, len(values)), np.nan)
    found[: len(values)] = values
    return found[:windows]
