"""The GPU types that qsim names, and how NVML's names map to them."""

from __future__ import annotations

from dataclasses import dataclass

from qsim.errors import CalibrationError, ScenarioError

__all__ = ["GPUS", "GpuType", "gpu_type", "gpu_type_from_name"]

GIB = 1 << 30


@dataclass(frozen=True)
class GpuType:
    """A GPU as the catalogue of methods sees it.

    ``memory_bytes`` is what CUDA reports as total; vLLM uses ``gpu_memory_utilization`` of it.
    """

    id: str
    name: str
    architecture: str
    capability: tuple[int, int]
    memory_bytes: int
    #: text in NVML's name that identifies it
    nvml_name: str


GPUS: dict[str, GpuType] = {
    g.id: g
    for g in (
        GpuType("h200_sxm", "H200 SXM", "Hopper", (9, 0), int(139.8 * GIB), "H200"),
        GpuType("h100_sxm", "H100 SXM 80 GB", "Hopper", (9, 0), int(79.1 * GIB), "H100"),
        GpuType("a100_sxm", "A100 SXM 80 GB", "Ampere", (8, 0), int(79.1 * GIB), "A100"),
    )
}


def gpu_type(gpu: str) -> GpuType:
    """The GPU type of an id.

    Raises
    ------
    ScenarioError
        If the id is unknown.
    """
    if gpu not in GPUS:
        raise ScenarioError(f"gpu is {gpu!r}; must be one of {', '.join(GPUS)}")
    return GPUS[gpu]


def gpu_type_from_name(name: str) -> GpuType:
    """The GPU type of a name as NVML gives it, e.g. "NVIDIA H200".

    Raises
    ------
    CalibrationError
        If it is none that qsim knows.
    """
    for g in GPUS.values():
        if g.nvml_name in name and "PCIe" not in name and "NVL" not in name:
            return g
    raise CalibrationError(
        f"the GPU is {name!r}; qsim knows {', '.join(g.nvml_name for g in GPUS.values())} (SXM). "
        "Give --gpu-type to calibrate it under one of these ids"
    )
