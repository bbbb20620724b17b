"""What differs between versions of vLLM, as data: one state machine serves them all.

Every rule that changed has a name here and the release that brought the change. They were read in
the wheels of the releases named (``vllm/v1/core/sched/scheduler.py``, ``vllm/v1/engine/
core_client.py``, ``vllm/v1/engine/async_llm.py``, ``vllm/config/vllm.py``,
``vllm/engine/arg_utils.py``); docs/versions.md says what was verified for which release, and how
to follow the next one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from qsim.errors import ScenarioError

#: what a scenario or a profile that names no version is taken to be
DEFAULT_VERSION = "0.24"
#: the range of releases (major, minor) whose rules were read
OLDEST = (0, 24)
NEWEST = (0, 33)

#: ``vllm serve``'s default of max_num_batched_tokens on GPUs of 70 GiB or more (but for A100), and
#: of 160 GiB or more; and what the names of the latter begin with
BUDGET, LARGE_BUDGET = 8192, 16384
#: its defaults of max_num_batched_tokens and max_num_seqs on other GPUs, and on those of 70 GiB
#: or more that are no A100 (``get_batch_defaults`` in vllm/engine/arg_utils.py, 0.24 to 0.33)
SMALL_LIMITS, USUAL_LIMITS = (2048, 256), (BUDGET, 1024)
_USUAL_BYTES = 70 << 30
LARGE_GPUS = ("b200", "b300", "gb200", "gb300", "mi300", "mi325", "mi350", "mi355")

# a release with whatever a wheel may add to it: rc1, .dev12, .post1, +cu130
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:\.?(?:rc|a|b|dev|post)\d*)*(?:\+[\w.]+)?")


def _since(major: int, minor: int) -> Any:
    """A rule that releases have from this one on."""
    return field(metadata={"since": (major, minor)})


@dataclass(frozen=True)
class VersionRules:
    """The rules and defaults of one release. Each flag says whether the release has the rule."""

    #: ``long_prefill_token_threshold`` caps nothing in a schedule call at whose start at most one
    #: request waits or runs.
    lone_request_uncapped: bool = _since(0, 31)
    #: Priority: where a victim stood before the request that needs its blocks, the scan of the
    #: running requests moves back with the list. Before, only for a victim that had been served in
    #: that call: for one that was passed over, the request after the current one lost its turn.
    scan_follows_victim: bool = _since(0, 28)
    #: Priority: a request that preempts itself does not end the pass; those after it are served.
    pass_survives_self_preemption: bool = _since(0, 33)
    #: These options exist (``queue_limits``: ``max_num_queued_reqs``, ``max_num_queued_tokens``).
    max_num_active_seqs: bool = _since(0, 31)
    long_prefill_token_threshold_adaptive: bool = _since(0, 31)
    queue_limits: bool = _since(0, 29)
    #: The balancer of data-parallel engines starts its scan one engine further each time. Before,
    #: always at the first: of equals the first was taken.
    balancer_rotates: bool = _since(0, 25)
    #: It takes the engine with the least ``max(own requests in flight, waiting + running)``, plus
    #: ``6 * waiting * (KV use - 0.5)`` if anything waits and more than half of the KV cache is
    #: used. Before: ``4 * waiting + running``.
    balancer_by_cache_pressure: bool = _since(0, 27)
    #: ``max_num_seqs`` itself is a captured CUDA-graph size, if it is within the largest.
    captures_max_num_seqs: bool = _since(0, 29)
    #: ``vllm serve`` defaults to 16384 batched tokens on GPUs of 160 GiB or more.
    large_gpu_budget: bool = _since(0, 28)
    #: The memory of CUDA graphs is reserved before the KV cache is sized.
    reserves_graph_memory: bool = _since(0, 29)


#: the first release that has each rule
_SINCE: dict[str, tuple[int, int]] = {f.name: f.metadata["since"] for f in fields(VersionRules)}


def parse_version(version: str, name: str = "vllm_version") -> tuple[int, int, int]:
    """``"0.33"``, ``"0.33.0"`` or ``"0.33.0rc1+cu130"`` as (0, 33, 0).

    Raises
    ------
    ScenarioError
        If it is no version, or one older than the oldest that is known.
    """
    match = _VERSION.fullmatch(version.strip()) if isinstance(version, str) else None
    if match is None:
        raise ScenarioError(
            f"{name} is {version!r}; must be a version of vLLM, such as "
            f"'{_text(OLDEST)}' or '{_text(NEWEST)}.0'"
        )
    major, minor, patch = match.groups()
    release = int(major), int(minor), int(patch or 0)
    if release[:2] < OLDEST:
        raise ScenarioError(
            f"{name} is {version!r}; must be {_text(OLDEST)} or newer, as the rules of older "
            f"versions are not known to qsim (a YAML file needs quotes: '0.30')"
        )
    return release


def rules_of(version: str) -> VersionRules:
    """The rules of a release; those of the newest that is known if it is newer than that.

    Raises
    ------
    ScenarioError
        If it is no version, or older than the oldest that is known.
    """
    release = parse_version(version)[:2]
    return VersionRules(**{rule: release >= since for rule, since in _SINCE.items()})


def default_limits(gpu: str, memory_bytes: int) -> tuple[int, int]:
    """``vllm serve``'s defaults of max_num_batched_tokens and max_num_seqs on a GPU.

    ``gpu`` is a profile's name of it, none of :data:`LARGE_GPUS`; ``memory_bytes`` as CUDA reports
    it.
    """
    small = memory_bytes < _USUAL_BYTES or gpu.lower().startswith("a100")
    return SMALL_LIMITS if small else USUAL_LIMITS


def default_budget(budget: int, gpu: str, measured: str, version: str) -> int:
    """The default of ``max_num_batched_tokens`` under ``version``, from that under another release.

    ``budget`` is the default of ``vllm serve`` on this GPU under the release ``measured``.
    """
    large = gpu.lower().startswith(LARGE_GPUS)
    before, now = (rules_of(v).large_gpu_budget for v in (measured, version))
    if large and before != now and budget == (LARGE_BUDGET if before else BUDGET):
        return LARGE_BUDGET if now else BUDGET
    return budget


def graph_sizes(
    measured: Sequence[int], max_num_seqs: int, max_num_batched_tokens: int, version: str
) -> list[int]:
    """The CUDA-graph sizes that a server captures by default, ascending.

    vLLM captures none above twice the seats, nor above the token budget; the budget itself is
    captured where it is within that (``VllmConfig._set_cudagraph_sizes``). ``measured`` are those
    that were captured with as many seats as the largest needs.
    """
    if not measured:
        return []
    largest = min(2 * max_num_seqs, measured[-1])
    sizes = {s for s in measured if s <= min(largest, max_num_batched_tokens)}
    if max_num_batched_tokens <= largest:
        sizes.add(max_num_batched_tokens)
    within = max_num_seqs <= min(largest, max_num_batched_tokens)
    if within and rules_of(version).captures_max_num_seqs:
        sizes.add(max_num_seqs)
    return sorted(sizes)


def version_notes(measured: str, version: str) -> list[str]:
    """What a reader should know of a run by the rules of ``version``, of a profile that was
    measured with another one.
    """
    notes = []
    newer = newer_than_known(version)
    if newer:
        notes.append(newer)
    if parse_version(measured)[:2] != parse_version(version)[:2]:
        text = (
            f"scheduling, routing and graph sizes are those of vLLM {version}; step times and the "
            f"number of KV blocks are those of the profile, of vLLM {measured}"
        )
        if rules_of(version).reserves_graph_memory and not rules_of(measured).reserves_graph_memory:
            text += (
                f": {version} reserves memory for CUDA graphs and has fewer blocks, "
                "--num-gpu-blocks-override tells how many"
            )
        notes.append(text)
    return notes


def newer_than_known(version: str) -> str | None:
    """A remark for a version newer than the newest that is known; None for all others."""
    if parse_version(version)[:2] <= NEWEST:
        return None
    newest = _text(NEWEST)
    return (
        f"vLLM {version} is newer than {newest}, the newest whose rules are known to qsim: the "
        f"rules of {newest} were used"
    )


def require(version: str, option: str, rule: str, value: object) -> None:
    """Refuse an option that the release does not have.

    Raises
    ------
    ScenarioError
        Naming the option, its value and the first release that has it.
    """
    if not getattr(rules_of(version), rule):
        raise ScenarioError(
            f"{option} is {value!r}; vLLM {version} has no such option, {_text(_SINCE[rule])} "
            f"brought it: leave it out or give a newer vllm_version"
        )


def _text(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
