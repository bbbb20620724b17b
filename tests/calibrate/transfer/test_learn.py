"""What was put into made-up profiles is learnt back; rules of carrying over."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from qsim.calibrate.transfer.build import TABLES_VERSION, Teacher, estimated_errors, transfer
from qsim.calibrate.transfer.compose import TABLE_OF
from qsim.calibrate.transfer.learn import (
    ModeOverhead,
    Overheads,
    Sample,
    base_method,
    learn_overheads,
)
from qsim.calibrate.transfer.memory import kv_memory, other_bytes
from qsim.calibrate.transfer.power import PowerModel, Work, learn_power, power_of, work
from qsim.calibrate.transfer.ratios import (
    AmpereLinear,
    ShapedLinear,
    between,
    learn_shapes,
    linear_of,
    quantized_bytes,
)
from qsim.calibrate.transfer.spans import Spans, StepPoint, decode_points, prefill_points
from qsim.catalog.gpus import gpu_type
from qsim.catalog.methods import METHODS
from qsim.catalog.models import ARCHITECTURES
from qsim.errors import CalibrationError, ScenarioError
from qsim.profiles.lookup import list_profiles, load_profile
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.server_memory import UTILIZATION
from tests.calibrate.transfer.tables import composer, tables

TRUE = Overheads(
    {
        "decode": ModeOverhead(1.0, 0.007, 0.0, 12.0),
        "piecewise": ModeOverhead(1.0, 0.012, 1.4, 0.0),
        "eager": ModeOverhead(1.06, 0.05, 0.3, 0.0),
    },
    1.2, 0.5, 1.0, 0.003, (),
)  # fmt: skip


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Teacher:
    """Profiles of two models, composed with TRUE, of known memory and power."""
    monkeypatch.setattr("qsim.calibrate.transfer.build.load_tables", lambda gpu: tables(gpu))
    seed = load_profile("h200_sxm/llama-3.1-8b/bf16")
    made: list[Sample] = []
    for model in ("llama-3.1-8b", "qwen2.5-14b"):
        c = composer(model)
        start = Teacher((Sample(seed, composer()),), tables())
        start.__dict__["overheads"] = TRUE
        start.__dict__["power"] = PowerModel(
            gpu_type("h200_sxm"), 140.0, 9e-11, 14e-11, {"bf16": 3e-13}, {"bf16": 0.0}
        )
        p = transfer(start, "h200_sxm", model, ARCHITECTURES[model], "bf16")
        p = replace(p, transfer=None, identity=replace(p.identity, source="measured"))
        made.append(Sample(p, c))
    return Teacher(tuple(made), tables())


def test_overheads_are_learnt_back(teacher: Teacher) -> None:
    learnt = learn_overheads(teacher.samples)
    for mode, want in TRUE.modes.items():
        got = learnt.modes[mode]
        assert got.linear == pytest.approx(want.linear, abs=0.02)
        assert got.per_layer_ms == pytest.approx(want.per_layer_ms, abs=0.004)
    assert learnt.mixed_context == pytest.approx(1.2, rel=0.03)
    assert learnt.pair == pytest.approx(1.0, rel=0.01)
    assert learnt.chunk_per_layer_ms == pytest.approx(0.003, rel=0.01)
    assert learnt.profiles == ("h200_sxm/llama-3.1-8b/bf16", "h200_sxm/qwen2.5-14b/bf16")


def test_methods_have_their_own_gaps_between_kernels(teacher: Teacher) -> None:
    more = {"fp8-w8a8": 0.004, "fp8-w8a8-static": -0.002}
    true = replace(
        TRUE, modes={m: replace(x, more_per_layer_ms=more) for m, x in TRUE.modes.items()}
    )
    start = replace(teacher)
    start.__dict__["overheads"] = true
    start.__dict__["power"] = teacher.power
    config = ARCHITECTURES["llama-3.1-8b"]
    made = list(teacher.samples)
    for method in more:
        p = transfer(start, "h200_sxm", "llama-3.1-8b", config, method)
        p = replace(p, transfer=None, identity=replace(p.identity, source="measured"))
        made.append(Sample(p, composer()))
    learnt = learn_overheads(made)
    for mode in learnt.modes.values():
        assert mode.more_per_layer_ms["fp8-w8a8"] == pytest.approx(0.004, abs=0.003)
        gap = mode.more_per_layer_ms["fp8-w8a8"] - mode.more_per_layer_ms["fp8-w8a8-static"]
        assert gap == pytest.approx(0.006, abs=0.001)


def test_all_reduces_are_learnt_beside_the_tables(teacher: Teacher) -> None:
    true = replace(TRUE, modes={m: replace(x, all_reduce=0.6) for m, x in TRUE.modes.items()})
    start = replace(teacher)
    start.__dict__["overheads"] = true
    start.__dict__["power"] = teacher.power
    config = ARCHITECTURES["llama-3.1-70b"]
    p = transfer(start, "h200_sxm", "llama-3.1-70b", config, "bf16", 2)
    p = replace(p, transfer=None, identity=replace(p.identity, source="measured"))
    both = (*teacher.samples, Sample(p, composer("llama-3.1-70b", tp=2)))
    learnt, alone = learn_overheads(both), learn_overheads(teacher.samples)
    for mode in TRUE.modes:
        assert learnt.modes[mode].all_reduce == pytest.approx(0.6, abs=0.12)
        # and nothing else is learnt from it
        assert replace(learnt.modes[mode], all_reduce=1.0) == alone.modes[mode]
    assert alone.modes["eager"].all_reduce == 1.0


def test_the_sizes_beside_it_teach_a_method() -> None:
    given = samples()
    shapes = learn_shapes(given, learn_overheads(given))["awq-w4a16"]
    assert [s.profile.split("/")[1] for s in shapes] == [
        "llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b", "llama-3.1-70b",
    ]  # fmt: skip
    assert between(shapes, 1e9) == [(1.0, shapes[0])]
    assert between(shapes, 4e11) == [(1.0, shapes[3])]
    assert between(shapes, shapes[2].weights)[0] == (1.0, shapes[2])
    middle = sqrt(shapes[1].weights * shapes[2].weights)
    (a, small), (b, large) = between(shapes, middle)
    assert (small, large) == (shapes[1], shapes[2])
    assert (a, b) == pytest.approx((0.5, 0.5))
    other = replace(shapes[1], method="gptq-w4a16")  # of one size the first
    assert between([other, *shapes], shapes[1].weights)[0] == (1.0, other)


def test_a_left_out_model_is_predicted_from_the_other(teacher: Teacher) -> None:
    fourteen = teacher.samples[1].profile
    rest = teacher.without("qwen2.5-14b")
    again = transfer(rest, "h200_sxm", "qwen2.5-14b", ARCHITECTURES["qwen2.5-14b"], "bf16")
    a, b = Spans(again), Spans(fourteen)
    for p in [*decode_points(400_000), *prefill_points()]:
        assert a.ms(p) == pytest.approx(b.ms(p), rel=0.06), p


def test_a_profile_holds_the_composed_spans(teacher: Teacher) -> None:
    c = composer()
    profile = transfer(teacher, "h200_sxm", "llama-3.1-8b", ARCHITECTURES["llama-3.1-8b"], "bf16")
    spans = Spans(profile)
    for rows in (1, 8, 64, 512):
        p = StepPoint(rows=rows, context_tokens=rows * 1024)
        want = teacher.overheads.span_ms(c, p, "bf16", c.linear_ms(rows))
        assert spans.ms(p) == pytest.approx(want, rel=0.02)
    for tokens in (64, 512, 640, 8192):
        p = StepPoint(prefill_tokens=tokens)
        want = teacher.overheads.span_ms(c, p, "bf16", c.linear_ms(tokens))
        assert spans.ms(p) == pytest.approx(want, rel=0.02)


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="no measured profile of bf16"):
        learn_overheads([])


def test_memory_bound_steps_go_with_bandwidth_and_operations_stay(teacher: Teacher) -> None:
    config = ARCHITECTURES["llama-3.1-8b"]
    h200 = Spans(transfer(teacher, "h200_sxm", "llama-3.1-8b", config, "bf16"))
    h100 = Spans(transfer(teacher, "h100_sxm", "llama-3.1-8b", config, "bf16"))
    one, prompt = StepPoint(rows=1, context_tokens=1000), StepPoint(prefill_tokens=8192)
    assert 1.25 < h100.ms(one) / h200.ms(one) < 4.8 / 3.35
    assert 1.0 <= h100.ms(prompt) / h200.ms(prompt) < 1.05


def test_tensor_parallelism_divides_the_work_and_adds_all_reduce(teacher: Teacher) -> None:
    config = ARCHITECTURES["llama-3.1-70b"]
    two = transfer(teacher, "h200_sxm", "llama-3.1-70b", config, "bf16", 2)
    four = transfer(teacher, "h200_sxm", "llama-3.1-70b", config, "bf16", 4)
    assert four.id == "h200_sxm/llama-3.1-70b/bf16/tp4"
    p = StepPoint(rows=64, context_tokens=64 * 1024)
    ratio = Spans(four).ms(p) / Spans(two).ms(p)
    assert 0.5 < ratio < 0.8
    reduce = composer("llama-3.1-70b", tp=4).all_reduce_ms(64, True)
    assert reduce == pytest.approx(160 * tables().all_reduce.ms(4, 64 * 8192 * 2, True))
    assert four.power.cap_w == 2800
    assert four.memory.num_gpu_blocks > 2 * two.memory.num_gpu_blocks
    assert any("all-reduce" in r for r in four.transfer.rules) if four.transfer else False


def test_power_is_learnt_back(teacher: Teacher) -> None:
    model = learn_power(teacher.samples, gpu_type("h200_sxm"))
    for s in teacher.samples:
        spans, m = Spans(s.profile), s.profile.memory
        for p in (
            StepPoint(rows=8, context_tokens=8192),
            StepPoint(rows=128, context_tokens=65536),
        ):
            t = spans.ms(p) / 1e3
            done = work(s.composer, p, m.weight_bytes, m.kv_bytes_per_token)
            got = model.watts(s.composer.spec, "bf16", done, t)
            joules = 9e-11 * done.bytes + 14e-11 * done.kv_bytes + 3e-13 * done.flops
            want = 140.0 + joules / t
            # a profile's own form, fitted between, has one busy power for all batches
            assert got == pytest.approx(want, rel=0.12)


def test_power_scales_with_tdp_and_throughput() -> None:
    h200, a100 = gpu_type("h200_sxm"), gpu_type("a100_sxm")
    flop_j = {"bf16": 3e-13, "mxfp4-w4a16": 5e-13, "nvfp4-w4a16": 4e-13, "awq-w4a16": 6e-13}
    weight_j = {"bf16": 0.0, "awq-w4a16": 7e-11}
    model = PowerModel(h200, 140.0, 9e-11, 14e-11, flop_j, weight_j)
    nothing = Work(0.0, 0.0, 0.0, 0.0)
    assert model.watts(a100, "bf16", nothing, 1.0) == pytest.approx(80.0)
    # a byte costs the same on both
    assert model.watts(a100, "bf16", Work(0.0, 1e12, 0.0, 0.0), 1.0) == pytest.approx(170.0)
    assert model.watts(a100, "bf16", Work(0.0, 1e12, 0.0, 0.0), 2.0) == pytest.approx(125.0)
    # at full tensor throughput both draw the same share of their TDP
    shares = [
        model.watts(g, "bf16", Work(0.0, 0.0, 0.0, g.bf16_flops), 1.0) / g.tdp_w
        for g in (h200, a100)
    ]
    assert shares[0] == pytest.approx(shares[1])
    # the method's own, or that of the one whose kernel it runs; else bf16's
    operations, weights = Work(0.0, 0.0, 0.0, 1e14), Work(1e12, 0.0, 0.0, 0.0)
    for method, flop_w, weight_w in (
        ("mxfp4-w4a16", 50.0, 0.0),
        ("gptq-w4a16", 60.0, 70.0),
        ("fp8-w8a8+kv-fp8", 30.0, 0.0),
    ):
        assert model.watts(h200, method, operations, 1.0) == pytest.approx(140.0 + flop_w)
        assert model.watts(h200, method, weights, 1.0) == pytest.approx(140.0 + weight_w)


def test_a_profile_of_power_gives_back_the_watts_of_decode(teacher: Teacher) -> None:
    model, c = teacher.power, composer()
    p = power_of(model, c, "bf16", lambda x: 5.0 + x.rows * 0.03 + x.context_tokens * 3e-5
                 + x.prefill_tokens * 0.02, 16e9, 131072, 400_000)  # fmt: skip
    assert p.cap_w == 700
    point = StepPoint(rows=64, context_tokens=65536)
    t = (5.0 + 64 * 0.03 + 65536 * 3e-5) / 1e3
    done = work(c, point, 16e9, 131072)
    want = model.watts(c.spec, "bf16", done, t)
    got = p.busy_w + (p.j_per_decode_token * 64 + p.j_per_context_token * 65536) / t
    assert got == pytest.approx(want, rel=0.15)


MEASURED = [load_profile(e.id, TABLES_VERSION) for e in list_profiles() if e.gpu == "h200_sxm"]
MEASURED = [p for p in MEASURED if not p.transferred]


def samples() -> list[Sample]:
    return [
        Sample(p, composer(p.identity.model, tp=p.identity.tensor_parallel_size)) for p in MEASURED
    ]


def test_what_methods_without_a_table_draw_is_known_at_every_size() -> None:
    """A 4-bit weight costs more than its half byte, most where a step is nothing but weights."""
    given = samples()
    model = learn_power(given, gpu_type("h200_sxm"))
    plain = replace(model, j_per_weight=dict.fromkeys(model.j_per_weight, 0.0))
    # INT8 goes to the tensor cores as it is, and W4A8's kernel costs no more
    plain_methods = {*TABLE_OF, "int8-w8a8", "w4a8-fp8"}
    assert {m for m, j in model.j_per_weight.items() if not j} == plain_methods
    errors: dict[str, list[float]] = {"model": [], "plain": []}
    for s in given:
        i = s.profile.identity
        if i.model != "llama-3.1-70b" or not model.j_per_weight[s.method]:
            continue
        m, w = s.profile.memory, s.profile.power
        p = StepPoint(rows=8, context_tokens=2048)
        t = Spans(s.profile).ms(p) / 1e3
        want = w.busy_w + (w.j_per_decode_token * 8 + w.j_per_context_token * 2048) / t
        done = work(s.composer, p, m.weight_bytes, m.kv_bytes_per_token)
        for name, x in (("model", model), ("plain", plain)):
            errors[name].append(x.watts(s.composer.spec, i.method, done, t) / want - 1)
    assert len(errors["model"]) == 6
    assert np.mean(np.abs(errors["model"])) < 0.10
    assert np.mean(np.abs(errors["plain"])) > 0.16


@pytest.mark.parametrize("profile", MEASURED, ids=lambda p: p.id)
def test_block_counts_of_h200_follow_from_the_accounting(profile: Profile) -> None:
    i = profile.identity
    a = composer(i.model).architecture
    got = kv_memory("h200_sxm", a, i.method, i.tensor_parallel_size, other_bytes(samples(), a))
    # with several GPUs one activation, weights in parts; 4-bit weights of 70B take 1 GiB more
    within = 0.012 if i.tensor_parallel_size == 1 else 0.02
    assert got.num_gpu_blocks == pytest.approx(profile.memory.num_gpu_blocks, rel=within)
    assert got.kv_bytes_per_token == profile.memory.kv_bytes_per_token
    assert got.weight_bytes == profile.memory.weight_bytes


def test_memory_is_learnt_from_versions_that_account_for_it_in_the_same_way() -> None:
    a = composer().architecture
    old = samples()
    assert other_bytes(old, a, "0.28.0") == other_bytes(old, a)
    with pytest.raises(CalibrationError, match=r"vLLM 0\.33\.0 needs beside weights"):
        other_bytes(old, a, "0.33.0")
    # servers of 0.33 with 1000 blocks fewer
    new = [
        replace(
            s,
            profile=replace(
                s.profile,
                identity=replace(s.profile.identity, vllm_version="0.33.0"),
                memory=replace(
                    s.profile.memory, num_gpu_blocks=s.profile.memory.num_gpu_blocks - 1000
                ),
            ),
        )
        for s in old
        if s.composer.architecture.hidden_size == a.hidden_size and s.method == "bf16"
    ]
    block = new[0].profile.memory.kv_bytes_per_token * 16
    alone = [s for s in old if s.composer.architecture == a and s.method == "bf16"]
    assert other_bytes([*old, *new], a, "0.29.0") == other_bytes(alone, a) + 1000 * block
    assert other_bytes([*old, *new], a) == other_bytes(old, a)


def test_blocks_fill_the_memory_and_no_more() -> None:
    a = composer().architecture
    m = kv_memory("a100_sxm", a, "bf16", 1, 2e9)
    size = m.kv_bytes_per_token * m.block_size
    room = gpu_type("a100_sxm").memory_bytes * UTILIZATION - m.weight_bytes - 2e9
    assert 0 <= room - m.num_gpu_blocks * size < size
    small = kv_memory("a100_sxm", a, "bf16", 1, 2e9, memory_bytes=int(39.4 * (1 << 30)))
    assert small.num_gpu_blocks < m.num_gpu_blocks / 2
    fp8 = kv_memory("h100_sxm", a, "bf16+kv-fp8", 1, 2e9)
    assert fp8.num_gpu_blocks == pytest.approx(2 * m.num_gpu_blocks, abs=1)
    with pytest.raises(ScenarioError, match=r"does not fit: weights of 131\.4 GiB"):
        kv_memory("a100_sxm", composer("llama-3.1-70b").architecture, "bf16", 1, 2e9)


def test_methods_without_a_table_are_learnt_from_the_difference_to_bf16() -> None:
    given = samples()
    shapes = learn_shapes(given, learn_overheads(given))
    assert set(shapes) == {base_method(p.identity.method) for p in MEASURED} - set(TABLE_OF)
    awq = next(s for s in given if s.profile.id == "h200_sxm/llama-3.1-8b/awq-w4a16")
    bf16 = next(s for s in given if s.profile.id == "h200_sxm/llama-3.1-8b/bf16")
    linear = linear_of("awq-w4a16", awq.composer, shapes, tables())
    for rows in (8, 64, 256):
        p = StepPoint(rows=rows, context_tokens=rows * 512)
        measured = Spans(awq.profile).ms(p) - Spans(bf16.profile).ms(p)
        measured += awq.composer.linear_ms(rows)
        assert linear.ms(rows) == pytest.approx(measured, rel=0.1)
    # of its own measurements and of those of the same kernel, the nearest size
    gptq = shapes["gptq-w4a16"]
    without = {**shapes, "gptq-w4a16": ()}
    assert linear_of("gptq-w4a16", awq.composer, without, tables()).ms(8) == pytest.approx(
        linear.ms(8), rel=0.01
    )
    own = linear_of("gptq-w4a16", awq.composer, shapes, tables())
    assert isinstance(own, ShapedLinear)
    assert own.shapes == [(1.0, gptq[0])]
    small = {**shapes, "gptq-w4a16": gptq[:1]}
    large = linear_of("gptq-w4a16", composer("llama-3.1-70b"), small, tables())
    assert isinstance(large, ShapedLinear)
    assert [(x, s.method) for x, s in large.shapes] == [(1.0, "awq-w4a16")]
    with pytest.raises(CalibrationError, match="int8-w8a8 has no kernel table"):
        linear_of("int8-w8a8", awq.composer, {}, tables())


def test_hopper_reads_by_bandwidth_what_it_cannot_compute_faster() -> None:
    shapes = learn_shapes(samples(), TRUE)
    a = linear_of("gptq-w8a16", composer(), shapes, tables())
    b = linear_of("gptq-w8a16", composer(gpu="h100_sxm"), shapes, tables())
    assert 1.0 < b.ms(1) / a.ms(1) < 4.8 / 3.35
    assert b.ms(8192, prefill=True) == pytest.approx(a.ms(8192, prefill=True), rel=0.02)


@pytest.mark.parametrize("method", ["awq-w4a16", "fp8-w8a8", "gptq-w8a16", "int8-w8a8"])
def test_ampere_reads_at_bf16s_rate_and_computes_by_a_factor(method: str) -> None:
    c = composer(gpu="a100_sxm")
    linear = linear_of(method, c, learn_shapes(samples(), TRUE), tables())
    assert isinstance(linear, AmpereLinear)
    one, fixed = c.linear_ms(1), 4 * 32 * 0.004
    share = quantized_bytes(method, c) / quantized_bytes("bf16", c)
    want = fixed + (one - fixed) * share
    assert linear.ms(1) == pytest.approx(want, rel=0.01)
    grown = sqrt(linear.ms(8192) ** 2 - want**2) / sqrt(c.linear_ms(8192) ** 2 - one**2)
    assert grown == pytest.approx(linear.growth, rel=0.01)
    if method == "int8-w8a8":
        assert 0.4 < linear.growth < 0.8
    else:
        assert linear.growth == 1.05


def test_every_method_is_carried_over_or_refused(teacher: Teacher) -> None:
    full = Teacher(tuple(samples()), tables())
    config = ARCHITECTURES["llama-3.1-8b"]
    for gpu in ("h100_sxm", "a100_sxm"):
        for method in METHODS:
            if not METHODS[method].kernel(gpu_type(gpu)):
                continue
            p = transfer(full, gpu, "llama-3.1-8b", config, method)
            assert p.transferred
            assert p.identity.source == "transferred"
            assert p.fit_error["worst_mean"] >= 8
            assert np.all(np.array(p.latency.decode.base_ms) > 0)
            assert p.transfer is not None
            assert p.transfer.tables == [f"made up: {gpu}", "made up: h200_sxm"]
            assert "h200_sxm/llama-3.1-8b/bf16" in p.transfer.profiles


def test_errors_stated_grow_with_the_distance_from_what_was_measured() -> None:
    near, _ = estimated_errors("h200_sxm", "int8-w8a8", 1, grown=4.0)
    far, _ = estimated_errors("h200_sxm", "int8-w8a8", 1, grown=8.0)
    assert far["decode"] == near["decode"] + 10.0
    assert far["power"] == near["power"] + 10.0
    for gpu, method in (("h200_sxm", "fp8-w8a8"), ("a100_sxm", "int8-w8a8")):  # by tables, by rule
        assert estimated_errors(gpu, method, 1, 8.0) == estimated_errors(gpu, method, 1)


def test_several_gpus_have_the_host_of_several(teacher: Teacher) -> None:
    config = ARCHITECTURES["llama-3.1-70b"]
    one = transfer(teacher, "h200_sxm", "llama-3.1-70b", config, "bf16", 4)
    host = replace(one.host, launch_eager_ms=[0.3, 0.001], result_ms=1.0)
    two = replace(one, host=host, identity=replace(one.identity, tensor_parallel_size=2))
    more = replace(
        teacher, samples=(*teacher.samples, Sample(two, composer("llama-3.1-70b", tp=2)))
    )
    got = transfer(more, "h200_sxm", "llama-3.1-70b", config, "bf16", 4).host
    assert (got.launch_eager_ms, got.result_ms) == ([0.3, 0.001], 1.0)
    alone = transfer(more, "h200_sxm", "qwen2.5-32b", ARCHITECTURES["qwen2.5-32b"], "bf16").host
    assert alone.result_ms == teacher.samples[0].profile.host.result_ms


def test_slow_hosts_are_not_carried_over(teacher: Teacher) -> None:
    first = teacher.samples[0].profile.host
    slow = replace(
        first,
        schedule_ms=[2 * v for v in first.schedule_ms],
        launch_eager_ms=[2 * v for v in first.launch_eager_ms],
        result_ms=9.0,
    )
    config = ARCHITECTURES["qwen2.5-32b"]
    large = transfer(teacher, "h200_sxm", "qwen2.5-32b", config, "bf16")
    large = replace(large, host=slow, transfer=None)
    more = replace(teacher, samples=(*teacher.samples, Sample(large, composer("qwen2.5-32b"))))
    for of in (teacher, more):
        got = transfer(of, "h100_sxm", "qwen2.5-32b", config, "bf16").host
        assert got == transfer(teacher, "h100_sxm", "qwen2.5-32b", config, "bf16").host
    # where all are slow, so is what is carried over
    alone = replace(teacher, samples=(more.samples[-1],))
    assert transfer(alone, "h100_sxm", "qwen2.5-32b", config, "bf16").host.result_ms == 9.0
