"""What ``server.json`` and ``phases.json`` of a recording may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StrictBool

from qsim.bounds import (
    MAX_BATCHED_TOKENS,
    MAX_BLOCK_SIZE,
    MAX_BLOCKS,
    MAX_MODEL_LEN,
    MAX_SEQS,
    MAX_TENSOR_PARALLEL,
    Items,
    Line,
    Name,
    Number,
    Plain,
    PlainObject,
    Text,
    Whole,
)

__all__ = ["PhaseItem", "ServerFile", "ServerRest"]

Word = Annotated[str, Text(200)]
Seconds = Annotated[float, Number(-1e9, 1e9)]
Tokens = Annotated[int, Whole(1, MAX_BATCHED_TOKENS)]


class ServerFile(BaseModel):
    """``server.json``; what is known to no field is kept, if it is plain data."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    gpu: Name
    model: Name
    method: Name
    vllm_version: Word
    driver: Word = ""
    host: Word = ""
    date: Word = ""
    tensor_parallel: Annotated[int, Whole(1, MAX_TENSOR_PARALLEL)] = 1
    quantization_config: PlainObject | None = None
    server_flags: Annotated[list[Line], Items(1000)] = []
    prefix_caching: StrictBool = False
    kv_cache_dtype: Word = "auto"
    max_model_len: Annotated[int, Whole(2, MAX_MODEL_LEN)]
    max_num_batched_tokens: Tokens
    max_num_seqs: Annotated[int, Whole(1, MAX_SEQS)] = 1024
    block_size: Annotated[int, Whole(1, MAX_BLOCK_SIZE)]
    num_gpu_blocks: Annotated[int, Whole(2, MAX_BLOCKS)]
    gpu_memory_utilization: Any = "default"
    graph_sizes: Annotated[list[Tokens], Items(10_000)] | None = None
    power_limit_w: Annotated[float, Number(0.0, 1e6)] | None = None
    weights_gib: Annotated[float, Number(0.0, 1e6)] | None = None
    incomplete: Line | None = None


class ServerRest(BaseModel):
    """The parts of ``server.json`` whose names pydantic keeps for itself, and the whole."""

    config: PlainObject
    whole: Annotated[dict[str, Any], Plain()]


class PhaseItem(BaseModel):
    """One load."""

    model_config = ConfigDict(extra="allow")

    label: Annotated[str, Text(100, 1)]
    what: Line = ""
    load: Word = ""
    use: Literal["fit", "holdout", "skip"] | None = None
    start_s: Seconds
    end_s: Seconds
    energy_j: Annotated[float, Number(-1e12, 1e12)] | None = None
