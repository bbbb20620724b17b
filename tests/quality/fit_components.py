"""Estimate the variance components of the published recoveries, and the weights of the models.

Run in the checkout: ``python -m tests.quality.fit_components`` writes components.json and
weights.json of qsim/quality/data (one to two minutes) and prints how well left-out sources and
models are predicted; ``--check`` writes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from qsim.quality.pool import (
    CLASS_OF,
    NU,
    SHARES,
    Z90,
    Array,
    Components,
    Pool,
    block_ranks,
    components,
    inverted,
    log_likelihood,
    make_pool,
    predict,
    single_variance,
)
from qsim.quality.table import Row, recovery_table

DATA = Path(__file__).parent.parent.parent / "qsim" / "quality" / "data"
CLASSES = sorted(set(CLASS_OF.values()))
N = len(CLASSES)


def unpack(x: Array) -> Components:
    """Parameters from logarithms: tau, cell and row by class, shares, noise, near, and decay."""
    by_class = [dict(zip(CLASSES, np.exp(x[i * N : (i + 1) * N]).tolist(), strict=True))
                for i in range(3)]  # fmt: skip
    weights = np.exp(np.append(x[3 * N : -4], 0.0))
    shares = dict(zip(SHARES, (weights / weights.sum()).tolist(), strict=True))
    noise = {"chosen": float(np.exp(x[-4])), "generated": float(np.exp(x[-3]))}
    return Components(
        by_class[0], shares, by_class[1], by_class[2], noise, float(np.exp(x[-2])), float(x[-1]),
        dict.fromkeys(CLASSES, 1.0),
    )  # fmt: skip


def by_method(rows: tuple[Row, ...]) -> dict[str, list[Row]]:
    """The rows of each method with at least four of them."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    return {m: g for m, g in groups.items() if len(g) >= 4}


def bound(pool: Pool) -> float:
    """Lower bound of the log-likelihood of a pool's numbers with the weights integrated out."""
    w = np.array(list(pool.weights.values()))
    k = np.array(list(block_ranks(pool).values()))
    a, prior = (NU + k) / 2, NU / 2  # Gamma distributions of the weights: after, before
    b = a / w
    divergence = (a - prior) * digamma(a) - gammaln(a) + gammaln(prior)
    divergence += prior * (np.log(b) - np.log(prior)) + a * (prior - b) / b
    spread = k / 2 * (digamma(a) - np.log(b) - np.log(w))
    return log_likelihood(pool) + float(np.sum(spread - divergence))


class Linear:
    """A method's pool as a function of the components: the covariance is linear in variances."""

    def __init__(self, rows: list[Row], method: str) -> None:
        self.rows, self.method, self.kind = rows, method, CLASS_OF[method]
        none = dict.fromkeys(SHARES, 0.0)
        nil = dict.fromkeys(CLASSES, 0.0)
        quiet = {"chosen": 0.0, "generated": 0.0}
        unit = dict.fromkeys(CLASSES, 1.0)
        zero = Components(unit, none, nil, nil, quiet, near=0.0, decay=0.0, widen=unit)
        self.ones = {r.key.id: 1.0 for r in rows}
        self.base = make_pool(rows, method, zero, self.ones)

        def part(c: Components) -> tuple[Array, Array]:
            p = make_pool(rows, method, c, self.ones)
            return p.common - self.base.common, p.own

        #: parts that shrink with size, and parts that do not
        self.scaled = {s: part(replace(zero, shares={**none, s: 1.0})) for s in SHARES}
        self.scaled["near"] = part(replace(zero, near=1.0))
        self.scaled["cell"] = part(replace(zero, cell=unit))
        self.single = {"row": part(replace(zero, row=unit))[0]}
        for kind in quiet:
            self.single[kind] = part(replace(zero, noise={**quiet, kind: 1.0}))[0]
        self.weights = self.ones

    def settle(self, c: Components) -> float:
        """Find the weights; the bound."""
        pool = make_pool(self.rows, self.method, c)
        self.weights = pool.weights
        return bound(pool)

    def log_likelihood(self, c: Components) -> float:
        """At the weights found last."""
        tau2 = c.tau[self.kind] ** 2
        large = {s: tau2 * v for s, v in c.shares.items()}
        large.update(near=tau2 * c.near**2, cell=c.cell[self.kind] ** 2)
        single = {"row": c.row[self.kind] ** 2, **c.noise}
        scale = 10 ** (-c.decay * self.base.cases.size)
        both = np.outer(scale, scale)
        common = self.base.common + both * sum(v * self.scaled[k][0] for k, v in large.items())
        common += sum(v * self.single[k] for k, v in single.items())
        own = both * sum(v * self.scaled[k][1] for k, v in large.items())
        return log_likelihood(replace(self.base, common=common, own=own, weights=self.weights))


def fit(rows: tuple[Row, ...], say: Callable[[str], None] = print) -> Components:
    """Maximise the bound, each method by its own numbers; weak priors keep variances off zero."""
    pools = [Linear(g, m) for m, g in by_method(rows).items()]

    def loss(x: Array) -> float:
        c = unpack(x)
        penalty = 0.5 * float(np.sum((x[3 * N : -4] / 1.5) ** 2) + np.sum((x[: 3 * N] / 5) ** 2))
        return penalty - sum(p.log_likelihood(c) for p in pools)

    x = np.array([*[0.0] * 3 * N, *[0.0] * (len(SHARES) - 1), -1.0, -1.0, -1.0, 0.0])
    limits = [(-3, 3)] * 3 * N + [(-5, 5)] * (len(SHARES) - 1)
    limits += [(-4, 0), (-4, 0), (-3, 1), (-1, 1)]
    last = -np.inf
    for _ in range(30):
        value = sum(p.settle(unpack(x)) for p in pools)
        say(f"lower bound of the log-likelihood: {value:.2f}")
        if value - last < 0.05:
            break
        last = value
        x = minimize(loss, x, method="L-BFGS-B", bounds=limits, options={"maxiter": 25}).x
    return unpack(x)


def left_out(
    rows: tuple[Row, ...],
    c: Components,
    methods: set[str],
    by: Callable[[Row], str] = lambda r: r.model,
) -> list[tuple[Row, float, float]]:
    """(row, error, standard error) of each number predicted without the numbers of its group.

    Groups are models by default: nothing of the model is known. ``by`` may also give the publisher.
    """
    found = []
    full = {m: make_pool(rows, m, c).weights for m in sorted(methods)}
    for group in sorted({by(r) for r in rows}):
        others = [r for r in rows if by(r) != group]
        for method in sorted(methods):
            mine = [r for r in rows if by(r) == group and r.method == method and r.same]
            if not mine or not any(r.method == method for r in others):
                continue
            pool = make_pool(others, method, c, start=full[method])
            inverse = inverted(pool)
            for model in sorted({r.model for r in mine}):
                these = [r for r in mine if r.model == model]
                tasks = sorted({r.task for r in these})
                mean, cov = predict(pool, inverse, model, tasks, c)
                for r in these:
                    i = tasks.index(r.task)
                    se = float(np.sqrt(cov[i, i] + single_variance(r, c)))
                    found.append((r, float(r.recovery_pct - mean[i]), se))
    return found


def widened(rows: tuple[Row, ...], c: Components) -> Components:
    """With the factors that make 90% of the numbers of left-out sources fall inside."""
    widen = {}
    for name in CLASSES:
        methods = {m for m, k in CLASS_OF.items() if k == name}
        found = left_out(rows, replace(c, widen=dict.fromkeys(CLASSES, 1.0)), methods,
                         lambda r: r.publisher)  # fmt: skip
        single = np.array([single_variance(r, c) for r, _, _ in found])
        e = np.array([(error, se) for _, error, se in found])
        own = e[:, 1] ** 2 - single
        need = np.sqrt(np.maximum((e[:, 0] / Z90) ** 2 - single, 0) / own)
        widen[name] = max(1.0, float(np.quantile(need, 0.9, method="higher")))
    return replace(c, widen=widen)


def rounded(c: Components) -> dict[str, object]:
    """JSON-ready."""
    return {
        "tau": {k: round(v, 3) for k, v in c.tau.items()},
        "shares": {k: round(v, 4) for k, v in c.shares.items()},
        "cell": {k: round(v, 3) for k, v in c.cell.items()},
        "row": {k: round(v, 3) for k, v in c.row.items()},
        "noise": {k: round(v, 3) for k, v in c.noise.items()},
        "near": round(c.near, 3),
        "decay": round(c.decay, 3),
        "widen": {k: round(v + 0.005, 2) for k, v in c.widen.items()},
        "rho": c.rho,
    }


def weights(rows: tuple[Row, ...], c: Components) -> dict[str, dict[str, float]]:
    """Weights of models by the method that is asked for."""
    return {
        m: {k: float(f"{w:.3g}") for k, w in make_pool(rows, m, c).weights.items()}
        for m in CLASS_OF
    }


def report(rows: tuple[Row, ...], c: Components) -> list[dict[str, object]]:
    """Errors and coverage by class: sources left out, models left out."""
    out: list[dict[str, object]] = []
    for what, by in (("source", lambda r: r.publisher), ("model", lambda r: r.model)):
        for name in CLASSES:
            methods = {m for m, k in CLASS_OF.items() if k == name}
            found = left_out(rows, c, methods, by)
            e = np.array([(error, se) for _, error, se in found])
            out.append(
                {
                    "left out": what,
                    "class": name,
                    "numbers": len(e),
                    "mean absolute error": round(float(np.abs(e[:, 0]).mean()), 2),
                    "median absolute error": round(float(np.median(np.abs(e[:, 0]))), 2),
                    "inside": round(float(np.mean(np.abs(e[:, 0]) <= Z90 * e[:, 1])), 3),
                    "half-width": round(float(np.median(Z90 * e[:, 1])), 2),
                }
            )
    return out


def main() -> None:
    """Fit, write, report."""
    rows = recovery_table()
    if "--check" in sys.argv:
        c = components()
    else:
        c = widened(rows, fit(rows))
        text = json.dumps(rounded(c), indent=1) + "\n"
        (DATA / "components.json").write_text(text, encoding="utf-8")
        components.cache_clear()
        c = components()
        text = json.dumps(weights(rows, c), indent=0) + "\n"
        (DATA / "weights.json").write_text(text, encoding="utf-8")
        print(json.dumps(rounded(c)))
    for line in report(rows, c):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
