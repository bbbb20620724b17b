"""What each pool of a fleet did: its requests, tokens, energy, use and latencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.sim.results.latency import Latency
from qsim.sim.results.summary import PERCENTILES, exact_percentiles

__all__ = ["PoolSums", "PoolUse", "pool_rows", "pool_rows_of_columns"]

IntArray = npt.NDArray[np.int64]

_LATENCIES = ("ttft", "tpot", "e2el")
_QS = (50.0, *map(float, PERCENTILES))
_NAMES = ("mean", "median", *(f"p{p}" for p in PERCENTILES))


@dataclass(frozen=True)
class PoolUse:
    """What is to be known of a pool beside its requests.

    Attributes
    ----------
    name, profile : str
    gpus : int
        Of all its servers.
    servers : sequence of int
        Their numbers.
    """

    name: str
    profile: str
    gpus: int
    servers: Sequence[int]


@dataclass
class _Served:
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


def pool_rows(
    pools: Sequence[PoolUse],
    served: Sequence[_Served],
    latencies: Sequence[Mapping[str, Sequence[float]]],
    replica_stats: Sequence[Mapping[str, Any]],
    duration_s: float,
) -> list[dict[str, Any]]:
    """One dict a pool; what is over nothing is nan."""
    rate = 1.0 / duration_s if duration_s > 0 else math.nan
    rows = []
    for pool, s, values in zip(pools, served, latencies, strict=True):
        own = [replica_stats[i] for i in pool.servers]
        energy_j = float(sum(r["energy_j"] for r in own))
        row = {
            "pool": pool.name,
            "profile": pool.profile,
            "replicas": len(own),
            "gpus": pool.gpus,
            "requests": s.requests,
            "input_tokens": s.input_tokens,
            "output_tokens": s.output_tokens,
            "cached_tokens": s.cached_tokens,
            "request_throughput": s.requests * rate,
            "output_throughput": s.output_tokens * rate,
            "energy_j": energy_j,
            "avg_power_w": energy_j * rate,
            "joules_per_output_token": energy_j / s.output_tokens if s.output_tokens else math.nan,
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


def pool_rows_of_columns(
    pools: Sequence[PoolUse],
    columns: Mapping[str, npt.NDArray[Any]],
    replica_stats: Sequence[Mapping[str, Any]],
    duration_s: float,
) -> list[dict[str, Any]]:
    """The same from all rows of a run; percentiles are exact."""
    served, latencies = [], []
    for own in _own(pools, columns["replica"]):
        served.append(_served(columns, own))
        values = {}
        for name in _LATENCIES:
            ms = columns[f"{name}_ms"][own]
            ms = ms[~np.isnan(ms)]
            values[name] = (
                [float(ms.mean()), *exact_percentiles(ms, _QS)] if len(ms) else [math.nan] * 4
            )
        latencies.append(values)
    return pool_rows(pools, served, latencies, replica_stats, duration_s)


class PoolSums:
    """The same of a run whose requests are let go: part by part."""

    def __init__(self, pools: Sequence[PoolUse]) -> None:
        self._pools = pools
        self._served = [_Served() for _ in pools]
        self._latencies = [{name: Latency() for name in _LATENCIES} for _ in pools]

    def add(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Count the rows of a part."""
        for k, own in enumerate(_own(self._pools, columns["replica"])):
            part, sums = _served(columns, own), self._served[k]
            sums.requests += part.requests
            sums.input_tokens += part.input_tokens
            sums.output_tokens += part.output_tokens
            sums.cached_tokens += part.cached_tokens
            for name, latency in self._latencies[k].items():
                latency.add(columns[f"{name}_ms"][own])

    def rows(
        self, replica_stats: Sequence[Mapping[str, Any]], duration_s: float
    ) -> list[dict[str, Any]]:
        """One dict a pool."""
        latencies = [
            {name: [latency.mean(), *latency.percentiles(_QS)] for name, latency in own.items()}
            for own in self._latencies
        ]
        return pool_rows(self._pools, self._served, latencies, replica_stats, duration_s)


def _own(pools: Sequence[PoolUse], replica: IntArray) -> list[npt.NDArray[np.bool_]]:
    """By pool, which rows are of requests that it served."""
    number = np.full(1 + max(max(p.servers) for p in pools) + 1, -1)  # the last: of no server
    for k, pool in enumerate(pools):
        number[list(pool.servers)] = k
    by_row = number[replica]
    return [by_row == k for k in range(len(pools))]


def _served(columns: Mapping[str, npt.NDArray[Any]], own: npt.NDArray[np.bool_]) -> _Served:
    return _Served(
        int(own.sum()),
        int(columns["prompt_tokens"][own].sum()),
        int(columns["output_tokens"][own].sum()),
        int(columns["cached_tokens"][own].sum()),
    )
