"""A profile as it would be if one thing were different: slower by its error, a faster host, ..."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qsim.profiles.factors import Factors, apply
from qsim.profiles.schema import Profile

__all__ = [
    "scaled_host",
    "scaled_memory",
    "scaled_times",
    "stated_kv_sigma",
    "stated_sigma",
    "without_power_cap",
]

#: no factor below it: a profile cannot be off by so much
_LEAST = 0.1


def stated_sigma(profile: Profile) -> float:
    """Relative standard error of a profile's times: the worst error of a mean latency it states.

    That is the largest of the errors of the mean TTFT, TPOT and end-to-end latency on loads that
    were not fitted; as a standard deviation it is on the careful side. A transferred profile states
    its estimate under the same key. 0 where none is stated.
    """
    value = profile.fit_error.get("worst_mean")
    return abs(float(value)) / 100 if isinstance(value, int | float) else 0.0


def stated_kv_sigma(profile: Profile) -> float:
    """Relative standard error of the KV cache's size: of a transferred profile, what it states.

    A measured profile has the number of blocks that the server told: 0.
    """
    if profile.transfer is None:
        return 0.0
    return abs(float(profile.transfer.error_percent.get("kv_tokens", 0.0))) / 100


def scaled_memory(profile: Profile, factor: float) -> Profile:
    """So many times the KV blocks, at least two."""
    blocks = max(2, round(profile.memory.num_gpu_blocks * max(factor, _LEAST)))
    return replace(profile, memory=replace(profile.memory, num_gpu_blocks=blocks))


def scaled_times(profile: Profile, factor: float) -> Profile:
    """Every time multiplied by ``factor``: GPU spans, host and front end; energy a token stays."""
    factor = max(factor, _LEAST)
    spans = apply(profile, Factors(front_end=factor, memory=factor, compute=factor))
    return replace(scaled_host(profile, factor), latency=spans.latency, frontend=spans.frontend)


def scaled_host(profile: Profile, factor: float) -> Profile:
    """The host thread's times multiplied by ``factor``.

    The gap between GPU spans stays, and so does how full a step makes the queue of launches.
    """
    values: dict[str, Any] = {
        k: [x * factor for x in v] if isinstance(v, list) else v * factor
        for k, v in vars(profile.host).items()
        if k not in ("gpu_gap_ms", "launch_eager_queue")
    }
    return replace(profile, host=replace(profile.host, **values))


def without_power_cap(profile: Profile) -> Profile:
    """Steps at full clock whatever the power."""
    free = replace(profile.latency.throttle, decode=0.0, piecewise=0.0, eager=0.0)
    return replace(profile, latency=replace(profile.latency, throttle=free))
