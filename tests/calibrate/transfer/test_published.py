"""Rows of the leaderboard are read, and a steady state is worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsim.bounds import check_name
from qsim.calibrate.transfer.published import (
    PUBLISHED_MODELS,
    PublishedRow,
    evaluate,
    model_id,
    needed,
    read_published,
)
from qsim.catalog.models import ARCHITECTURES
from qsim.errors import CalibrationError
from qsim.profiles.lookup import load_profile
from qsim.profiles.schema import Power, Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

HEAD = (
    "task,nickname,weight_precision,gpu_model,tensor_parallel,expert_parallel,data_parallel,"
    "max_num_seqs,avg_batch_size,avg_output_len,median_itl_ms,power_per_gpu_watts,"
    "energy_per_token_joules\n"
)
ROW = PublishedRow("lm-arena-chat", "Llama 3.1 8B", "h100_sxm", "bf16", 1, 8, 8.0, 875.0, 10.0,
                   400.0, 0.5)  # fmt: skip


def profile() -> Profile:
    p = make_profile(gpu="h100_sxm")
    return replace(
        p,
        identity=replace(p.identity, architecture=ARCHITECTURES["llama-3.1-8b"]),
        power=Power(100.0, 200.0, 0.0, 0.0, 0.0, 0.0, 700.0),
    )


def test_dense_rows_of_known_gpus_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        HEAD
        + "lm-arena-chat,Llama 3.1 8B Instruct,bfloat16,H100,1,1,1,8,7.9,640,8.2,427,0.44\n"
        + "gpqa,Qwen 3 14B,bfloat16,H100,1,1,1,16,16,7000,17,494,0.53\n"
        + "gpqa,GPT OSS 20B,mxfp4,H100,1,1,1,16,16,7000,17,494,0.53\n"
        + "gpqa,Qwen 3 14B,bfloat16,B200,1,1,1,16,16,7000,17,494,0.53\n"
        + "gpqa,Qwen 3 14B,bfloat16,H100,1,8,1,16,16,7000,17,494,0.53\n"
    )
    rows = read_published(path)
    assert [(r.model, r.max_num_seqs) for r in rows] == [("Llama 3.1 8B", 8), ("Qwen 3 14B", 16)]
    assert rows[0].context_tokens == 125 + 640
    assert rows[1].context_tokens == pytest.approx(200 + 0.55 * 7000)
    assert needed(rows) == [
        ("h100_sxm", "Llama 3.1 8B", "bf16", 1),
        ("h100_sxm", "Qwen 3 14B", "bf16", 1),
    ]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read"):
        read_published(tmp_path / "none.csv")
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(CalibrationError, match="not a table of the"):
        read_published(path)


def test_itl_is_a_decode_step_and_the_sort() -> None:
    # 8 rows of 1000 tokens: base 4.3 * 8/16.. by interpolation, slope 3e-5 to 2000, then 2e-5
    base = 4.0 + 0.3 * 7 / 15
    want = base + 2000 * 3e-5 + 6000 * 2e-5
    plain = evaluate(profile(), ROW, sort_s_per_logit=0.0)
    assert plain.itl_ms == pytest.approx(want, rel=1e-6)
    sorted_ = evaluate(profile(), ROW, sort_s_per_logit=1e-9)
    assert sorted_.itl_ms - plain.itl_ms == pytest.approx(8 * 128256 * 1e-6)
    assert plain.itl_error == pytest.approx(10 * want - 100)


def test_power_and_energy() -> None:
    o = evaluate(profile(), ROW, sort_s_per_logit=0.0)
    assert o.watts_per_gpu == pytest.approx(300.0)
    assert o.power_error == pytest.approx(-25.0)
    # a step and at times a longer one with a prompt, shared by 8 requests
    assert o.joules_per_token > 0.3 * o.itl_ms / 8
    assert o.joules_per_token < 0.4 * o.itl_ms / 8
    assert o.to_dict()["power_error_percent"] == -25.0


@pytest.mark.parametrize("seats", [8, 32])
def test_the_closed_form_is_what_a_simulation_gives(seats: int) -> None:
    profile = load_profile("h100_sxm/llama-3.1-8b/bf16")
    output = np.maximum(2, np.random.default_rng(0).exponential(650, 200)).astype(np.int64)
    trace = Trace(np.zeros(200), np.full(200, 125), output)
    options = EngineOptions(max_num_seqs=seats, enable_prefix_caching=False)
    simulated = simulate(trace, profile, options=options).summary()
    row = replace(ROW, max_num_seqs=seats, batch=seats, output_tokens=float(output.mean()))
    closed = evaluate(profile, row, sort_s_per_logit=0.0)
    assert closed.itl_ms == pytest.approx(simulated["median_itl_ms"], rel=0.04)
    # the simulation also holds the end, when seats become empty
    assert 1.0 < closed.watts_per_gpu / simulated["avg_power_w"] < 1.06


def test_the_cap_holds() -> None:
    p = profile()
    hot = replace(p, power=replace(p.power, busy_w=900.0))
    assert evaluate(hot, ROW).watts_per_gpu == 700.0
    slow = replace(hot, latency=replace(hot.latency, throttle=replace(
        hot.latency.throttle, decode=0.5)))  # fmt: skip
    ratio = evaluate(slow, ROW, sort_s_per_logit=0).itl_ms
    assert ratio == pytest.approx(1.5 * evaluate(hot, ROW, sort_s_per_logit=0).itl_ms, rel=1e-3)


def test_every_published_model_has_a_name_that_a_profile_may_have() -> None:
    ids = [model_id(name) for name in PUBLISHED_MODELS]
    assert [check_name("model", i) for i in ids] == ids
    assert model_id("Llama 3.1 8B") == "llama-3.1-8b"
