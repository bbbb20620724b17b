"""All execution modes together: pooled steps, fitted spans, their errors, the choice of forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qsim.arrays import FloatArray
from qsim.calibrate.fit.power import trailing_power_w
from qsim.calibrate.fit.span import (
    GRAPH_SIZES,
    ModeFit,
    StepTable,
    fit_decode,
    fit_mixed,
    predict_decode_ms,
    predict_mixed_ms,
)
from qsim.calibrate.fit.timeline import DECODE, EAGER, PIECEWISE, Timeline
from qsim.calibrate.recordings.data import Recording
from qsim.errors import CalibrationError
from qsim.profiles.schema import DecodeSpan, Latency, MixedSpan, Power, Throttle
from qsim.profiles.spans import mixed_base_ms

#: forms of the spans of mixed steps, simplest first
_FORMS = {PIECEWISE: ("smooth", "free"), EAGER: ("smooth", "saw-128", "saw-256")}
#: by how much a step of more tokens may take less: one of 264 tokens begins a new tile of the
#: kernels, one of 256 fills its; what falls deeper is a fit to too few steps
DEEPEST_TOOTH = 0.45
#: a more complicated form must be better by this factor
_SIMPLICITY = 1.03
MODE_NAMES = {DECODE: "decode", PIECEWISE: "piecewise", EAGER: "eager"}


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


def pool_steps(
    recordings: Sequence[Recording],
    timelines: Sequence[Timeline],
    power: Power,
    excluded: Sequence[frozenset[int]],
    contexts: Sequence[FloatArray] | None = None,
) -> StepTable:
    """All steps of the phases that are not excluded.

    ``contexts`` has the context tokens to fit on for each recording (see contexts.py); by
    default the recorded ones.
    """
    parts = []
    offset = 0
    if contexts is None:
        contexts = [r.steps.decode_context_tokens.astype(float) for r in recordings]
    for r, t, out, context in zip(recordings, timelines, excluded, contexts, strict=True):
        s = r.steps
        trailing = trailing_power_w(power, r, t)
        whole = StepTable(
            mode=t.mode,
            tokens=s.decodes + s.prefill_tokens,
            decodes=s.decodes,
            context=context,
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


def _fit_mode(
    table: StepTable, mode: int, forms: Mapping[int, str], least_slope: float, least_pair: float
) -> ModeFit:
    if mode == DECODE:
        return fit_decode(table, GRAPH_SIZES, least_slope=least_slope)
    return fit_mixed(
        table,
        mode,
        GRAPH_SIZES,
        form=forms[mode],
        least_slope=least_slope,
        least_pair_ms=least_pair,
    )


def _predict_mode_ms(fitted: ModeFit, steps: StepTable, mode: int) -> FloatArray:
    """Spans of steps of one mode, throttled by ``steps.x``."""
    if isinstance(fitted.span, DecodeSpan):
        ms = predict_decode_ms(fitted.span, steps.decodes, steps.context, GRAPH_SIZES)
    else:
        ms = predict_mixed_ms(fitted.span, steps, mode, GRAPH_SIZES)
    return ms * (1.0 + fitted.theta * steps.x)


def fit_spans(
    table: StepTable,
    start_w: float,
    full_w: float,
    least_slope: float,
    least_pair: float,
    forms: Mapping[int, str],
) -> Spans:
    t = table.with_level(start_w, full_w)
    decode, piecewise, eager = (
        _fit_mode(t, mode, forms, least_slope, least_pair) for mode in MODE_NAMES
    )
    return Spans(decode, piecewise, eager, start_w, full_w)


def predict_ms(table: StepTable, spans: Spans) -> FloatArray:
    """Predicted spans of all steps, throttled by ``table.x``; ms."""
    out = np.empty(len(table))
    for mode, fitted in zip(MODE_NAMES, (spans.decode, spans.piecewise, spans.eager), strict=True):
        m = table.mode == mode
        out[m] = _predict_mode_ms(fitted, table.take(m), mode)
    return out


def choose_forms(table: StepTable, least_slope: float, least_pair: float) -> dict[int, str]:
    """For each mode of mixed steps the form that predicts left-out phases best.

    One in which steps of many tokens take far less than those of few is none of them.
    """
    chosen: dict[int, str] = {}
    for mode, names in _FORMS.items():
        best = np.inf
        for name in names:
            error, _ = _held_out_error(table, {mode: name}, least_slope, least_pair, (mode,))[mode]
            better = error * _SIMPLICITY < best
            if not chosen.get(mode) or (
                better and _rises(table, mode, name, least_slope, least_pair)
            ):
                best, chosen[mode] = error, name
    return chosen


def _rises(table: StepTable, mode: int, form: str, least_slope: float, least_pair: float) -> bool:
    """Whether spans fitted on all steps fall by teeth of tiles only."""
    span = _fit_mode(table, mode, {mode: form}, least_slope, least_pair).span
    if not isinstance(span, MixedSpan):
        return True
    base = mixed_base_ms(span, np.arange(1, span.tokens[-1] + 1))
    return bool((base >= (1 - DEEPEST_TOOTH) * np.maximum.accumulate(base)).all())


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
                fitted = _fit_mode(rest, mode, forms, least_slope, least_pair)
            except CalibrationError:
                continue  # nearly all steps of this mode lie in that phase
            predicted[m] = _predict_mode_ms(fitted, table.take(m), mode)
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


def mode_errors(
    table: StepTable,
    spans: Spans,
    forms: Mapping[int, str],
    least_slope: float,
    least_pair: float,
    *,
    held_out: bool,
) -> tuple[ModeError, ...]:
    predicted = predict_ms(table, spans)
    left = (
        _held_out_error(table, forms, least_slope, least_pair)
        if held_out
        else dict.fromkeys(MODE_NAMES, (float("nan"), float("nan")))
    )
    result = []
    for mode, name in MODE_NAMES.items():
        m = table.usable & (table.mode == mode)
        mean, total = _error(predicted[m], table.span_ms[m])
        result.append(ModeError(name, int(m.sum()), mean, total, *left[mode]))
    return tuple(result)


def latency_of(spans: Spans) -> Latency:
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
