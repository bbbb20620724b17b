"""The data of a recording: server, phases, steps, requests, power, as columns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.bounds import (
    MAX_BATCHED_TOKENS,
    MAX_BLOCK_SIZE,
    MAX_BLOCKS,
    MAX_MODEL_LEN,
    MAX_SEQS,
    MAX_TENSOR_PARALLEL,
    Flag,
    Items,
    Line,
    Name,
    Number,
    PlainObject,
    Text,
    Whole,
)
from qsim.catalog.models import Architecture
from qsim.errors import RecordingError

#: how a phase is used: fitted; fitted, but left out in turn to state the error; never used
FIT, HOLDOUT, SKIP = "fit", "holdout", "skip"


Word = Annotated[str, Text(200)]
Tokens = Annotated[int, Whole(1, MAX_BATCHED_TOKENS)]


@dataclass(frozen=True, kw_only=True)
class Server:
    """What was served, from ``server.json``."""

    gpu: Name
    model: Name
    method: Name
    vllm_version: Word
    driver: Word = ""
    host: Word = ""
    date: Word = ""
    tensor_parallel: Annotated[int, Whole(1, MAX_TENSOR_PARALLEL)] = 1
    quantization_config: PlainObject | None = None
    server_flags: Annotated[tuple[Line, ...], Items(1000)] = ()
    prefix_caching: Flag = False
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
    model_config: PlainObject
    #: everything in the file, including what has no field here
    raw: PlainObject = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The model's numbers; ScenarioError if one is missing, or it is no dense decoder."""
        return Architecture.from_config(self.model_config, f"{self.model}: model_config")

    @property
    def kv_heads(self) -> int:
        """KV heads on each GPU."""
        return max(1, self.architecture.num_key_value_heads // self.tensor_parallel)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache of one token on one GPU."""
        bytes_per_value = 1 if self.kv_cache_dtype.startswith("fp8") else 2
        return self.architecture.kv_bytes_per_token(bytes_per_value, self.tensor_parallel)

    @property
    def profile_id(self) -> str:
        """The id of a profile of this kind of server, such as h200_sxm/llama-3.1-70b/bf16/tp2."""
        tp = f"/tp{self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        return f"{self.gpu}/{self.model}/{self.method}{tp}"

    @property
    def release(self) -> str:
        """vLLM's major and minor version, ``"0.33"``; ``""`` where the recording does not tell."""
        found = re.match(r"v?(\d+\.\d+)(?!\d)", self.vllm_version)
        return found[1] if found else ""


@dataclass(frozen=True)
class Phase:
    """One load. Energy is that between the first send and the last token.

    ``clients`` is the number of clients of a closed loop that is replayed as one.
    """

    label: str
    what: str
    load: str
    start_s: float
    end_s: float
    energy_j: float
    use: str
    clients: int | None = None


@dataclass(frozen=True, eq=False)
class Steps:
    """Engine steps in order of scheduling; arrays of shape (n,), times in s.

    ``phase`` is the phase's position in ``Recording.phases``. ``chunks[i]`` holds the prefill
    chunks of step i as (new tokens, tokens computed before). ``pairs`` counts the (query, key)
    pairs of these chunks: ``sum n * (computed + (n + 1) / 2)``.
    """

    phase: IntArray
    schedule_s: FloatArray
    schedule_dur_s: FloatArray
    launch_start_s: FloatArray
    launch_end_s: FloatArray
    sample_start_s: FloatArray
    sample_end_s: FloatArray
    gpu_ms: FloatArray
    update_s: FloatArray
    update_dur_s: FloatArray
    chunks: tuple[tuple[tuple[int, int], ...], ...]
    num_chunks: IntArray
    pairs: FloatArray
    prefill_tokens: IntArray
    decodes: IntArray
    decode_context_tokens: IntArray
    running: IntArray
    waiting: IntArray
    kv_usage: FloatArray

    def __len__(self) -> int:
        return len(self.phase)

    @property
    def has_gpu_spans(self) -> bool:
        """Whether launch times and GPU spans were recorded."""
        return bool(np.isfinite(self.gpu_ms).any() and np.isfinite(self.launch_start_s).any())


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in order of sending; arrays of shape (n,), times in s as the client saw them."""

    phase: IntArray
    request_id: tuple[str, ...]
    sent_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    first_token_s: FloatArray
    last_token_s: FloatArray

    def __len__(self) -> int:
        return len(self.phase)


@dataclass(frozen=True, eq=False)
class PowerSamples:
    """Readings of the GPUs of the server, all of them together; arrays of shape (n,)."""

    t_s: FloatArray
    energy_j: FloatArray
    power_avg_w: FloatArray
    power_instant_w: FloatArray
    sm_clock_mhz: FloatArray
    temperature_c: FloatArray


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded server. ``name`` is the folder's name."""

    name: str
    server: Server
    phases: tuple[Phase, ...]
    steps: Steps
    requests: Requests
    power: PowerSamples

    def phase_index(self, label: str) -> int:
        """The position of a phase.

        Raises
        ------
        RecordingError
            If there is none of that label.
        """
        for i, p in enumerate(self.phases):
            if p.label == label:
                return i
        known = ", ".join(p.label for p in self.phases)
        raise RecordingError(f"{self.name}: no phase {label!r}; it has: {known}")
