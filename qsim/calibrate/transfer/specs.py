"""What is known of each GPU: bandwidth, tensor throughput, power."""

from __future__ import annotations

from dataclasses import dataclass

from qsim.errors import ScenarioError

__all__ = ["LEARNT_ON", "SPECS", "GpuSpec", "gpu_spec"]

#: the GPU whose measured profiles teach what kernel tables do not hold
LEARNT_ON = "h200_sxm"


@dataclass(frozen=True)
class GpuSpec:
    """Data-sheet numbers; idle power is that of a loaded server at full clock."""

    id: str
    bandwidth_bytes_s: float
    bf16_flops: float
    tdp_w: float
    idle_w: float
    hopper: bool


#: Bandwidth, throughput and TDP: data sheets, as in aiconfigurator's systems/*.yaml. Idle: H200
#: measured (median of the profiles). Bare boards draw 80 W (H200), 62 W (H100 NVL) and 61 W (A100)
#: in published measurements; the 25 W that a loaded H200 server adds, and in proportion to the TDP
#: on A100, are added to those.
SPECS: dict[str, GpuSpec] = {
    s.id: s
    for s in (
        GpuSpec("h200_sxm", 4.8e12, 989e12, 700.0, 105.0, True),
        GpuSpec("h100_sxm", 3.35e12, 989e12, 700.0, 87.0, True),
        GpuSpec("a100_sxm", 2.039e12, 312e12, 400.0, 75.0, False),
    )
}


def gpu_spec(gpu: str) -> GpuSpec:
    """The numbers of a GPU.

    Raises
    ------
    ScenarioError
        If the id is unknown.
    """
    if gpu not in SPECS:
        raise ScenarioError(f"gpu is {gpu!r}; must be one of {', '.join(SPECS)}")
    return SPECS[gpu]
