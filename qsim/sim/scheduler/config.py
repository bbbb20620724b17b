"""The settings of one engine, under vLLM's names, and how a profile and a user resolve them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from qsim.bounds import (
    MAX_BATCHED_TOKENS,
    MAX_BLOCK_SIZE,
    MAX_BLOCKS,
    MAX_MODEL_LEN,
    MAX_SEQS,
)
from qsim.catalog.versions import DEFAULT_VERSION, default_budget, parse_version, require, rules_of
from qsim.checks import whole
from qsim.errors import ScenarioError
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.server_memory import check_positions, check_room, kv_room

#: more memory than a GPU has, bytes
MAX_KV_BYTES = 1 << 46


#: the options with which a server rejects requests (HTTP 503) that come while it has too many
QUEUE_LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")


@dataclass(frozen=True)
class EngineConfig:
    """The complete settings of one engine: what the scheduler's rules depend on.

    ``num_gpu_blocks`` counts the null block, so one block fewer is usable. ``vllm_version`` is the
    release whose rules hold (versions.py).
    """

    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    max_model_len: int = 131072
    block_size: int = 16
    num_gpu_blocks: int = 1 << 30
    enable_prefix_caching: bool = True
    async_scheduling: bool = True
    long_prefill_token_threshold: int = 0
    scheduling_policy: str = "fcfs"
    #: of these seats as many may be taken; None: all
    max_num_active_seqs: int | None = None
    #: raise the threshold to a fair share of the budget
    long_prefill_token_threshold_adaptive: bool = False
    #: what an API server takes in, over all engines behind it: requests that are unfinished, and
    #: prompt tokens of those without a token; None: no limit
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    vllm_version: str = DEFAULT_VERSION

    def __post_init__(self) -> None:
        rules_of(self.vllm_version)
        whole("max_num_seqs", self.max_num_seqs, 1, MAX_SEQS)
        whole("max_num_batched_tokens", self.max_num_batched_tokens, 1, MAX_BATCHED_TOKENS)
        whole("block_size", self.block_size, 1, MAX_BLOCK_SIZE)
        whole("max_model_len", self.max_model_len, 2, MAX_MODEL_LEN)
        whole("num_gpu_blocks", self.num_gpu_blocks, 2, MAX_BLOCKS)
        threshold = self.long_prefill_token_threshold
        whole("long_prefill_token_threshold", threshold, 0, MAX_MODEL_LEN)
        if self.scheduling_policy not in ("fcfs", "priority"):
            raise ScenarioError(
                f"scheduling_policy is {self.scheduling_policy!r}; must be 'fcfs' or 'priority'"
            )
        active = self.max_num_active_seqs
        if active is not None:
            whole("max_num_active_seqs", active, 1)
            require(self.vllm_version, "max_num_active_seqs", "max_num_active_seqs", active)
            if active > self.max_num_seqs:
                raise ScenarioError(
                    f"max_num_active_seqs is {active}; must be <= max_num_seqs {self.max_num_seqs}"
                )
        if self.long_prefill_token_threshold_adaptive:
            name = "long_prefill_token_threshold_adaptive"
            require(self.vllm_version, name, name, True)
        for name in QUEUE_LIMITS:
            limit = getattr(self, name)
            if limit is not None:
                whole(name, limit, 0)
                require(self.vllm_version, name, "queue_limits", limit)

    @property
    def limits_queue(self) -> bool:
        """Whether an API server rejects requests that come while it has too many."""
        return any(getattr(self, name) is not None for name in QUEUE_LIMITS)

    @property
    def seats(self) -> int:
        """Requests that may run at a time."""
        active = self.max_num_active_seqs
        return self.max_num_seqs if active is None else active


@dataclass(frozen=True)
class EngineOptions:
    """What a user may set; ``None`` leaves the profile's (that is, vLLM's) default.

    ``within_measured`` is no setting of an engine but how they are resolved: defaults are lowered
    to the profile's measured range, and what was asked for beyond it is an error. Whatever
    recommends settings sets it, unless it is told otherwise.
    """

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    enable_prefix_caching: bool | None = None
    async_scheduling: bool | None = None
    long_prefill_token_threshold: int | None = None
    scheduling_policy: str | None = None
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    max_num_active_seqs: int | None = None
    long_prefill_token_threshold_adaptive: bool | None = None
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    #: the release whose rules hold; by default the profile's
    vllm_version: str | None = None
    within_measured: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The options that are set."""
        return {k: v for k, v in asdict(self).items() if v is not None and k in ENGINE}

    def updated(self, settings: Mapping[str, Any]) -> EngineOptions:
        """These options, with those that are among ``settings`` in their place."""
        return replace(self, **{k: settings[k] for k in ENGINE if k in settings})

    def version(self, profile: Profile) -> str:
        """The release of vLLM whose rules hold: the one asked for, or the profile's.

        Raises
        ------
        ScenarioError
            If the profile was measured with a release whose rules are not known.
        """
        measured = profile.identity.vllm_version or DEFAULT_VERSION
        parse_version(measured, f"vllm_version of {profile.id}")
        return measured if self.vllm_version is None else self.vllm_version

    def settled(self, profile: Profile) -> EngineOptions:
        """These options with the defaults that :meth:`resolve` lowers for ``profile`` set.

        Raises
        ------
        ScenarioError
            As :meth:`resolve`.
        """
        if not self.within_measured:
            return self
        lowered = self.resolve(profile)
        usual = replace(self, within_measured=False).resolve(profile)
        names = [n for n in MeasuredRange.of(profile).limits() if getattr(self, n) is None]
        changed = {n: getattr(lowered, n) for n in names if getattr(lowered, n) < getattr(usual, n)}
        return replace(self, **changed)

    def resolve(self, profile: Profile) -> EngineConfig:
        """Fill in the profile's defaults.

        The KV pool is ``num_gpu_blocks_override`` blocks, or what ``kv_cache_memory_bytes`` hold,
        or what was measured. A ``max_model_len`` that was not asked for shrinks to what the pool
        can hold; one that was asked for and cannot be held is an error, as it is in vLLM.

        Raises
        ------
        ScenarioError
            Naming the option, its value and what is allowed.
        """
        version = self.version(profile)
        values: dict[str, Any] = {}
        for f in fields(profile.engine):
            override = getattr(self, f.name)
            values[f.name] = getattr(profile.engine, f.name) if override is None else override
        if self.max_num_batched_tokens is None:
            values["max_num_batched_tokens"] = default_budget(
                values["max_num_batched_tokens"],
                profile.identity.gpu,
                profile.identity.vllm_version or DEFAULT_VERSION,
                version,
            )
        memory = profile.memory
        block_size = memory.block_size
        blocks = memory.num_gpu_blocks
        by_itself = self.kv_cache_memory_bytes is None and self.num_gpu_blocks_override is None
        if self.kv_cache_memory_bytes is not None:
            whole("kv_cache_memory_bytes", self.kv_cache_memory_bytes, 1, MAX_KV_BYTES)
            blocks = self.kv_cache_memory_bytes // (memory.kv_bytes_per_token * block_size)
            if blocks < 2:
                raise ScenarioError(
                    f"kv_cache_memory_bytes is {self.kv_cache_memory_bytes}; must be >= "
                    f"{2 * memory.kv_bytes_per_token * block_size} (two blocks of {block_size} "
                    f"tokens at {memory.kv_bytes_per_token} bytes a token)"
                )
        if self.num_gpu_blocks_override is not None:
            whole("num_gpu_blocks_override", self.num_gpu_blocks_override, 2, MAX_BLOCKS)
            blocks = self.num_gpu_blocks_override
        whole("max_num_seqs", values["max_num_seqs"], 1, MAX_SEQS)
        whole("max_num_batched_tokens", values["max_num_batched_tokens"], 1, MAX_BATCHED_TOKENS)
        measured = MeasuredRange.of(profile)
        if self.within_measured:
            for name, limit in measured.limits().items():
                if getattr(self, name) is None:
                    values[name] = min(values[name], limit)
        if values["max_num_batched_tokens"] < values["max_num_seqs"]:
            if self.max_num_seqs is not None and self.max_num_batched_tokens is not None:
                raise ScenarioError(
                    f"max_num_batched_tokens is {values['max_num_batched_tokens']}; must be >= "
                    f"max_num_seqs {values['max_num_seqs']}"
                )
            if self.max_num_batched_tokens is not None:
                values["max_num_seqs"] = values["max_num_batched_tokens"]  # as vLLM clamps it
            else:
                values["max_num_batched_tokens"] = values["max_num_seqs"]
        if self.within_measured:
            objection = measured.objection(values["max_num_seqs"], values["max_num_batched_tokens"])
            if objection is not None:
                raise ScenarioError(f"{profile.id}: {objection}")
        room = kv_room(profile, values["max_num_batched_tokens"], values["max_num_seqs"])
        if by_itself:
            blocks = room.blocks
        check_room(
            profile,
            room,
            values["max_num_batched_tokens"],
            self.kv_cache_memory_bytes,
            self.num_gpu_blocks_override,
        )
        if self.max_model_len is not None:
            whole("max_model_len", self.max_model_len, 2, MAX_MODEL_LEN)
            check_positions(profile, self.max_model_len)
        holds = (blocks - 1) * block_size
        if self.max_model_len is None:
            values["max_model_len"] = max(2, min(values["max_model_len"], holds))
        elif self.max_model_len > holds:
            raise ScenarioError(
                f"max_model_len is {self.max_model_len}; the KV cache of {blocks} blocks holds "
                f"one sequence of at most {holds} tokens: lower it or give more KV memory"
            )
        return EngineConfig(
            block_size=block_size,
            num_gpu_blocks=blocks,
            max_num_active_seqs=self.max_num_active_seqs,
            long_prefill_token_threshold_adaptive=bool(self.long_prefill_token_threshold_adaptive),
            max_num_queued_reqs=self.max_num_queued_reqs,
            max_num_queued_tokens=self.max_num_queued_tokens,
            vllm_version=version,
            **values,
        )


def refuse_queue_limits(names: Iterable[str], what: str) -> None:
    """Refuse limits of the queue where all requests are to be served.

    Raises
    ------
    ScenarioError
        If one of them is among ``names``.
    """
    for name in names:
        if name in QUEUE_LIMITS:
            raise ScenarioError(
                f"{name} is given; {what} looks for servers that take every request, and with it "
                f"they reject some: leave it out, and see with qsim simulate what it rejects"
            )


#: names of the engine options
ENGINE = tuple(f.name for f in fields(EngineOptions) if f.name != "within_measured")
