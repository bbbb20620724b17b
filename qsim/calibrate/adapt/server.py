"""A vLLM server that is running: what it says of itself, and whether it is the profile's."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qsim.bounds import MAX_BLOCKS, shown
from qsim.catalog.versions import parse_version
from qsim.errors import CalibrationError, ScenarioError
from qsim.profiles.lookup import list_profiles
from qsim.profiles.schema import Profile
from qsim.prometheus import samples

__all__ = [
    "Metrics",
    "RunningServer",
    "cache_blocks",
    "check_cache",
    "check_graphs",
    "check_server",
    "describe",
    "read_metrics",
    "scrape",
    "split_url",
]

_TIMEOUT_S = 5.0
#: for what a server in development mode says of itself: it looks through its machine first
_INFO_TIMEOUT_S = 30.0
_MOST_BYTES = 16 << 20
#: KV blocks may be off by so much before the server must be another one
_BLOCKS = (0.7, 1.3)


@dataclass(frozen=True)
class Metrics:
    """Some of vLLM's Prometheus metrics. None where they are not told."""

    running: float | None = None
    waiting: float | None = None
    finished: float | None = None
    cache: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunningServer:
    """What a server says. None, or empty, where it does not."""

    host: str
    port: int
    model: str
    root: str
    max_model_len: int | None
    version: str
    metrics: Metrics | None
    #: sizes of its CUDA graphs; None where it does not tell them (it does in development mode)
    graph_sizes: tuple[int, ...] | None = None

    @property
    def num_gpu_blocks(self) -> int | None:
        """KV blocks."""
        return None if self.metrics is None else cache_blocks(self.metrics.cache)

    @property
    def prefix_caching(self) -> bool | None:
        """Whether it caches prefixes."""
        text = "" if self.metrics is None else self.metrics.cache.get("enable_prefix_caching", "")
        return {"True": True, "False": False}.get(text)


def split_url(base_url: str) -> tuple[str, int]:
    """Host and port of ``http://host:port``.

    Raises
    ------
    ScenarioError
        If it is anything else.
    """
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    path = parts.path.strip("/")
    if parts.scheme != "http" or not parts.hostname or path not in ("", "v1") or parts.username:
        raise ScenarioError(
            f"--base-url is {shown(base_url)}; must be http://HOST:PORT of a vLLM server"
        )
    return parts.hostname, port or 80


def describe(base_url: str) -> RunningServer:
    """Ask a server what it is.

    Raises
    ------
    CalibrationError
        If nothing answers there, or it is no server with vLLM's API.
    """
    host, port = split_url(base_url)
    at = f"http://{host}:{port}"
    models = _json(f"{at}/v1/models")
    listed = models.get("data") if isinstance(models, dict) else None
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
        raise CalibrationError(f"{at}/v1/models does not list a model: is it a vLLM server?")
    one = listed[0]
    length = one.get("max_model_len")
    answer = _json(f"{at}/version", needed=False)
    version = answer.get("version") if isinstance(answer, dict) else None
    return RunningServer(
        host=host,
        port=port,
        model=str(one.get("id", "")),
        root=str(one.get("root") or one.get("id", "")),
        max_model_len=length if isinstance(length, int) and length > 1 else None,
        version=version if isinstance(version, str) else "",
        metrics=read_metrics(host, port),
        graph_sizes=_graph_sizes(at),
    )


def _graph_sizes(at: str) -> tuple[int, ...] | None:
    """Sizes of CUDA graphs by ``/server_info``, which vLLM has under ``VLLM_SERVER_DEV_MODE=1``."""
    url = f"{at}/server_info?config_format=json"
    found = _json(url, needed=False, timeout_s=_INFO_TIMEOUT_S)
    for name in ("vllm_config", "compilation_config", "cudagraph_capture_sizes"):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, list) or not all(type(x) is int and x > 0 for x in found):
        return None
    return tuple(sorted(found))


def read_metrics(host: str, port: int) -> Metrics | None:
    """The server's metrics; None if it does not give any."""
    try:
        text = _get(f"http://{host}:{port}/metrics").decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
    sums: dict[str, float] = {}
    cache: Mapping[str, str] = {}
    for sample in samples(text):
        if sample.name == "vllm:cache_config_info":
            cache = sample.labels
        sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    if not any(name.startswith("vllm:") for name in sums):
        return None
    return Metrics(
        running=sums.get("vllm:num_requests_running"),
        waiting=sums.get("vllm:num_requests_waiting"),
        finished=sums.get("vllm:request_success_total"),
        cache=cache,
    )


def check_server(server: RunningServer, profile: Profile) -> list[str]:
    """Whether the server can be the profile's; what could not be checked is returned.

    Raises
    ------
    CalibrationError
        If model, method, version, CUDA graphs, KV cache's type or its size do not fit.
    """
    i, lost = profile.identity, []
    _check_name(server, profile)
    if server.graph_sizes is not None:
        check_graphs(server.graph_sizes, profile)
    if not server.version:
        lost.append("the server does not tell its version of vLLM")
    elif i.vllm_version and _release(server.version) != _release(i.vllm_version):
        raise CalibrationError(
            f"the server runs vLLM {server.version}, and {profile.id} is for {i.vllm_version}; "
            f"give --vllm-version {_release(server.version)} or a profile of that version"
        )
    if server.metrics is None:
        return [*lost, "no metrics: KV blocks, and whether others use it, are not known"]
    return lost + check_cache(server.metrics.cache, profile)


def check_graphs(sizes: Sequence[int], profile: Profile) -> None:
    """Whether a server with CUDA graphs of these sizes can be the profile's.

    Raises
    ------
    CalibrationError
        If the largest is another one, or there are none where the profile has some.
    """
    mine, theirs = max(profile.latency.graph_sizes, default=0), max(sizes, default=0)
    if mine != theirs:
        raise CalibrationError(
            f"the server captured CUDA graphs of up to {theirs} tokens, and {profile.id} is of a "
            f"server with graphs of up to {mine}: it was started with other flags, or vLLM's "
            "defaults changed; give the profile of its version"
        )


def cache_blocks(cache: Mapping[str, str]) -> int | None:
    """KV blocks, as ``vllm:cache_config_info`` says; None where it does not."""
    text = cache.get("num_gpu_blocks", "")
    return int(text) if text.isdecimal() and 1 < int(text) <= MAX_BLOCKS else None


def check_cache(cache: Mapping[str, str], profile: Profile) -> list[str]:
    """Whether the KV cache of ``vllm:cache_config_info`` can be the profile's.

    What could not be checked is returned.

    Raises
    ------
    CalibrationError
        If its type or its size do not fit.
    """
    dtype = cache.get("cache_dtype", "")
    mine = "fp8" if "kv-fp8" in profile.identity.method else "16 bit"
    if dtype and ("fp8" in dtype) != (mine == "fp8"):
        raise CalibrationError(
            f"the server's KV cache is of type {shown(dtype)}, and that of {profile.id} is {mine}"
        )
    block = cache.get("block_size", "")
    blocks = cache_blocks(cache)
    if blocks is None:
        return ["the server does not tell its number of KV blocks"]
    size = int(block) if block.isdecimal() else profile.memory.block_size
    ratio = blocks * size / (profile.memory.num_gpu_blocks * profile.memory.block_size)
    if not _BLOCKS[0] <= ratio <= _BLOCKS[1]:
        raise CalibrationError(
            f"the server has room for {blocks * size:,} tokens in its KV cache, {ratio:.2f} times "
            f"what {profile.id} has: another model, method, GPU or --gpu-memory-utilization. Give "
            "the profile of what is served"
        )
    return []


def _release(version: str) -> str:
    try:
        return ".".join(map(str, parse_version(version)[:2]))
    except ScenarioError:
        return version


def _check_name(server: RunningServer, profile: Profile) -> None:
    """A served name that is that of another known model is another model."""
    seen = _plain(f"{server.root} {server.model}")
    names = {e.model for e in list_profiles()} | {profile.identity.model}
    others = [n for n in names if n != profile.identity.model and _plain(n) in seen]
    if others and _plain(profile.identity.model) not in seen:
        raise CalibrationError(
            f"the server serves {shown(server.root)}, and {profile.id} is of "
            f"{profile.identity.model}; give the profile of {others[0]}"
        )


def _plain(text: str) -> str:
    text = re.sub(r"[^a-z0-9.]+", "", text.lower())
    return text.replace("metallama", "llama")


def scrape(url: str) -> str:
    """The text that a URL answers with.

    Raises
    ------
    CalibrationError
        If it does not answer.
    """
    try:
        return _get(url).decode("utf-8", "replace")
    except (OSError, ValueError) as e:
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        raise CalibrationError(f"{shown(url)} does not answer: {reason}") from None


def _get(url: str, timeout_s: float = _TIMEOUT_S) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return bytes(answer.read(_MOST_BYTES))


def _json(url: str, needed: bool = True, timeout_s: float = _TIMEOUT_S) -> Any:
    try:
        return json.loads(_get(url, timeout_s))
    except (OSError, ValueError, RecursionError) as e:
        if not needed:
            return None
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        raise CalibrationError(f"{url} does not answer as vLLM does: {reason}") from None
