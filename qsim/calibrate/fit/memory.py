"""Memory: bytes of KV cache a token and bytes of weights, from architecture and method."""

from __future__ import annotations

from qsim.calibrate.recordings.data import Server
from qsim.catalog.methods import find_method, weight_bytes
from qsim.catalog.models import Architecture
from qsim.profiles.schema import Memory

__all__ = ["architecture", "fit_memory", "kv_bytes_per_token", "kv_heads"]


def architecture(server: Server) -> Architecture:
    """The model's numbers.

    Raises
    ------
    ScenarioError
        If one is missing, or the model is not a dense decoder.
    """
    return Architecture.from_config(server.model_config, f"{server.model}: model_config")


def kv_bytes_per_token(server: Server) -> int:
    """Bytes of KV cache of one token on one GPU."""
    bytes_per_value = 1 if server.kv_cache_dtype.startswith("fp8") else 2
    return architecture(server).kv_bytes_per_token(bytes_per_value, server.tensor_parallel)


def kv_heads(server: Server) -> int:
    """KV heads on each GPU."""
    return max(1, architecture(server).num_key_value_heads // server.tensor_parallel)


def fit_memory(server: Server) -> Memory:
    """What was measured (the number of KV blocks) and what follows from the architecture."""
    method = find_method(server.method)
    return Memory(
        num_gpu_blocks=server.num_gpu_blocks,
        block_size=server.block_size,
        kv_bytes_per_token=kv_bytes_per_token(server),
        weight_bytes=weight_bytes(method, architecture(server), server.tensor_parallel),
        measured_with={
            "max_model_len": server.max_model_len,
            "max_num_batched_tokens": server.max_num_batched_tokens,
            "gpu_memory_utilization": server.gpu_memory_utilization,
            "kv_cache_dtype": server.kv_cache_dtype,
        },
    )
