"""Pooling of published recoveries: a random-effects model, and its prediction for any case.

The recovery of a (model, task) under one method is taken as

    100 + method + method x task family + method x task + method x size + method x lineage
        + method x model + method x model x task,

every term after the first a normal deviation. The variance of the last is ``residual^2``, those of
the others are ``tau^2`` times shares that are common to all methods; ``tau`` and ``residual``
depend on the method's class (8 bits, 4-bit weights, 4-bit weights and activations). The size term
is linear in the decimal logarithm of the number of parameters. A published number adds its sampling
error. ``tests/quality/fit_components.py`` estimates all of it by
maximum likelihood and writes ``data/components.json``.

The prediction is the best linear one (BLUP; Henderson 1975, Searle et al., Variance Components,
1992, ch. 7): numbers that share more terms with the case weigh more, so the nearest relatives count
most and the interval widens by itself where there are none. Relatives of the method take part with
correlation ``rho`` and a shared offset whose standard deviation is in :data:`KIN`; numbers by a
near scheme with an offset of ``near * tau``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from qsim.documents import parse_json
from qsim.quality.models import ModelKey, model_key
from qsim.quality.table import Row, recovery_table
from qsim.quality.tasks import TASKS

__all__ = [
    "CLASS_OF",
    "KIN",
    "Cases",
    "Components",
    "components",
    "covariance",
    "log_likelihood",
    "posterior",
    "sampling_variance",
]

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
#: recovery. Judgement, not estimates, except for NVFP4 and MXFP4: their truth lies between 4-bit
#: integer weights (better or equal) and the same format for the activations, too (worse), and
#: anywhere between is as likely: the offset is the gap between the two divided by sqrt(6), which
#: gives the middle with the standard deviation of a uniform distribution over the gap. The gap is
#: that of the two models with numbers of both (llama-3.1-8b and qwen3-8b), rounded.
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

SHARES = ("family", "task", "size", "lineage", "model")


@dataclass(frozen=True)
class Components:
    """Estimated variance components.

    Attributes
    ----------
    tau : dict
        Standard deviation of the sum of the terms by class of method, points of recovery (for a
        model of 10^10 parameters times or divided by ten).
    shares : dict
        Share of each term but the last in ``tau^2``; the sum is 1.
    residual : dict
        Standard deviation of the last term by class of method, points of recovery.
    noise : float
        Sampling variance of a recovery over that of two independent runs; below 1 because both
        scores come from the same questions.
    near : float
        Standard deviation of the offset of a near scheme, in units of ``tau``.
    rho : float
        Correlation of the terms of two relatives; judgement, not an estimate.
    """

    tau: dict[str, float]
    shares: dict[str, float]
    residual: dict[str, float]
    noise: float
    near: float
    rho: float = 0.7


@lru_cache(maxsize=1)
def components() -> Components:
    """The shipped components."""
    text = (resources.files("qsim.quality") / "data" / "components.json").read_text("utf-8")
    data = parse_json(text, "components.json")
    return Components(
        data["tau"], data["shares"], data["residual"], data["noise"], data["near"], data["rho"]
    )


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


@dataclass(frozen=True)
class Cases:
    """Coordinates of cases, one array entry each."""

    family: NDArray[np.str_]
    task: NDArray[np.str_]
    size: Array
    lineage: NDArray[np.str_]
    model: NDArray[np.str_]
    tau: Array
    residual: Array

    @classmethod
    def of(
        cls, keys: Sequence[ModelKey], tasks: Sequence[str], methods: Sequence[str], c: Components
    ) -> Cases:
        """Cases given by model, task and method."""
        classes = [CLASS_OF[m] for m in methods]
        return cls(
            np.array([TASKS[t].family for t in tasks], dtype=np.str_),
            np.array(list(tasks), dtype=np.str_),
            np.array([math.log10((k.size_b or UNKNOWN_SIZE_B) / 10) for k in keys]),
            # an unknown lineage is nobody's kin: it gets the model's own name
            np.array([k.lineage or k.id for k in keys], dtype=np.str_),
            np.array([k.id for k in keys], dtype=np.str_),
            np.array([c.tau[x] for x in classes]),
            np.array([c.residual[x] for x in classes]),
        )


def covariance(a: Cases, b: Cases, c: Components) -> Array:
    """Covariance of the terms of cases ``a`` (rows) and ``b`` (columns), points squared."""
    shares = c.shares

    def same(x: NDArray[np.str_], y: NDArray[np.str_]) -> Array:
        return np.asarray(x[:, None] == y[None, :], dtype=np.float64)

    model, task = same(a.model, b.model), same(a.task, b.task)
    structure = (
        shares["family"] * same(a.family, b.family)
        + shares["task"] * task
        + shares["size"] * np.outer(a.size, b.size)
        + shares["lineage"] * same(a.lineage, b.lineage)
        + shares["model"] * model
    )
    residual = np.outer(a.residual, b.residual) * model * task
    return np.asarray(structure * np.outer(a.tau, b.tau) + residual, dtype=np.float64)


def _near_blocks(rows: Sequence[Row], tau: Array, near: float) -> Array:
    """Shared offsets of the numbers by one near scheme."""
    names = np.array([f"{r.method}/{r.scheme}" if not r.same else "" for r in rows], dtype=np.str_)
    shared = (names[:, None] == names[None, :]) & (names != "")[:, None]
    return np.asarray(shared * np.outer(tau, tau) * near**2, dtype=np.float64)


def _prior(rows: Sequence[Row], method: str, c: Components) -> tuple[Array, Cases]:
    """Covariance of the observed recoveries, and the rows' cases."""
    cases = Cases.of([r.key for r in rows], [r.task for r in rows], [r.method for r in rows], c)
    methods = np.array([r.method for r in rows], dtype=np.str_)
    alike = methods[:, None] == methods[None, :]
    k = covariance(cases, cases, c) * np.where(alike, 1.0, c.rho)
    k += MEAN_VARIANCE + _near_blocks(rows, cases.tau, c.near)
    offset = np.array([KIN.get(method, {}).get(m, 0.0) for m in methods])
    k += alike * np.outer(offset, offset)
    k += np.diag([sampling_variance(r, c.noise) for r in rows])
    return k, cases


def log_likelihood(rows: Sequence[Row], method: str, c: Components) -> float:
    """Log-likelihood of the numbers of one method (all of it in ``rows``) under ``c``."""
    k, _ = _prior(rows, method, c)
    y = np.array([r.recovery_pct for r in rows]) - MEAN_PCT
    factor = np.linalg.cholesky(k)
    z = np.linalg.solve(factor, y)
    return float(-0.5 * z @ z - np.log(np.diag(factor)).sum() - 0.5 * len(y) * math.log(2 * np.pi))


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
        Percent squared.
    """
    c = components() if c is None else c
    kin = {method, *KIN.get(method, {})}
    used = [r for r in (recovery_table() if rows is None else rows) if r.method in kin]
    key = model_key(model)
    query = Cases.of([key] * len(tasks), tasks, [method] * len(tasks), c)
    own = covariance(query, query, c) + MEAN_VARIANCE
    if not used:
        return np.full(len(tasks), MEAN_PCT), own
    k, cases = _prior(used, method, c)
    related = np.where(np.array([r.method == method for r in used]), 1.0, c.rho)
    cross = covariance(query, cases, c) * related[None, :] + MEAN_VARIANCE
    y = np.array([r.recovery_pct for r in used]) - MEAN_PCT
    gain = np.linalg.solve(k, cross.T).T
    mean = MEAN_PCT + gain @ y
    left = own - gain @ cross.T
    return mean, (left + left.T) / 2
