"""What a simulation found: one row a request, sums over the fleet, and the summary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qsim.arrays import BoolArray, FloatArray, IntArray
from qsim.errors import ScenarioError
from qsim.sim.results.backlog import Flow
from qsim.sim.results.itl import Gaps
from qsim.sim.results.requests import COLUMNS, request_writer
from qsim.sim.results.slo import Slo, within
from qsim.sim.results.summary import Run, exact_percentiles

if TYPE_CHECKING:
    from qsim.sim.results.outages import Windows


@dataclass(frozen=True, eq=False, kw_only=True)
class SimulationResult(Run):
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
    completed: BoolArray
    #: gaps between tokens as the engine emits them
    itl: Gaps
    #: requests whose output was cut at max_model_len
    truncated: int = 0

    @property
    def flow(self) -> Flow:
        done = self.completed
        arrival_s = self.arrival_s[done]
        flow = Flow(float(arrival_s[0]) if len(arrival_s) else 0.0)
        flow.add(
            arrival_s,
            arrival_s + self.ttft_ms[done] / 1000,
            arrival_s + self.e2el_ms[done] / 1000,
        )
        return flow

    def metric(self, name: str) -> FloatArray:
        """The values of ``ttft``, ``tpot`` or ``e2el`` over the requests that have one, ms."""
        if name not in ("ttft", "tpot", "e2el"):
            raise ScenarioError(f"metric is {name!r}; must be ttft, tpot or e2el")
        values: FloatArray = getattr(self, f"{name}_ms")
        return values[~np.isnan(values)]

    def sample(self, metric: str) -> int:
        return self.itl.total if metric == "itl" else len(self.metric(metric))

    def mean(self, metric: str) -> float:
        if metric == "itl":
            return self.itl.mean()
        values = self.metric(metric)
        return float(values.mean()) if len(values) else float("nan")

    def percentiles(self, metric: str, qs: Sequence[float]) -> list[float]:
        if metric == "itl":
            return self.itl.percentiles(list(qs))
        values = self.metric(metric)
        if len(values) == 0:
            return [float("nan")] * len(qs)
        return exact_percentiles(values, qs)

    @property
    def counts(self) -> dict[str, int]:
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
        from qsim.sim.results.outages import Windows

        windows = Windows()
        if self.outages is not None:
            windows.add(self.arrival_s, self.meets(slos), self.outages.outages)
        return windows

    def count_good(self, slos: Sequence[Slo]) -> int:
        return int(self.meets(slos).sum())

    def meets(self, slos: Sequence[Slo]) -> BoolArray:
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
