"""The profile of one server configuration: the contract between calibration and simulation.

A profile is one JSON file for one (GPU, model, quantization method, tensor-parallel size). Its id
is ``<gpu>/<model>/<method>``, with ``/tpN`` after it for tensor parallelism over N > 1 GPUs.

How the numbers are used (all times in ms, all spans on the GPU):

* A step that only decodes R requests whose contexts hold C tokens in all takes
  ``decode.base(pad(R)) + sum_j slope_j(pad(R)) * clip(C - knot_j, 0, knot_{j+1} - knot_j)``
  where ``pad`` rounds R up to the next captured CUDA-graph size. Above the largest captured size
  there is no graph and the ``eager`` term below applies.
* A step with a prefill chunk and T tokens in all takes
  ``base(T) + a * C + b * pairs + c * chunks + d * decodes`` where ``pairs`` is the number of
  (query, key) pairs of the prefill chunks, ``sum n * (computed + (n + 1) / 2)``; with the
  ``piecewise`` numbers at pad(T) while T is at most the largest captured size, else ``eager``.
* Both are multiplied by ``1 + throttle.<mode> * x`` where x rises from 0 to 1 while the trailing
  mean power rises from ``throttle.start_w`` to ``throttle.full_w`` (power capping lowers clocks).
* The host thread needs ``schedule``, ``launch`` and ``update`` times a step; see ``HostTimes``.
* Energy over a stretch of time is ``idle_w * duration + busy_w * gpu_busy_time`` plus a cost per
  prefill token, decoded token, context token read and prefill pair, limited by ``cap_w``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt

from qsim.errors import ProfileError
from qsim.files import write_text
from qsim.profile_check import check

__all__ = [
    "SCHEMA",
    "DecodeSpan",
    "EngineDefaults",
    "FrontEnd",
    "HostTimes",
    "Identity",
    "Latency",
    "MeasuredHost",
    "Memory",
    "MixedSpan",
    "Power",
    "Profile",
    "Throttle",
    "Transfer",
    "held_shares",
]

SCHEMA = "qsim-profile/1"


@dataclass(frozen=True)
class Identity:
    """What was measured, with what."""

    gpu: str
    model: str
    method: str
    tensor_parallel_size: int = 1
    #: "measured", or "transferred" from other measurements
    source: str = "measured"
    vllm_version: str = ""
    driver: str = ""
    host: str = ""
    date: str = ""
    #: numbers of the model's config.json (hidden_size, num_hidden_layers, ...)
    architecture: dict[str, Any] = field(default_factory=dict)
    #: arguments of ``vllm serve`` that select the method, e.g. ["--quantization", "fp8"]
    vllm_args: list[str] = field(default_factory=list)
    #: the names of the recordings that were fitted
    recordings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EngineDefaults:
    """vLLM's settings on this server; a scenario may override each."""

    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    max_model_len: int = 131072
    enable_prefix_caching: bool = True
    async_scheduling: bool = True
    long_prefill_token_threshold: int = 0
    scheduling_policy: str = "fcfs"


@dataclass(frozen=True)
class DecodeSpan:
    """GPU span of a step of decodes only, under a full CUDA graph.

    ``rows`` are batch sizes in ascending order; values in between are interpolated linearly, and
    the last segment is extended. ``ms_per_context_token[j][i]`` is the slope between
    ``context_knots_tokens[j]`` and the next knot at ``rows[i]``; the first knot is 0.
    """

    rows: list[int]
    base_ms: list[float]
    context_knots_tokens: list[int]
    ms_per_context_token: list[list[float]]


@dataclass(frozen=True)
class MixedSpan:
    """GPU span of a step with at least one prefill chunk.

    ``tokens`` are step sizes in ascending order (prefill and decode tokens together); ``base_ms``
    is interpolated linearly between them, held below the first and extended above the last.
    Two neighbouring sizes may describe a jump (a tile edge).
    """

    tokens: list[int]
    base_ms: list[float]
    ms_per_decode_context_token: float
    ms_per_pair: float
    ms_per_chunk: float
    ms_per_decode: float


@dataclass(frozen=True)
class Throttle:
    """How much longer steps take when power capping lowers the clock."""

    start_w: float
    full_w: float
    decode: float
    piecewise: float
    eager: float


@dataclass(frozen=True)
class Latency:
    """GPU spans by execution mode."""

    #: captured CUDA-graph sizes, ascending
    graph_sizes: list[int]
    decode: DecodeSpan
    piecewise: MixedSpan
    eager: MixedSpan
    throttle: Throttle


def held_shares(
    launch_eager_queue: Sequence[float], tokens: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """:meth:`HostTimes.held` of a queue alone."""
    constant, per_1k = launch_eager_queue
    filled = np.maximum(constant + per_1k * np.asarray(tokens, dtype=np.float64) / 1e3, 1.0)
    return np.asarray(1.0 - 1.0 / filled)


@dataclass(frozen=True)
class HostTimes:
    """Times on the engine's host thread; pairs are [constant, per running request] in ms.

    A step is scheduled (``schedule_ms``), launched (``launch_*_ms``: execute_model and
    sample_tokens), and its result applied (``update_ms``) once the GPU has finished it and the
    launch of the step behind it has returned, ``result_ms`` later. ``turn_ms`` passes between an
    update and the next schedule; ``gpu_gap_ms`` between two spans on the GPU; ``idle_sleep_ms``
    is slept when a turn launched nothing while requests remain. An idle engine begins to schedule
    ``wake_ms`` after a request has reached its queue.

    ``launch_eager_queue``, [constant, per 1000 tokens of the step], is how many times over the
    launches of a step without a graph fill the GPU's queue of launches (kernels that work off many
    tokens in parts are launched several times). Beyond 1 the launch returns only when the GPU has
    done all of the step but what the queue holds: :meth:`held`.
    """

    schedule_ms: list[float]
    update_ms: list[float]
    launch_decode_ms: list[float]
    launch_piecewise_ms: list[float]
    launch_eager_ms: list[float]
    result_ms: float = 0.06
    turn_ms: float = 0.045
    gpu_gap_ms: float = 0.003
    idle_sleep_ms: float = 1.0
    wake_ms: float = 0.0
    launch_eager_queue: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def held(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Shares of its GPU span for which the launch of a step without a graph is held."""
        return held_shares(self.launch_eager_queue, tokens)


@dataclass(frozen=True)
class FrontEnd:
    """From the client to the engine and back, in ms.

    A request reaches the engine's queue ``receive_ms + receive_ms_per_1k_prompt_tokens * P/1000``
    after it was sent, and no sooner than ``receive_serial_ms`` after the request before it (one
    API process handles them one by one). Its first and last tokens reach the client later than
    the engine's update by ``first_token_ms...`` and ``last_token_ms...``; ``per_running`` counts
    the requests in that engine step.
    """

    receive_ms: float
    receive_ms_per_1k_prompt_tokens: float
    receive_serial_ms: float
    first_token_ms: float
    first_token_ms_per_1k_prompt_tokens: float
    first_token_ms_per_running: float
    last_token_ms: float
    last_token_ms_per_running: float


@dataclass(frozen=True)
class MeasuredHost:
    """What was measured, of a profile whose host and front end were put on another machine.

    Quantization methods can only be compared on one host. ``like`` is the profile whose machine
    ``Profile.host`` and ``Profile.frontend`` are for; ``host`` and ``frontend`` here are those of
    the machine that was measured, where the engine took ``slower`` times as long for its own work.
    """

    like: str
    slower: float
    host: HostTimes
    frontend: FrontEnd


@dataclass(frozen=True)
class Power:
    """Energy model of the GPUs of one server (all of them together)."""

    idle_w: float
    busy_w: float
    j_per_prefill_token: float
    j_per_decode_token: float
    j_per_context_token: float
    j_per_pair: float
    #: mean power over about ``tau_s`` cannot exceed this
    cap_w: float
    #: time constant of the trailing mean power that drives throttling, s
    tau_s: float = 0.5


@dataclass(frozen=True)
class Memory:
    """What fits: KV blocks were measured under the settings in ``measured_with``."""

    num_gpu_blocks: int
    block_size: int
    kv_bytes_per_token: int
    weight_bytes: int
    measured_with: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Transfer:
    """What a profile was made of that was not measured on its own GPU and model.

    Its ``fit_error`` holds the same estimate under the keys of a measured profile
    (``worst_mean``, ``worst_median``, ``worst_p99``, ``worst_energy``).
    """

    #: ids of the measured profiles that it was learnt from
    profiles: list[str]
    #: the kernel tables, e.g. "aiconfigurator-core 0.12.0: h100_sxm/gemm/vllm/0.24.0"
    tables: list[str]
    #: estimated error in percent by quantity: "decode", "prefill" (GPU spans of steps), "power",
    #: "kv_tokens"
    error_percent: dict[str, float]
    #: where these estimates come from
    error_from: str = ""
    #: how each part was carried over
    rules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Profile:
    """One calibrated server configuration. See the module's docstring for the model."""

    identity: Identity
    engine: EngineDefaults
    latency: Latency
    host: HostTimes
    frontend: FrontEnd
    power: Power
    memory: Memory
    #: recovery per task with its source; None until measured or looked up
    quality: dict[str, Any] | None = None
    #: error on phases that were not used in the fit
    fit_error: dict[str, Any] = field(default_factory=dict)
    #: what was measured: outside it the numbers are extrapolations
    measured_range: dict[str, Any] = field(default_factory=dict)
    #: of a transferred profile only
    transfer: Transfer | None = None
    #: of a profile only whose host and front end are those of another machine
    measured_host: MeasuredHost | None = None

    def as_measured(self) -> Profile:
        """The profile with the host and front end of the machine that was measured."""
        m = self.measured_host
        if m is None:
            return self
        return replace(self, host=m.host, frontend=m.frontend, measured_host=None)

    @property
    def transferred(self) -> bool:
        """Whether it was carried over from other measurements, not measured itself."""
        return self.transfer is not None

    @property
    def id(self) -> str:
        """``<gpu>/<model>/<method>``, with ``/tpN`` after it for N > 1."""
        i = self.identity
        tp = f"/tp{i.tensor_parallel_size}" if i.tensor_parallel_size > 1 else ""
        return f"{i.gpu}/{i.model}/{i.method}{tp}"

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON-ready data."""
        data = {"schema": SCHEMA, "id": self.id, **asdict(self)}
        for optional in ("transfer", "measured_host"):
            if data[optional] is None:
                del data[optional]
        return data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def from_dict(cls, data: Any, where: str = "profile") -> Profile:
        """Build from JSON data, checking every field.

        Raises
        ------
        ProfileError
            Naming the field, its value and what is allowed.
        """
        if not isinstance(data, Mapping):
            raise ProfileError(f"{where}: must be a JSON object, got {type(data).__name__}")
        schema = data.get("schema")
        if schema != SCHEMA:
            raise ProfileError(
                f"{where}: schema is {schema!r}; this version of qsim reads {SCHEMA!r}"
            )
        body = {k: v for k, v in data.items() if k not in ("schema", "id")}
        profile: Profile = _build(cls, body, where)
        check(profile, where)
        return profile

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile from a JSON file.

        Raises
        ------
        ProfileError
            If the file cannot be read, is not JSON or has a wrong field.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ProfileError(f"cannot read profile {os.fspath(path)!r}: {e}") from e
        try:
            data = json.loads(text)
        except json.JSONDecodeError as e:
            raise ProfileError(f"{os.fspath(path)}: not JSON: {e}") from e
        return cls.from_dict(data, os.fspath(path))


_NESTED: dict[str, Any] = {
    c.__name__: c
    for c in (
        Identity,
        EngineDefaults,
        DecodeSpan,
        MixedSpan,
        Throttle,
        Latency,
        HostTimes,
        FrontEnd,
        MeasuredHost,
        Power,
        Memory,
        Transfer,
    )
}


def _build(cls: Any, data: Mapping[str, Any], where: str) -> Any:
    """Construct dataclass ``cls`` from ``data``, checking names and types."""
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ProfileError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, f in known.items():
        here = f"{where}: {name}"
        if name not in data:
            if f.default is f.default_factory:  # both MISSING: the field is required
                raise ProfileError(f"{here} is missing")
            continue
        values[name] = _coerce(hints[name], data[name], here)
    return cls(**values)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, UnionType):  # "X | None"
        if value is None:
            return None
        hint = next(a for a in hint.__args__ if a is not type(None))
    nested = _NESTED.get(getattr(hint, "__name__", ""))
    if nested is not None:
        if not isinstance(value, Mapping):
            raise ProfileError(f"{where} is {value!r}; must be an object")
        return _build(nested, value, where)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ProfileError(f"{where} is {value!r}; must be a number")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ProfileError(f"{where} is {value!r}; must be a whole number")
        return value
    if hint is bool or hint is str:
        if not isinstance(value, hint):
            raise ProfileError(f"{where} is {value!r}; must be {hint.__name__}")
        return value
    origin = getattr(hint, "__origin__", None)
    if origin is list:
        if not isinstance(value, list):
            raise ProfileError(f"{where} is {value!r}; must be a list")
        item = hint.__args__[0]
        return [_coerce(item, v, f"{where}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, dict):
        raise ProfileError(f"{where} is {value!r}; must be an object")
    if hint.__args__[1] is float:
        return {k: _coerce(float, v, f"{where}.{k}") for k, v in value.items()}
    return value
