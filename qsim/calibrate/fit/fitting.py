"""From recordings of a server to its profile.

The order matters: host times first (they tell when a step was launched), then the timeline of the
GPU, then power (which needs the GPU's busy time), then spans (whose throttle needs the trailing
power). Where GPU spans were not recorded, the timeline is inferred, and improved once with the
spans fitted on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qsim.arrays import FloatArray
from qsim.calibrate.fit import modes
from qsim.calibrate.fit.contexts import context_of_traffic
from qsim.calibrate.fit.frontend import fit_frontend
from qsim.calibrate.fit.host import fit_host
from qsim.calibrate.fit.power import fit_power, rounded
from qsim.calibrate.fit.span import GRAPH_SIZES, StepTable
from qsim.calibrate.fit.timeline import DECODE, EAGER, PIECEWISE, Timeline, timeline_of
from qsim.calibrate.recordings.data import SKIP, Recording, Server
from qsim.catalog.gpus import GPUS
from qsim.catalog.methods import find_method, weight_bytes
from qsim.errors import CalibrationError
from qsim.profiles.schema import (
    EngineDefaults,
    FrontEnd,
    HostTimes,
    Identity,
    Memory,
    Power,
    Profile,
)

Progress = Callable[[str], None]

#: candidates for the trailing power: time constant (s); start and full throttle (share of cap)
_TAUS_S = (0.05, 0.03, 0.08, 0.12, 0.2, 0.5)
_LEVELS = ((0.92, 1.0), (0.70, 0.95), (0.70, 1.0), (0.78, 0.97), (0.85, 0.95), (0.85, 1.0))
#: the first of each is what all recordings of H200 boards agree on; others must be better by this
_CLEARLY = 0.85


@dataclass(frozen=True, eq=False)
class FitResult:
    """A profile, and what diagnostics need."""

    profile: Profile
    errors: tuple[modes.ModeError, ...]
    forms: Mapping[int, str]
    recordings: tuple[Recording, ...]
    timelines: tuple[Timeline, ...]
    table: StepTable
    spans: modes.Spans


def fit(
    recordings: Sequence[Recording],
    *,
    host_from: HostTimes | None = None,
    host_from_name: str = "another server",
    frontend_from: Profile | None = None,
    exclude_phases: Sequence[str] = (),
    progress: Progress | None = None,
    forms: Mapping[int, str] | None = None,
    held_out: bool = True,
) -> FitResult:
    """Fit a profile to the pooled recordings of one server configuration (GPU, model, method).

    Launch times come from ``host_from`` if no recording has them (``host_from_name`` says whose
    they are, for the profile's notes), the front end's times from ``frontend_from`` if none holds
    requests (its measurement was cut off). Phases of ``exclude_phases`` are not used; warm-up
    phases never are. ``forms`` are those of the spans of each mode of mixed steps (see
    ``fit_mixed``), chosen by cross-validation over phases if not given; ``held_out`` works out
    errors in this way, too, which takes longer.

    Raises
    ------
    CalibrationError
        If the recordings are of different servers, or too little was recorded.
    """
    say = progress or (lambda text: None)
    _check_same(recordings, exclude_phases)
    excluded = [
        frozenset(i for i, p in enumerate(r.phases) if p.use == SKIP or p.label in exclude_phases)
        for r in recordings
    ]
    server = recordings[0].server
    graph_max = GRAPH_SIZES[-1]
    say("host times")
    host, notes = fit_host(recordings, excluded, graph_max, host_from, host_from_name)
    say("front end")
    frontend, wake_ms = _frontend(recordings, excluded, frontend_from, notes)
    host = replace(host, wake_ms=wake_ms)
    least_slope, least_pair = _floors(recordings[0])

    timelines = [timeline_of(r, graph_max, host) for r in recordings]
    contexts = [context_of_traffic(r, r.server.kv_heads) for r in recordings]
    inferred = any(not r.steps.has_gpu_spans for r in recordings)
    say("power")
    power = fit_power(recordings, timelines, excluded)
    flexible = {PIECEWISE: "free", EAGER: "saw-256"}
    if inferred:
        notes.append("GPU spans (not recorded in all recordings) were inferred from update times")
        for _ in range(2):
            say("inferring GPU spans")
            table = modes.pool_steps(recordings, timelines, power, excluded, contexts)
            spans = modes.fit_spans(
                table, power.cap_w * 0.85, power.cap_w, least_slope, least_pair, flexible
            )
            timelines = [
                timeline_of(r, graph_max, host, _predictor(r, t, power, spans, c))
                for r, t, c in zip(recordings, timelines, contexts, strict=True)
            ]
        power = fit_power(recordings, timelines, excluded)

    say("throttle")
    power, start_w, full_w = _throttle_levels(
        recordings, timelines, power, excluded, contexts, least_slope, least_pair, flexible
    )
    table = modes.pool_steps(recordings, timelines, power, excluded, contexts)
    table = table.with_level(start_w, full_w)
    say("forms of mixed spans, by cross-validation over phases")
    forms = forms or modes.choose_forms(table, least_slope, least_pair)
    spans = modes.fit_spans(table, start_w, full_w, least_slope, least_pair, forms)
    say("errors by mode")
    errors = modes.mode_errors(table, spans, forms, least_slope, least_pair, held_out=held_out)
    notes.append(
        "forms of mixed spans: "
        + ", ".join(f"{modes.MODE_NAMES[mode]} {name}" for mode, name in forms.items())
    )

    profile = Profile(
        identity=Identity(
            gpu=server.gpu,
            model=server.model,
            method=server.method,
            tensor_parallel_size=server.tensor_parallel,
            vllm_version=server.vllm_version,
            driver=server.driver,
            host=", ".join(sorted({r.server.host for r in recordings if r.server.host})),
            date=server.date,
            architecture=dict(server.model_config),
            vllm_args=_vllm_args(recordings[0]),
            recordings=[r.name for r in recordings],
            notes=notes,
        ),
        engine=EngineDefaults(
            max_num_batched_tokens=server.max_num_batched_tokens,
            max_model_len=int(
                server.model_config.get("max_position_embeddings", server.max_model_len)
            ),
        ),
        latency=modes.latency_of(spans),
        host=host,
        frontend=frontend,
        power=rounded(power),
        memory=_memory(server),
        measured_range=_measured_range(table, recordings, excluded),
    )
    checked = Profile.from_dict(profile.to_dict(), "the fitted profile")
    return FitResult(checked, errors, forms, tuple(recordings), tuple(timelines), table, spans)


def _frontend(
    recordings: Sequence[Recording],
    excluded: Sequence[frozenset[int]],
    lender: Profile | None,
    notes: list[str],
) -> tuple[FrontEnd, float]:
    if any(len(r.requests) for r in recordings):
        pairs = [(r, e) for r, e in zip(recordings, excluded, strict=True) if len(r.requests)]
        return fit_frontend([r for r, _ in pairs], [e for _, e in pairs])
    if lender is None:
        raise CalibrationError(
            f"{recordings[0].name} holds no requests, so the front end cannot be fitted: give "
            "--frontend-from with a profile whose server has a like host"
        )
    notes.append(
        "the recording was cut off and holds no requests: the front end's times are those of "
        f"{lender.id}, and no end-to-end error is known"
    )
    return lender.frontend, lender.host.wake_ms


def _check_same(recordings: Sequence[Recording], exclude_phases: Sequence[str]) -> None:
    if not recordings:
        raise CalibrationError("no recordings were given; a fit needs at least one")
    first = recordings[0].server
    for r in recordings[1:]:
        for name in ("gpu", "model", "method", "tensor_parallel", "kv_cache_dtype", "release"):
            a, b = getattr(first, name), getattr(r.server, name)
            if a != b:
                raise CalibrationError(
                    f"{recordings[0].name} and {r.name} cannot be pooled: "
                    f"their {name} is {a!r} and {b!r}"
                )
    known = {p.label for r in recordings for p in r.phases}
    for label in exclude_phases:
        if label not in known:
            raise CalibrationError(
                f"exclude_phases has {label!r}; the recordings have: {', '.join(sorted(known))}"
            )


def _floors(recording: Recording) -> tuple[float, float]:
    """ms a context token and ms a (query, key) pair that the GPU cannot beat."""
    server = recording.server
    gpu = GPUS.get(server.gpu)
    if gpu is None:
        return 0.0, 0.0
    a = server.architecture
    # scores and values: two products of 2 * width FLOPs a pair and layer
    width = a.num_attention_heads * a.head_dim
    pair_flops = 4 * width * a.num_hidden_layers / server.tensor_parallel
    # the last level cache serves some of the reads
    kv_ms = server.kv_bytes_per_token / gpu.bandwidth_bytes_s * 1e3
    return 0.9 * kv_ms, pair_flops / gpu.bf16_flops * 1e3


def predicted_spans(result: FitResult) -> FloatArray:
    """Predicted spans of the steps in ``result.table``, shape (n,); ms."""
    return modes.predict_ms(result.table, result.spans)


def _predictor(
    recording: Recording, timeline: Timeline, power: Power, spans: modes.Spans, context: FloatArray
) -> Callable[[int], float]:
    table = modes.pool_steps([recording], [timeline], power, [frozenset()], [context])
    predicted = modes.predict_ms(table.with_level(spans.start_w, spans.full_w), spans)
    return lambda k: float(predicted[k])


def _throttle_levels(
    recordings: Sequence[Recording],
    timelines: Sequence[Timeline],
    power: Power,
    excluded: Sequence[frozenset[int]],
    contexts: Sequence[FloatArray],
    least_slope: float,
    least_pair: float,
    forms: Mapping[int, str],
) -> tuple[Power, float, float]:
    """Time constant, start and full throttle: those that predict spans clearly best."""
    best: tuple[float, Power, float, float] | None = None
    for tau_s in _TAUS_S:
        trial = replace(power, tau_s=tau_s)
        table = modes.pool_steps(recordings, timelines, trial, excluded, contexts)
        # decode steps are many: a few thousand will do here
        thin = max(1, int((table.mode == DECODE).sum()) // 4000)
        table = table.take((table.mode != DECODE) | (np.arange(len(table)) % thin == 0))
        for start, full in _LEVELS:
            start_w, full_w = round(start * power.cap_w), round(full * power.cap_w)
            spans = modes.fit_spans(table, start_w, full_w, least_slope, least_pair, forms)
            loss = spans.loss if best is None else spans.loss / _CLEARLY
            if best is None or loss < best[0]:
                best = (loss, trial, float(start_w), float(full_w))
    assert best is not None
    return best[1:]


def _measured_range(
    table: StepTable, recordings: Sequence[Recording], excluded: Sequence[frozenset[int]]
) -> dict[str, Any]:
    decode = table.mode == DECODE
    used = [~np.isin(r.steps.phase, list(x)) for r, x in zip(recordings, excluded, strict=True)]
    contexts = [r.steps.decode_context_tokens[m] for r, m in zip(recordings, used, strict=True)]
    return {
        "decode_rows": [int(table.decodes[decode].min()), int(table.decodes[decode].max())],
        "step_requests": [1, int((table.decodes + table.chunks).max())],
        "decode_context_tokens": [0, int(max(c.max() for c in contexts if len(c)))],
        "request_context_tokens": [1, _longest_request(recordings, excluded)],
        "step_tokens": [1, int(table.tokens.max())],
        "decode_steps": int((decode & table.usable).sum()),
        "mixed_steps": int((~decode & table.usable).sum()),
    }


def _longest_request(recordings: Sequence[Recording], excluded: Sequence[frozenset[int]]) -> int:
    """Prompt and output tokens of the longest request; prompts alone where none was recorded."""
    longest = 1
    for r, out in zip(recordings, excluded, strict=True):
        q = r.requests
        kept = ~np.isin(q.phase, list(out))
        longest = max(longest, int((q.prompt_tokens + q.output_tokens)[kept].max(initial=1)))
        for phase, chunks in zip(r.steps.phase.tolist(), r.steps.chunks, strict=True):
            if phase not in out:
                longest = max(longest, max((n + done for n, done in chunks), default=1))
    return longest


def _memory(server: Server) -> Memory:
    """What was measured (the number of KV blocks) and what follows from the architecture."""
    method = find_method(server.method)
    return Memory(
        num_gpu_blocks=server.num_gpu_blocks,
        block_size=server.block_size,
        kv_bytes_per_token=server.kv_bytes_per_token,
        weight_bytes=weight_bytes(method, server.architecture, server.tensor_parallel),
        measured_with={
            "max_model_len": server.max_model_len,
            "max_num_batched_tokens": server.max_num_batched_tokens,
            "gpu_memory_utilization": server.gpu_memory_utilization,
            "kv_cache_dtype": server.kv_cache_dtype,
        },
    )


def _vllm_args(recording: Recording) -> list[str]:
    """What makes ``vllm serve`` use the method; a quantized checkpoint itself needs nothing."""
    server = recording.server
    args = ["--dtype", "bfloat16"] if server.method.partition("+")[0] == "bf16" else []
    flags = server.server_flags
    if "--quantization" in flags[:-1]:
        args += ["--quantization", flags[flags.index("--quantization") + 1]]
    return args + find_method(server.method).serve_args
