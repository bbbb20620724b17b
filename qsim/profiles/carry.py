"""Profiles carried from the version of vLLM that was measured to another one.

Servers of some methods were measured under both versions, one after the other on one GPU; what
changed between the two is in ``versions.json`` (``qsim calibrate versions`` writes it). A profile
of a method that was not measured again takes these factors and states the error that they have
where they can be checked: a method's factor against that of the others, each left out in turn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from qsim.bounds import Closed, Items, Line, Name, Number
from qsim.catalog.versions import parse_version
from qsim.profiles.schema import ApiTimes, Carried, HostTimes, Profile

FILE = Path(__file__).parent / "versions.json"
SCHEMA = "qsim-versions/1"

Factor = Annotated[float, Number(0.1, 10.0)]


@dataclass(frozen=True)
class Change(Closed):
    """What changed from one version of vLLM to another, measured on one GPU.

    Attributes
    ----------
    before, after
        The versions, as ``"0.24"``.
    gpu
        The type of the GPU; profiles of others are not carried.
    servers
        What was measured under both.
    kernel_changed
        Methods whose kernel is another one since: they are not carried.
    decode, piecewise, eager
        Factors of GPU spans by execution mode.
    schedule, update, launch_decode, launch_piecewise, launch_eager
        Factors of the host's times.
    result_ms
        What is added to ``HostTimes.result_ms``.
    kv_gib
        What is added to the memory of the KV cache of each GPU, GiB.
    error_percent
        By quantity: "decode", "prefill", "power" and "kv_tokens", as in ``Transfer``, and "host".
    api
        What the API server's process takes on the host of the shipped profiles; those that do not
        say take it.
    """

    before: Line
    after: Line
    gpu: Name
    servers: Annotated[list[Line], Items(100, 1)]
    kernel_changed: Annotated[list[Name], Items(100)]
    decode: Factor
    piecewise: Factor
    eager: Factor
    schedule: Factor
    update: Factor
    launch_decode: Factor
    launch_piecewise: Factor
    launch_eager: Factor
    result_ms: Annotated[float, Number(-10.0, 10.0)]
    kv_gib: Annotated[float, Number(-100.0, 100.0)]
    error_percent: Annotated[dict[Line, Annotated[float, Number(0.0, 1e6)]], Items(100, 1)]
    api: ApiTimes | None = None


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as ``"0.33.0"``."""
    return parse_version(version)[:2]


@lru_cache(maxsize=1)
def changes() -> tuple[Change, ...]:
    """All measured changes. The file is the package's own, so only a test checks it."""
    if not FILE.is_file():
        return ()
    data = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(
        Change(**{**c, "api": ApiTimes(**c["api"]) if "api" in c else None})
        for c in data["changes"]
    )


def carry(profile: Profile, version: str) -> Profile | None:
    """The profile as its server would be under ``version``; None where nothing measured tells.

    That is: a version other than those that were compared, another type of GPU, a profile that was
    itself transferred, or a method whose kernel changed in between.
    """
    i = profile.identity
    if profile.transferred or not i.vllm_version:
        return None
    for change in changes():
        if (
            (release(change.before), release(change.after))
            == (release(i.vllm_version), release(version))
            and change.gpu == i.gpu
            and i.method.partition("+")[0] not in change.kernel_changed
        ):
            return _carried(profile, change)
    return None


def _carried(profile: Profile, c: Change) -> Profile:
    from qsim.profiles.factors import decode_span, mixed_span

    i, m, latency = profile.identity, profile.memory, profile.latency
    block_bytes = m.block_size * m.kv_bytes_per_token
    blocks = max(2, m.num_gpu_blocks + math.floor(c.kv_gib * 2**30 / block_bytes))
    measured_host = profile.measured_host
    if measured_host is not None:
        measured_host = replace(measured_host, host=_host(measured_host.host, c))
    frontend = profile.frontend
    if frontend.api is None and c.api is not None:
        frontend = frontend.with_api(c.api)
    return replace(
        profile,
        identity=replace(i, vllm_version=c.after),
        latency=replace(
            latency,
            decode=decode_span(latency.decode, c.decode),
            piecewise=mixed_span(latency.piecewise, c.piecewise, c.piecewise),
            eager=mixed_span(latency.eager, c.eager, c.eager),
        ),
        host=_host(profile.host, c),
        frontend=frontend,
        memory=replace(m, num_gpu_blocks=blocks),
        fit_error=_errors(profile.fit_error, c.error_percent),
        measured_host=measured_host,
        carried=Carried(i.vllm_version, list(c.servers), dict(c.error_percent)),
    )


def _host(h: HostTimes, c: Change) -> HostTimes:
    from qsim.profiles.factors import times

    return replace(
        h,
        schedule_ms=times(h.schedule_ms, c.schedule),
        update_ms=times(h.update_ms, c.update),
        launch_decode_ms=times(h.launch_decode_ms, c.launch_decode),
        launch_piecewise_ms=times(h.launch_piecewise_ms, c.launch_piecewise),
        launch_eager_ms=times(h.launch_eager_ms, c.launch_eager),
        result_ms=max(0.0, h.result_ms + c.result_ms),
    )


def _errors(stated: Mapping[str, Any], more: Mapping[str, float]) -> dict[str, Any]:
    """The profile's own errors and those of the factors, which know nothing of each other."""
    latency = max(more.get("decode", 0.0), more.get("prefill", 0.0))
    added = dict.fromkeys(("worst_mean", "worst_median", "worst_p99"), latency)
    added["worst_energy"] = more.get("power", 0.0)
    result = dict(stated)
    for key, value in added.items():
        if isinstance(result.get(key), int | float):
            result[key] = round(math.hypot(result[key], value), 2)
    return result
