"""Time of the matrix products of a step, for methods with a kernel table and for those without.

Without a table the products of a method are split into a part that is there at any batch and one
that grows with the rows, joined as sides of a right triangle, which describes the FP8 and bf16
tables of two GPUs of equal SMs and different bandwidth within a few percent:

    linear(T)^2 = read^2 + rest^2 + growth(T)^2

``read`` is the time to read the weights at the GPU's bandwidth. ``rest`` and ``growth`` are
measured on H200 by the difference between the method's profile and that of bf16, whose products
have a table; GPUs with the same SMs (H100) have the same. Where bf16 was not measured (a model
too large for one GPU), its composed spans take its place. Kernels take other tiles for matrices
of other sizes, so what was learnt on the next smaller and the next larger model is interpolated.

Ampere runs other kernels (Marlin for every weight-only format, FP8 among them; CUTLASS INT8):
there the products read at the rate at which bf16's do in its table, and grow with the rows by
bf16's operations times a factor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Protocol

import numpy as np

from qsim.calibrate.transfer.compose import TABLE_OF, Composer
from qsim.calibrate.transfer.kernels import KernelTables
from qsim.calibrate.transfer.learn import Overheads, Sample, base_method
from qsim.calibrate.transfer.spans import StepPoint
from qsim.catalog.methods import find_method, weight_bytes
from qsim.errors import CalibrationError

#: methods that run the kernel of another one, which was measured on more models
SAME_KERNEL = {
    "gptq-w4a16": "awq-w4a16",
    "mxfp4-w4a16": "nvfp4-w4a16",
    "fp8-w8a8-static": "fp8-w8a8",
}


def kernels_of(method: str) -> tuple[str, ...]:
    """The methods whose measurements say how long this one's kernel takes, itself first."""
    base = base_method(method)
    return (base, SAME_KERNEL[base]) if base in SAME_KERNEL else (base,)


#: rows of decode steps, and of prompts, at which growth is tabulated
_ROWS = (1, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_TOKENS = (64, 128, 192, 256, 320, 384, 512, 640, 1024, 1500, 2048, 3072, 4096, 6144, 8192)
#: decode context per request at which profiles are compared
_CONTEXT = 512
#: Unpacking weights costs Ampere's Marlin some throughput: TensorRT-LLM's INT4 and INT8 products
#: on A100 take 1.00 to 1.09 of bf16's time at 2,048 rows and more (aiconfigurator-core,
#: a100_sxm/gemm/trtllm).
_UNPACKING = 1.05


class Linear(Protocol):
    """Time of a step's products."""

    @property
    def moved_as(self) -> str:
        """Method by which passes over memory between the products go; bf16 if they are included."""

    def ms(self, rows: int, prefill: bool = False) -> float:
        """All products of all layers for ``rows`` decodes, or tokens of a prompt, ms."""


@dataclass(frozen=True)
class TableLinear:
    """Products straight from a kernel table."""

    composer: Composer
    table: str
    moved_as: str

    def ms(self, rows: int, prefill: bool = False) -> float:
        return self.composer.linear_ms(rows, self.table)


@dataclass(frozen=True)
class MethodShape:
    """What was learnt of a method on H200: ms by weight, for ``rest`` and ``growth``."""

    method: str
    rest_ms_per_weight: float
    #: growth in steps of decodes, by rows, and in steps of prompts, by tokens
    decode: Mapping[int, float]
    prefill: Mapping[int, float]
    #: of the model that taught it, in all layers
    weights: int
    profile: str

    def growth_ms(self, rows: int, weights: float, prefill: bool) -> float:
        """The part that grows with the rows, ms; beyond the last size in proportion to them."""
        curve = self.prefill if prefill else self.decode
        sizes = list(curve)
        value = float(np.interp(rows, sizes, list(curve.values())))
        return value * weights * max(1.0, rows / sizes[-1])


@dataclass(frozen=True)
class ShapedLinear:
    """Products of a method without a table, on a GPU with H200's SMs."""

    composer: Composer
    #: what was learnt on other sizes, with its share
    shapes: Sequence[tuple[float, MethodShape]]
    size_bytes: float
    #: what a product takes however small its matrix is, ms
    fixed_ms: float
    moved_as: str = "bf16"

    def ms(self, rows: int, prefill: bool = False) -> float:
        weights = self.composer.weights() * self.composer.layers
        fixed = 4 * self.composer.layers * self.fixed_ms
        read = self.composer.bandwidth_ms(self.size_bytes)
        total = 0.0
        for share, shape in self.shapes:
            rest = fixed + shape.rest_ms_per_weight * weights
            grown = shape.growth_ms(rows, weights, prefill)
            total += share * sqrt(read**2 + rest**2 + grown**2)
        return total


@dataclass(frozen=True)
class AmpereLinear:
    """Products of a quantized method on Ampere."""

    composer: Composer
    #: bytes of the method's weights over those of bf16
    share: float
    #: time of the part that grows with the rows, over bf16's
    growth: float
    moved_as: str

    def ms(self, rows: int, prefill: bool = False) -> float:
        c = self.composer
        one = c.linear_ms(1)
        fixed = min(4 * c.layers * _AMPERE_FIXED_MS, one)
        read = fixed + (one - fixed) * self.share
        grown = c.linear_ms(rows) ** 2 - one**2
        if rows < _LARGE:  # bf16's growth hides behind its reads: by its operations
            grown = max(grown, (c.linear_ms(_LARGE) * rows / _LARGE) ** 2)
        return sqrt(read**2 + self.growth**2 * max(0.0, grown))


#: a product's time on A100 at one row, extrapolated to no weights: 3 to 4 us in its bf16 table
_AMPERE_FIXED_MS = 0.004
#: rows at which bf16's products on A100 are bound by operations
_LARGE = 2048


Shapes = Mapping[str, Sequence[MethodShape]]


def between(shapes: Sequence[MethodShape], weights: float) -> list[tuple[float, MethodShape]]:
    """Shares of what was learnt on the next smaller and larger model, by the logarithm of size.

    Beyond the smallest and the largest that one alone. Of several of one size the first is taken.
    """
    by_size: dict[int, MethodShape] = {}
    for shape in shapes:
        by_size.setdefault(shape.weights, shape)
    sizes = sorted(by_size)
    if weights <= sizes[0] or weights >= sizes[-1]:
        return [(1.0, by_size[sizes[0] if weights <= sizes[0] else sizes[-1]])]
    i = bisect_right(sizes, weights)
    small, large = sizes[i - 1], sizes[i]
    share = log(weights / small) / log(large / small)
    return [(1.0 - share, by_size[small]), (share, by_size[large])]


def linear_of(method: str, composer: Composer, shapes: Shapes, learnt: KernelTables) -> Linear:
    """How to get the time of a method's products on the composer's GPU.

    Raises
    ------
    CalibrationError
        If the method neither has a table nor was measured on H200.
    """
    base = base_method(method)
    if composer.spec.hopper:
        table = TABLE_OF.get(base)
        if table is not None and table in composer.tables.gemm:
            return TableLinear(composer, table, base)
        found = [shape for name in kernels_of(method) for shape in shapes.get(name, ())]
        if not found:
            raise CalibrationError(
                f"{base} has no kernel table and no measured profile on H200 to learn from"
            )
        size = quantized_bytes(base, composer)
        shared = between(found, composer.weights() * composer.layers)
        return ShapedLinear(composer, shared, size, product_fixed_ms(learnt))
    if base == "bf16":
        return TableLinear(composer, "bfloat16", base)
    share = quantized_bytes(base, composer) / quantized_bytes("bf16", composer)
    if base == "int8-w8a8":
        return AmpereLinear(composer, share, _large_growth(shapes, "int8-w8a8", learnt), base)
    return AmpereLinear(composer, share, _UNPACKING, "bf16")


def quantized_bytes(method: str, composer: Composer) -> float:
    """Bytes of the products' weights on one GPU."""
    a, tp = composer.architecture, composer.tensor_parallel_size
    return float(weight_bytes(find_method(method), a, tp) - a.other_bytes(tp))


def product_fixed_ms(tables: KernelTables) -> float:
    """What one FP8 product takes beside reading, extrapolated to no weights, ms."""
    gemm = tables.gemm["fp8"]
    sizes = np.array([4096 * n for n in (4096, 8192, 16384, 65536)], dtype=float)
    times = np.array([gemm.ms(1, 4096, n) for n in (4096, 8192, 16384, 65536)])
    rest = np.sqrt(np.maximum(0.0, times**2 - (sizes / 4.8e12 * 1e3) ** 2))
    slope, at_zero = np.polyfit(sizes, rest, 1)
    return max(0.0, float(at_zero)) if slope > 0 else float(rest.min())


def learn_shapes(
    samples: Sequence[Sample], overheads: Overheads
) -> dict[str, tuple[MethodShape, ...]]:
    """Learn ``rest`` and ``growth`` of every measured method that has no kernel table.

    One for each model that it was measured on, the largest last.
    """
    samples = [s for s in samples if s.composer.tensor_parallel_size == 1]
    baseline = {s.composer.architecture: s for s in samples if s.method == "bf16"}
    shapes: dict[str, list[MethodShape]] = {}
    for s in samples:
        if s.method in TABLE_OF:
            continue
        bf16 = baseline.get(s.composer.architecture)
        shapes.setdefault(s.method, []).append(_shape(s, bf16, overheads))
    return {m: tuple(sorted(x, key=lambda s: s.weights)) for m, x in shapes.items()}


def _shape(sample: Sample, bf16: Sample | None, overheads: Overheads) -> MethodShape:
    composer = sample.composer
    weights = composer.weights() * composer.layers
    own, base = sample.spans, None if bf16 is None else bf16.spans

    def linear(point: StepPoint) -> float:
        products = composer.linear_ms(point.rows or point.prefill_tokens)
        bf16_ms = (
            overheads.span_ms(composer, point, "bf16", products) if base is None else base.ms(point)
        )
        return max(own.ms(point) - bf16_ms + products, 1e-3)

    decode = {r: linear(StepPoint(rows=r, context_tokens=r * _CONTEXT)) for r in _ROWS}
    prefill = {t: linear(StepPoint(prefill_tokens=t)) for t in _TOKENS}
    still = float(np.mean([decode[r] for r in _ROWS[:2]]))
    read = composer.bandwidth_ms(quantized_bytes(sample.method, composer))
    fixed = 4 * composer.layers * product_fixed_ms(composer.tables)
    rest = sqrt(max(0.0, still**2 - read**2))

    def growth(curve: dict[int, float]) -> dict[int, float]:
        return {r: sqrt(max(0.0, t**2 - still**2)) / weights for r, t in curve.items()}

    return MethodShape(
        sample.method,
        max(0.0, rest - fixed) / weights,
        growth(decode),
        {1: 0.0, **growth(prefill)},
        weights,
        sample.profile.id,
    )


def _large_growth(shapes: Shapes, method: str, tables: KernelTables) -> float:
    """Growth of a method over bf16's in large steps, as measured on H200."""
    if not shapes.get(method):
        raise CalibrationError(f"{method} was not measured on H200, so it cannot be carried over")
    gemm = tables.gemm["bfloat16"]
    k, n = 8192, 8192
    shape = shapes[method][-1]
    ratios = [
        shape.growth_ms(rows, k * n, True) / sqrt(gemm.ms(rows, k, n) ** 2 - gemm.ms(1, k, n) ** 2)
        for rows in (1024, 2048, 4096)
    ]
    return float(np.median(ratios))
