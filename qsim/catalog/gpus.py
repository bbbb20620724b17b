"""The GPU types that qsim names, and how NVML's names map to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qsim.errors import CalibrationError, ScenarioError

__all__ = ["GIB", "GPUS", "GpuType", "choose_gpus", "gpu_type", "gpu_type_of"]

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


class Board(Protocol):
    """What NVML says about a GPU."""

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> str: ...
    @property
    def memory_bytes(self) -> int: ...


def gpu_type_of(board: Board) -> GpuType:
    """The GPU type of a board, from NVML's name of it (e.g. "NVIDIA H200") and its memory.

    Raises
    ------
    CalibrationError
        If it is none that qsim knows.
    """
    name, memory = board.name, board.memory_bytes
    for g in GPUS.values():
        # whole words: a GH200 is no H200; and an A100 of 40 GB is no A100 of 80 GB
        same = re.search(rf"\b{g.nvml_name}\b", name) and not re.search(r"PCIe|NVL", name)
        if same and abs(memory / g.memory_bytes - 1) < 0.1:
            return g
    raise CalibrationError(
        f"the GPU is {name!r} with {memory / GIB:.0f} GiB; qsim knows "
        f"{', '.join(g.name for g in GPUS.values())}. "
        "Give --gpu-type to calibrate it under one of their ids"
    )


def choose_gpus(
    boards: Sequence[Board], wanted: Sequence[int], environment: Mapping[str, str]
) -> list[int]:
    """The GPUs to measure on, by NVML's number: the wanted ones.

    Where none is wanted, all that CUDA_VISIBLE_DEVICES leaves visible, since a job scheduler may
    have given the others to somebody else.

    Raises
    ------
    ScenarioError
        If there is no such GPU, or the chosen ones are of different kinds.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted:
        chosen = list(wanted)
    elif visible is None:
        chosen = [b.index for b in boards]
    else:
        chosen = [_number(text.strip(), boards) for text in visible.split(",") if text.strip()]
    for number in chosen:
        if not 0 <= number < len(boards):
            raise ScenarioError(f"gpus has {number}; this host has {len(boards)}, numbered from 0")
    names = sorted({boards[number].name for number in chosen})
    if len(names) > 1:
        raise ScenarioError(f"gpus are of different kinds: {', '.join(names)}; choose one kind")
    if not chosen:
        raise ScenarioError("no GPU is left: CUDA_VISIBLE_DEVICES is empty; give --gpus")
    return chosen


def _number(text: str, boards: Sequence[Board]) -> int:
    if text.isdecimal():
        return int(text)
    for board in boards:
        if text.startswith("GPU-") and board.uuid.startswith(text):
            return board.index
    raise ScenarioError(
        f"CUDA_VISIBLE_DEVICES has {text!r}, which is no GPU of this host; give --gpus"
    )
