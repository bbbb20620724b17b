"""The metrics of a simulated server, as Prometheus answers to a range query."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.profiles.factors import Factors, apply
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace

#: vLLM's buckets of tokens
TOKENS = [m * 10**e for e in range(5) for m in (1, 2, 5)]
LABELS = {"model_name": "m", "engine": "0", "instance": "gpu1:8000", "job": "vllm"}
_BEGIN = 1_800_000_000.0


def served(
    trace: Trace,
    profile: Profile,
    factors: Factors,
    *,
    step_s: float = 15.0,
    seconds: float | None = None,
    power: str | None = "energy",
    engine_times: bool = True,
    labels: dict[str, str] | None = None,
    options: EngineOptions | None = None,
) -> list[dict[str, Any]]:
    """``data.result`` of a range query: what the engine of a machine told while it served.

    Parameters
    ----------
    power : {"energy", "watts", None}
        DCGM's counter, its gauge, or nothing.
    engine_times : bool
        Histograms of queue, prefill and decode time; otherwise the API server's alone.
    """
    machine = apply(profile, factors)
    result = simulate(trace, machine, frontend=not engine_times, options=options)
    first = result.arrival_s + result.ttft_ms / 1e3
    last = result.arrival_s + result.e2el_ms / 1e3
    end = seconds if seconds is not None else float(last.max()) + 2 * step_s
    times = np.arange(0.0, end + step_s / 2, step_s)
    own = LABELS | (labels or {})
    found: list[dict[str, Any]] = []

    def series(name: str, values: npt.NDArray[Any], more: dict[str, str] | None = None) -> None:
        pairs = [
            [_BEGIN + t, repr(float(v))]
            for t, v in zip(times.tolist(), values.tolist(), strict=True)
        ]
        found.append({"metric": {"__name__": name, **(more or own)}, "values": pairs})

    def until(at: npt.NDArray[np.float64], values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        order = np.argsort(at, kind="stable")
        total = np.concatenate([[0.0], np.cumsum(values[order])])
        return np.asarray(total[np.searchsorted(at[order], times, side="right")])

    one = np.ones(len(trace))
    for name, tokens in (("prompt", trace.prompt_tokens), ("generation", trace.output_tokens)):
        metric = f"vllm:request_{name}_tokens"
        for le in [*map(float, TOKENS), float("inf")]:
            text = "+Inf" if le == float("inf") else repr(le)
            series(f"{metric}_bucket", until(last, tokens <= le), own | {"le": text})
        series(f"{metric}_count", until(last, one))
        series(f"{metric}_sum", until(last, tokens))

    def histogram(name: str, at: npt.NDArray[np.float64], ms: npt.NDArray[np.float64]) -> None:
        series(f"vllm:{name}_sum", until(at, ms / 1e3))
        series(f"vllm:{name}_count", until(at, one))

    histogram("time_to_first_token_seconds", first, result.ttft_ms)
    histogram("e2e_request_latency_seconds", last, result.e2el_ms)
    if engine_times:
        histogram("request_queue_time_seconds", last, 0.0 * result.ttft_ms)
        histogram("request_prefill_time_seconds", last, result.ttft_ms)
        histogram("request_decode_time_seconds", last, result.e2el_ms - result.ttft_ms)
    series("vllm:num_requests_running", until(result.arrival_s, one) - until(last, one))
    series("vllm:num_requests_waiting", 0.0 * times)
    series("vllm:prefix_cache_queries_total", until(last, trace.prompt_tokens))
    series("vllm:prefix_cache_hits_total", until(last, result.cached_tokens))
    blocks = str(profile.memory.num_gpu_blocks)
    cache = {"block_size": "16", "cache_dtype": "auto", "num_gpu_blocks": blocks}
    series("vllm:cache_config_info", 0.0 * times + 1.0, own | cache)
    gpu = {"gpu": "0", "Hostname": "gpu1"}
    t, watts = result.timeline["t_s"], result.timeline["power_w"]
    width = float(t[1] - t[0])
    above = np.concatenate([[0.0], np.cumsum((watts - machine.power.idle_w) * width)])
    edges = np.append(t - width / 2, t[-1] + width / 2)
    joules = np.interp(times, edges, above) + machine.power.idle_w * times
    if power == "energy":
        series("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1e6 + joules * 1e3, gpu)
    elif power == "watts":
        mean = np.interp(times, t, watts, left=machine.power.idle_w, right=machine.power.idle_w)
        series("DCGM_FI_DEV_POWER_USAGE", mean, gpu)
    return found


def answer(result: list[dict[str, Any]]) -> str:
    """The body of ``/api/v1/query_range``."""
    data = {"resultType": "matrix", "result": result}
    return json.dumps({"status": "success", "data": data})
