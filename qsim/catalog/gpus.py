"""The GPU types that qsim names."""

from __future__ import annotations

from dataclasses import dataclass

from qsim.errors import ScenarioError

GIB = 1 << 30


@dataclass(frozen=True)
class GpuType:
    """A GPU: what runs on it, and the numbers of its data sheet.

    ``memory_bytes`` is what CUDA reports as total; vLLM uses ``gpu_memory_utilization`` of it.
    ``bf16_flops`` are of dense matrix products. ``idle_w`` is that of a loaded server at full
    clock.
    """

    id: str
    name: str
    architecture: str
    capability: tuple[int, int]
    memory_bytes: int
    #: text in NVML's name that identifies it
    nvml_name: str
    bandwidth_bytes_s: float
    bf16_flops: float
    tdp_w: float
    idle_w: float

    @property
    def hopper(self) -> bool:
        """Whether it has the tensor cores of H100 and H200."""
        return self.architecture == "Hopper"


#: Bandwidth, throughput and TDP: data sheets, as in aiconfigurator's systems/*.yaml. Idle: H200
#: measured (median of the profiles). Bare boards draw 80 W (H200), 62 W (H100 NVL) and 61 W (A100)
#: in published measurements; the 25 W that a loaded H200 server adds, and in proportion to the TDP
#: on A100, are added to those.
GPUS: dict[str, GpuType] = {
    g.id: g
    for g in (
        GpuType("h200_sxm", "H200 SXM", "Hopper", (9, 0), int(139.8 * GIB), "H200",
                4.8e12, 989e12, 700.0, 105.0),
        GpuType("h100_sxm", "H100 SXM 80 GB", "Hopper", (9, 0), int(79.1 * GIB), "H100",
                3.35e12, 989e12, 700.0, 87.0),
        GpuType("a100_sxm", "A100 SXM 80 GB", "Ampere", (8, 0), int(79.1 * GIB), "A100",
                2.039e12, 312e12, 400.0, 75.0),
    )
}  # fmt: skip


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
