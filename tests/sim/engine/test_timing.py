"""Step times: graph padding, modes without a graph, interpolation and throttling."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from qsim.sim.engine.timing import DECODE, EAGER, PIECEWISE, PS_PER_MS, Timing
from qsim.sim.scheduler.config import EngineOptions
from tests.make_profile import GRAPH_SIZES, make_profile

FULL = (1.0, 1.0, 1.0)


def timing(**options) -> Timing:
    profile = make_profile()
    return Timing(profile, EngineOptions(**options).resolve(profile))


def test_decode_spans_are_those_of_the_next_captured_size():
    t = timing()
    d = make_profile().latency.decode
    for rows in (1, 2, 3, 5, 9, 100, 250, 257, 512):
        padded = min(s for s in GRAPH_SIZES if s >= rows)
        want = np.interp(padded, d.rows, d.base_ms) + 3e-5 * 2000 + 2e-5 * 500
        assert t.decode_span_ps(rows, 2500, 1.0) == pytest.approx(want * PS_PER_MS, abs=2)
        assert t.decode_mode[rows] == DECODE


def test_decodes_above_the_largest_graph_run_without_one():
    t = timing()
    m = make_profile().latency.eager
    assert t.decode_mode[513] == EAGER
    base = np.interp(600, m.tokens, m.base_ms) + 600 * m.ms_per_decode
    # a context token costs as much as without a prefill in the step, and as in the largest graph
    want = base + max(m.ms_per_decode_context_token, 3e-5) * 2000
    want += max(m.ms_per_decode_context_token, 2e-5) * 8000
    assert t.decode_span_ps(600, 10_000, 1.0) == pytest.approx(want * PS_PER_MS, rel=1e-9)


def test_a_graph_larger_than_the_seats_is_piecewise():
    # vLLM captures full graphs up to the seats only: 97 decodes of 100 seats pad to 104
    t = timing(max_num_seqs=100)
    assert t.decode_mode[96] == DECODE
    assert t.decode_mode[97] == PIECEWISE
    assert t.graph_max == 200  # twice the seats


def test_mixed_steps_change_mode_at_the_largest_graph():
    t = timing()
    lat = make_profile().latency
    for tokens, span, at in ((300, lat.piecewise, 304), (513, lat.eager, 513)):
        n, computed, decodes, context = tokens - 20, 64, 20, 9000
        mode, got = t.mixed_span_ps(tokens, decodes, context, [(n, computed)], FULL)
        want = np.interp(at, span.tokens, span.base_ms)
        want += span.ms_per_decode_context_token * context + span.ms_per_chunk
        want += span.ms_per_decode * decodes + span.ms_per_pair * n * (computed + (n + 1) / 2)
        assert mode == (PIECEWISE if tokens <= 512 else EAGER)
        assert got == pytest.approx(want * PS_PER_MS, rel=1e-9)


def test_steps_beyond_the_table_have_the_throughput_of_its_largest_at_the_power_limit():
    profile = make_profile(max_num_batched_tokens=20_000, throttle=0.1)
    t = Timing(profile, EngineOptions().resolve(profile))
    m = profile.latency.eager
    _, got = t.mixed_span_ps(16_384, 0, 0, [(16_384, 0)], FULL)
    want = 2 * (m.base_ms[-1] + m.ms_per_chunk) + m.ms_per_chunk
    want = 1.1 * (want + m.ms_per_pair * 16_384 * 16_385 / 2)
    assert m.tokens[-1] == 8192
    assert got == pytest.approx(want * PS_PER_MS, rel=1e-9)


def test_throttling_scales_each_mode_by_its_own_factor():
    t = timing()
    cold = t.mixed_span_ps(1000, 0, 0, [(1000, 0)], FULL)[1]
    hot = t.mixed_span_ps(1000, 0, 0, [(1000, 0)], (1.0, 1.5, 1.1))[1]
    assert hot == pytest.approx(1.1 * cold, rel=1e-9)
    assert t.decode_span_ps(8, 100, 1.2) == pytest.approx(
        1.2 * t.decode_span_ps(8, 100, 1.0), rel=1e-9
    )


def test_spans_never_fall_as_context_grows():
    profile = make_profile()
    decode = replace(profile.latency.decode, context_knots_tokens=[0, 100])
    profile = replace(profile, latency=replace(profile.latency, decode=decode))
    t = Timing(profile, EngineOptions().resolve(profile))
    spans = [t.decode_span_ps(4, c, 1.0) for c in range(0, 400, 7)]
    assert spans == [t.full_clock_span_ps(4, c) for c in range(0, 400, 7)]
    assert all(b > a for a, b in itertools.pairwise(spans))
