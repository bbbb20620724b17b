"""The summary of a run: one flat dict under the names of ``vllm bench serve``, and ours beside."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.arrays import FloatArray
from qsim.errors import ScenarioError
from qsim.sim.results.backlog import CLOSED_LOOP, Flow, Load, judge
from qsim.sim.results.intervals import percentile_of_rank, ranks
from qsim.sim.results.servers import hot_spots
from qsim.sim.results.slo import check_slos, has_something

if TYPE_CHECKING:
    from qsim.profiles.measured_range import BeyondMeasured
    from qsim.sim.results.outages import Outages, Windows
    from qsim.sim.results.scaling import Scaling
    from qsim.sim.results.slo import Slo

#: percentiles that a summary reports beside mean and median
PERCENTILES = (90, 99)


@dataclass(frozen=True, eq=False, kw_only=True)
class Run(ABC):
    """What is known of a run, whole or streamed; latencies (ttft, tpot, itl, e2el) are in ms."""

    #: first arrival to last token, s
    duration_s: float
    #: one dict a replica
    replica_stats: list[dict[str, Any]]
    #: t_s, power_w, running, waiting, kv_usage over time
    timeline: dict[str, FloatArray]
    #: GPUs of the whole fleet
    gpus: int
    #: what was run: everything needed to run it again
    scenario: dict[str, Any]
    #: what a reader should know (extrapolation, truncation)
    notes: list[str] = field(default_factory=list)
    #: how much lay beyond what the profile's measurements cover; None: the profile does not say
    beyond: BeyondMeasured | None = None
    #: one dict a pool, if there are several: see :mod:`qsim.sim.results.pools`
    pools: list[dict[str, Any]] = field(default_factory=list)
    #: how many requests have no answer, by why, where clients give up or servers fail
    outcomes: dict[str, int] = field(default_factory=dict)
    #: where servers fail
    outages: Outages | None = None
    #: where an autoscaler says how many servers are on
    scaling: Scaling | None = None

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """``completed``, ``failed``, ``truncated``; and of completed requests the sums of
        ``input_tokens``, ``output_tokens``, ``preemptions`` and ``cached_tokens``."""

    @property
    @abstractmethod
    def flow(self) -> Flow:
        """Arrivals, first and last tokens over time."""

    @cached_property
    def load(self) -> Load:
        """Whether the fleet kept up with the trace."""
        return CLOSED_LOOP if "concurrency" in self.scenario else judge(self.flow)

    @property
    def energy_j(self) -> float:
        """Energy of all GPUs from the first arrival to the last token, idle included."""
        return float(sum(r["energy_j"] for r in self.replica_stats))

    @abstractmethod
    def sample(self, metric: str) -> int:
        """How many requests have a latency; how many gaps between tokens there are for ITL."""

    @abstractmethod
    def mean(self, metric: str) -> float:
        """The mean of a latency; nan over nothing."""

    @abstractmethod
    def percentiles(self, metric: str, qs: Sequence[float]) -> list[float]:
        """Several percentiles of a latency, in one go; nan over nothing."""

    def statistic(self, metric: str, statistic: str) -> float:
        """``mean``, ``median`` or ``pNN`` of a latency; nan over nothing."""
        q = parse_statistic(statistic)
        return self.mean(metric) if q is None else self.percentiles(metric, [q])[0]

    @abstractmethod
    def count_good(self, slos: Sequence[Slo]) -> int:
        """How many requests are within every limit by themselves."""

    @abstractmethod
    def windows(self, slos: Sequence[Slo]) -> Windows:
        """Requests and those within all limits before, during and after outages."""

    def summary(self, slos: Sequence[Slo] = ()) -> dict[str, Any]:
        """One flat dict under the names of ``vllm bench serve``, and qsim's beside them."""
        return summarise(self, slos)


def parse_statistic(statistic: str) -> float | None:
    """The percentile that ``median`` or ``pNN`` means, in [0, 100]; None for ``mean``.

    Raises
    ------
    ScenarioError
        If it is none of these.
    """
    if statistic == "mean":
        return None
    if statistic == "median":
        return 50.0
    try:
        q = float(statistic.removeprefix("p"))
    except ValueError:
        q = float("nan")
    if not (statistic.startswith("p") and 0 <= q <= 100):
        raise ScenarioError(
            f"statistic is {statistic!r}; must be mean, median or a percentile like p99"
        )
    return q


def exact_percentiles(values: FloatArray, qs: Sequence[float]) -> list[float]:
    """Percentiles in [0, 100], interpolated linearly, to the bit as ``numpy.percentile`` does.

    numpy imports its masked arrays for it, which takes longer than the percentiles of a trace.
    """
    n = len(values)
    ranks = [(n - 1) * (q / 100) for q in qs]
    lows = [math.floor(r) for r in ranks]
    wanted = sorted({i for low in lows for i in (low, min(low + 1, n - 1))})
    ordered = np.partition(values, wanted)
    found = []
    for rank, low in zip(ranks, lows, strict=True):
        a, b = float(ordered[low]), float(ordered[min(low + 1, n - 1)])
        t = rank - low
        # from the nearer of the two: that is numpy's rounding
        found.append(a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t))
    return found


def summarise(run: Run, slos: Sequence[Slo] = ()) -> dict[str, Any]:
    """The summary; what is over nothing is None."""
    counts = run.counts
    duration = run.duration_s
    rate = 1.0 / duration if duration > 0 else float("nan")
    energy = run.energy_j
    completed = counts["completed"]
    tokens_in, tokens_out = counts["input_tokens"], counts["output_tokens"]
    out: dict[str, Any] = {
        "completed": completed,
        "failed": counts["failed"],
        "truncated": counts["truncated"],
        "duration": duration,
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": completed * rate,
        "output_throughput": tokens_out * rate,
        "total_token_throughput": (tokens_in + tokens_out) * rate,
    }
    intervals: dict[str, list[float | None]] = {}
    for name in ("ttft", "tpot", "itl", "e2el"):
        out[f"mean_{name}_ms"] = run.statistic(name, "mean")
        percentiles = [50.0, *map(float, PERCENTILES)]
        names = [f"median_{name}_ms", *(f"p{p}_{name}_ms" for p in PERCENTILES)]
        n = run.sample(name)
        ends: list[float] = []
        if name != "itl":  # gaps of a request come together: they are no sample of so many
            ends = [percentile_of_rank(r, n) for p in percentiles for r in ranks(n, p / 100)]
        known = [e for e in ends if e == e]
        values = run.percentiles(name, [*percentiles, *known])
        out |= dict(zip(names, values, strict=False))
        at = iter(values[len(names) :])
        found = [next(at) if e == e else None for e in ends]
        pairs = [list(pair) for pair in zip(found[::2], found[1::2], strict=True)]
        intervals |= dict(zip(names, pairs, strict=False))
    if slos:
        judged = has_something(run, slos)
        out["request_goodput"] = run.count_good(slos) * rate if judged else float("nan")
        out["slos"] = [o.to_dict() for o in check_slos(run, slos)]
    out |= {
        "energy_j": energy,
        "avg_power_w": energy * rate,
        "joules_per_output_token": energy / tokens_out if tokens_out else float("nan"),
        "gpus": run.gpus,
        "preemptions": counts["preemptions"],
        "cached_tokens": counts["cached_tokens"],
        "replicas": run.replica_stats,
        "notes": list(run.notes),
        "load": run.load.to_dict(),
        "intervals_90": intervals,
        "scenario": run.scenario,
    }
    if run.outcomes:
        out["outcomes"] = {"completed": completed, **run.outcomes}
    if run.outages is not None:
        from qsim.sim.results.outages import longest

        out["failures"] = run.outages.to_dict()
        if slos:
            windows = run.windows(slos)
            recovery_s = windows.recovery_s(run.outages.outages)
            out["failures"] |= windows.to_dict()
            out["failures"]["attainment_time_to_recover_s"] = longest(recovery_s)
            for outage, time_s in zip(out["failures"]["outages"], recovery_s, strict=True):
                outage["attainment_recovery_s"] = time_s
    if run.scaling is not None:
        out["autoscaler"] = run.scaling.to_dict()
    if run.pools:
        out["pools"] = run.pools
    if (uneven := hot_spots(run.replica_stats)) is not None:
        out["hot_spots"] = uneven
    if run.beyond is not None:
        out["beyond_measured"] = run.beyond.to_dict()
    return {k: _finite(v) for k, v in out.items()}


def _finite(value: Any) -> Any:
    """JSON has no nan: a statistic over nothing is null."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value
