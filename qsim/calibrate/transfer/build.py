"""A transferred profile, out of kernels and what was learnt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np

from qsim.calibrate.fit.host import own_ms, slower_than
from qsim.calibrate.transfer.compose import TABLE_OF, Composer
from qsim.calibrate.transfer.kernels import KernelTables, load_tables
from qsim.calibrate.transfer.learn import (
    LEARNT_ON,
    Overheads,
    Sample,
    base_method,
    kv_dtype,
    learn_overheads,
)
from qsim.calibrate.transfer.memory import kv_memory, other_bytes
from qsim.calibrate.transfer.power import PowerModel, learn_power, power_of
from qsim.calibrate.transfer.ratios import MethodShape, kernels_of, learn_shapes, linear_of
from qsim.calibrate.transfer.spans import StepPoint
from qsim.catalog.gpus import gpu_type
from qsim.catalog.methods import find_method
from qsim.catalog.models import Architecture
from qsim.catalog.versions import BUDGET, DEFAULT_VERSION, default_limits
from qsim.errors import CalibrationError
from qsim.profiles.lookup import list_profiles, load_profile
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import (
    DecodeSpan,
    EngineDefaults,
    FrontEnd,
    HostTimes,
    Identity,
    Latency,
    MixedSpan,
    Profile,
    Throttle,
    Transfer,
)

_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_PIECEWISE = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512)
_EAGER = (513, 640, 768, 769, 896, 1024, 1025, 1280, 1281, 1536, 1537, 1792, 1793, 2048, 2049,
          2304, 2560, 2561, 3072, 3584, 4096, 5120, 6144, 7168, 8192)  # fmt: skip
_KNOTS = (0, 65536)
#: hosts that are slower than the quickest by no more than this factor count as of one kind
_AS_QUICK = 1.3
_CONTEXTS = (64, 256, 1024, 4096, 16384)


@dataclass(frozen=True)
class Teacher:
    """The measured profiles of one GPU, and what they teach."""

    samples: tuple[Sample, ...]
    tables: KernelTables

    @cached_property
    def overheads(self) -> Overheads:
        """What kernels do not explain."""
        return learn_overheads(self.samples)

    @cached_property
    def shapes(self) -> dict[str, tuple[MethodShape, ...]]:
        """Methods without a kernel table."""
        return learn_shapes(self.samples, self.overheads)

    @cached_property
    def power(self) -> PowerModel:
        """Watts from bytes and operations."""
        passes = self.overheads.modes["decode"].logits
        return learn_power(self.samples, gpu_type(self.tables.gpu), passes)

    def without(self, model: str) -> Teacher:
        """The same without one model."""
        if model not in self._without:
            rest = tuple(s for s in self.samples if s.profile.identity.model != model)
            self._without[model] = replace(self, samples=rest)
        return self._without[model]

    @cached_property
    def _without(self) -> dict[str, Teacher]:
        """Those that were asked for, because learning takes a second."""
        return {}


#: kernels of larger matrices take other tiles: AWQ's products at 8B were no guide to those at 70B
_FAR = 6.0
#: the version of vLLM that the kernel tables are of; profiles of it are learnt from
TABLES_VERSION = "0.24"


def learn_from_shipped() -> Teacher:
    """The measured profiles that come with qsim, under the version of the kernel tables."""
    tables = load_tables(LEARNT_ON)
    samples = []
    for entry in list_profiles():
        profile = load_profile(entry.id, TABLES_VERSION)
        if entry.gpu != LEARNT_ON or profile.transferred or "+" in entry.method:
            continue
        i = profile.identity
        a = Architecture.from_config(i.architecture, entry.id)
        composer = Composer(tables, gpu_type(LEARNT_ON), a, i.tensor_parallel_size)
        samples.append(Sample(profile, composer))
    return Teacher(tuple(samples), tables)


def transfer(
    teacher: Teacher,
    gpu: str,
    model: str,
    config: dict[str, Any],
    method: str,
    tensor_parallel_size: int = 1,
    memory_bytes: int | None = None,
) -> Profile:
    """The profile of a GPU, model and method that were not measured together.

    ``config`` is the model's config.json, ``model`` its name in the profile's id; ``memory_bytes``
    that of the GPU, where it is not the type's usual size.

    Raises
    ------
    CalibrationError
        If a kernel table lacks what the architecture needs.
    ScenarioError
        If the model does not fit, or the config is not that of a dense decoder.
    """
    a = Architecture.from_config(config, model)
    tables = load_tables(gpu)
    composer = Composer(tables, gpu_type(gpu), a, tensor_parallel_size, kv_dtype(method))
    overheads = teacher.overheads
    linear = linear_of(method, composer, teacher.shapes, teacher.tables)
    taught_by = [s for s in teacher.samples if s.method in (*TABLE_OF, *kernels_of(method))]
    donors = _donors(teacher, method, tensor_parallel_size)
    version = donors[0].profile.identity.vllm_version
    other = other_bytes(teacher.samples, a, version or DEFAULT_VERSION)
    memory = kv_memory(gpu, a, method, tensor_parallel_size, other, memory_bytes)

    def span_ms(point: StepPoint) -> float:
        rows = point.rows or point.prefill_tokens
        products = linear.ms(rows, prefill=not point.rows)
        return overheads.span_ms(composer, point, linear.moved_as, products)

    kv_tokens = (memory.num_gpu_blocks - 1) * memory.block_size
    power = power_of(
        teacher.power,
        composer,
        method,
        span_ms,
        memory.weight_bytes,
        memory.kv_bytes_per_token,
        kv_tokens,
    )
    taught = [_size(s.composer) for s in teacher.samples if s.method in kernels_of(method)]
    errors, how = estimated_errors(
        gpu, method, tensor_parallel_size, _size(composer) / max(taught, default=_size(composer))
    )
    engine = donors[0].profile.engine
    budget, seqs = default_limits(gpu, memory_bytes or gpu_type(gpu).memory_bytes)
    if budget != BUDGET:  # what a server needs beside weights was learnt with this budget
        memory = replace(
            memory, measured_with={**memory.measured_with, "max_num_batched_tokens": BUDGET}
        )
    longest = int(config.get("max_position_embeddings") or engine.max_model_len)
    profile = Profile(
        identity=Identity(
            gpu=gpu,
            model=model,
            method=method,
            tensor_parallel_size=tensor_parallel_size,
            source="transferred",
            vllm_version=version,
            architecture={k: v for k, v in config.items() if k != "quantization_config"},
            vllm_args=_vllm_args(method),
        ),
        engine=EngineDefaults(
            max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=longest
        ),
        latency=_latency(composer, overheads, span_ms, donors, power.cap_w),
        host=_host(teacher, _hosts(teacher, donors, tensor_parallel_size), composer.layers),
        frontend=_frontend(donors),
        power=power,
        memory=memory,
        fit_error={
            "unit": "percent, estimated",
            "how": how,
            "worst_mean": max(errors["decode"], errors["prefill"]),
            "worst_median": max(errors["decode"], errors["prefill"]),
            "worst_p99": round(1.5 * max(errors["decode"], errors["prefill"]), 1),
            "worst_energy": errors["power"],
        },
        measured_range=_measured_range(donors, taught_by),
        transfer=Transfer(
            profiles=sorted({s.profile.id for s in taught_by}),
            tables=list(dict.fromkeys((*tables.sources, *teacher.tables.sources))),
            error_percent=errors,
            error_from=how,
            rules=_rules(gpu, method, tensor_parallel_size),
        ),
    )
    return Profile.from_dict(profile.to_dict(), profile.id)


def estimated_errors(
    gpu: str, method: str, tensor_parallel_size: int, grown: float = 1.0
) -> tuple[dict[str, float], str]:
    """Estimated error by quantity, and where the estimate comes from (docs/transfer.md).

    ``grown`` is the model's size over that of the largest on which the method was measured.
    """
    spec, base = gpu_type(gpu), base_method(method)
    if gpu == LEARNT_ON:
        errors = {"decode": 8.0, "prefill": 12.0, "power": 10.0, "kv_tokens": 3.0}
    elif spec.hopper:
        errors = {"decode": 10.0, "prefill": 12.0, "power": 10.0, "kv_tokens": 4.0}
    else:
        errors = {"decode": 15.0, "prefill": 15.0, "power": 15.0, "kv_tokens": 4.0}
    tabled = base == "bf16" or (spec.hopper and base in TABLE_OF)
    more = 5.0 if tensor_parallel_size > 1 else 0.0
    if not tabled:
        more += 20.0 if spec.hopper and grown > _FAR else 10.0
    errors |= {k: errors[k] + more for k in ("decode", "prefill", "power")}
    how = (
        "composed against measured profiles on H200, the model left out"
        if gpu == LEARNT_ON
        else "composed against measured profiles on H200 and against published measurements"
    )
    return errors, how


def _measured_range(donors: Sequence[Sample], taught_by: Sequence[Sample]) -> dict[str, Any]:
    """How far the profiles reach that this one was learnt from.

    Steps of more tokens or requests than every donor of the host was measured with are beyond it,
    and contexts beyond those of all who taught the spans.
    """
    hosts = [MeasuredRange.of(s.profile) for s in donors]
    spans = [MeasuredRange.of(s.profile) for s in taught_by] or hosts

    def least(values: Iterable[int | None]) -> int | None:
        return min((v for v in values if v is not None), default=None)

    def most(values: Iterable[int | None]) -> int | None:
        return max((v for v in values if v is not None), default=None)

    largest = {
        "step_requests": least(m.step_requests for m in hosts),
        "step_tokens": least(m.step_tokens for m in hosts),
        "decode_context_tokens": most(m.step_context_tokens for m in spans),
        "request_context_tokens": most(m.request_context_tokens for m in spans),
    }
    return {name: [1, value] for name, value in largest.items() if value is not None}


def _size(composer: Composer) -> float:
    """Weights of the products on all GPUs."""
    return composer.weights() * composer.layers * composer.tensor_parallel_size


def _donors(teacher: Teacher, method: str, tensor_parallel_size: int) -> list[Sample]:
    """Whose host and front end are taken: the method's own profiles, else bf16's.

    Of those the ones with as many GPUs, else with one; and of these the ones whose host was quick.
    """
    for name in (*kernels_of(method), "bf16"):
        for size in (tensor_parallel_size, 1):
            own = [
                s
                for s in teacher.samples
                if s.method == name and s.composer.tensor_parallel_size == size
            ]
            if own:
                return _quick(teacher, own)
    raise CalibrationError("nothing to learn from: no measured profile of bf16")


def _quick(teacher: Teacher, samples: Sequence[Sample]) -> list[Sample]:
    """Those on a host nearly as quick as the quickest; all, if none is."""
    hosts = [s.profile.host for s in teacher.samples]
    quickest = min(hosts, key=lambda h: own_ms(h.schedule_ms, h.update_ms))
    quick = [s for s in samples if slower_than(s.profile.host, quickest) < _AS_QUICK]
    return quick or list(samples)


def _hosts(teacher: Teacher, donors: Sequence[Sample], tensor_parallel_size: int) -> list[Sample]:
    """Whose host times are taken: with several GPUs, workers are processes of their own.

    There the engine's thread only hands a step on, however many GPUs and layers there are.
    """
    if tensor_parallel_size > 1:
        several = [s for s in teacher.samples if s.composer.tensor_parallel_size > 1]
        own = [s for s in several if s in donors]
        return own or several or list(donors)
    return list(donors)


def _host(teacher: Teacher, donors: Sequence[Sample], layers: int) -> HostTimes:
    """The donors' host times; launches outside full graphs in proportion to the layers beyond."""
    alone = all(s.composer.tensor_parallel_size == 1 for s in donors)
    known = [s for s in donors if alone and any(s.profile.host.launch_eager_queue)]
    single = [s for s in teacher.samples if s.composer.tensor_parallel_size == 1]
    base = _quick(teacher, [s for s in single if s.method == "bf16"])
    x = np.array([s.composer.layers for s in base], dtype=float)
    values: dict[str, Any] = {}
    for name in HostTimes.__dataclass_fields__:
        if name == "launch_eager_queue":  # kernels, and so launches, go with the layers
            values[name] = [0.0, 0.0]
            if known:
                like = min(known, key=lambda s: abs(s.composer.layers - layers))
                share = layers / like.composer.layers
                values[name] = [round(v * share, 5) for v in like.profile.host.launch_eager_queue]
            continue
        given = [getattr(s.profile.host, name) for s in donors]
        if not isinstance(given[0], list):
            values[name] = round(median(given), 5)
            continue
        first = median(v[0] for v in given)
        if alone and name in ("launch_piecewise_ms", "launch_eager_ms"):
            own = float(np.mean([s.composer.layers for s in donors]))
            y = np.array([getattr(s.profile.host, name)[0] for s in base])
            slope = float(np.polyfit(x, y, 1)[0]) if len(set(x.tolist())) > 1 else first / own
            first = max(0.5 * first, first + max(0.0, slope) * (layers - own))
        values[name] = [round(first, 5), round(median(v[1] for v in given), 7)]
    return HostTimes(**values)


def _frontend(donors: Sequence[Sample]) -> FrontEnd:
    names = [n for n in FrontEnd.__dataclass_fields__ if n != "api"]
    return FrontEnd(
        **{n: round(median(getattr(s.profile.frontend, n) for s in donors), 5) for n in names}
    )


def _latency(
    composer: Composer,
    overheads: Overheads,
    span_ms: Any,
    donors: Sequence[Sample],
    cap_w: float,
) -> Latency:
    throttles = [s.profile.latency.throttle for s in donors]
    donor_cap = donors[0].profile.power.cap_w
    decode = _decode(span_ms)
    slope = float(np.median(decode.ms_per_context_token[-1]))
    shared = {
        "ms_per_decode_context_token": overheads.mixed_context * slope,
        "ms_per_chunk": overheads.chunk_per_layer_ms * composer.layers,
        "ms_per_decode": overheads.mixed_decode * composer.ms_per_decode(),
        "ms_per_pair": overheads.pair * composer.ms_per_pair(),
    }
    return Latency(
        graph_sizes=list(donors[0].profile.latency.graph_sizes),
        decode=decode,
        piecewise=_mixed(span_ms, _PIECEWISE, shared),
        eager=_mixed(span_ms, _EAGER, shared),
        throttle=Throttle(
            start_w=round(cap_w * throttles[0].start_w / donor_cap, 1),
            full_w=round(cap_w * throttles[0].full_w / donor_cap, 1),
            decode=round(median(t.decode for t in throttles), 4),
            piecewise=round(median(t.piecewise for t in throttles), 4),
            eager=round(median(t.eager for t in throttles), 4),
        ),
    )


def _decode(span_ms: Any) -> DecodeSpan:
    """Base and slopes of each batch size, by least squares over contexts."""
    from scipy.optimize import nnls

    base, slopes = [], []
    for rows in _ROWS:
        totals = [rows * c for c in _CONTEXTS if rows * c <= 600_000]
        times = np.array([span_ms(StepPoint(rows=rows, context_tokens=c)) for c in totals])
        lows = [*_KNOTS[1:], 10**9]
        features = [
            [1.0, *(min(max(c - k, 0), n - k) / 1e5 for k, n in zip(_KNOTS, lows, strict=True))]
            for c in totals
        ]
        if totals[-1] <= _KNOTS[1]:  # the second segment was not reached: it goes on as the first
            features = [f[:2] for f in features]
        x, _ = nnls(np.array(features) / times[:, None], np.ones(len(totals)))
        base.append(round(float(x[0]), 5))
        slopes.append([float(f"{v / 1e5:.6g}") for v in (*x[1:], x[-1])[: len(_KNOTS)]])
    return DecodeSpan(
        rows=list(_ROWS),
        base_ms=base,
        context_knots_tokens=list(_KNOTS),
        ms_per_context_token=[list(s) for s in zip(*slopes, strict=True)],
    )


def _mixed(span_ms: Any, tokens: Sequence[int], shared: dict[str, float]) -> MixedSpan:
    base = []
    for n in tokens:
        span = span_ms(StepPoint(prefill_tokens=n))
        rest = span - shared["ms_per_pair"] * n * (n + 1) / 2 - shared["ms_per_chunk"]
        base.append(round(max(rest, 0.05 * span), 5))
    return MixedSpan(
        tokens=list(tokens),
        base_ms=base,
        **{name: float(f"{value:.6g}") for name, value in shared.items()},
    )


def _vllm_args(method: str) -> list[str]:
    m = find_method(method)
    return (["--dtype", "bfloat16"] if base_method(method) == "bf16" else []) + m.serve_args


_HOST_RULE = "host and front end: as measured on H200, launches by the number of layers"


def _rules(gpu: str, method: str, tp: int) -> list[str]:
    spec, base = gpu_type(gpu), base_method(method)
    if base == "bf16" or (spec.hopper and base in TABLE_OF):
        products = "matrix products: the GPU's kernel table"
    elif spec.hopper:
        products = (
            "matrix products: measured on H200 against bf16; the time to read weights by "
            "bandwidth, the rest unchanged"
        )
    elif base == "int8-w8a8":
        products = (
            "matrix products: bf16's table on A100, reads in proportion to the bytes, growth with "
            "the rows by INT8's measured ratio on H200"
        )
    else:
        products = (
            "matrix products: Marlin, bf16's table on A100 with reads in proportion to the bytes "
            "and growth with the rows times 1.05"
        )
    rules = [
        products,
        "attention and LM head: the GPU's kernel tables",
        "gaps between kernels, norms, sampling: learnt on H200, passes over memory by bandwidth",
        _HOST_RULE,
        "power: TDP, idle, and energy a byte and an operation learnt on H200",
        "KV blocks: memory accounting",
    ]
    if tp > 1:
        rules.insert(2, "all-reduce: the GPU's kernel table times what was measured on H200")
        rules[rules.index(_HOST_RULE)] = "host: as measured on H200 with two GPUs"
    return rules
