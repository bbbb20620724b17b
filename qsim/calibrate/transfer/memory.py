"""KV blocks that fit: what vLLM may use, less weights, less what else it needs.

    blocks = (memory * utilization - weights - other) / bytes per block

``other`` (activations of the largest step, CUDA context, workspaces) is what this formula leaves of
the measured block counts on H200, taken from the measured model whose hidden size is nearest.
Since 0.29 vLLM reserves the memory of CUDA graphs, too, before it sizes the KV cache: ``other``
then holds it, and is learnt from servers of such versions only; before, from the older ones only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from qsim.calibrate.transfer.learn import Sample
from qsim.catalog.gpus import GIB, gpu_type
from qsim.catalog.methods import find_method, weight_bytes
from qsim.catalog.models import Architecture
from qsim.catalog.versions import DEFAULT_VERSION, rules_of
from qsim.errors import CalibrationError, ScenarioError
from qsim.profiles.schema import Memory
from qsim.sim.scheduler.server_memory import UTILIZATION

_BLOCK = 16


def other_bytes(
    samples: Sequence[Sample], architecture: Architecture, version: str = DEFAULT_VERSION
) -> float:
    """What a server of this version of vLLM needs beside weights and KV cache, from measured
    blocks.

    Raises
    ------
    CalibrationError
        If no server was measured whose version accounts for memory in the same way.
    """
    reserves = rules_of(version).reserves_graph_memory
    by_hidden: dict[int, list[float]] = {}
    for s in samples:
        i, m = s.profile.identity, s.profile.memory
        measured = i.vllm_version or DEFAULT_VERSION
        if rules_of(measured).reserves_graph_memory != reserves:
            continue
        kv = m.num_gpu_blocks * m.block_size * m.kv_bytes_per_token
        usable = gpu_type(i.gpu).memory_bytes * UTILIZATION
        left = usable - m.weight_bytes - kv
        by_hidden.setdefault(s.composer.architecture.hidden_size, []).append(left)
    if not by_hidden:
        raise CalibrationError(
            f"no measured server tells how much memory vLLM {version} needs beside weights and KV "
            f"cache: {'it reserves' if reserves else 'those measured reserve'} memory for CUDA "
            f"graphs, {'those measured do' if reserves else 'it does'} not; measure one"
        )
    nearest = min(by_hidden, key=lambda h: (abs(log(h / architecture.hidden_size)), h))
    values = sorted(by_hidden[nearest])
    return values[len(values) // 2]


def kv_memory(
    gpu: str,
    architecture: Architecture,
    method: str,
    tensor_parallel_size: int,
    other: float,
    memory_bytes: int | None = None,
) -> Memory:
    """The memory part of a profile.

    ``memory_bytes`` is what CUDA reports as total, where it is not the type's usual size (an A100
    of 40 GB).

    Raises
    ------
    ScenarioError
        If the model does not fit.
    """
    m = find_method(method)
    weights = weight_bytes(m, architecture, tensor_parallel_size)
    per_token = architecture.kv_bytes_per_token(m.kv_bytes_per_value, tensor_parallel_size)
    total = memory_bytes or gpu_type(gpu).memory_bytes
    room = total * UTILIZATION - weights - other
    blocks = int(room // (per_token * _BLOCK))
    if blocks < 128:
        raise ScenarioError(
            f"does not fit: weights of {weights / GIB:.1f} GiB on each GPU leave "
            f"{max(0.0, room) / GIB:.1f} GiB for the KV cache; use more GPUs "
            "(--tensor-parallel-size)"
        )
    return Memory(
        num_gpu_blocks=blocks,
        block_size=_BLOCK,
        kv_bytes_per_token=per_token,
        weight_bytes=weights,
        measured_with={
            "not measured": "memory accounting",
            "gpu_memory_utilization": UTILIZATION,
            **({} if memory_bytes is None else {"gpu_memory_bytes": memory_bytes}),
        },
    )
