"""A fit of a synthetic recording finds the numbers of the profile that made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsim.calibrate.fit.fitting import FitResult, fit
from qsim.calibrate.fit.frontend import fit_frontend, match_requests
from qsim.calibrate.fit.host import _result_ms
from qsim.calibrate.fit.power import fit_power
from qsim.calibrate.fit.span import (
    GRAPH_SIZES,
    predict_decode_ms,
)
from qsim.calibrate.fit.timeline import recorded_timeline
from qsim.calibrate.recordings.data import Recording
from qsim.calibrate.recordings.read import read_recording
from qsim.errors import CalibrationError
from qsim.profiles.schema import MixedSpan, Profile
from tests.calibrate.synthetic import true_profile

RECORDINGS = Path(__file__).parents[3] / "recordings"


def _mixed_ms(span: MixedSpan, tokens: int, context: float, pairs: float) -> float:
    base = float(np.interp(tokens, span.tokens, span.base_ms))
    return base + span.ms_per_decode_context_token * context + span.ms_per_pair * pairs


def _without_splits(recording: Recording) -> Recording:
    """As if of a GPU whose attention takes the same for contexts of any lengths (fit_contexts)."""
    return replace(recording, server=replace(recording.server, gpu="a100_sxm"))


@pytest.mark.parametrize("kind", ["fitted", "inferred"])
def test_spans_are_found(kind: str, recorded: Recording, plain_folder: Path) -> None:
    true = true_profile()
    recording = recorded if kind == "fitted" else read_recording(plain_folder)
    host = None if kind == "fitted" else true.host
    got = fit([_without_splits(recording)], host_from=host, held_out=False).profile
    # inferring spans from update times costs little
    within = 0.005 if kind == "fitted" else 0.01
    for rows, context in ((1, 500), (4, 2000), (8, 20000), (16, 8000), (32, 4000), (64, 8000)):
        a, b = (
            predict_decode_ms(
                p.latency.decode, np.array([rows]), np.array([float(context)]), GRAPH_SIZES
            )[0]
            for p in (got, true)
        )
        assert a == pytest.approx(b, rel=within), (rows, context)
    for mode, tokens in (("piecewise", 40), ("piecewise", 300), ("eager", 700), ("eager", 4096)):
        pairs = tokens * (tokens + 1) / 2
        a, b = (_mixed_ms(getattr(p.latency, mode), tokens, 5000.0, pairs) for p in (got, true))
        assert a == pytest.approx(b, rel=within), (mode, tokens)
    t = got.latency.throttle
    assert (t.decode, t.piecewise, t.eager) == pytest.approx((0, 0, 0), abs=0.005)


def test_contexts_of_one_length_count_less_than_those_of_traffic(fitted: FitResult) -> None:
    # decodes of 8 requests with equally long prompts, whose splits fill the processors
    got, true = fitted.profile.latency.decode, true_profile().latency.decode
    rows, few, many = np.array([8]), np.array([8_000.0]), np.array([40_000.0])
    slopes = [
        float(np.diff([predict_decode_ms(d, rows, c, GRAPH_SIZES)[0] for c in (few, many)])[0])
        for d in (got, true)
    ]
    assert 1.02 < slopes[0] / slopes[1] < 1.35


def test_host_front_end_and_power_are_found(fitted: FitResult) -> None:
    got, true = fitted.profile, true_profile()
    for name in ("schedule_ms", "update_ms", "launch_decode_ms", "launch_eager_ms"):
        assert getattr(got.host, name) == pytest.approx(getattr(true.host, name), abs=2e-3)
    assert got.host.result_ms == pytest.approx(true.host.result_ms, abs=1e-3)
    assert got.host.wake_ms == pytest.approx(true.host.wake_ms, abs=0.15)
    f, g = got.frontend, true.frontend
    assert f.receive_ms == pytest.approx(g.receive_ms, abs=0.1)
    assert f.receive_ms_per_1k_prompt_tokens == pytest.approx(
        g.receive_ms_per_1k_prompt_tokens, abs=0.06
    )
    assert f.first_token_ms == pytest.approx(g.first_token_ms, abs=1e-3)
    assert f.first_token_ms_per_1k_prompt_tokens == pytest.approx(0.5, abs=1e-3)
    assert f.last_token_ms_per_running == pytest.approx(0.04, abs=1e-3)
    for name in ("idle_w", "busy_w", "j_per_prefill_token", "j_per_decode_token"):
        assert getattr(got.power, name) == pytest.approx(getattr(true.power, name), rel=5e-3)
    assert got.power.j_per_context_token == pytest.approx(true.power.j_per_context_token, rel=0.02)


def test_power_before_the_first_load_is_not_that_of_this_server(recorded: Recording) -> None:
    before = np.arange(-60.0, -0.05, 0.1)
    power = recorded.power
    columns = {
        name: np.r_[np.full(len(before), getattr(power, name)[0]), getattr(power, name)]
        for name in vars(power)
    }
    columns["t_s"] = np.r_[before + recorded.phases[0].start_s, power.t_s]
    columns["energy_j"] = np.r_[power.energy_j[0] + 500.0 * before, power.energy_j]  # 500 W
    other = replace(recorded, power=replace(power, **columns))
    timeline = recorded_timeline(recorded, 512)
    a, b = (fit_power([r], [timeline], [frozenset()]) for r in (recorded, other))
    assert a == b


def test_idle_power_is_that_of_the_idle_windows(recorded: Recording) -> None:
    # energy that the model cannot explain, as real recordings hold, stays out of the idle power
    timeline = recorded_timeline(recorded, 512)
    power = recorded.power
    busy_s = np.interp(power.t_s, timeline.end_s, np.cumsum(timeline.span_ms) / 1e3)
    skew = replace(power, energy_j=power.energy_j + 60.0 * np.sqrt(busy_s))
    got = fit_power([replace(recorded, power=skew)], [timeline], [frozenset()])
    assert got.idle_w == pytest.approx(true_profile().power.idle_w, rel=0.01)


def test_under_tensor_parallelism_results_come_by_way_of_the_workers(recorded: Recording) -> None:
    late = 1.1e-3  # to the workers and back
    steps = replace(recorded.steps, update_s=recorded.steps.update_s + late)
    server = replace(recorded.server, tensor_parallel=2)
    got = _result_ms([replace(recorded, steps=steps, server=server)])
    assert got == pytest.approx(true_profile().host.result_ms + 1.1, abs=0.02)


def test_memory_follows_from_the_architecture(fitted: FitResult) -> None:
    m = fitted.profile.memory
    assert m.num_gpu_blocks == 40000
    assert m.kv_bytes_per_token == 16 * 2 * 4 * 64 * 2
    linear = 16 * (1024 * (1024 + 2 * 256) + 1024 * 1024 + 3 * 1024 * 4096)
    assert m.weight_bytes == 2 * (linear + 2 * 32000 * 1024 + (2 * 16 + 1) * 1024)


def test_the_profile_is_whole(fitted: FitResult, tmp_path: Path) -> None:
    p = fitted.profile
    assert p.id == "h200_sxm/toy-1b/bf16"
    assert p.identity.vllm_args == ["--dtype", "bfloat16"]
    assert p.identity.recordings == ["toy--bf16"]
    assert p.engine.max_model_len == 16384
    p.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == p
    for e in fitted.errors:
        assert e.mean_absolute < 0.2
        assert e.steps > 50
    # a phase that was left out is predicted by interpolation, so not as well
    assert all(e.held_out >= e.mean_absolute - 0.01 for e in fitted.errors)


def test_what_was_borrowed_is_said(inferred: FitResult) -> None:
    notes = " ".join(inferred.profile.identity.notes)
    assert "launch times (not recorded here) were borrowed" in notes
    assert "inferred from update times" in notes


def test_requests_are_matched_to_their_steps(recorded: Recording) -> None:
    m = match_requests(recorded)
    q, s = recorded.requests, recorded.steps
    assert (m.first_token >= 0).all()
    assert (m.last_token >= 0).all()
    frontend = true_profile().frontend
    rows = (s.decodes + s.num_chunks)[m.last_token]
    late_ms = (q.last_token_s - s.update_s[m.last_token]) * 1e3
    many = q.output_tokens > 1
    expected = frontend.last_token_ms + frontend.last_token_ms_per_running * rows
    assert late_ms[many] == pytest.approx(expected[many], abs=1e-3)


@pytest.mark.slow
def test_phases_can_be_left_out(recorded: Recording) -> None:
    result = fit([recorded], exclude_phases=["val_mix"], held_out=False)
    i = recorded.phase_index("val_mix")
    assert i not in set(result.table.group)
    assert recorded.phase_index("warm") not in set(result.table.group)


@pytest.mark.slow
def test_pooling(recorded: Recording) -> None:
    """Two recordings of one server count twice and change nothing."""
    twice = fit([recorded, recorded], held_out=False, forms={1: "smooth", 2: "smooth"})
    once = fit([recorded], held_out=False, forms={1: "smooth", 2: "smooth"})
    assert len(twice.table) == 2 * len(once.table)
    a, b = twice.profile.latency, once.profile.latency
    assert a.eager.base_ms == pytest.approx(b.eager.base_ms, rel=1e-3)
    assert a.decode.base_ms == pytest.approx(b.decode.base_ms, rel=1e-3)


def test_servers_that_differ_cannot_be_pooled(recorded: Recording) -> None:
    other = replace(recorded, name="x", server=replace(recorded.server, method="fp8-w8a8"))
    with pytest.raises(CalibrationError, match=r"toy--bf16 and x cannot be pooled: their method"):
        fit([recorded, other])


def test_errors(recorded: Recording, plain_folder: Path) -> None:
    with pytest.raises(CalibrationError, match="no recordings were given"):
        fit([])
    with pytest.raises(CalibrationError, match=r"exclude_phases has 'dec9'; the recordings have"):
        fit([recorded], exclude_phases=["dec9"])
    with pytest.raises(CalibrationError, match=r"toy--plain: no launch times.*--host-from"):
        fit([read_recording(plain_folder)])


def test_a_burst_is_in_when_it_waits_for_the_engine() -> None:
    """576 prompts at once: a large model begins the last after 3.2 s, but had it in its queue."""
    recording = read_recording(RECORDINGS / "llama-3.1-70b--bf16--tp2--2026-11-25")
    q, s = recording.requests, recording.steps
    ladder = q.phase == recording.phase_index("ladder")
    first = match_requests(recording).first_chunk[ladder]
    begun_ms = (s.schedule_s[first].max() - q.sent_s[ladder].min()) * 1e3
    frontend, _ = fit_frontend([recording], [frozenset()])
    assert begun_ms / ladder.sum() > 5.0
    all_in = np.flatnonzero((s.phase == recording.phase_index("ladder")) & (s.waiting > 400))
    seen_ms = (s.update_s[all_in[0]] - q.sent_s[ladder].min()) * 1e3
    each_ms = frontend.receive_serial_ms
    if frontend.api is not None:  # the API server's process takes its part of it
        each_ms += 0.6 * frontend.api.request_ms
    assert each_ms == pytest.approx(seen_ms / ladder.sum(), rel=0.01)
    assert frontend.receive_serial_ms < 1.0
