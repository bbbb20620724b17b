"""The regressions behind the span tables, on steps whose law is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.calibrate.fit import modes
from qsim.calibrate.fit.span import (
    GRAPH_SIZES,
    StepTable,
    fit_decode,
    fit_mixed,
    pad_to_graph,
    predict_decode_ms,
    predict_mixed_ms,
)
from qsim.calibrate.fit.timeline import DECODE, EAGER, PIECEWISE
from qsim.errors import CalibrationError
from qsim.profiles.schema import DecodeSpan, MixedSpan


def _steps(mode: int, n: int, seed: int = 0) -> StepTable:
    rng = np.random.default_rng(seed)
    if mode == DECODE:
        decodes = rng.choice([1, 2, 4, 8, 16, 24, 40, 64, 100, 128], n)
        chunks = np.zeros(n, dtype=np.int64)
        tokens = decodes
    else:
        low, high = (9, 513) if mode == PIECEWISE else (513, 8193)
        tokens = np.exp(rng.uniform(np.log(low), np.log(high), n)).astype(np.int64)
        chunks = rng.integers(1, 4, n)
        decodes = np.minimum(rng.integers(0, 60, n), tokens - 1)
    prefill = tokens - decodes
    return StepTable(
        mode=np.full(n, mode),
        tokens=tokens,
        decodes=decodes,
        context=decodes * rng.uniform(100, 3000, n),
        pairs=prefill * (prefill + 1) / 2 * rng.uniform(0.3, 2.0, n),
        chunks=chunks,
        span_ms=np.ones(n),
        usable=np.ones(n, dtype=np.bool_),
        group=np.zeros(n, dtype=np.int64),
        trailing_w=rng.uniform(500, 750, n),
        start_s=np.arange(n) * 0.01,
        x=np.zeros(n),
    ).with_level(600.0, 700.0)


def _with_spans(t: StepTable, ms: np.ndarray) -> StepTable:
    return replace(t, span_ms=ms)


def _eager_law(t: StepTable) -> np.ndarray:
    return 8.0 + 0.013 * t.tokens + 4e-5 * t.context + 6e-7 * t.pairs


def test_throttle_is_told_apart_from_work() -> None:
    t = _steps(EAGER, 600)
    t = _with_spans(t, _eager_law(t) * (1 + 0.12 * t.x))
    result = fit_mixed(t, EAGER, GRAPH_SIZES)
    assert result.theta == pytest.approx(0.12, abs=0.002)
    assert isinstance(result.span, MixedSpan)
    predicted = predict_mixed_ms(result.span, t, EAGER, GRAPH_SIZES) * (1 + result.theta * t.x)
    assert predicted == pytest.approx(t.span_ms, rel=0.01)


def test_held_hosts_do_not_count() -> None:
    t = _steps(EAGER, 600)
    true = _eager_law(t)
    spoilt = true.copy()
    spoilt[::25] *= 3.0
    spoilt[7::25] *= 0.05  # the step behind a held one seems to take no time
    span = fit_mixed(_with_spans(t, spoilt), EAGER, GRAPH_SIZES).span
    assert isinstance(span, MixedSpan)
    assert predict_mixed_ms(span, t, EAGER, GRAPH_SIZES) == pytest.approx(true, rel=0.01)


def test_tiles_are_found() -> None:
    """FP8 matrix kernels: a jump at every 256 tokens, declining to the next."""
    t = _steps(EAGER, 900)
    into = (t.tokens - 1) % 256
    law = _eager_law(t) + 6.0 * (1 - into / 255)
    t = _with_spans(t, law)
    smooth = fit_mixed(t, EAGER, GRAPH_SIZES, form="smooth")
    saw = fit_mixed(t, EAGER, GRAPH_SIZES, form="saw-256")
    assert saw.loss < 0.05 * smooth.loss
    assert isinstance(saw.span, MixedSpan)
    base = saw.span
    low, high = (float(np.interp(n, base.tokens, base.base_ms)) for n in (1024, 1025))
    assert high - low == pytest.approx(6.0, rel=0.1)


def test_decodes_beyond_the_largest_graph_count_as_eager() -> None:
    t = _steps(EAGER, 200)
    t = replace(t, decodes=t.tokens, chunks=np.zeros(len(t), dtype=np.int64), pairs=t.pairs * 0)
    law = 8.0 + 0.013 * t.tokens + 4e-5 * t.context
    span = fit_mixed(_with_spans(t, law), EAGER, GRAPH_SIZES).span
    assert isinstance(span, MixedSpan)
    assert predict_mixed_ms(span, t, EAGER, GRAPH_SIZES) == pytest.approx(law, rel=0.01)


def test_free_values_may_fall() -> None:
    t = _steps(PIECEWISE, 600)
    padded = pad_to_graph(t.tokens, GRAPH_SIZES)
    law = np.where(padded <= 128, 5.0, 7.5 - 0.002 * (padded - 136)) + 4e-5 * t.context
    t = _with_spans(t, law)
    free = fit_mixed(t, PIECEWISE, GRAPH_SIZES, form="free")
    assert isinstance(free.span, MixedSpan)
    assert predict_mixed_ms(free.span, t, PIECEWISE, GRAPH_SIZES) == pytest.approx(law, rel=0.03)
    assert fit_mixed(t, PIECEWISE, GRAPH_SIZES, form="smooth").loss > 10 * free.loss


def test_floors_hold_where_there_are_no_data() -> None:
    t = _steps(EAGER, 200)
    t = _with_spans(t, 8.0 + 0.013 * t.tokens)
    span = fit_mixed(t, EAGER, GRAPH_SIZES, least_pair_ms=5e-7).span
    assert isinstance(span, MixedSpan)
    assert span.ms_per_pair >= 5e-7
    d = _steps(DECODE, 300)
    d = _with_spans(d, np.full(len(d), 4.0) + 1e-4 * d.decodes)
    decode = fit_decode(d, GRAPH_SIZES, least_slope=2e-5).span
    assert isinstance(decode, DecodeSpan)
    assert min(min(s) for s in decode.ms_per_context_token) >= 2e-5


@settings(max_examples=25)
@given(
    base=st.floats(1.0, 10.0),
    per_row=st.floats(0.0, 0.05),
    slope=st.floats(1e-6, 1e-4),
    theta=st.floats(0.0, 0.2),
)
def test_decode_law_is_found(base: float, per_row: float, slope: float, theta: float) -> None:
    t = _steps(DECODE, 400)
    padded = pad_to_graph(t.decodes, GRAPH_SIZES)
    law = (base + per_row * padded + slope * t.context) * (1 + theta * t.x)
    result = fit_decode(_with_spans(t, law), GRAPH_SIZES)
    assert isinstance(result.span, DecodeSpan)
    ms = predict_decode_ms(result.span, t.decodes, t.context, GRAPH_SIZES)
    assert np.abs(ms * (1 + result.theta * t.x) / law - 1).mean() < 0.01
    assert result.span.rows[-1] == GRAPH_SIZES[-1]
    assert result.span.base_ms[-1] >= result.span.base_ms[-2]


def test_too_little_data() -> None:
    with pytest.raises(CalibrationError, match="5 decode steps with a known GPU span; a fit needs"):
        fit_decode(_steps(DECODE, 5), GRAPH_SIZES)
    with pytest.raises(CalibrationError, match="5 eager steps with a known GPU span"):
        fit_mixed(_steps(EAGER, 5), EAGER, GRAPH_SIZES)
    with pytest.raises(CalibrationError, match="form 'saw-256' is not known for piecewise steps"):
        fit_mixed(_steps(PIECEWISE, 50), PIECEWISE, GRAPH_SIZES, form="saw-256")


@pytest.mark.parametrize(("depth", "form"), [(0.2, "free"), (0.8, "smooth")])
def test_a_form_that_falls_deeper_than_tiles_do_is_not_chosen(
    depth: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it foretells of phases left out: a step of more tokens takes about as long."""
    t = _steps(PIECEWISE, 600)
    falling = _with_spans(t, 10.0 - 10.0 * depth * (t.tokens > 256))

    def error(
        table: StepTable, forms: dict[int, str], *rest: object
    ) -> dict[int, tuple[float, float]]:
        return {mode: (1.0 if name == "free" else 9.0, 0.0) for mode, name in forms.items()}

    monkeypatch.setattr(modes, "_held_out_error", error)
    monkeypatch.setattr(modes, "_FORMS", {PIECEWISE: ("smooth", "free")})
    assert modes.choose_forms(falling, 0.0, 0.0) == {PIECEWISE: form}
