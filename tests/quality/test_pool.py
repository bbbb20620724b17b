from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.catalog.methods import METHODS
from qsim.quality.pool import (
    KIN,
    MEAN_PCT,
    MEAN_VARIANCE,
    SHARES,
    Components,
    components,
    log_likelihood,
    posterior,
    sampling_variance,
)
from qsim.quality.table import Row, recovery_table
from qsim.quality.tasks import TASKS
from tests.quality.fit_components import by_method, left_out

SIMPLE = Components(
    tau={"8-bit": 1.0, "w4": 2.0, "w4a4": 4.0},
    shares={"family": 0.3, "task": 0.2, "size": 0.1, "lineage": 0.1, "model": 0.3},
    residual={"8-bit": 0.4, "w4": 0.5, "w4a4": 2.0},
    noise=0.4,
    near=0.5,
)


def row(model: str = "llama-3.1-8b", method: str = "gptq-w4a16", task: str = "mmlu",
        recovery: float = 97.0, same: bool = True, scheme: str = "GPTQ g128") -> Row:  # fmt: skip
    return Row(model, model, method, same, scheme, task, 70 * recovery / 100, 70.0, recovery,
               TASKS[task].items, "a page", "", "fact", "")  # fmt: skip


def predict(rows: list[Row], model: str = "llama-3.1-8b", method: str = "gptq-w4a16",
            task: str = "mmlu") -> tuple[float, float]:  # fmt: skip
    mean, cov = posterior(model, method, [task], rows, SIMPLE)
    return float(mean[0]), math.sqrt(cov[0, 0])


def test_sampling_variance_is_the_delta_method() -> None:
    r = row(task="gsm8k", recovery=100.0)
    # two independent binomial proportions of 0.7 over 1319 questions
    assert sampling_variance(r, 1.0) == pytest.approx(1e4 * 2 * 0.3 / (1319 * 0.7))
    assert sampling_variance(r, 0.25) == pytest.approx(sampling_variance(r, 1.0) / 4)
    unknown = replace(r, score=None, baseline=None)
    assert sampling_variance(unknown, 1.0) == pytest.approx(1e4 * 2 * 0.4 / (1319 * 0.6))
    assert 0 < sampling_variance(replace(r, score=100.0, baseline=100.0), 1.0) < 0.1


def test_one_number_closed_form() -> None:
    r = row()
    key = 0.9 + 0.1 * math.log10(0.8) ** 2  # every term is shared with itself
    signal = MEAN_VARIANCE + SIMPLE.tau["w4"] ** 2 * key + SIMPLE.residual["w4"] ** 2
    noise = sampling_variance(r, SIMPLE.noise)
    mean, sd = predict([r])
    assert mean == pytest.approx(MEAN_PCT + signal / (signal + noise) * (97.0 - MEAN_PCT))
    assert sd**2 == pytest.approx(signal - signal**2 / (signal + noise))


def test_without_numbers_the_prior() -> None:
    mean, sd = predict([])
    assert mean == MEAN_PCT
    assert sd > 10


def test_the_nearer_the_relative_the_tighter_the_interval() -> None:
    asked = {"model": "llama-3.1-8b", "task": "mmlu"}
    ladder = [
        row(),
        row(scheme="AutoRound", same=False),
        row(model="llama-3-8b"),
        row(model="qwen2-7b"),
        row(model="qwen2-7b", task="gsm8k"),
        row(model="qwen2-7b", task="gsm8k", method="awq-w4a16"),
    ]
    sds = [predict([r], **asked)[1] for r in ladder]
    assert sds == sorted(sds)
    assert len(set(sds)) == len(sds)


def test_a_relative_is_believed_less_than_the_method_itself() -> None:
    background = [row(model="qwen2-7b", recovery=99.0), row(model="qwen3-8b", recovery=99.0)]
    own = predict([*background, row(recovery=92.0)])[0]
    kin = predict([*background, row(recovery=92.0, method="awq-w4a16")])[0]
    assert own < kin < 99


models = st.sampled_from(["llama-3.1-8b", "qwen2-7b", "qwen2.5-32b", "unheard-of-3b", "foo"])
some_rows = st.lists(
    st.builds(row, models, st.sampled_from(["gptq-w4a16", "awq-w4a16"]),
              st.sampled_from(["mmlu", "gsm8k", "arc-c"]), st.floats(85, 103), st.booleans()),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(some_rows, models, st.sampled_from(["gptq-w4a16", "w4a8-fp8", "nvfp4-w4a16"]))
def test_evidence_never_widens_and_the_covariance_is_one(
    rows: list[Row], model: str, method: str
) -> None:
    tasks = ["mmlu", "gsm8k", "humaneval"]
    _, without = posterior(model, method, tasks, rows[:-1], SIMPLE)
    mean, cov = posterior(model, method, tasks, rows, SIMPLE)
    assert np.isfinite(mean).all()
    assert np.allclose(cov, cov.T)
    assert np.linalg.eigvalsh(cov).min() > -1e-8
    assert (np.diag(cov) <= np.diag(without) + 1e-8).all()


@settings(max_examples=30, deadline=None)
@given(some_rows.filter(bool), st.floats(-3, 3))
def test_a_shift_of_all_numbers_moves_the_prediction_with_them(rows: list[Row], by: float) -> None:
    # with scores unknown the sampling variance depends on the value only by its square: leave the
    # variances as they are by asking for the linear part alone
    no_noise = replace(SIMPLE, noise=1e-9)
    if len({(r.model, r.method, r.task, r.scheme) for r in rows}) < len(rows):
        return  # equal cases with unequal numbers contradict each other without noise
    mean, _ = posterior("llama-3.1-8b", "gptq-w4a16", ["mmlu"], rows, no_noise)
    moved = [replace(r, recovery_pct=r.recovery_pct + by) for r in rows]
    shifted, _ = posterior("llama-3.1-8b", "gptq-w4a16", ["mmlu"], moved, no_noise)
    assert abs(shifted[0] - mean[0]) <= abs(by) * 1.001 + 1e-6
    assert by * (shifted[0] - mean[0]) >= -1e-6


@pytest.mark.slow
def test_the_shipped_components_are_a_maximum() -> None:
    c = components()
    assert set(c.shares) == set(SHARES)
    assert sum(c.shares.values()) == pytest.approx(1, abs=0.002)
    groups = by_method(recovery_table())

    def likelihood(changed: Components) -> float:
        return sum(log_likelihood(g, m, changed) for m, g in groups.items())

    best = likelihood(c)
    for factor in (0.7, 1.4):
        assert likelihood(replace(c, noise=c.noise * factor)) < best
        for name in c.tau:
            assert likelihood(replace(c, tau={**c.tau, name: c.tau[name] * factor})) < best, name
        for name in c.residual:
            other = {**c.residual, name: c.residual[name] * factor}
            assert likelihood(replace(c, residual=other)) < best, name


@pytest.mark.slow
def test_models_left_out_fall_inside_their_intervals() -> None:
    """The 90% intervals hold for models that the table has no number of."""
    pairs = left_out(recovery_table(), components(), {"gptq-w4a16", "awq-w4a16", "int8-w8a8",
                                                      "fp8-w8a8", "fp8-block"})  # fmt: skip
    assert len(pairs) > 150
    inside = np.mean([abs(e) <= 1.645 * se for e, se in pairs])
    assert 0.85 <= inside <= 0.98


def test_bracketed_formats_lie_between_their_stand_ins() -> None:
    tasks = ["mmlu", "gsm8k", "arc-c"]
    for method, worse in (("nvfp4-w4a16", "nvfp4-w4a4"), ("mxfp4-w4a16", "mxfp4-w4a4")):
        low = posterior("llama-3.1-8b", worse, tasks)[0].mean()
        high = posterior("llama-3.1-8b", "gptq-w4a16", tasks)[0].mean()
        middle, cov = posterior("llama-3.1-8b", method, tasks)
        assert low < middle.mean() < high
        assert KIN[method]["gptq-w4a16"] == KIN[method][worse]
        assert math.sqrt(cov.mean()) > 0.8  # points: a guess must look like one


def test_the_offset_of_bracketed_formats_follows_its_rule() -> None:
    tasks = ["mmlu", "gsm8k", "humaneval", "ifeval", "arc-c"]
    for method, worse in (("nvfp4-w4a16", "nvfp4-w4a4"), ("mxfp4-w4a16", "mxfp4-w4a4")):
        gaps = [
            posterior(m, "gptq-w4a16", tasks)[0].mean() - posterior(m, worse, tasks)[0].mean()
            for m in ("llama-3.1-8b", "qwen3-8b")
        ]
        assert KIN[method][worse] == pytest.approx(np.mean(gaps) / math.sqrt(6), rel=0.25)


@pytest.mark.slow
def test_fewer_bits_lose_more() -> None:
    tasks = ["mmlu", "gsm8k", "humaneval", "ifeval", "arc-c"]
    mean = {
        m: np.mean([posterior(model, m, tasks)[0].mean() for model in
                    ("llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b", "llama-3.1-70b")])
        for m in METHODS if m != "bf16"
    }  # fmt: skip
    eight = ("fp8-w8a8", "fp8-w8a8-static", "fp8-block", "int8-w8a8", "gptq-w8a16")
    four = ("gptq-w4a16", "awq-w4a16", "nvfp4-w4a16", "mxfp4-w4a16")
    assert min(mean[m] for m in eight) > max(mean[m] for m in four)
    small = posterior("qwen2-0.5b", "gptq-w4a16", tasks)[0].mean()
    assert small < posterior("qwen2-72b", "gptq-w4a16", tasks)[0].mean() - 5
