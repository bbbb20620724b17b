"""What each pool of a fleet did: its requests, tokens, energy, use and latencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import BoolArray, IntArray
from qsim.sim.results.histogram import Latency
from qsim.sim.results.servers import SERVED
from qsim.sim.results.summary import PERCENTILES, exact_percentiles

_LATENCIES = ("ttft", "tpot", "e2el")
_QS = (50.0, *map(float, PERCENTILES))
_NAMES = ("mean", "median", *(f"p{p}" for p in PERCENTILES))


@dataclass(frozen=True)
class PoolUse:
    """What is to be known of a pool beside its requests."""

    name: str
    profile: str
    #: of all its servers
    gpus: int
    #: their numbers
    servers: Sequence[int]


def pool_rows(
    pools: Sequence[PoolUse],
    latencies: Sequence[Mapping[str, Sequence[float]]],
    replica_stats: Sequence[Mapping[str, Any]],
    duration_s: float,
) -> list[dict[str, Any]]:
    """One dict a pool; what is over nothing is nan.

    Parameters
    ----------
    latencies : sequence of mappings
        By pool and metric the mean and percentiles, ms: see :func:`exact_latencies`.
    replica_stats : sequence of mappings
        What each server did.
    """
    rate = 1.0 / duration_s if duration_s > 0 else math.nan
    rows = []
    for pool, values in zip(pools, latencies, strict=True):
        own = [replica_stats[i] for i in pool.servers]
        energy_j = float(sum(r["energy_j"] for r in own))
        served = {name: sum(r[name] for r in own) for name in SERVED}
        tokens = served["output_tokens"]
        row = {
            "pool": pool.name,
            "profile": pool.profile,
            "replicas": len(own),
            "gpus": pool.gpus,
            **served,
            "request_throughput": served["requests"] * rate,
            "output_throughput": tokens * rate,
            "energy_j": energy_j,
            "avg_power_w": energy_j * rate,
            "joules_per_output_token": energy_j / tokens if tokens else math.nan,
            "utilisation": sum(r["busy_s"] for r in own) * rate / len(own),
            "preemptions": sum(r["preemptions"] for r in own),
            "peak_running": max(r["peak_running"] for r in own),
            "peak_waiting": max(r["peak_waiting"] for r in own),
            "peak_kv_usage": max(r["peak_kv_usage"] for r in own),
        }
        for latency in _LATENCIES:
            row |= {f"{n}_{latency}_ms": v for n, v in zip(_NAMES, values[latency], strict=True)}
        rows.append(row)
    return rows


def exact_latencies(
    pools: Sequence[PoolUse], columns: Mapping[str, npt.NDArray[Any]]
) -> list[dict[str, list[float]]]:
    """By pool and metric, mean and percentiles (ms) of all rows of a run."""
    found = []
    for own in _own(pools, columns["replica"]):
        values = {}
        for name in _LATENCIES:
            ms = columns[f"{name}_ms"][own]
            ms = ms[~np.isnan(ms)]
            values[name] = (
                [float(ms.mean()), *exact_percentiles(ms, _QS)] if len(ms) else [math.nan] * 4
            )
        found.append(values)
    return found


class PoolLatencies:
    """The same of a run whose requests are let go: part by part."""

    def __init__(self, pools: Sequence[PoolUse]) -> None:
        self._pools = pools
        self._latencies = [{name: Latency() for name in _LATENCIES} for _ in pools]

    def add(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Count the rows of a part."""
        for latencies, own in zip(
            self._latencies, _own(self._pools, columns["replica"]), strict=True
        ):
            for name, latency in latencies.items():
                latency.add(columns[f"{name}_ms"][own])

    def values(self) -> list[dict[str, list[float]]]:
        """As :func:`exact_latencies`, of what was counted."""
        return [
            {name: [latency.mean(), *latency.percentiles(_QS)] for name, latency in own.items()}
            for own in self._latencies
        ]


def _own(pools: Sequence[PoolUse], replica: IntArray) -> list[BoolArray]:
    """By pool, which rows are of requests that it served."""
    number = np.full(1 + max(max(p.servers) for p in pools) + 1, -1)  # the last: of no server
    for k, pool in enumerate(pools):
        number[list(pool.servers)] = k
    by_row = number[replica]
    return [by_row == k for k in range(len(pools))]
