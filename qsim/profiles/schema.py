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
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from qsim.bounds import (
    MAX_BATCHED_TOKENS,
    MAX_BLOCK_SIZE,
    MAX_BLOCKS,
    MAX_MODEL_LEN,
    MAX_SEQS,
    MAX_TENSOR_PARALLEL,
    Closed,
    Items,
    Line,
    Ms,
    Name,
    Number,
    PlainObject,
    Positive,
    Text,
    Whole,
)
from qsim.errors import ProfileError
from qsim.files import write_text

SCHEMA = "qsim-profile/1"
#: largest profile file, bytes; the shipped ones have 9,000
MAX_FILE = 4 << 20

Watts = Annotated[float, Number(0.0, 1e6)]
Joules = Annotated[float, Number(0.0, 1e4)]
Share = Annotated[float, Number(0.0, 1e3)]
#: numbers of tokens or requests, ascending
Sizes = Annotated[list[Annotated[int, Whole(0, MAX_MODEL_LEN)]], Items(10_000)]
Times = Annotated[list[Ms], Items(10_000)]
PositiveTimes = Annotated[list[Positive], Items(10_000)]
#: [constant, per request or per 1000 tokens]
Pair = Annotated[list[Ms], Items(2, 2)]
Word = Annotated[str, Text(200)]
Notes = Annotated[list[Line], Items(1000)]


@dataclass(frozen=True)
class Identity(Closed):
    """What was measured, with what."""

    gpu: Name
    model: Name
    method: Name
    tensor_parallel_size: Annotated[int, Whole(1, MAX_TENSOR_PARALLEL)] = 1
    #: "measured", or "transferred" from other measurements
    source: Word = "measured"
    vllm_version: Word = ""
    driver: Word = ""
    host: Word = ""
    date: Word = ""
    #: numbers of the model's config.json (hidden_size, num_hidden_layers, ...)
    architecture: PlainObject = field(default_factory=dict)
    #: arguments of ``vllm serve`` that select the method, e.g. ["--quantization", "fp8"]
    vllm_args: Annotated[list[Word], Items(64)] = field(default_factory=list)
    #: the names of the recordings that were fitted
    recordings: Notes = field(default_factory=list)
    notes: Notes = field(default_factory=list)


@dataclass(frozen=True)
class EngineDefaults(Closed):
    """vLLM's settings on this server; a scenario may override each."""

    max_num_seqs: Annotated[int, Whole(1, MAX_SEQS)] = 1024
    max_num_batched_tokens: Annotated[int, Whole(1, MAX_BATCHED_TOKENS)] = 8192
    max_model_len: Annotated[int, Whole(2, MAX_MODEL_LEN)] = 131072
    enable_prefix_caching: bool = True
    async_scheduling: bool = True
    long_prefill_token_threshold: Annotated[int, Whole(0, MAX_MODEL_LEN)] = 0
    scheduling_policy: Word = "fcfs"


@dataclass(frozen=True)
class DecodeSpan(Closed):
    """GPU span of a step of decodes only, under a full CUDA graph.

    ``rows`` are batch sizes in ascending order; values in between are interpolated linearly, and
    the last segment is extended. ``ms_per_context_token[j][i]`` is the slope between
    ``context_knots_tokens[j]`` and the next knot at ``rows[i]``; the first knot is 0.
    """

    rows: Sizes
    base_ms: PositiveTimes
    context_knots_tokens: Sizes
    ms_per_context_token: Annotated[list[Times], Items(1000)]


@dataclass(frozen=True)
class MixedSpan(Closed):
    """GPU span of a step with at least one prefill chunk.

    ``tokens`` are step sizes in ascending order (prefill and decode tokens together); ``base_ms``
    is interpolated linearly between them, held below the first and extended above the last.
    Two neighbouring sizes may describe a jump (a tile edge).
    """

    tokens: Sizes
    base_ms: PositiveTimes
    ms_per_decode_context_token: Ms
    ms_per_pair: Ms
    ms_per_chunk: Ms
    ms_per_decode: Ms


@dataclass(frozen=True)
class Throttle(Closed):
    """How much longer steps take when power capping lowers the clock."""

    start_w: Watts
    full_w: Watts
    decode: Share
    piecewise: Share
    eager: Share


@dataclass(frozen=True)
class Latency(Closed):
    """GPU spans by execution mode."""

    #: captured CUDA-graph sizes, ascending
    graph_sizes: Sizes
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
class HostTimes(Closed):
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

    schedule_ms: Pair
    update_ms: Pair
    launch_decode_ms: Pair
    launch_piecewise_ms: Pair
    launch_eager_ms: Pair
    result_ms: Ms = 0.06
    turn_ms: Ms = 0.045
    gpu_gap_ms: Ms = 0.003
    idle_sleep_ms: Ms = 1.0
    wake_ms: Ms = 0.0
    launch_eager_queue: Pair = field(default_factory=lambda: [0.0, 0.0])

    def held(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Shares of its GPU span for which the launch of a step without a graph is held."""
        return held_shares(self.launch_eager_queue, tokens)


#: of what a request keeps the API server's process busy for, the shares of its first and of its
#: last turn: parsing and checking, and handing it to the engine; the others share the rest
FIRST_TURN, LAST_TURN = 0.4, 0.4


@dataclass(frozen=True)
class ApiTimes(Closed):
    """What keeps the API server's process busy, in ms; ``turns`` is a number.

    A request keeps it busy for ``request_ms + request_ms_per_1k_prompt_tokens * P/1000``, in
    ``turns`` rounds of its event loop; each token of a step's result for ``token_ms`` and each
    request of that step for ``send_ms`` (:mod:`qsim.sim.engine.api_process`). A thread tokenizes
    prompts that are texts one by one, ``tokenize_ms_per_1k_prompt_tokens * P/1000`` each. The
    engine's input thread then takes requests in one by one: ``receive_serial_ms`` of the front end
    and ``input_ms_per_1k_prompt_tokens * P/1000`` lie between them at least.
    """

    request_ms: Ms
    request_ms_per_1k_prompt_tokens: Ms
    tokenize_ms_per_1k_prompt_tokens: Ms
    input_ms_per_1k_prompt_tokens: Ms
    token_ms: Ms
    send_ms: Ms
    turns: Annotated[int, Whole(2, 100)]

    def busy_s(self, requests: int, prompt_tokens: int, output_tokens: int) -> float:
        """For how long requests and their tokens keep the process busy, s.

        One that is behind takes less: it sends the tokens of several steps together.
        """
        ms = requests * self.request_ms
        ms += prompt_tokens / 1e3 * self.request_ms_per_1k_prompt_tokens
        return (ms + output_tokens * (self.token_ms + self.send_ms)) / 1e3

    def times(self, factor: float) -> ApiTimes:
        """With every time multiplied."""
        ms = {k: v * factor for k, v in vars(self).items() if k != "turns"}
        return ApiTimes(**ms, turns=self.turns)


@dataclass(frozen=True)
class FrontEnd(Closed):
    """From the client to the engine and back, in ms.

    A request reaches the engine's queue ``receive_ms + receive_ms_per_1k_prompt_tokens * P/1000``
    after it was sent, and no sooner than ``receive_serial_ms`` after the request before it (one
    API process handles them one by one). Its first and last tokens reach the client later than
    the engine's update by ``first_token_ms...`` and ``last_token_ms...``; ``per_running`` counts
    the requests in that engine step. Without ``api`` the process is never full.
    """

    receive_ms: Ms
    receive_ms_per_1k_prompt_tokens: Ms
    receive_serial_ms: Ms
    first_token_ms: Ms
    first_token_ms_per_1k_prompt_tokens: Ms
    first_token_ms_per_running: Ms
    last_token_ms: Ms
    last_token_ms_per_running: Ms
    api: ApiTimes | None = None

    def with_api(self, api: ApiTimes) -> FrontEnd:
        """With these times of a process that was not known.

        Of what lies between the requests of a burst it takes its part: the first is through after
        the first turns of all.
        """
        between_ms = self.receive_serial_ms - (1.0 - LAST_TURN) * api.request_ms
        return replace(self, receive_serial_ms=round(max(between_ms, 0.0), 4), api=api)

    def times(self, factor: float) -> FrontEnd:
        """With every time multiplied."""
        api = None if self.api is None else self.api.times(factor)
        ms = {k: v * factor for k, v in vars(self).items() if k != "api"}
        return FrontEnd(**ms, api=api)


@dataclass(frozen=True)
class MeasuredHost(Closed):
    """What was measured, of a profile whose host and front end were put on another machine.

    Quantization methods can only be compared on one host. ``like`` is the profile whose machine
    ``Profile.host`` and ``Profile.frontend`` are for; ``host`` and ``frontend`` here are those of
    the machine that was measured, where the engine took ``slower`` times as long for its own work.
    """

    like: Line
    slower: Positive
    host: HostTimes
    frontend: FrontEnd


@dataclass(frozen=True)
class Power(Closed):
    """Energy model of the GPUs of one server (all of them together)."""

    idle_w: Watts
    busy_w: Watts
    j_per_prefill_token: Joules
    j_per_decode_token: Joules
    j_per_context_token: Joules
    j_per_pair: Joules
    #: mean power over about ``tau_s`` cannot exceed this
    cap_w: Watts
    #: time constant of the trailing mean power that drives throttling, s
    tau_s: Annotated[float, Number(above=0.0, most=3600.0)] = 0.5


@dataclass(frozen=True)
class Memory(Closed):
    """What fits: KV blocks were measured under the settings in ``measured_with``.

    They are those of ``Identity.vllm_version``: since 0.29 vLLM reserves memory for CUDA graphs
    before it sizes the KV cache, and has fewer than an older version on the same GPU.
    """

    num_gpu_blocks: Annotated[int, Whole(2, MAX_BLOCKS)]
    block_size: Annotated[int, Whole(1, MAX_BLOCK_SIZE)]
    kv_bytes_per_token: Annotated[int, Whole(1, 1 << 40)]
    weight_bytes: Annotated[int, Whole(0, 1 << 50)]
    measured_with: PlainObject = field(default_factory=dict)


@dataclass(frozen=True)
class Transfer(Closed):
    """What a profile was made of that was not measured on its own GPU and model.

    Its ``fit_error`` holds the same estimate under the keys of a measured profile
    (``worst_mean``, ``worst_median``, ``worst_p99``, ``worst_energy``).
    """

    #: ids of the measured profiles that it was learnt from
    profiles: Notes
    #: the kernel tables, e.g. "aiconfigurator-core 0.12.0: h100_sxm/gemm/vllm/0.24.0"
    tables: Notes
    #: estimated error in percent by quantity: "decode", "prefill" (GPU spans of steps), "power",
    #: "kv_tokens"
    error_percent: Annotated[dict[Line, Annotated[float, Number(0.0, 1e6)]], Items(100, 1)]
    #: where these estimates come from
    error_from: Line = ""
    #: how each part was carried over
    rules: Notes = field(default_factory=list)


@dataclass(frozen=True)
class Carried(Closed):
    """What a profile was carried from that was measured under another version of vLLM.

    ``identity.vllm_version`` is the version that it is for.
    """

    #: the version that was measured
    vllm_version: Word
    #: the servers measured under both versions, from which the factors are
    servers: Notes
    #: error of the factors in percent by quantity: "decode", "prefill", "power", "kv_tokens"
    error_percent: Annotated[dict[Line, Annotated[float, Number(0.0, 1e6)]], Items(100, 1)]


@dataclass(frozen=True)
class Adapted(Closed):
    """What a profile was adapted from that was measured on another machine of the same type.

    ``factors`` has, by name (:class:`qsim.profiles.factors.Factors`), [factor, low, high]: the
    times, powers or slowdowns of this machine over those of the profile, with a 90% interval.
    """

    #: id of the profile that was adapted, and the recordings that it was measured by
    profile: Line
    recordings: Notes
    #: the loads whose client times and energy were fitted
    loads: Annotated[list[Line], Items(1000, 1)]
    factors: Annotated[dict[Name, Annotated[list[Positive], Items(3, 3)]], Items(20, 1)]
    notes: Notes = field(default_factory=list)


@dataclass(frozen=True)
class Profile(Closed):
    """One calibrated server configuration. See the module's docstring for the model."""

    identity: Identity
    engine: EngineDefaults
    latency: Latency
    host: HostTimes
    frontend: FrontEnd
    power: Power
    memory: Memory
    #: recovery per task with its source; None until measured or looked up
    quality: PlainObject | None = None
    #: error on phases that were not used in the fit
    fit_error: PlainObject = field(default_factory=dict)
    #: what was measured: outside it the numbers are extrapolations
    measured_range: PlainObject = field(default_factory=dict)
    #: of a transferred profile only
    transfer: Transfer | None = None
    #: of a profile only whose host and front end are those of another machine
    measured_host: MeasuredHost | None = None
    #: of a profile only that was carried to another version of vLLM
    carried: Carried | None = None
    #: of a profile only that was adapted to another machine
    adapted: Adapted | None = None

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
        for optional in ("transfer", "measured_host", "carried", "adapted"):
            if data[optional] is None:
                del data[optional]
        for part in (data, data.get("measured_host", {})):
            if part and part["frontend"]["api"] is None:
                del part["frontend"]["api"]
        return data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` whole or not at all; nothing that :meth:`load` would refuse.

        Raises
        ------
        ProfileError
            Naming the field that nobody could read again, its value and what is allowed.
        """
        from qsim.documents import parse_json

        text = json.dumps(self.to_dict(), indent=1) + "\n"
        where = f"{os.fspath(path)}: not written, because nobody could read it again"
        self.from_dict(parse_json(text, where, ProfileError, most=MAX_FILE), where)
        write_text(path, text)

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
        body = {k: v for k, v in data.items() if k not in _NOT_FIELDS}
        from qsim.edge import build
        from qsim.profiles.checks import check

        profile = build(cls, body, where, ProfileError)
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
        from qsim.documents import read_json

        return cls.from_dict(read_json(path, ProfileError, most=MAX_FILE), os.fspath(path))

    @classmethod
    def load_shipped(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile of this very package without checking it again.

        A test checks all of them; pydantic, which checks others, takes a tenth of a second to
        import.
        """
        with open(path, encoding="utf-8") as f:
            data = json.load(f)
        profile: Profile = _assemble(cls, {k: v for k, v in data.items() if k not in _NOT_FIELDS})
        return profile


_NOT_FIELDS = ("schema", "id")


@cache
def _nested(cls: type) -> dict[str, type]:
    """The fields of a class that are objects of their own, with their classes."""
    return {
        name: kind
        for name, hint in get_type_hints(cls).items()
        for kind in (hint, *get_args(hint))
        if isinstance(kind, type) and issubclass(kind, Closed)
    }


def _assemble(cls: Any, data: Mapping[str, Any]) -> Any:
    nested = _nested(cls)
    return cls(**{k: _assemble(nested[k], v) if k in nested else v for k, v in data.items()})
