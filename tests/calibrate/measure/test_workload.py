"""The plan of loads covers what a calibration must measure, and fits the server and the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.calibrate.measure.job import Job
from qsim.calibrate.measure.measurement import planned
from qsim.calibrate.measure.speed import Speed
from qsim.calibrate.measure.workload import HoldoutTrace, Limits, Phase, phases, total_s
from qsim.calibrate.recorder.read import StepRow
from qsim.catalog.gpus import GPUS
from qsim.catalog.methods import METHODS
from qsim.catalog.models import ARCHITECTURES, load_model


def job(model: str = "llama-3.1-8b", method: str = "bf16", load_s: float = 150.0) -> Job:
    tp = 2 if (model, method) == ("llama-3.1-70b", "bf16") else 1
    known = load_model(model, dummy_weights=True)
    return Job(known, METHODS[method], GPUS["h200_sxm"], True, tp, load_s)


@pytest.fixture(scope="module")
def plan() -> dict[str, Phase]:
    return {p.label: p for p in planned(job())}


def sizes_of_steps(phase: Phase) -> set[int]:
    """Tokens of the steps with one prompt in them: the prompt over the running decodes."""
    rows = sum(len(s["prompt"]) for s in phase.streams if "at_s" in s)
    return {p + rows for s in phase.streams if "concurrency" in s for p in s["prompt"]}


def test_order_and_use(plan: dict[str, Phase]) -> None:
    labels = list(plan)
    assert labels[:2] == ["warm", "idle"]
    assert labels[-2:] == ["val_moderate", "val_overload"]
    assert plan["warm"].use == "skip"
    assert {plan[x].use for x in labels[1:-2]} == {"fit"}
    assert {plan[x].use for x in labels[-2:]} == {"holdout"}
    assert plan["idle"].streams == ()
    assert plan["idle"].idle_s >= 1.5


def test_an_8b_model_takes_four_minutes_with_the_server_s_start() -> None:
    for method in METHODS:
        assert total_s(planned(job(method=method))) + 90 <= 4 * 60 + 5


def test_single_prompts_on_both_sides_of_the_tile_edges(plan: dict[str, Phase]) -> None:
    prompts = plan["pre"].streams[0]["prompt"]
    for edge in (128, 256, 512, 1024, 2048):
        assert edge in prompts
        assert any(edge < p <= edge * 1.1 for p in prompts), edge
    for size in (96, 136, 200, 264, 320, 392, 520, 640, 776, 900, 1030, 1160, 1300, 1540, 1800,
                 2100, 2600, 3100, 5000):  # fmt: skip
        assert size in prompts
    # attention apart from GEMM: a prompt in chunks of the budget, behind what was computed
    assert max(prompts) >= 2 * 8192
    assert plan["pre"].streams[0]["concurrency"] == 1


def test_the_same_sizes_over_running_decodes(plan: dict[str, Phase]) -> None:
    rows = {40, 8, 120, 250}
    assert {f"over{r}" for r in rows} <= set(plan)
    for r in rows:
        steps = sizes_of_steps(plan[f"over{r}"])
        assert {520, 640, 1024, 1030, 2048, 2100, 5000} <= steps
    assert {136, 200, 264} <= sizes_of_steps(plan["over40"])


def alive(outputs: Sequence[int], after: float) -> int:
    return sum(o > after for o in outputs)


def steps_of(phase: Phase) -> int:
    """The number of steps per batch size, from the phase's own words."""
    return int(phase.what.split("steps of ")[1].split()[0])


def test_decode_sizes_and_contexts(plan: dict[str, Phase]) -> None:
    # a server so slow that prefill takes no time beside a step: the batch is full at once
    slow = replace(job().speed, step_ms=1e6)
    made = {p.label: p for p in phases(slow, Limits(900_000), 150.0)}
    wanted = {
        "ladder": (576, 512, 384, 256, 192, 128, 96, 64, 48, 40, 32, 24, 16, 8, 4, 2, 1),
        "ctx1k": (512, 384, 256, 192, 128, 96, 64, 48, 40, 32, 24),
    }
    for label, levels in wanted.items():
        steps = steps_of(made[label])
        outputs = made[label].streams[0]["output"]
        for i, level in enumerate(levels):
            assert alive(outputs, steps * (i + 0.5)) == level, (label, level)
    # and on the real one each size gets about 60 steps, at three contexts
    assert steps_of(plan["ladder"]) == 60
    assert steps_of(plan["ctx1k"]) >= 35
    assert len(plan["ladder"].streams[0]["prompt"]) == 576  # above the largest graph
    assert sorted(set(plan["ladder"].streams[0]["prompt"])) == [64]
    assert sorted(set(plan["ctx1k"].streams[0]["prompt"])) == [256, 1024]
    assert plan["ctx1k"].streams[0]["prompt"].count(1024) == 256  # 256 x 1k
    assert plan["ctx8k"].streams[0]["prompt"] == [8000] * 32  # 32 x 8k


@pytest.mark.parametrize(
    ("label", "rows", "low", "high"),
    [("cap300", 64, 180, 440), ("cap1100", 48, 1000, 1250), ("cap3k", 48, 2100, 4000),
     ("cap8x1k", 0, 1024, 1024)],
)  # fmt: skip
def test_steps_at_the_power_cap(
    plan: dict[str, Phase], label: str, rows: int, low: int, high: int
) -> None:
    *background, prompts = plan[label].streams
    assert 3.0 <= prompts["duration_s"] <= 4.0
    assert prompts["concurrency"] >= 3  # back to back
    assert prompts.get("gap_s", 0.0) == 0.0
    assert low <= min(prompts["prompt"]) <= max(prompts["prompt"]) <= high
    assert set(prompts["output"]) == {1}
    assert [len(b["prompt"]) for b in background] == ([rows] if rows else [])
    if not rows:
        assert prompts["concurrency"] >= 8  # 8192 as 8 x 1024
    # there is work for the whole time
    speed = job().speed
    assert sum(speed.prefill_ms(p) for p in prompts["prompt"]) / 1e3 > prompts["duration_s"]


def load_of(phase: Phase, speed: Speed, kv_tokens: int = 900_000) -> float:
    """The arrival rate of an open load over the capacity for its lengths."""
    (s,) = phase.streams
    prompt, output = np.mean(s["prompt"]), np.mean(s["output"])
    rate = (len(s["at_s"]) - 1) / s["at_s"][-1]
    return float(rate / speed.capacity_rps(float(prompt), float(output), kv_tokens))


def test_loads_of_arrivals(plan: dict[str, Phase]) -> None:
    speed = job().speed
    assert plan["mix80"].load == "poisson"
    assert 0.65 < load_of(plan["mix80"], speed) < 0.95
    assert 0.5 < load_of(plan["val_moderate"], speed) < 0.8
    assert load_of(plan["val_overload"], speed) > 1.0
    for label in ("mix80", "val_moderate", "val_overload"):
        at_s = plan[label].streams[0]["at_s"]
        assert at_s[0] == 0.0
        assert at_s == sorted(at_s)
    # the held-out lengths are not those of the fitted load
    prompts = plan["val_moderate"].streams[0]["prompt"]
    assert 900 < np.median(prompts) < 1150  # as in the Azure conversation trace


def test_holdout_traces_are_replayed_in_order() -> None:
    n = 4000
    moderate = HoldoutTrace("a.csv", [10.0 + i**1.1 for i in range(n)], [500] * n, [60] * n)
    overload = HoldoutTrace("b.csv", [float(i) for i in range(n)], [40_000] * n, [10] * n)
    speed = job().speed
    made = {p.label: p for p in phases(speed, Limits(900_000), 150.0, holdout=[moderate, overload])}
    (s,) = made["val_moderate"].streams
    assert set(s["prompt"]) == {500}
    assert "a.csv" in made["val_moderate"].what
    gaps = np.diff(s["at_s"])
    assert (np.diff(gaps) > -2e-6).all()  # the trace's own gaps, all scaled alike
    assert 0.55 < load_of(made["val_moderate"], speed) < 0.75
    (s,) = made["val_overload"].streams
    assert set(s["prompt"]) == {32768 - 8 - 10}  # cut to what the server takes
    one = {p.label: p for p in phases(speed, Limits(900_000), 150.0, holdout=[moderate])}
    assert set(one["val_overload"].streams[0]["prompt"]) == {500}


def test_any_number_of_holdout_traces_with_loads_of_their_own() -> None:
    def trace(prompt: int, load: float | None = None) -> HoldoutTrace:
        n = 4000
        return HoldoutTrace(f"{prompt}", [float(i) for i in range(n)], [prompt] * n, [60] * n, load)

    def labels(*traces: HoldoutTrace) -> dict[str, Phase]:
        made = phases(job().speed, Limits(900_000), 150.0, holdout=traces)
        return {p.label: p for p in made if p.use == "holdout"}

    made = labels(trace(400), trace(500), trace(600))
    assert list(made) == ["val1_65", "val2_65", "val3_120"]
    for phase, prompt, load in zip(made.values(), (400, 500, 600), (0.65, 0.65, 1.2), strict=True):
        assert set(phase.streams[0]["prompt"]) == {prompt}
        assert load_of(phase, job().speed) == pytest.approx(load, rel=0.1)
    made = labels(trace(400, 0.3), trace(400, 0.9))
    assert list(made) == ["val1_30", "val2_90"]
    assert load_of(made["val1_30"], job().speed) == pytest.approx(0.3, rel=0.1)
    assert list(labels(trace(400, 0.5))) == ["val1_50"]  # its own load, and not twice
    assert list(labels(trace(400))) == list(labels()) == ["val_moderate", "val_overload"]


def test_clients_who_wait_are_held_out() -> None:
    plain, more = planned(job()), planned(replace(job(), clients=(8, 128)))
    assert [p.label for p in more] == [*(p.label for p in plain), "clients8", "clients128"]
    for phase, number in zip(more[-2:], (8, 128), strict=True):
        assert (phase.use, phase.load, phase.clients) == ("holdout", "clients", number)
        (stream,) = phase.streams
        assert stream["concurrency"] == number
        assert len(stream["prompt"]) == len(stream["output"]) >= 4 * number
        assert 400 <= min(stream["prompt"]) <= max(stream["prompt"]) <= 1200
        assert 100 <= min(stream["output"]) <= max(stream["output"]) <= 300
        assert 6 < phase.expected_s < 30
    assert all(p.clients is None for p in plain)


def test_only_holdout_leaves_out_what_a_fit_needs() -> None:
    whole, check = (planned(replace(job(), only_holdout=x)) for x in (False, True))
    assert [p.label for p in check] == [
        "warm", "idle", "ladder", "ctx1k", "val_moderate", "val_overload",
    ]  # fmt: skip
    longer = {p.label: p.expected_s for p in check if p.use == "holdout"}
    for phase in whole:
        if phase.use == "holdout":
            assert longer[phase.label] > 2 * phase.expected_s
    assert total_s(check) <= 150
    assert replace(job(), only_holdout=True).name == "llama-3.1-8b--bf16--check"


@settings(max_examples=40)
@given(
    model=st.sampled_from(sorted(ARCHITECTURES)),
    method=st.sampled_from(["bf16", "fp8-w8a8", "awq-w4a16"]),
    budget_s=st.floats(30.0, 300.0),
    kv_tokens=st.integers(33_000, 2_000_000),
    max_num_seqs=st.sampled_from([16, 256, 1024]),
    max_model_len=st.sampled_from([2048, 8192, 32768]),
    factor=st.floats(0.3, 3.0),
)
def test_every_plan_fits_its_server(
    model: str,
    method: str,
    budget_s: float,
    kv_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
    factor: float,
) -> None:
    guess = job(model, method).speed
    speed = Speed(*(factor * x for x in list(vars(guess).values())[:5]))
    limits = Limits(kv_tokens, max_model_len, max_num_seqs)
    made = list(phases(speed, limits, budget_s, seed=3))
    labels = [p.label for p in made]
    assert len(set(labels)) == len(labels)
    for p in made:
        for s in p.streams:
            assert len(s["prompt"]) == len(s["output"]) > 0
            assert min(s["prompt"]) >= 1
            assert min(s["output"]) >= 1
            assert (
                max(a + b for a, b in zip(s["prompt"], s["output"], strict=True)) <= max_model_len
            )
            if p.load == "burst" and p.use == "fit":
                # no preemption: all of it has room at once
                assert sum(s["prompt"]) + sum(s["output"]) <= kv_tokens or len(s["prompt"]) == 1
                assert len(s["prompt"]) <= max(max_num_seqs, 1)
    again = list(phases(speed, limits, budget_s, seed=3))
    assert again == made
    assert list(phases(speed, limits, budget_s, seed=4)) != made


def step(gpu_ms: float, decodes: int, context: int, *chunks: tuple[int, int]) -> StepRow:
    times = [0.0] * 8
    return StepRow(1, *times, decodes, context, context, 1, 0, 0.1, 0.0, chunks, gpu_ms)


def test_speed_is_corrected_by_what_was_seen() -> None:
    truth = Speed(5.0, 0.02, 3e-5, 0.02, job().speed.per_pair_ms)
    rng = np.random.default_rng(0)
    decodes = [
        step(truth.decode_ms(r, c), r, c)
        for r, c in zip(rng.integers(1, 512, 80).tolist(), rng.integers(1000, 300_000, 80).tolist(),
                        strict=True)
    ]  # fmt: skip
    seen = job().speed.observed(decodes)
    assert seen.step_ms == pytest.approx(5.0)
    assert seen.per_row_ms == pytest.approx(0.02)
    assert seen.per_context_ms == pytest.approx(3e-5)
    assert seen.per_token_ms == job().speed.per_token_ms  # not shown
    prefills = [step(truth.prefill_ms(n), 0, 0, (n, 0)) for n in (512, 1000, 2000, 4000, 8000)]
    seen = job().speed.observed(prefills)
    assert seen.per_token_ms == pytest.approx(0.02)
    assert seen.step_ms == job().speed.step_ms
    assert job().speed.observed(decodes[:10]) == job().speed


def test_capacity_is_bounded_by_prefill_and_by_decode() -> None:
    speed = job().speed
    assert speed.capacity_rps(4000, 1, 900_000) < 1e3 / speed.prefill_ms(4000)
    # little KV cache: few decodes at a time, so fewer requests
    assert speed.capacity_rps(500, 500, 20_000) < 0.5 * speed.capacity_rps(500, 500, 900_000)
