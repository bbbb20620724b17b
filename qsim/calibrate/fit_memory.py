"""Memory: bytes of KV cache a token and bytes of weights, from architecture and method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsim.calibrate.recording import Server
from qsim.errors import CalibrationError
from qsim.profile import Memory

__all__ = ["fit_memory", "kv_bytes_per_token", "weight_bytes"]

#: bytes a weight of a quantized linear layer, with group scales (and zero points) at group 128
_BYTES_PER_WEIGHT = {
    "bf16": 2.0,
    "fp8-w8a8": 1.0,
    "fp8-w8a8-static": 1.0,
    "fp8-block": 1.0 + 4 / 128**2,
    "int8-w8a8": 1.0,
    "gptq-w4a16": 0.5 + 2 / 128,
    "awq-w4a16": 0.5 + 2.5 / 128,
    "gptq-w8a16": 1.0 + 2 / 128,
    "w4a8-fp8": 0.5 + 2 / 128,
    "nvfp4-w4a16": 0.5 + 1 / 16,
    "mxfp4-w4a16": 0.5 + 1 / 32,
}


def _number(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CalibrationError(f"model_config: {name} is {value!r}; must be a whole number >= 1")
    return value


def _head_dim(config: Mapping[str, Any]) -> int:
    if config.get("head_dim") is not None:
        return _number(config, "head_dim")
    return _number(config, "hidden_size") // _number(config, "num_attention_heads")


def kv_bytes_per_token(
    config: Mapping[str, Any], *, fp8: bool = False, tensor_parallel: int = 1
) -> int:
    """Bytes of KV cache of one token on one GPU: keys and values of every layer."""
    heads = max(1, _number(config, "num_key_value_heads") // tensor_parallel)
    width = heads * _head_dim(config) * (1 if fp8 else 2)
    return 2 * _number(config, "num_hidden_layers") * width


def weight_bytes(config: Mapping[str, Any], method: str) -> int:
    """Bytes of weights of a dense decoder; embeddings and the output head stay in 16 bits."""
    base = method.partition("+")[0]
    if base not in _BYTES_PER_WEIGHT:
        known = ", ".join(_BYTES_PER_WEIGHT)
        raise CalibrationError(f"method is {method!r}; its weights are not known; known: {known}")
    hidden, inner = _number(config, "hidden_size"), _number(config, "intermediate_size")
    heads, kv_heads = _number(config, "num_attention_heads"), _number(config, "num_key_value_heads")
    dim = _head_dim(config)
    linear = hidden * dim * (2 * heads + 2 * kv_heads) + 3 * hidden * inner
    layers = _number(config, "num_hidden_layers")
    tables = 1 if config.get("tie_word_embeddings") else 2
    small = layers * 2 * hidden + hidden
    return round(
        layers * linear * _BYTES_PER_WEIGHT[base]
        + 2 * (tables * _number(config, "vocab_size") * hidden + small)
    )


def fit_memory(server: Server) -> Memory:
    """What was measured (the number of KV blocks) and what follows from the architecture."""
    config = server.model_config
    fp8_kv = server.kv_cache_dtype.startswith("fp8")
    return Memory(
        num_gpu_blocks=server.num_gpu_blocks,
        block_size=server.block_size,
        kv_bytes_per_token=kv_bytes_per_token(
            config, fp8=fp8_kv, tensor_parallel=server.tensor_parallel
        ),
        weight_bytes=weight_bytes(config, server.method) // server.tensor_parallel,
        measured_with={
            "max_model_len": server.max_model_len,
            "max_num_batched_tokens": server.max_num_batched_tokens,
            "gpu_memory_utilization": server.raw.get("gpu_memory_utilization", "default"),
            "kv_cache_dtype": server.kv_cache_dtype,
        },
    )
