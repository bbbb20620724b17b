"""What a simulation found: one row a request, sums over the fleet, and the summary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qsim.errors import ScenarioError
from qsim.profiles.measured_range import BeyondMeasured
from qsim.sim.results.backlog import CLOSED_LOOP, Flow, Load, judge
from qsim.sim.results.itl import Gaps
from qsim.sim.results.requests import COLUMNS, request_writer
from qsim.sim.results.slo import Slo, within
from qsim.sim.results.summary import PERCENTILES, exact_percentiles, parse_statistic, summarise

if TYPE_CHECKING:
    from qsim.sim.results.outages import Outages, Windows
    from qsim.sim.results.scaling import Scaling

__all__ = ["PERCENTILES", "Gaps", "SimulationResult"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SimulationResult:
    """One simulated run. Times of requests are what the client sees, from arrival, in ms.

    The columns have one entry a request, in the order of the trace. Requests that were rejected
    (``completed`` is False) have nan times and replica -1.
    """

    request_id: IntArray
    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    replica: IntArray
    cached_tokens: IntArray
    ttft_ms: FloatArray
    #: (e2el - ttft) / (output_tokens - 1); nan for a request of one token
    tpot_ms: FloatArray
    e2el_ms: FloatArray
    preemptions: IntArray
    completed: npt.NDArray[np.bool_]
    #: gaps between tokens as the engine emits them
    itl: Gaps
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
    #: requests whose output was cut at max_model_len
    truncated: int = 0
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
    def energy_j(self) -> float:
        """Energy of all GPUs from the first arrival to the last token, idle included."""
        return float(sum(r["energy_j"] for r in self.replica_stats))

    @property
    def flow(self) -> Flow:
        """Arrivals, first and last tokens over time."""
        done = self.completed
        arrival_s = self.arrival_s[done]
        flow = Flow(float(arrival_s[0]) if len(arrival_s) else 0.0)
        flow.add(
            arrival_s,
            arrival_s + self.ttft_ms[done] / 1000,
            arrival_s + self.e2el_ms[done] / 1000,
        )
        return flow

    @cached_property
    def load(self) -> Load:
        """Whether the fleet kept up with the trace."""
        if "concurrency" in self.scenario:
            return CLOSED_LOOP
        return judge(self.flow)

    def metric(self, name: str) -> FloatArray:
        """The values of ``ttft``, ``tpot`` or ``e2el`` over the requests that have one, ms."""
        if name not in ("ttft", "tpot", "e2el"):
            raise ScenarioError(f"metric is {name!r}; must be ttft, tpot or e2el")
        values: FloatArray = getattr(self, f"{name}_ms")
        return values[~np.isnan(values)]

    def sample(self, metric: str) -> int:
        """How many requests have a latency; how many gaps between tokens there are for ITL."""
        return self.itl.total if metric == "itl" else len(self.metric(metric))

    def statistic(self, metric: str, statistic: str) -> float:
        """``mean``, ``median`` or ``pNN`` of ``ttft``, ``tpot``, ``itl`` or ``e2el``, in ms.

        nan if no request has that metric.
        """
        q = parse_statistic(statistic)
        if q is not None:
            return self.percentiles(metric, [q])[0]
        if metric == "itl":
            return self.itl.mean()
        values = self.metric(metric)
        return float(values.mean()) if len(values) else float("nan")

    def percentiles(self, metric: str, qs: Sequence[float]) -> list[float]:
        """Percentiles of ``ttft``, ``tpot``, ``itl`` or ``e2el``, in ms, in one go.

        nan if no request has that metric.
        """
        if metric == "itl":
            return self.itl.percentiles(list(qs))
        values = self.metric(metric)
        if len(values) == 0:
            return [float("nan")] * len(qs)
        return exact_percentiles(values, qs)

    @property
    def counts(self) -> dict[str, int]:
        """Requests and tokens, as :func:`qsim.sim.results.summary.summarise` takes them."""
        done = self.completed
        return {
            "completed": int(done.sum()),
            "failed": int((~done).sum()),
            "truncated": self.truncated,
            "input_tokens": int(self.prompt_tokens[done].sum()),
            "output_tokens": int(self.output_tokens[done].sum()),
            "preemptions": int(self.preemptions.sum()),
            "cached_tokens": int(self.cached_tokens[done].sum()),
        }

    def windows(self, slos: Sequence[Slo]) -> Windows:
        """Requests and those within all limits before, during and after outages."""
        from qsim.sim.results.outages import Windows

        windows = Windows()
        if self.outages is not None:
            windows.add(self.arrival_s, self.meets(slos), self.outages.outages)
        return windows

    def summary(self, slos: Sequence[Slo] = ()) -> dict[str, Any]:
        """One flat dict under the names of ``vllm bench serve``, and qsim's beside them."""
        return summarise(self, slos)

    def count_good(self, slos: Sequence[Slo]) -> int:
        """How many requests are within every limit by themselves."""
        return int(self.meets(slos).sum())

    def meets(self, slos: Sequence[Slo]) -> npt.NDArray[np.bool_]:
        """Which requests are within every limit: see :func:`qsim.sim.results.slo.within`."""
        return within(slos, vars(self), self.completed)

    def write_requests(self, path: str | os.PathLike[str]) -> None:
        """Write one row a request to ``path``: .csv, .csv.gz or .parquet; whole or not at all.

        Raises
        ------
        ScenarioError
            If the ending is none of these.
        MissingExtraError
            For Parquet, if pyarrow is not installed.
        """
        with request_writer(path) as write:
            write({n: getattr(self, n) for n in COLUMNS})
