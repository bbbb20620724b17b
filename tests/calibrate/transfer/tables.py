"""Made-up kernel tables that follow closed forms, so that results can be worked out by hand."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import numpy as np

from qsim.calibrate.transfer.compose import Composer
from qsim.calibrate.transfer.kernels import (
    AllReduceTable,
    DecodeAttentionTable,
    GemmTable,
    KernelTables,
    PrefillAttentionTable,
)
from qsim.catalog.gpus import gpu_type
from qsim.catalog.models import ARCHITECTURES, Architecture

SIZES = (1024, 4096, 8192, 16384, 65536)
ROWS = (1, 8, 64, 256, 512, 2048, 8192)


def gemm_ms(m: int, k: int, n: int, size: float, bandwidth: float, flops: float) -> float:
    """Reading the weights and computing, one after the other."""
    return 1e3 * (k * n * size / bandwidth + 2.0 * m * k * n / flops)


def gemm(size: float, bandwidth: float, flops: float) -> GemmTable:
    points = list(itertools.product(ROWS, SIZES, SIZES))
    m, k, n = zip(*points, strict=True)
    return GemmTable(m, k, n, [gemm_ms(*p, size, bandwidth, flops) for p in points])


def heads_columns(axes: tuple[str, str], values: list[tuple[int, int]]) -> dict[str, Any]:
    points = [
        (h, g, 128, a, b)
        for h, g in ((32, 8), (40, 8), (64, 8), (32, 4), (16, 2))
        for a, b in values
    ]
    names = ("num_heads", "num_key_value_heads", "head_dim", *axes)
    return {n: np.array(c) for n, c in zip(names, zip(*points, strict=True), strict=True)}


@lru_cache(maxsize=4)
def tables(gpu: str = "h200_sxm") -> KernelTables:
    spec = gpu_type(gpu)
    width = spec.bandwidth_bytes_s
    decode = heads_columns(
        ("batch_size", "step"),
        list(itertools.product((1, 8, 64, 512), (1, 1023, 8191, 131071))),
    )
    reads = decode["batch_size"] * decode["step"] * decode["num_key_value_heads"] * 128 * 4
    prompt = heads_columns(("batch_size", "isl"), [(1, n) for n in (16, 512, 2048, 8192)])
    pairs = prompt["isl"] * (prompt["isl"] + 1) / 2
    sizes = [1024, 65536, 1 << 22, 1 << 26]
    reduce = {
        "num_gpus": np.array([n for n in (2, 4) for _ in sizes for _ in (0, 1)]),
        "message_size": np.array([s for _ in (2, 4) for s in sizes for _ in (0, 1)]),
        "backend": np.array(["vllm_eager", "vllm_graph"] * (2 * len(sizes))),
    }
    late = 0.02 * (reduce["backend"] == "vllm_eager")
    types = {"bfloat16": 2.0, "fp8": 1.0}
    return KernelTables(
        gpu,
        {t: gemm(s, width, spec.bf16_flops * 2 / s) for t, s in types.items()},
        {"bfloat16": DecodeAttentionTable(decode, 0.005 + 1e3 * reads / width)},
        {
            "bfloat16": PrefillAttentionTable(
                prompt, 0.005 + 1e3 * pairs * prompt["num_heads"] * 512 / spec.bf16_flops
            )
        },
        AllReduceTable(reduce, 0.005 + reduce["message_size"] / 3e8 + late),
        (f"made up: {gpu}",),
    )


def composer(model: str = "llama-3.1-8b", gpu: str = "h200_sxm", tp: int = 1) -> Composer:
    a = Architecture.from_config(ARCHITECTURES[model], model)
    return Composer(tables(gpu), gpu_type(gpu), a, tp)
