"""Pooling of published recoveries: a robust random-effects model, and its prediction for any case.

The recovery of a (model, task) under one method, as one source states it, is taken as

    100 + method + method x task family + method x task + method x size + method x lineage
        + method x source + row + sampling error
        + fragility x (method x model + method x checkpoint + method x model x task),

every term after the first a normal deviation. A checkpoint is one source's numbers of one model by
one scheme. The standard deviations of the cell (model x task) and the row are ``cell`` and ``row``,
the variances of the others are ``tau^2`` times shares that are common to all methods; ``tau``,
``cell`` and ``row`` depend on the method's class (8 bits, 4-bit weights, 4-bit weights and
activations). The size term is linear in the decimal logarithm of the number of parameters, and all
terms but method and row shrink with a power of it (``decay``). The sampling error follows from the
number of questions and from whether answers are chosen or generated.

``fragility`` is ``1 / sqrt(w)`` with a weight w ~ Gamma(nu / 2, nu / 2) of the model, so that a
model's own deviations follow a multivariate t distribution with ``nu`` degrees of freedom (Lange,
Little and Taylor, Robust statistical modeling using the t distribution, JASA 84, 1989; Pinheiro,
Liu and Wu, J. Comput. Graph. Stat. 10, 2001). A model that collapsed gets a low weight: its numbers
stay its own and move what is said of other models little. The weights are found by the
variational form of the EM algorithm (normal terms and weights taken as independent given the
numbers). ``tests/quality/fit_components.py`` maximises the resulting lower bound of the likelihood
and writes ``data/components.json`` and ``data/weights.json``.

The prediction is the best linear one given the weights (BLUP; Henderson 1975, Searle et al.,
Variance Components, 1992, ch. 7): numbers that share more terms with the case weigh more, so the
nearest relatives count most and the interval widens by itself where there are none. It is for a
checkpoint and a source that nobody has measured: what differs between them is part of the interval.
Relatives of the method take part with correlation ``rho`` and a shared offset whose standard
deviation is in :data:`KIN`; numbers by a near scheme with an offset of ``near * tau``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsim.documents import parse_json
from qsim.quality.models import ModelKey, model_key
from qsim.quality.table import Row, recovery_table
from qsim.quality.tasks import TASKS

Array = NDArray[np.float64]

#: class of a method: methods of one class share ``tau``
CLASS_OF: dict[str, str] = {
    "fp8-w8a8": "8-bit",
    "fp8-w8a8-static": "8-bit",
    "fp8-block": "8-bit",
    "int8-w8a8": "8-bit",
    "gptq-w8a16": "8-bit",
    "kv-fp8": "8-bit",
    "kv-int8": "8-bit",
    "fp8-w8a8-static+kv-fp8": "8-bit",
    "gptq-w4a16": "w4",
    "awq-w4a16": "w4",
    "w4a8-fp8": "w4",
    "nvfp4-w4a16": "w4",
    "mxfp4-w4a16": "w4",
    "nvfp4-w4a4": "w4a4",
    "mxfp4-w4a4": "w4a4",
}

#: method -> its relatives and the standard deviation of the offset between them, in points of
#: recovery; judgement, not estimates. The truth of NVFP4 and MXFP4 weights lies between 4-bit
#: integer weights (better or equal) and the same format for the activations, too (worse). The gap
#: between the two divided by sqrt(6) gives the middle with the standard deviation of a uniform
#: distribution over the gap; the offsets are no less than that for the models with numbers of both
#: (llama-3.1-8b and qwen3-8b), 0.9 and 1.8 points. That of MXFP4, whose weights alone have five
#: published numbers, is on the wide side.
KIN: dict[str, dict[str, float]] = {
    "fp8-w8a8": {"fp8-w8a8-static": 0.4, "fp8-block": 0.4},
    "fp8-w8a8-static": {"fp8-w8a8": 0.4, "fp8-block": 0.5},
    "fp8-block": {"fp8-w8a8": 0.4, "fp8-w8a8-static": 0.5},
    "int8-w8a8": {"fp8-w8a8": 0.7},
    "gptq-w8a16": {"fp8-w8a8": 0.5},
    "gptq-w4a16": {"awq-w4a16": 0.5},
    "awq-w4a16": {"gptq-w4a16": 0.5},
    "w4a8-fp8": {"awq-w4a16": 0.8},
    "nvfp4-w4a16": {"gptq-w4a16": 1.0, "nvfp4-w4a4": 1.0},
    "mxfp4-w4a16": {"gptq-w4a16": 4.5, "mxfp4-w4a4": 4.5},
    "kv-fp8": {"kv-int8": 0.5, "fp8-w8a8-static+kv-fp8": 0.7},
}

#: prior of the method term: recovery 99 +- 10, which is next to nothing
MEAN_PCT = 99.0
MEAN_VARIANCE = 100.0
#: score assumed where a source gives the recovery alone
UNKNOWN_SCORE = 0.6
#: size assumed where the name does not say, in billions
UNKNOWN_SIZE_B = 10.0

SHARES = ("family", "task", "size", "lineage", "source", "model", "checkpoint")
_GENERATED = {"maths", "code", "reasoning", "chat", "long-context"}
#: degrees of freedom of a model's own deviations: Lange et al. advise 4 where the data are few
NU = 4.0
#: half-width of a 90% interval in standard deviations
Z90 = 1.6448536269514722
#: the weights have settled when none changes by more than this share
_SETTLED = 1e-3
_MOST_ROUNDS = 200


@dataclass(frozen=True)
class Components:
    """Estimated variance components."""

    #: Standard deviation of the sum of the terms with shares by class of method, points
    #: (for a model of 10^10 parameters times or divided by ten, with a weight of 1).
    tau: dict[str, float]
    #: Share of each of :data:`SHARES` in ``tau^2``; the sum is 1.
    shares: dict[str, float]
    #: Standard deviations of model x task and of a single number by class of method, points.
    cell: dict[str, float]
    row: dict[str, float]
    #: Sampling variance of a recovery over that of two independent runs by kind of answer
    #: (``chosen``, ``generated``); below 1 because both scores come from the same questions.
    noise: dict[str, float]
    #: Standard deviation of the offset of a near scheme, in units of ``tau``.
    near: float
    #: ``tau`` and ``cell`` fall with the number of parameters P as ``(P / 10^10) ** -decay``: small
    #: models vary more.
    decay: float
    #: Factor on the standard deviation of a prediction by class of method, at least 1, with which
    #: 90% of the numbers of left-out sources fall inside their intervals.
    widen: dict[str, float]
    #: Correlation of the terms of two relatives; judgement, not an estimate.
    rho: float = 0.7


@lru_cache(maxsize=1)
def components() -> Components:
    """The shipped components."""
    return Components(**_data("components.json"))


@lru_cache(maxsize=1)
def shipped_weights() -> dict[str, dict[str, float]]:
    """Weights of models by the method that is asked for, as the shipped table gives them."""
    return dict(_data("weights.json"))


def _data(name: str) -> Any:
    text = (resources.files("qsim.quality") / "data" / name).read_text("utf-8")
    return parse_json(text, name)


def sampling_variance(row: Row, noise: float) -> float:
    """Variance of a published recovery from the finite number of questions, points squared.

    ``noise * r^2 * ((1 - s) / (n s) + (1 - b) / (n b))`` (delta method) for the score s and the
    baseline b of n questions each.
    """
    b = UNKNOWN_SCORE if row.baseline is None else row.baseline / 100
    s = b * row.recovery_pct / 100 if row.score is None else row.score / 100
    # a perfect score has no binomial variance; half an answer more or less remains in doubt
    edge = 0.5 / row.items
    s, b = (min(max(x, edge), 1 - edge) for x in (s, b))
    return noise * row.recovery_pct**2 * ((1 - s) / (row.items * s) + (1 - b) / (row.items * b))


def kind_of(task: str) -> str:
    """``generated`` where the answer is a text of the model's, ``chosen`` where it is a choice."""
    return "generated" if TASKS[task].family in _GENERATED else "chosen"


def single_variance(row: Row, c: Components) -> float:
    """Variance of one number about the recovery of its model, method, task and checkpoint."""
    return sampling_variance(row, c.noise[kind_of(row.task)]) + c.row[CLASS_OF[row.method]] ** 2


@dataclass(frozen=True)
class Cases:
    """Coordinates of cases, one array entry each."""

    method: NDArray[np.str_]
    family: NDArray[np.str_]
    task: NDArray[np.str_]
    size: Array
    lineage: NDArray[np.str_]
    model: NDArray[np.str_]
    #: "" for a source, checkpoint or near scheme that is nobody else's
    source: NDArray[np.str_]
    checkpoint: NDArray[np.str_]
    near: NDArray[np.str_]
    tau: Array
    cell: Array

    @classmethod
    def of(
        cls, keys: Sequence[ModelKey], tasks: Sequence[str], methods: Sequence[str], c: Components,
        rows: Sequence[Row] = (),
    ) -> Cases:  # fmt: skip
        """Cases given by model, task and method, as ``rows`` state them or of a new source."""
        classes = [CLASS_OF[m] for m in methods]
        # an unknown lineage is nobody's kin: it gets the model's own name
        lineages = [k.lineage or k.id for k in keys]
        new = [""] * len(tasks)
        size = np.array([math.log10((k.size_b or UNKNOWN_SIZE_B) / 10) for k in keys])
        scale = 10 ** (-c.decay * size)
        return cls(
            _texts(methods),
            _texts([TASKS[t].family for t in tasks]),
            _texts(tasks),
            size,
            _texts(lineages),
            _texts([k.id for k in keys]),
            _texts([r.publisher for r in rows] or new),
            _texts([f"{r.publisher}/{r.model}/{r.scheme}" for r in rows] or new),
            _texts(["" if r.same else r.scheme for r in rows] or new),
            scale * np.array([c.tau[x] for x in classes]),
            scale * np.array([c.cell[x] for x in classes]),
        )


def _texts(values: Sequence[str]) -> NDArray[np.str_]:
    return np.array(list(values), dtype=np.str_)


def _same(x: NDArray[np.str_], y: NDArray[np.str_]) -> Array:
    # numbers are compared a hundred times faster than texts
    _, codes = np.unique(np.concatenate([x, y]), return_inverse=True)
    alike = codes[: len(x), None] == codes[None, len(x) :]
    return np.asarray(alike & (x != "")[:, None], dtype=np.float64)


def covariance(a: Cases, b: Cases, c: Components) -> tuple[Array, Array]:
    """Covariance of the terms of cases ``a`` (rows) and ``b`` (columns), points squared.

    Returns
    -------
    common : array (len(a), len(b))
        Of the terms that the model's weight does not scale.
    own : array (len(a), len(b))
        Of the model's own terms at a weight of 1.
    """
    shares, scale = c.shares, np.outer(a.tau, b.tau)
    alike = _same(a.method, b.method)
    kin = np.where(alike > 0, 1.0, c.rho)
    model = _same(a.model, b.model)
    common = kin * (
        shares["family"] * _same(a.family, b.family)
        + shares["task"] * _same(a.task, b.task)
        + shares["size"] * np.outer(a.size, b.size)
        + shares["lineage"] * _same(a.lineage, b.lineage)
    )
    common += alike * shares["source"] * _same(a.source, b.source)
    common += alike * c.near**2 * _same(a.near, b.near)
    own = kin * shares["model"] * model
    own += alike * shares["checkpoint"] * _same(a.checkpoint, b.checkpoint)
    cell = kin * model * _same(a.task, b.task) * np.outer(a.cell, b.cell)
    return common * scale, own * scale + cell


@dataclass(frozen=True)
class Pool:
    """Published numbers of a method and its relatives, with the weights of their models."""

    method: str
    #: n rows
    cases: Cases
    #: Recoveries less :data:`MEAN_PCT`, shape (n,).
    deviations: Array
    #: Covariance that the weights do not scale (with sampling errors), and what they do at 1 (own);
    #: shape (n, n).
    common: Array
    own: Array
    #: By model.
    weights: dict[str, float]

    def fragility(self) -> Array:
        """``1 / sqrt(w)`` of each row's model."""
        return np.array([self.weights[m] ** -0.5 for m in self.cases.model.tolist()])

    def total(self) -> Array:
        """Covariance of the recoveries given the weights."""
        f = self.fragility()
        return np.asarray(self.common + self.own * np.outer(f, f), dtype=np.float64)


def make_pool(
    rows: Sequence[Row],
    method: str,
    c: Components,
    weights: Mapping[str, float] | None = None,
    start: Mapping[str, float] | None = None,
) -> Pool:
    """Pool the rows of ``method`` and its relatives; weights that are not given are found.

    ``start`` is where their search begins, 1 by default.
    """
    kin = {method, *KIN.get(method, {})}
    used = [r for r in rows if r.method in kin]
    methods = [r.method for r in used]
    cases = Cases.of([r.key for r in used], [r.task for r in used], methods, c, used)
    common, own = covariance(cases, cases, c)
    offset = np.array([KIN.get(method, {}).get(m, 0.0) for m in methods])
    common += MEAN_VARIANCE + _same(cases.method, cases.method) * np.outer(offset, offset)
    single = [single_variance(r, c) for r in used]
    common += np.diag(single)
    y = np.array([r.recovery_pct for r in used]) - MEAN_PCT
    models = sorted(set(cases.model.tolist()))
    first = weights or start or {}
    pool = Pool(method, cases, y, common, own, {m: first.get(m, 1.0) for m in models})
    return _settled(pool) if weights is None else pool


def block_ranks(pool: Pool) -> dict[str, int]:
    """How many independent deviations of each model's own terms the numbers show."""
    at = _rows_of(pool)
    return {m: int(np.linalg.matrix_rank(pool.own[np.ix_(i, i)])) for m, i in at.items()}


def _rows_of(pool: Pool) -> dict[str, NDArray[np.intp]]:
    return {m: np.flatnonzero(pool.cases.model == m) for m in pool.weights}


def _settled(pool: Pool) -> Pool:
    """Weights by coordinate ascent: each is its posterior mean given the others.

    ``w = (nu + k) / (nu + E[d' D^- d])`` for a model's own deviations d of rank k with covariance D
    at a weight of 1.
    """
    at, ranks, y = _rows_of(pool), block_ranks(pool), pool.deviations
    for _ in range(_MOST_ROUNDS if len(y) else 0):
        inverse = np.linalg.inv(pool.total())
        alpha, new = inverse @ y, {}
        for m, i in at.items():
            w, k, block = pool.weights[m], ranks[m], pool.own[np.ix_(i, i)]
            left = k / w - float(np.sum(block * inverse[np.ix_(i, i)])) / w**2
            new[m] = (NU + k) / (NU + left + float(alpha[i] @ block @ alpha[i]) / w**2)
        change = max(abs(new[m] / w - 1) for m, w in pool.weights.items())
        pool = replace(pool, weights=new)
        if change < _SETTLED:
            break
    return pool


def log_likelihood(pool: Pool) -> float:
    """Log-likelihood of the numbers given the weights."""
    y = pool.deviations
    factor = np.linalg.cholesky(pool.total())
    z = np.linalg.solve(factor, y)
    return float(-0.5 * z @ z - np.log(np.diag(factor)).sum() - 0.5 * len(y) * math.log(2 * np.pi))


def inverted(pool: Pool) -> Array:
    """The inverse of the covariance of a pool's numbers."""
    return np.asarray(np.linalg.inv(pool.total()), dtype=np.float64)


@lru_cache(maxsize=32)
def _shipped_pool(method: str) -> tuple[Pool, Array]:
    pool = make_pool(recovery_table(), method, components(), shipped_weights()[method])
    return pool, inverted(pool)


def posterior(
    model: str,
    method: str,
    tasks: Sequence[str],
    rows: Sequence[Row] | None = None,
    c: Components | None = None,
) -> tuple[Array, Array]:
    """Recovery of ``model`` under ``method`` on each of ``tasks``, given the published numbers.

    Parameters
    ----------
    model, method : str
    tasks : sequence of str
        n task ids.
    rows, c
        Instead of the shipped table and components.

    Returns
    -------
    mean : array (n,)
        Percent.
    covariance : array (n, n)
        Percent squared, such that 1.645 standard deviations are half a 90% interval: the variance
        of the model's own terms is raised by as much as their t distribution is wider than a normal
        one, and all of it by ``widen``.
    """
    if rows is None and c is None:
        pool, inverse = _shipped_pool(method)
        return predict(pool, inverse, model, tasks, components())
    c = components() if c is None else c
    pool = make_pool(recovery_table() if rows is None else rows, method, c)
    return predict(pool, inverted(pool), model, tasks, c)


def predict(
    pool: Pool, inverse: Array, model: str, tasks: Sequence[str], c: Components
) -> tuple[Array, Array]:
    """:func:`posterior` of a pool, given ``inverted(pool)``."""
    method = pool.method
    key = model_key(model)
    query = Cases.of([key] * len(tasks), tasks, [method] * len(tasks), c)
    common, own = covariance(query, query, c)
    # terms of a source and a checkpoint that nobody has measured
    new = np.outer(query.tau, query.tau)
    common += MEAN_VARIANCE + c.shares["source"] * new
    own += c.shares["checkpoint"] * new
    weight = pool.weights.get(key.id, 1.0)
    shown = int((pool.cases.model == key.id).sum())
    wider = (t95(NU + shown) / Z90) ** 2 - 1
    own /= weight
    widen = c.widen[CLASS_OF[method]] ** 2
    if not len(pool.deviations):
        return np.full(len(tasks), MEAN_PCT), widen * (common + own * (1 + wider))
    across, mine = covariance(query, pool.cases, c)
    mine *= weight**-0.5 * pool.fragility()[None, :]
    across += MEAN_VARIANCE + mine
    gain = across @ inverse
    mean = MEAN_PCT + gain @ pool.deviations
    left = common + own - gain @ across.T + wider * (own - mine @ inverse @ mine.T)
    return mean, widen * (left + left.T) / 2


def t95(nu: float) -> float:
    """The 95th percentile of Student's t distribution with ``nu`` >= 4 degrees of freedom.

    Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5), right to 0.002.
    """
    z = Z90
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(t / nu ** (i + 1) for i, t in enumerate(terms))
