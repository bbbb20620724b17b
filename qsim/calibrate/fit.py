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
import numpy.typing as npt

from qsim.calibrate.fit_frontend import fit_frontend
from qsim.calibrate.fit_host import fit_host
from qsim.calibrate.fit_memory import architecture, fit_memory, kv_bytes_per_token
from qsim.calibrate.fit_power import fit_power, trailing_power_w
from qsim.calibrate.fit_span import (
    GRAPH_SIZES,
    ModeFit,
    StepTable,
    fit_decode,
    fit_mixed,
    predict_decode_ms,
    predict_mixed_ms,
)
from qsim.calibrate.fit_timeline import (
    DECODE,
    EAGER,
    PIECEWISE,
    Timeline,
    infer_timeline,
    recorded_timeline,
)
from qsim.calibrate.methods import find_method
from qsim.calibrate.recording import SKIP, Recording
from qsim.errors import CalibrationError
from qsim.profile import (
    DecodeSpan,
    EngineDefaults,
    HostTimes,
    Identity,
    Latency,
    MixedSpan,
    Power,
    Profile,
    Throttle,
)

__all__ = ["FitResult", "ModeError", "fit", "predicted_spans"]

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[str], None]

#: peak memory bandwidth (bytes/s) and dense 16-bit matrix FLOP/s from the vendor's data sheets;
#: they bound the slopes from below where there are no data
_PEAKS = {
    "h200_sxm": (4.8e12, 989e12),
    "h100_sxm": (3.35e12, 989e12),
    "a100_sxm": (2.039e12, 312e12),
}
#: candidates for the trailing power: time constant (s), start and full throttle (share of cap)
_TAUS_S = (0.03, 0.05, 0.08, 0.12, 0.2, 0.5)
_LEVELS = ((0.70, 0.95), (0.70, 1.0), (0.78, 0.97), (0.85, 0.95), (0.85, 1.0), (0.92, 1.0))
#: forms of the spans of mixed steps, simplest first
_FORMS = {PIECEWISE: ("smooth", "free"), EAGER: ("smooth", "saw-128", "saw-256")}
#: a more complicated form must be better by this factor
_SIMPLICITY = 1.03
_MODE_NAMES = {DECODE: "decode", PIECEWISE: "piecewise", EAGER: "eager"}


@dataclass(frozen=True)
class ModeError:
    """How well spans of one mode are predicted, in percent."""

    mode: str
    steps: int
    mean_absolute: float
    sum_error: float
    held_out: float
    held_out_sum: float


@dataclass(frozen=True)
class Spans:
    """The fitted modes, and the trailing power at which throttling starts and is full."""

    decode: ModeFit
    piecewise: ModeFit
    eager: ModeFit
    start_w: float
    full_w: float

    @property
    def loss(self) -> float:
        return self.decode.loss + self.piecewise.loss + self.eager.loss


@dataclass(frozen=True, eq=False)
class FitResult:
    """A profile, and what diagnostics need."""

    profile: Profile
    errors: tuple[ModeError, ...]
    forms: Mapping[int, str]
    recordings: tuple[Recording, ...]
    timelines: tuple[Timeline, ...]
    table: StepTable
    spans: Spans


def fit(
    recordings: Sequence[Recording],
    *,
    host_from: HostTimes | None = None,
    host_from_name: str = "another server",
    exclude_phases: Sequence[str] = (),
    progress: Progress | None = None,
    forms: Mapping[int, str] | None = None,
    held_out: bool = True,
) -> FitResult:
    """Fit a profile.

    Parameters
    ----------
    recordings : sequence of Recording
        Recordings of one server configuration (GPU, model, method), pooled.
    host_from : HostTimes, optional
        Where launch times come from if no recording has them; ``host_from_name`` says whose
        they are, for the profile's notes.
    exclude_phases : sequence of str
        Labels of phases not to use; warm-up phases never are.
    forms : mapping, optional
        The form of the spans of each mode of mixed steps (see ``fit_mixed``); chosen by
        cross-validation over phases if not given.
    held_out : bool
        Whether to work out errors by cross-validation over phases too (takes longer).

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
    frontend, wake_ms = fit_frontend(recordings, excluded)
    host = replace(host, wake_ms=wake_ms)
    least_slope, least_pair = _floors(recordings[0])

    timelines = [_timeline(r, graph_max, host, None) for r in recordings]
    inferred = any(not r.steps.has_gpu_spans for r in recordings)
    say("power")
    power = fit_power(recordings, timelines, excluded)
    flexible = {PIECEWISE: "free", EAGER: "saw-256"}
    if inferred:
        notes.append("GPU spans (not recorded in all recordings) were inferred from update times")
        for _ in range(2):
            say("inferring GPU spans")
            table = _table(recordings, timelines, power, excluded)
            spans = _fit_spans(
                table, power.cap_w * 0.85, power.cap_w, least_slope, least_pair, flexible
            )
            timelines = [
                _timeline(r, graph_max, host, _predictor(r, t, power, spans))
                for r, t in zip(recordings, timelines, strict=True)
            ]
        power = fit_power(recordings, timelines, excluded)

    say("throttle")
    power, start_w, full_w = _throttle_levels(
        recordings, timelines, power, excluded, least_slope, least_pair, flexible
    )
    table = _table(recordings, timelines, power, excluded).with_level(start_w, full_w)
    say("forms of mixed spans, by cross-validation over phases")
    forms = forms or _choose_forms(table, least_slope, least_pair)
    spans = _fit_spans(table, start_w, full_w, least_slope, least_pair, forms)
    say("errors by mode")
    errors = _mode_errors(table, spans, forms, least_slope, least_pair, held_out=held_out)
    notes.append(
        "forms of mixed spans: "
        + ", ".join(f"{_MODE_NAMES[mode]} {name}" for mode, name in forms.items())
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
            date=str(server.raw.get("date", "")),
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
        latency=_latency(spans),
        host=host,
        frontend=frontend,
        power=_rounded(power),
        memory=fit_memory(server),
        measured_range=_measured_range(table),
    )
    checked = Profile.from_dict(profile.to_dict(), "the fitted profile")
    return FitResult(checked, errors, forms, tuple(recordings), tuple(timelines), table, spans)


def _check_same(recordings: Sequence[Recording], exclude_phases: Sequence[str]) -> None:
    if not recordings:
        raise CalibrationError("no recordings were given; a fit needs at least one")
    first = recordings[0].server
    for r in recordings[1:]:
        for name in ("gpu", "model", "method", "tensor_parallel", "kv_cache_dtype"):
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


def _timeline(
    recording: Recording,
    graph_max: int,
    host: HostTimes,
    predict: Callable[[int], float] | None,
) -> Timeline:
    if recording.steps.has_gpu_spans:
        return recorded_timeline(recording, graph_max)
    return infer_timeline(recording, graph_max, host, predict)


def _floors(recording: Recording) -> tuple[float, float]:
    """ms a context token and ms a (query, key) pair that the GPU cannot beat."""
    server = recording.server
    if server.gpu not in _PEAKS:
        return 0.0, 0.0
    bandwidth, flops = _PEAKS[server.gpu]
    a = architecture(server)
    # scores and values: two products of 2 * width FLOPs a pair and layer
    width = a.num_attention_heads * a.head_dim
    pair_flops = 4 * width * a.num_hidden_layers / server.tensor_parallel
    # the last level cache serves some of the reads
    return 0.9 * kv_bytes_per_token(server) / bandwidth * 1e3, pair_flops / flops * 1e3


def _table(
    recordings: Sequence[Recording],
    timelines: Sequence[Timeline],
    power: Power,
    excluded: Sequence[frozenset[int]],
) -> StepTable:
    """All steps of the phases that are not excluded."""
    parts = []
    offset = 0
    for r, t, out in zip(recordings, timelines, excluded, strict=True):
        s = r.steps
        trailing = trailing_power_w(power, r, t)
        whole = StepTable(
            mode=t.mode,
            tokens=s.decodes + s.prefill_tokens,
            decodes=s.decodes,
            context=s.decode_context_tokens.astype(float),
            pairs=s.pairs,
            chunks=s.num_chunks,
            span_ms=t.span_ms,
            usable=t.usable,
            group=s.phase + offset,
            trailing_w=trailing,
            start_s=t.start_s,
            x=np.zeros(len(s)),
        )
        parts.append(whole.take(~np.isin(s.phase, list(out))))
        offset += 1000
    return StepTable(
        **{
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in StepTable.__dataclass_fields__
        }
    )


def _fit_spans(
    table: StepTable,
    start_w: float,
    full_w: float,
    least_slope: float,
    least_pair: float,
    forms: Mapping[int, str],
) -> Spans:
    t = table.with_level(start_w, full_w)
    return Spans(
        decode=fit_decode(t, GRAPH_SIZES, least_slope=least_slope),
        piecewise=fit_mixed(
            t, PIECEWISE, GRAPH_SIZES, form=forms[PIECEWISE], least_pair_ms=least_pair
        ),
        eager=fit_mixed(t, EAGER, GRAPH_SIZES, form=forms[EAGER], least_pair_ms=least_pair),
        start_w=start_w,
        full_w=full_w,
    )


def _predict(table: StepTable, spans: Spans) -> FloatArray:
    """Predicted spans of all steps, throttled by ``table.x``; ms."""
    decode, piecewise, eager = spans.decode.span, spans.piecewise.span, spans.eager.span
    assert isinstance(decode, DecodeSpan)
    assert isinstance(piecewise, MixedSpan)
    assert isinstance(eager, MixedSpan)
    out = np.empty(len(table))
    for mode, fitted in (
        (DECODE, spans.decode),
        (PIECEWISE, spans.piecewise),
        (EAGER, spans.eager),
    ):
        m = table.mode == mode
        t = table.take(m)
        if mode == DECODE:
            ms = predict_decode_ms(decode, t.decodes, t.context, GRAPH_SIZES)
        else:
            span = piecewise if mode == PIECEWISE else eager
            ms = predict_mixed_ms(span, t, mode, GRAPH_SIZES)
        out[m] = ms * (1.0 + fitted.theta * t.x)
    return out


def predicted_spans(result: FitResult) -> FloatArray:
    """Predicted spans of the steps in ``result.table``, shape (n,); ms."""
    return _predict(result.table, result.spans)


def _predictor(
    recording: Recording, timeline: Timeline, power: Power, spans: Spans
) -> Callable[[int], float]:
    table = _table([recording], [timeline], power, [frozenset()])
    predicted = _predict(table.with_level(spans.start_w, spans.full_w), spans)
    return lambda k: float(predicted[k])


def _throttle_levels(
    recordings: Sequence[Recording],
    timelines: Sequence[Timeline],
    power: Power,
    excluded: Sequence[frozenset[int]],
    least_slope: float,
    least_pair: float,
    forms: Mapping[int, str],
) -> tuple[Power, float, float]:
    """Time constant, start and full throttle: those that predict spans best."""
    best: tuple[float, Power, float, float] | None = None
    for tau_s in _TAUS_S:
        trial = replace(power, tau_s=tau_s)
        table = _table(recordings, timelines, trial, excluded)
        # decode steps are many: a few thousand will do here
        thin = max(1, int((table.mode == DECODE).sum()) // 4000)
        table = table.take((table.mode != DECODE) | (np.arange(len(table)) % thin == 0))
        for start, full in _LEVELS:
            start_w, full_w = round(start * power.cap_w), round(full * power.cap_w)
            spans = _fit_spans(table, start_w, full_w, least_slope, least_pair, forms)
            if best is None or spans.loss < best[0]:
                best = (spans.loss, trial, float(start_w), float(full_w))
    assert best is not None
    return best[1:]


def _choose_forms(table: StepTable, least_slope: float, least_pair: float) -> dict[int, str]:
    """For each mode of mixed steps the form that predicts left-out phases best."""
    chosen: dict[int, str] = {}
    for mode, names in _FORMS.items():
        best = np.inf
        for name in names:
            error, _ = _held_out_error(table, {mode: name}, least_slope, least_pair, (mode,))[mode]
            if not chosen.get(mode) or error * _SIMPLICITY < best:
                best, chosen[mode] = error, name
    return chosen


def _held_out_error(
    table: StepTable,
    forms: Mapping[int, str],
    least_slope: float,
    least_pair: float,
    modes: Sequence[int] = (DECODE, PIECEWISE, EAGER),
) -> dict[int, tuple[float, float]]:
    """Mean absolute error and error of the sum by mode, percent, each phase left out in turn."""
    predicted = np.full(len(table), np.nan)
    for group in np.unique(table.group % 1000):
        here = table.group % 1000 == group
        rest = table.take(~here)
        for mode in modes:
            m = here & table.usable & (table.mode == mode)
            if not m.any():
                continue
            try:
                if mode == DECODE:
                    fitted = fit_decode(rest, GRAPH_SIZES, least_slope=least_slope)
                else:
                    fitted = fit_mixed(
                        rest, mode, GRAPH_SIZES, form=forms[mode], least_pair_ms=least_pair
                    )
            except CalibrationError:
                continue  # nearly all steps of this mode lie in that phase
            t = table.take(m)
            if isinstance(fitted.span, DecodeSpan):
                ms = predict_decode_ms(fitted.span, t.decodes, t.context, GRAPH_SIZES)
            else:
                ms = predict_mixed_ms(fitted.span, t, mode, GRAPH_SIZES)
            predicted[m] = ms * (1.0 + fitted.theta * t.x)
    result = {}
    for mode in modes:
        m = np.isfinite(predicted) & (table.mode == mode)
        result[mode] = _error(predicted[m], table.span_ms[m])
    return result


def _error(predicted: FloatArray, measured: FloatArray) -> tuple[float, float]:
    if not len(measured):
        return float("nan"), float("nan")
    mean = float(np.abs(predicted / measured - 1.0).mean()) * 100
    total = float(predicted.sum() / measured.sum() - 1.0) * 100
    return mean, total


def _mode_errors(
    table: StepTable,
    spans: Spans,
    forms: Mapping[int, str],
    least_slope: float,
    least_pair: float,
    *,
    held_out: bool,
) -> tuple[ModeError, ...]:
    predicted = _predict(table, spans)
    left = (
        _held_out_error(table, forms, least_slope, least_pair)
        if held_out
        else dict.fromkeys(_MODE_NAMES, (float("nan"), float("nan")))
    )
    result = []
    for mode, name in _MODE_NAMES.items():
        m = table.usable & (table.mode == mode)
        mean, total = _error(predicted[m], table.span_ms[m])
        result.append(ModeError(name, int(m.sum()), mean, total, *left[mode]))
    return tuple(result)


def _latency(spans: Spans) -> Latency:
    decode, piecewise, eager = spans.decode.span, spans.piecewise.span, spans.eager.span
    assert isinstance(decode, DecodeSpan)
    assert isinstance(piecewise, MixedSpan)
    assert isinstance(eager, MixedSpan)
    return Latency(
        graph_sizes=list(GRAPH_SIZES),
        decode=decode,
        piecewise=piecewise,
        eager=eager,
        throttle=Throttle(
            start_w=spans.start_w,
            full_w=spans.full_w,
            decode=round(spans.decode.theta, 4),
            piecewise=round(spans.piecewise.theta, 4),
            eager=round(spans.eager.theta, 4),
        ),
    )


def _rounded(power: Power) -> Power:
    def six(value: float) -> float:
        return float(f"{value:.6g}")

    return Power(**{name: six(getattr(power, name)) for name in power.__dataclass_fields__})


def _measured_range(table: StepTable) -> dict[str, Any]:
    decode = table.mode == DECODE
    return {
        "decode_rows": [int(table.decodes[decode].min()), int(table.decodes[decode].max())],
        "decode_context_tokens": [0, int(table.context.max())],
        "step_tokens": [1, int(table.tokens.max())],
        "decode_steps": int((decode & table.usable).sum()),
        "mixed_steps": int((~decode & table.usable).sum()),
    }


def _vllm_args(recording: Recording) -> list[str]:
    """What makes ``vllm serve`` use the method; a quantized checkpoint itself needs nothing."""
    server = recording.server
    args = ["--dtype", "bfloat16"] if server.method.partition("+")[0] == "bf16" else []
    flags = server.server_flags
    if "--quantization" in flags[:-1]:
        args += ["--quantization", flags[flags.index("--quantization") + 1]]
    return args + find_method(server.method).serve_args
