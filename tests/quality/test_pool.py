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
    NU,
    SHARES,
    Z90,
    Components,
    components,
    make_pool,
    posterior,
    sampling_variance,
    shipped_weights,
    single_variance,
    t95,
)
from qsim.quality.pool import predict as predict_from
from qsim.quality.recovery import recovery
from qsim.quality.table import Row, recovery_table
from qsim.quality.tasks import TASKS
from tests.quality.fit_components import bound, by_method, left_out

CLASSES = ("8-bit", "w4", "w4a4")
SIMPLE = Components(
    tau={"8-bit": 1.0, "w4": 2.0, "w4a4": 4.0},
    shares={"family": 0.3, "task": 0.1, "size": 0.1, "lineage": 0.1, "source": 0.1, "model": 0.2,
            "checkpoint": 0.1},
    cell={"8-bit": 0.4, "w4": 0.5, "w4a4": 2.0},
    row=dict.fromkeys(CLASSES, 0.3),
    noise={"chosen": 0.4, "generated": 0.8},
    near=0.5,
    decay=0.3,
    widen=dict.fromkeys(CLASSES, 1.0),
)  # fmt: skip


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
    grown = 0.8**-0.6  # a model of 8 billion has (8 / 10) ** -0.3 times the deviations of one of 10
    tau2, cell2 = SIMPLE.tau["w4"] ** 2 * grown, SIMPLE.cell["w4"] ** 2 * grown
    # shared with a new checkpoint of the same model: family, task, lineage, size
    alike = 0.5 + 0.1 * math.log10(0.8) ** 2
    pool = make_pool([r], "gptq-w4a16", SIMPLE)
    w = pool.weights["llama-3.1-8b"]
    own = (tau2 * 0.2 + cell2) / w
    signal = MEAN_VARIANCE + tau2 * alike + own
    noise = single_variance(r, SIMPLE) + tau2 * (0.1 + 0.1 / w)  # source, checkpoint
    mean, sd = predict([r])
    assert mean == pytest.approx(MEAN_PCT + signal / (signal + noise) * (97.0 - MEAN_PCT))
    wider = (t95(NU + 1) / Z90) ** 2 - 1  # one number was seen of this model
    new = tau2 * (0.1 + 0.1 / w)
    spread = own + tau2 * 0.1 / w - own**2 / (signal + noise)
    assert sd**2 == pytest.approx(signal + new - signal**2 / (signal + noise) + wider * spread)


def test_the_weight_is_its_posterior_mean() -> None:
    rows = [row(), row(model="qwen2-7b", recovery=80.0), row(model="qwen3-8b", recovery=98.0)]
    pool = make_pool(rows, "gptq-w4a16", SIMPLE)
    inverse = np.linalg.inv(pool.total())
    alpha = inverse @ pool.deviations
    for i, r in enumerate(rows):
        w, d = pool.weights[r.key.id], pool.own[i, i]
        expected = d * (alpha[i] ** 2 - inverse[i, i]) / w**2 + 1 / w
        assert w == pytest.approx((NU + 1) / (NU + expected), rel=2e-3)
    assert pool.weights["qwen2-7b"] < 0.3 < min(pool.weights[m] for m in ("llama-3.1-8b",
                                                                          "qwen3-8b"))  # fmt: skip


@pytest.mark.parametrize(("nu", "value"), [(4, 2.1318), (5, 2.0150), (10, 1.8125), (30, 1.6973)])
def test_percentiles_of_student_s_t(nu: float, value: float) -> None:
    assert t95(nu) == pytest.approx(value, abs=0.003)


def test_a_collapsed_model_neither_vanishes_nor_rules() -> None:
    """One small model that lost all moves what is said of others little, and is said of itself."""
    others = [row(model=m, task=t, recovery=97 + 0.3 * i)
              for i, m in enumerate(("llama-3.1-8b", "qwen2-7b", "qwen3-14b", "qwen2.5-32b"))
              for t in ("mmlu", "gsm8k")]  # fmt: skip
    collapsed = [row(model="qwen3-0.6b", task=t, recovery=x)
                 for t, x in (("mmlu", 70.0), ("gsm8k", 30.0))]  # fmt: skip
    for task in ("mmlu", "gsm8k"):
        without, _ = predict(others, "qwen3-8b", task=task)
        with_it, sd = predict([*others, *collapsed], "qwen3-8b", task=task)
        assert abs(with_it - without) < 1.0
        assert sd < 3.0
    own, _ = predict([*others, *collapsed], "qwen3-0.6b", task="gsm8k")
    assert own < 50  # its own numbers count
    kin, _ = predict([*others, *collapsed], "qwen3-0.6b", task="humaneval")
    assert kin < 80  # and say something of its other tasks
    # without weights it would rule
    rows = [*others, *collapsed]
    plain = make_pool(rows, "gptq-w4a16", SIMPLE, {r.key.id: 1.0 for r in rows})
    robust = make_pool(rows, "gptq-w4a16", SIMPLE)
    assert bound(robust) > bound(plain) + 20


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


def at_equal_weights(
    rows: list[Row], model: str, method: str, tasks: list[str], c: Components = SIMPLE
) -> tuple[np.ndarray, np.ndarray]:
    """The linear part alone: every model's weight is 1."""
    pool = make_pool(rows, method, c, {r.key.id: 1.0 for r in rows})
    return predict_from(pool, np.linalg.inv(pool.total()), model, tasks, c)


@settings(max_examples=40)
@given(some_rows, models, st.sampled_from(["gptq-w4a16", "w4a8-fp8", "nvfp4-w4a16"]))
def test_the_prediction_is_finite_and_its_covariance_one(
    rows: list[Row], model: str, method: str
) -> None:
    mean, cov = posterior(model, method, ["mmlu", "gsm8k", "humaneval"], rows, SIMPLE)
    assert np.isfinite(mean).all()
    assert np.allclose(cov, cov.T)
    assert np.linalg.eigvalsh(cov).min() > -1e-8


@settings(max_examples=40)
@given(some_rows, models)
def test_evidence_never_widens_at_equal_weights(rows: list[Row], model: str) -> None:
    tasks = ["mmlu", "gsm8k", "humaneval"]
    _, without = at_equal_weights(rows[:-1], model, "gptq-w4a16", tasks)
    _, cov = at_equal_weights(rows, model, "gptq-w4a16", tasks)
    assert (np.diag(cov) <= np.diag(without) + 1e-8).all()


@settings(max_examples=30)
@given(some_rows.filter(bool), st.floats(-3, 3))
def test_a_shift_of_all_numbers_moves_the_prediction_with_them(rows: list[Row], by: float) -> None:
    # the sampling variance depends on the value by its square: leave it out
    quiet = replace(SIMPLE, noise=dict.fromkeys(SIMPLE.noise, 1e-9))
    asked = ("llama-3.1-8b", "gptq-w4a16", ["mmlu"])
    mean, _ = at_equal_weights(rows, *asked, quiet)
    moved = [replace(r, recovery_pct=r.recovery_pct + by) for r in rows]
    shifted, _ = at_equal_weights(moved, *asked, quiet)
    assert abs(shifted[0] - mean[0]) <= abs(by) * 1.001 + 1e-6
    assert by * (shifted[0] - mean[0]) >= -1e-6


@pytest.mark.slow
def test_the_shipped_components_are_a_maximum() -> None:
    c = components()
    assert set(c.shares) == set(SHARES)
    assert sum(c.shares.values()) == pytest.approx(1, abs=0.002)
    groups = by_method(recovery_table())
    found = {m: make_pool(g, m, c).weights for m, g in groups.items()}

    def likelihood(changed: Components) -> float:
        return sum(bound(make_pool(g, m, changed, found[m])) for m, g in groups.items())

    best = likelihood(c)
    for factor in (0.7, 1.4):
        for kind in c.noise:
            other = {**c.noise, kind: c.noise[kind] * factor}
            assert likelihood(replace(c, noise=other)) < best, kind
        for name in c.tau:
            assert likelihood(replace(c, tau={**c.tau, name: c.tau[name] * factor})) < best, name
        for name in c.cell:
            assert likelihood(replace(c, cell={**c.cell, name: c.cell[name] * factor})) < best, name
        assert likelihood(replace(c, decay=c.decay * factor)) < best


@pytest.mark.slow
def test_the_shipped_weights_are_those_of_the_table() -> None:
    for method in ("gptq-w4a16", "kv-fp8"):
        shipped = shipped_weights()[method]
        pool = make_pool(recovery_table(), method, components(), start=shipped)
        assert set(shipped) == set(pool.weights)
        for model, w in pool.weights.items():
            assert shipped[model] == pytest.approx(w, rel=0.02)
    assert shipped_weights()["gptq-w4a16"]["qwen3-0.6b"] < 0.05  # collapsed
    assert shipped_weights()["gptq-w4a16"]["llama-3.1-8b"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("by", ["publisher", "model"])
def test_numbers_left_out_fall_inside_their_intervals(by: str) -> None:
    """The 90% intervals hold for sources, and for models, that the table has no number of."""
    found = left_out(recovery_table(), components(), {"awq-w4a16", "nvfp4-w4a16"},
                     lambda r: str(getattr(r, by)))  # fmt: skip
    assert len(found) > 100
    inside = np.mean([abs(e) <= Z90 * se for _, e, se in found])
    assert 0.86 <= inside <= 0.99


def test_the_published_evidence_of_llama_3_1_8b_is_honoured() -> None:
    def interval(method: str, task: str) -> tuple[float, float, float]:
        r = recovery("llama-3.1-8b", method, {task: 1})
        return r.mean_pct, r.low_pct, r.high_pct

    for method, task, low, high in (
        ("awq-w4a16", "gsm8k", 94.9, 97.4),
        ("awq-w4a16", "mmlu", 96.7, 97.3),
        ("gptq-w4a16", "gsm8k", 93.2, 100.1),
    ):
        mean, least, most = interval(method, task)
        assert low - 0.5 < mean < high + 0.5, (method, task)
        assert least < low + 0.1 < high < most + 0.1, (method, task)
    # MXFP4 weights alone lose less knowledge than weights and activations do (84 to 97%)
    mean, _, _ = interval("mxfp4-w4a16", "mmlu")
    assert 94 < mean < 98


def test_bracketed_formats_lie_between_their_stand_ins() -> None:
    tasks = ["mmlu", "gsm8k", "arc-c"]
    for method, worse in (("nvfp4-w4a16", "nvfp4-w4a4"), ("mxfp4-w4a16", "mxfp4-w4a4")):
        low = posterior("llama-3.1-8b", worse, tasks)[0].mean()
        high = posterior("llama-3.1-8b", "gptq-w4a16", tasks)[0].mean()
        middle, cov = posterior("llama-3.1-8b", method, tasks)
        assert low < middle.mean() < high
        assert KIN[method]["gptq-w4a16"] == KIN[method][worse]
        assert math.sqrt(cov.mean()) > 0.8  # points: a guess must look like one


def test_offsets_of_bracketed_formats_are_no_less_than_their_gap_gives() -> None:
    tasks = ["mmlu", "gsm8k", "humaneval", "ifeval", "arc-c"]
    for method, worse in (("nvfp4-w4a16", "nvfp4-w4a4"), ("mxfp4-w4a16", "mxfp4-w4a4")):
        gaps = [
            posterior(m, "gptq-w4a16", tasks)[0].mean() - posterior(m, worse, tasks)[0].mean()
            for m in ("llama-3.1-8b", "qwen3-8b")
        ]
        assert min(gaps) > 0
        assert KIN[method][worse] >= np.mean(gaps) / math.sqrt(6)


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
