"""Measured kernel latencies, read from aiconfigurator-core's Parquet tables and interpolated.

The tables are NVIDIA's (package aiconfigurator-core, Apache-2.0). They hold medians of kernels that
ran back to back, launched through CUDA graphs. All latencies in ms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray, IntArray
from qsim.errors import CalibrationError, MissingExtraError

Columns = Mapping[str, npt.NDArray[Any]]
#: latency over the second axis, by batch size
_Curves = dict[int, tuple[FloatArray, FloatArray]]


class GemmTable:
    """Matrix products (m x k) (k x n) of one data type.

    Between table sizes the time per weight is interpolated, bilinearly in the logarithms of k and
    n; between values of m the latency itself, linearly (the table has both sides of tile edges).
    """

    def __init__(self, m: Any, k: Any, n: Any, ms: Any) -> None:
        self._m, mi = np.unique(np.asarray(m, dtype=np.int64), return_inverse=True)
        self._k, ki = np.unique(np.asarray(k, dtype=np.int64), return_inverse=True)
        self._n, ni = np.unique(np.asarray(n, dtype=np.int64), return_inverse=True)
        grid = np.full((len(self._m), len(self._k), len(self._n)), np.inf)
        np.minimum.at(grid, (mi, ki, ni), np.asarray(ms, dtype=np.float64))
        with np.errstate(divide="ignore"):
            weights = self._k[:, None] * self._n[None, :]
            self._per_weight = np.log(grid / weights)  # inf where the table has a hole
        self._cache: dict[tuple[int, int, int], float] = {}

    def ms(self, m: int, k: int, n: int) -> float:
        """Latency of one product, ms."""
        key = (m, k, n)
        if key not in self._cache:
            self._cache[key] = self._ms(m, k, n)
        return self._cache[key]

    def _ms(self, m: int, k: int, n: int) -> float:
        i = int(np.searchsorted(self._m, m))
        if i == len(self._m):
            return self._at(i - 1, k, n) * m / float(self._m[-1])
        if self._m[i] == m or i == 0:
            return self._at(i, k, n)
        below, above = float(self._m[i - 1]), float(self._m[i])
        share = (m - below) / (above - below)
        return self._at(i - 1, k, n) * (1 - share) + self._at(i, k, n) * share

    def _at(self, i: int, k: int, n: int) -> float:
        total = weight = 0.0
        for kj, kw in _corners(self._k, k):
            for nj, nw in _corners(self._n, n):
                value = self._per_weight[i, kj, nj]
                if np.isfinite(value):
                    total += kw * nw * value
                    weight += kw * nw
        if weight == 0.0:
            raise CalibrationError(
                f"the table of matrix products has nothing near m={self._m[i]}, k={k}, n={n}"
            )
        return float(np.exp(total / weight)) * k * n


def _corners(grid: IntArray, value: int) -> list[tuple[int, float]]:
    """Indices and weights of the grid points around ``value``, logarithmically; held outside."""
    i = int(np.searchsorted(grid, value))
    if i == len(grid):
        return [(i - 1, 1.0)]
    if grid[i] == value or i == 0:
        return [(i, 1.0)]
    a, b = np.log(float(grid[i - 1])), np.log(float(grid[i]))
    share = float((np.log(value) - a) / (b - a))
    return [(i - 1, 1 - share), (i, share)]


class _HeadTable:
    """Attention of one layer by heads; other counts than the table's are interpolated."""

    #: the columns that latencies are looked up by
    axes: ClassVar[tuple[str, str]]

    def __init__(self, columns: Columns, ms: FloatArray) -> None:
        self._tables: dict[tuple[int, int, int], _Curves] = {}
        first, second = (np.asarray(columns[a], dtype=np.int64) for a in self.axes)
        heads = np.asarray(columns["num_heads"], dtype=np.int64)
        kv = np.asarray(columns["num_key_value_heads"], dtype=np.int64)
        dim = np.asarray(columns["head_dim"], dtype=np.int64)
        kinds = np.stack([heads, kv, dim], axis=1)
        for h, g, d in {(int(a), int(b), int(c)) for a, b, c in np.unique(kinds, axis=0)}:
            chosen = (heads == h) & (kv == g) & (dim == d)
            curves: _Curves = {}
            for b in np.unique(first[chosen]):
                at = chosen & (first == b)
                order = np.argsort(second[at], kind="stable")
                x, start = np.unique(second[at][order], return_index=True)
                y = np.minimum.reduceat(ms[at][order], start)
                curves[int(b)] = (x.astype(np.float64), y)
            self._tables[(h, g, d)] = curves

    def _curves(self, heads: int, kv: int, dim: int) -> tuple[float, list[tuple[float, _Curves]]]:
        """A factor, and the weighted tables whose sum it multiplies."""
        kinds = [(h, g) for h, g, d in self._tables if d == dim]
        if not kinds:
            have = ", ".join(str(d) for d in sorted({d for _, _, d in self._tables}))
            raise CalibrationError(f"head_dim is {dim}; the attention table has {have}")
        groups = sorted({g for _, g in kinds})
        g = min(groups, key=lambda x: (abs(np.log(x / kv)), x))
        factor = kv / g
        counts = sorted(h for h, other in kinds if other == g)
        want = heads / factor
        above = next((h for h in counts if h >= want), counts[-1])
        below = max((h for h in counts if h <= want), default=counts[0])
        if above == below:
            return factor, [(1.0, self._tables[(above, g, dim)])]
        share = (want - below) / (above - below)
        return factor, [
            (1 - share, self._tables[(below, g, dim)]),
            (share, self._tables[(above, g, dim)]),
        ]

    def _value(self, heads: int, kv: int, dim: int, batch: float, x: float) -> float:
        factor, weighted = self._curves(heads, kv, dim)
        total = 0.0
        for weight, curves in weighted:
            batches = sorted(b for b, (xs, _) in curves.items() if len(xs) > 1) or sorted(curves)
            above = next((b for b in batches if b >= batch), batches[-1])
            below = max((b for b in batches if b <= batch), default=batches[0])
            low, high = _line(*curves[below], x), _line(*curves[above], x)
            share = 0.0 if above == below else (batch - below) / (above - below)
            value = low * (1 - share) + high * share
            total += weight * value * max(1.0, batch / batches[-1])
        return total * factor


def _line(x: FloatArray, y: FloatArray, at: float) -> float:
    """Linear interpolation; extended beyond the last segment, held below the first point."""
    if at > x[-1] and len(x) > 1:
        return float(y[-1] + max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2])) * (at - x[-1]))
    return float(np.interp(at, x, y))


class DecodeAttentionTable(_HeadTable):
    """Attention of one new token per request over its cached context."""

    axes = ("batch_size", "step")

    def ms(self, heads: int, kv: int, dim: int, requests: int, context: float) -> float:
        """One layer, for ``requests`` with ``context`` tokens each, ms."""
        return self._value(heads, kv, dim, requests, context)


class PrefillAttentionTable(_HeadTable):
    """Attention of whole prompts, nothing cached before them."""

    axes = ("batch_size", "isl")

    def ms(self, heads: int, kv: int, dim: int, tokens: float) -> float:
        """One layer, for one prompt of ``tokens``, ms."""
        return self._value(heads, kv, dim, 1, tokens)

    def ms_per_pair(self, heads: int, kv: int, dim: int) -> float:
        """Slope of one layer in (query, key) pairs, between prompts of 2,048 and 8,192 tokens."""
        a, b = 2048.0, 8192.0
        rise = self.ms(heads, kv, dim, b) - self.ms(heads, kv, dim, a)
        return rise / ((b * (b + 1) - a * (a + 1)) / 2)


class AllReduceTable:
    """All-reduce over the GPUs of one host, by the bytes that each holds."""

    def __init__(self, columns: Columns, ms: FloatArray) -> None:
        self._curves: dict[tuple[int, bool], tuple[FloatArray, FloatArray]] = {}
        gpus = np.asarray(columns["num_gpus"], dtype=np.int64)
        sizes = np.asarray(columns["message_size"], dtype=np.float64)
        graph = np.array([str(b).endswith("graph") for b in columns["backend"]])
        for n in np.unique(gpus):
            for g in (False, True):
                at = (gpus == n) & (graph == g)
                order = np.argsort(sizes[at], kind="stable")
                self._curves[(int(n), g)] = (sizes[at][order], ms[at][order])

    def ms(self, gpus: int, size_bytes: float, graph: bool) -> float:
        """One all-reduce of ``size_bytes``, in a CUDA graph or not, ms.

        Raises
        ------
        CalibrationError
            If the table lacks this number of GPUs.
        """
        if gpus == 1:
            return 0.0
        if (gpus, graph) not in self._curves:
            have = ", ".join(str(n) for n in sorted({n for n, _ in self._curves}))
            raise CalibrationError(f"all-reduce over {gpus} GPUs; the table has {have}")
        return _line(*self._curves[(gpus, graph)], size_bytes)


@dataclass(frozen=True)
class KernelTables:
    """The tables of one GPU, and where they come from."""

    gpu: str
    gemm: dict[str, GemmTable]
    decode_attention: dict[str, DecodeAttentionTable]
    prefill_attention: dict[str, PrefillAttentionTable]
    all_reduce: AllReduceTable
    sources: tuple[str, ...]


def systems_folder() -> Path:
    """The folder of the installed package's tables.

    Raises
    ------
    MissingExtraError
        If aiconfigurator-core or pyarrow is not installed.
    """
    found = find_spec("aiconfigurator_core")  # without importing it: only its data are needed
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("aiconfigurator-core", "transfer", "qsim calibrate transfer")
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "transfer", "qsim calibrate transfer")
    return Path(next(iter(found.submodule_search_locations))) / "systems" / "data"


@lru_cache(maxsize=8)
def load_tables(gpu: str, framework: str = "vllm") -> KernelTables:
    """The newest tables of a GPU for vLLM (or another framework's matrix products).

    Raises
    ------
    MissingExtraError
        If the package is not installed.
    CalibrationError
        If it has no tables of this GPU.
    """
    folder = systems_folder() / gpu
    version = metadata.version("aiconfigurator-core")
    sources = []

    def read(kind: str, name: str, of: str = "vllm") -> dict[str, npt.NDArray[Any]]:
        files = sorted(
            (folder / kind / of).glob(f"*/{name}.parquet"),
            key=lambda path: [int(x) for x in re.findall(r"\d+", path.parent.name)],
        )
        if not files:
            raise CalibrationError(f"aiconfigurator-core {version} has no {kind} table of {gpu}")
        sources.append(
            f"aiconfigurator-core {version}: "
            + files[-1].relative_to(systems_folder()).parent.as_posix()
        )
        return _columns(files[-1])

    gemm = read("gemm", "gemm_perf", framework)
    decode = read("attention", "generation_attention_perf")
    prefill = read("attention", "context_attention_perf")
    reduce = read("comm", "custom_allreduce_perf")
    types = gemm["gemm_dtype"].astype(str)
    products = [gemm[c] for c in ("m", "k", "n", "latency")]
    return KernelTables(
        gpu,
        {str(t): GemmTable(*(p[types == t] for p in products)) for t in np.unique(types)},
        {t: DecodeAttentionTable(*part) for t, part in _by_cache(decode).items()},
        {t: PrefillAttentionTable(*part) for t, part in _by_cache(prefill).items()},
        AllReduceTable(reduce, np.asarray(reduce["latency"], dtype=np.float64)),
        tuple(dict.fromkeys(sources)),
    )


def _columns(path: Path) -> dict[str, npt.NDArray[Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {
        name: np.asarray(table.column(name).to_pylist())
        if str(table.schema.field(name).type) == "string"
        else table.column(name).to_numpy()
        for name in table.column_names
    }


def _by_cache(columns: Columns) -> dict[str, tuple[Columns, FloatArray]]:
    """Split by the KV cache's data type; sliding windows are left out."""
    caches = columns["kv_cache_dtype"].astype(str)
    whole = np.ones(len(caches), dtype=bool)
    if "window_size" in columns:
        whole = np.asarray(columns["window_size"]) == 0
    parts: dict[str, tuple[Columns, FloatArray]] = {}
    for cache in np.unique(caches).tolist():
        at = (caches == cache) & whole
        part = {name: values[at] for name, values in columns.items()}
        parts[cache] = (part, np.asarray(part["latency"], dtype=np.float64))
    return parts
