"""What a simulation found: one row a request, sums over the fleet, and the summary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qsim.errors import MissingExtraError, ScenarioError
from qsim.files import atomic_path
from qsim.sim.gaps import Gaps

if TYPE_CHECKING:
    from qsim.sim.slo import Slo

__all__ = ["PERCENTILES", "Gaps", "SimulationResult"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: percentiles that a summary reports beside mean and median
PERCENTILES = (90, 99)


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

    @property
    def energy_j(self) -> float:
        """Energy of all GPUs from the first arrival to the last token, idle included."""
        return float(sum(r["energy_j"] for r in self.replica_stats))

    def metric(self, name: str) -> FloatArray:
        """The values of ``ttft``, ``tpot`` or ``e2el`` over the requests that have one, ms."""
        if name not in ("ttft", "tpot", "e2el"):
            raise ScenarioError(f"metric is {name!r}; must be ttft, tpot or e2el")
        values: FloatArray = getattr(self, f"{name}_ms")
        return values[~np.isnan(values)]

    def statistic(self, metric: str, statistic: str) -> float:
        """``mean``, ``median`` or ``pNN`` of ``ttft``, ``tpot``, ``itl`` or ``e2el``, in ms.

        nan if no request has that metric.
        """
        if statistic == "mean":
            q = None
        elif statistic == "median":
            q = 50.0
        else:
            try:
                q = float(statistic.removeprefix("p"))
            except ValueError:
                q = float("nan")
            if not (statistic.startswith("p") and 0 <= q <= 100):
                raise ScenarioError(
                    f"statistic is {statistic!r}; must be mean, median or a percentile like p99"
                )
        if metric == "itl":
            return self.itl.mean() if q is None else self.itl.percentile(q)
        values = self.metric(metric)
        if len(values) == 0:
            return float("nan")
        return float(values.mean() if q is None else np.percentile(values, q))

    def summary(self, slos: Sequence[Slo] = ()) -> dict[str, Any]:
        """One flat dict under the names of ``vllm bench serve``, and qsim's beside them."""
        done = self.completed
        tokens_in = int(self.prompt_tokens[done].sum())
        tokens_out = int(self.output_tokens[done].sum())
        completed = int(done.sum())
        duration = self.duration_s
        rate = 1.0 / duration if duration > 0 else float("nan")
        energy = self.energy_j
        out: dict[str, Any] = {
            "completed": completed,
            "failed": int((~done).sum()),
            "truncated": self.truncated,
            "duration": duration,
            "total_input_tokens": tokens_in,
            "total_output_tokens": tokens_out,
            "request_throughput": completed * rate,
            "output_throughput": tokens_out * rate,
            "total_token_throughput": (tokens_in + tokens_out) * rate,
        }
        for name in ("ttft", "tpot", "itl", "e2el"):
            out[f"mean_{name}_ms"] = self.statistic(name, "mean")
            if name == "itl":
                out |= self._itl_percentiles()
                continue
            out[f"median_{name}_ms"] = self.statistic(name, "median")
            for p in PERCENTILES:
                out[f"p{p}_{name}_ms"] = self.statistic(name, f"p{p}")
        if slos:
            out["request_goodput"] = int(self.meets(slos).sum()) * rate
            out["slos"] = [
                {
                    "slo": str(s),
                    "value_ms": self.statistic(s.metric, s.statistic),
                    "limit_ms": s.limit_ms,
                    "met": s.met(self),
                }
                for s in slos
            ]
        out |= {
            "energy_j": energy,
            "avg_power_w": energy * rate,
            "joules_per_output_token": energy / tokens_out if tokens_out else float("nan"),
            "gpus": self.gpus,
            "preemptions": int(self.preemptions.sum()),
            "cached_tokens": int(self.cached_tokens[done].sum()),
            "replicas": self.replica_stats,
            "notes": list(self.notes),
            "scenario": self.scenario,
        }
        return {k: _finite(v) for k, v in out.items()}

    def _itl_percentiles(self) -> dict[str, float]:
        values = self.itl.percentiles([50.0, *map(float, PERCENTILES)])
        names = ["median_itl_ms", *(f"p{p}_itl_ms" for p in PERCENTILES)]
        return dict(zip(names, values, strict=True))

    def meets(self, slos: Sequence[Slo]) -> npt.NDArray[np.bool_]:
        """Which requests are within every limit by themselves, as vLLM's goodput counts them.

        A request of one token has a TPOT of 0. Limits on ``itl`` are not per request and do not
        count here.
        """
        good = self.completed.copy()
        for s in slos:
            if s.metric != "itl":
                values = getattr(self, f"{s.metric}_ms")
                good &= np.where(np.isnan(values) & self.completed, 0.0, values) <= s.limit_ms
        return good

    def write_requests(self, path: str | os.PathLike[str]) -> None:
        """Write one row a request to ``path``: .csv, .csv.gz or .parquet; whole or not at all.

        Raises
        ------
        ScenarioError
            If the ending is none of these.
        MissingExtraError
            For Parquet, if pyarrow is not installed.
        """
        names = (
            "request_id",
            "arrival_s",
            "prompt_tokens",
            "output_tokens",
            "replica",
            "cached_tokens",
            "ttft_ms",
            "tpot_ms",
            "e2el_ms",
            "preemptions",
        )
        columns = {n: getattr(self, n) for n in names}
        target = Path(path)
        if target.suffix == ".parquet":
            try:
                import pyarrow as pa
                import pyarrow.parquet as pq
            except ImportError as e:
                raise MissingExtraError("pyarrow", "parquet", "writing Parquet") from e
            with atomic_path(target) as temporary:
                pq.write_table(pa.table(columns), temporary)
            return
        if not target.name.endswith((".csv", ".csv.gz")):
            raise ScenarioError(
                f"requests file is {str(target)!r}; must end in .csv, .csv.gz or .parquet"
            )
        rows = ["" + ",".join(names)]
        texts = [_texts(columns[n]) for n in names]
        rows.extend(",".join(r) for r in zip(*texts, strict=True))
        data = ("\n".join(rows) + "\n").encode()
        with atomic_path(target) as temporary:
            if target.suffix == ".gz":
                import gzip

                data = gzip.compress(data, 6, mtime=0)  # no date: same run, same bytes
            temporary.write_bytes(data)


def _texts(column: npt.NDArray[Any]) -> list[str]:
    if column.dtype.kind == "f":
        # repr of a double is exact; times are whole ps, so 9 digits of a ms lose nothing
        return ["" if v != v else f"{v:.9f}".rstrip("0").rstrip(".") for v in column.tolist()]
    return [str(v) for v in column.tolist()]


def _finite(value: Any) -> Any:
    """JSON has no nan: a statistic over nothing is null."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value
