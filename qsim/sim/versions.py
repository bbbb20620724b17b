"""What differs between versions of vLLM, as data: one state machine serves them all.

Every rule that changed has a name here and the release that brought the change. They were read in
the wheels of the releases named (``vllm/v1/core/sched/scheduler.py``, ``vllm/v1/engine/
core_client.py``, ``vllm/v1/engine/async_llm.py``, ``vllm/config/vllm.py``,
``vllm/engine/arg_utils.py``); docs/versions.md says what was verified for which release, and how
to follow the next one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qsim.errors import ScenarioError

__all__ = [
    "DEFAULT_VERSION",
    "NEWEST",
    "OLDEST",
    "VersionRules",
    "newer_than_known",
    "parse_version",
    "require",
    "rules_of",
]

#: what a scenario or a profile that names no version is taken to be
DEFAULT_VERSION = "0.24"
#: the range of releases (major, minor) whose rules were read
OLDEST = (0, 24)
NEWEST = (0, 33)

# a release with whatever a wheel may add to it: rc1, .dev12, .post1, +cu130
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:\.?(?:rc|a|b|dev|post)\d*)*(?:\+[\w.]+)?")


@dataclass(frozen=True)
class VersionRules:
    """The rules and defaults of one release. Each flag says whether the release has the rule.

    Attributes
    ----------
    lone_request_uncapped
        ``long_prefill_token_threshold`` caps nothing in a schedule call at whose start at most one
        request waits or runs.
    scan_follows_victim
        Priority: where a victim stood before the request that needs its blocks, the scan of the
        running requests moves back with the list. Before, only for a victim that had been served
        in that call: for one that was passed over, the request after the current one lost its turn.
    pass_survives_self_preemption
        Priority: a request that preempts itself does not end the pass; those after it are served.
    max_num_active_seqs, long_prefill_token_threshold_adaptive, queue_limits
        The option exists (``queue_limits``: ``max_num_queued_reqs``, ``max_num_queued_tokens``).
    balancer_rotates
        The balancer of data-parallel engines starts its scan one engine further each time. Before,
        always at the first: of equals the first was taken.
    balancer_by_cache_pressure
        It takes the engine with the least ``max(own requests in flight, waiting + running)``, plus
        ``6 * waiting * (KV use - 0.5)`` if anything waits and more than half of the KV cache is
        used. Before: ``4 * waiting + running``.
    captures_max_num_seqs
        ``max_num_seqs`` itself is a captured CUDA-graph size, if it is within the largest.
    large_gpu_budget
        ``vllm serve`` defaults to 16384 batched tokens on GPUs of 160 GiB or more.
    reserves_graph_memory
        The memory of CUDA graphs is reserved before the KV cache is sized.
    """

    lone_request_uncapped: bool
    scan_follows_victim: bool
    pass_survives_self_preemption: bool
    max_num_active_seqs: bool
    long_prefill_token_threshold_adaptive: bool
    queue_limits: bool
    balancer_rotates: bool
    balancer_by_cache_pressure: bool
    captures_max_num_seqs: bool
    large_gpu_budget: bool
    reserves_graph_memory: bool


#: the first release that has each rule
_SINCE: dict[str, tuple[int, int]] = {
    "balancer_rotates": (0, 25),
    "balancer_by_cache_pressure": (0, 27),
    "scan_follows_victim": (0, 28),
    "large_gpu_budget": (0, 28),
    "captures_max_num_seqs": (0, 29),
    "queue_limits": (0, 29),
    "reserves_graph_memory": (0, 29),
    "lone_request_uncapped": (0, 31),
    "max_num_active_seqs": (0, 31),
    "long_prefill_token_threshold_adaptive": (0, 31),
    "pass_survives_self_preemption": (0, 33),
}


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
            f"{_text(OLDEST)} or {_text(NEWEST)}.0"
        )
    major, minor, patch = match.groups()
    release = int(major), int(minor), int(patch or 0)
    if release[:2] < OLDEST:
        raise ScenarioError(
            f"{name} is {version!r}; must be {_text(OLDEST)} or newer: the rules of older "
            f"versions are not known to qsim"
        )
    return release


def rules_of(version: str, name: str = "vllm_version") -> VersionRules:
    """The rules of a release; those of the newest that is known if it is newer than that.

    Raises
    ------
    ScenarioError
        If it is no version, or older than the oldest that is known.
    """
    release = parse_version(version, name)[:2]
    return VersionRules(**{rule: release >= since for rule, since in _SINCE.items()})


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
