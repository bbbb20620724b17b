"""What fits on the GPU: the longest sequence of a model, and the KV cache beside the rest.

vLLM divides a GPU like this (``gpu_memory_utilization`` of its memory, or all of it where the size
of the KV cache is told):

    memory = weights + KV cache + the rest

The rest, which a profile's measured KV cache tells, is mostly the activations of the largest step:
it grows with ``max_num_batched_tokens``, and the logits with ``max_num_seqs``. What a larger budget
than the measured one needs is estimated, on the careful side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from qsim.catalog.dense import text_config
from qsim.catalog.gpus import GIB, GPUS
from qsim.errors import ScenarioError

if TYPE_CHECKING:
    from qsim.profiles.schema import Profile
    from qsim.sim.scheduler.config import EngineConfig

#: vLLM's default ``--gpu-memory-utilization``
UTILIZATION = 0.92
#: bytes of an activation, and of a logit (float32)
_ACTIVATION_BYTES, _LOGIT_BYTES = 2, 4
#: fields of config.json that vLLM takes the longest sequence from; the smallest counts
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length",
              "max_sequence_length", "max_seq_length", "seq_len")  # fmt: skip
#: RoPE scalings whose factor is in these fields already
_SCALED = ("su", "longrope", "llama3")


def most_positions(architecture: Mapping[str, Any]) -> int | None:
    """The longest ``max_model_len`` that vLLM takes for a config.json; None if it does not say.

    As ``_get_and_verify_max_len`` in vLLM 0.24: the model's positions, times the factor of its RoPE
    scaling; under YaRN the original ones.
    """
    config = text_config(architecture)
    told = [config[k] for k in _POSITIONS if _is_count(config.get(k))]
    if not told:
        return None
    longest: float = min(told)
    factor = 1.0
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, Mapping):
        kind = rope.get("rope_type", rope.get("type"))
        if kind not in _SCALED:
            given = rope.get("factor", 1.0)
            factor = float(given) if isinstance(given, int | float) and given >= 1 else 1.0
            original = rope.get("original_max_position_embeddings")
            if kind == "yarn" and isinstance(original, int):
                longest = float(original)
    return int(longest * factor)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_positions(profile: Profile, max_model_len: int) -> None:
    """Refuse a longer sequence than the model has positions for, as vLLM does.

    Raises
    ------
    ScenarioError
        If ``max_model_len`` is beyond the model, and no server was measured with so much.
    """
    most = most_positions(profile.identity.architecture)
    if most is not None and max_model_len > max(most, profile.engine.max_model_len):
        raise ScenarioError(
            f"max_model_len is {max_model_len}; must be <= {most}, the positions that "
            f"{profile.identity.model} has: vLLM refuses to start with more"
        )


def most_model_len(profile: Profile, config: EngineConfig) -> int:
    """The longest sequence that the model has positions for and the KV cache blocks."""
    holds = (config.num_gpu_blocks - 1) * config.block_size
    most = most_positions(profile.identity.architecture)
    return holds if most is None else min(holds, max(most, profile.engine.max_model_len))


@dataclass(frozen=True)
class KvRoom:
    """How many KV blocks fit beside the weights and a step's activations."""

    #: what vLLM takes by itself: the measured ones, less what a larger budget needs
    blocks: int
    #: with all of the GPU's memory; None where it is not known
    most: int | None
    #: activations and logits beyond those of the measured settings, on each GPU
    extra_bytes: int
    #: the token budget that was measured
    measured_tokens: int


def kv_room(profile: Profile, max_num_batched_tokens: int, max_num_seqs: int) -> KvRoom:
    """The KV blocks that fit at these settings."""
    memory = profile.memory
    block_bytes = memory.kv_bytes_per_token * memory.block_size
    told = memory.measured_with
    total = _gpu_bytes(profile)
    rest = None if total is None else _rest_bytes(profile, total)
    base = told.get("max_num_batched_tokens")
    if not _is_count(base):
        base = profile.engine.max_num_batched_tokens if profile.transferred else None
    extra = 0
    if base is not None:
        extra = _extra_bytes(profile, rest, base, max_num_batched_tokens, max_num_seqs)
    most = None
    if total is not None and rest is not None:
        most = max(0, int((total - memory.weight_bytes - rest - extra) // block_bytes))
    blocks = memory.num_gpu_blocks - ceil(extra / block_bytes)
    return KvRoom(blocks, most, extra, base or 0)


def _gpu_bytes(profile: Profile) -> int | None:
    """Memory of one GPU as CUDA reports it."""
    told = profile.memory.measured_with.get("gpu_memory_bytes")
    if isinstance(told, int) and told > 0:
        return told
    kind = GPUS.get(profile.identity.gpu)
    return None if kind is None else kind.memory_bytes


def _rest_bytes(profile: Profile, total: int) -> float:
    """What the measured server needed beside weights and KV cache."""
    memory = profile.memory
    share = memory.measured_with.get("gpu_memory_utilization")
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
        share = UTILIZATION
    kv = memory.num_gpu_blocks * memory.block_size * memory.kv_bytes_per_token
    return max(0.0, total * share - memory.weight_bytes - kv)


def _extra_bytes(profile: Profile, rest: float | None, base: int, tokens: int, seqs: int) -> int:
    """Activations of ``tokens`` and logits of ``seqs`` beyond those of the measured settings.

    A token's activations are those of the widest point of a block: gate and up projection, their
    product, and three of the hidden size (residual, input, output). Where the measured server
    needed more a token (``rest``), that counts, up to four times as much.
    """
    config = text_config(profile.identity.architecture)
    hidden, inner = config.get("hidden_size"), config.get("intermediate_size")
    vocabulary = config.get("vocab_size")
    if not (isinstance(hidden, int) and isinstance(inner, int) and isinstance(vocabulary, int)):
        return 0
    measured_seqs = profile.engine.max_num_seqs
    width = _ACTIVATION_BYTES * 3 * (inner // profile.identity.tensor_parallel_size + hidden)
    if rest is not None:
        logits = min(base, measured_seqs) * vocabulary * _LOGIT_BYTES
        width = min(4 * width, max(width, int((rest - logits) / base)))
    more = max(0, tokens - base) * width
    rows = min(tokens, seqs) - min(base, measured_seqs)
    return more + max(0, rows) * vocabulary * _LOGIT_BYTES


def check_room(
    profile: Profile,
    room: KvRoom,
    max_num_batched_tokens: int,
    kv_cache_memory_bytes: int | None,
    num_gpu_blocks_override: int | None,
) -> None:
    """Refuse a KV cache that does not fit on the GPU, or a budget that leaves none.

    Raises
    ------
    ScenarioError
        Naming the option, its value and the most that fits.
    """
    memory = profile.memory
    block_bytes = memory.kv_bytes_per_token * memory.block_size
    beside = (
        f"the weights ({memory.weight_bytes / GIB:.1f} GiB) and what else a server needs are on "
        f"each {profile.identity.gpu}, too"
    )
    if num_gpu_blocks_override is not None:
        if room.most is not None and num_gpu_blocks_override > room.most:
            raise ScenarioError(
                f"num_gpu_blocks_override is {num_gpu_blocks_override}; must be <= {room.most} "
                f"blocks of {block_bytes} bytes: {beside}"
            )
    elif kv_cache_memory_bytes is not None:
        if room.most is not None and kv_cache_memory_bytes > (room.most + 1) * block_bytes:
            most_bytes = room.most * block_bytes
            raise ScenarioError(
                f"kv_cache_memory_bytes is {kv_cache_memory_bytes}; must be <= {most_bytes} "
                f"({most_bytes / GIB:.1f} GiB): {beside}"
            )
    elif room.blocks < 2:
        raise ScenarioError(
            f"max_num_batched_tokens is {max_num_batched_tokens}; its activations need about "
            f"{room.extra_bytes / GIB:.1f} GiB more than those of the {room.measured_tokens} that "
            "were measured, which leaves no memory for the KV cache: lower it"
        )


def memory_notes(profile: Profile, config: EngineConfig) -> list[str]:
    """What the KV cache imposed on the settings, for a reader who did not ask for it."""
    notes = []
    usual = profile.engine.max_model_len
    holds = (config.num_gpu_blocks - 1) * config.block_size
    if config.max_model_len == holds < usual:
        notes.append(
            f"max_model_len is {holds:,} and not {usual:,}: the KV cache of "
            f"{config.num_gpu_blocks:,} blocks holds no longer sequence"
        )
    room = kv_room(profile, config.max_num_batched_tokens, config.max_num_seqs)
    if room.blocks == config.num_gpu_blocks < profile.memory.num_gpu_blocks:
        notes.append(
            f"max_num_batched_tokens {config.max_num_batched_tokens:,} and max_num_seqs "
            f"{config.max_num_seqs:,} need about {room.extra_bytes / GIB:.1f} GiB more for "
            f"activations and logits than was measured (at {room.measured_tokens:,} tokens): the "
            f"KV cache is taken to have {room.blocks:,} blocks instead of "
            f"{profile.memory.num_gpu_blocks:,} (estimated)"
        )
    return notes
