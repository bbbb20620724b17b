"""Estimate the variance components of the published recoveries by maximum likelihood.

Run in the checkout: ``python -m tests.quality.fit_components`` writes
qsim/quality/data/components.json and prints how well left-out models are predicted.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from qsim.quality.pool import (
    CLASS_OF,
    SHARES,
    Components,
    log_likelihood,
    posterior,
    sampling_variance,
)
from qsim.quality.table import Row, recovery_table

OUT = Path(__file__).parent.parent.parent / "qsim" / "quality" / "data" / "components.json"
CLASSES = sorted(set(CLASS_OF.values()))


def unpack(x: np.ndarray) -> Components:
    """Parameters from logarithms: tau and residual by class, shares, noise, near."""
    n = len(CLASSES)
    weights = np.exp(np.append(x[2 * n : -2], 0.0))
    weights /= weights.sum()
    return Components(
        dict(zip(CLASSES, np.exp(x[:n]).tolist(), strict=True)),
        dict(zip(SHARES, weights.tolist(), strict=True)),
        dict(zip(CLASSES, np.exp(x[n : 2 * n]).tolist(), strict=True)),
        float(np.exp(x[-2])),
        float(np.exp(x[-1])),
    )


def by_method(rows: tuple[Row, ...]) -> dict[str, list[Row]]:
    """The rows of each method with at least four of them."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    return {m: g for m, g in groups.items() if len(g) >= 4}


def fit(rows: tuple[Row, ...]) -> Components:
    """Maximum likelihood, each method by its own numbers; weak priors keep shares off zero."""
    groups = by_method(rows)

    def loss(x: np.ndarray) -> float:
        c = unpack(x)
        penalty = 0.5 * float(np.sum((x[2 * len(CLASSES) : -2] / 1.5) ** 2))
        return penalty - sum(log_likelihood(g, m, c) for m, g in groups.items())

    start = np.array([*[0.0] * 2 * len(CLASSES), *[0.0] * (len(SHARES) - 1), -1.0, -1.0])
    bounds = [(-3, 3)] * 2 * len(CLASSES) + [(-5, 5)] * (len(SHARES) - 1) + [(-4, 0)] + [(-3, 1)]
    best = minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    return unpack(best.x)


def left_out(rows: tuple[Row, ...], c: Components, methods: set[str]) -> list[tuple[float, float]]:
    """(error, standard error) of each number predicted without any number of its model."""
    found = []
    for model in sorted({r.model for r in rows}):
        others = [r for r in rows if r.model != model]
        for method in sorted(methods):
            mine = [r for r in rows if r.model == model and r.method == method and r.same]
            if not mine or not any(r.method == method for r in others):
                continue
            tasks = sorted({r.task for r in mine})
            mean, cov = posterior(model, method, tasks, others, c)
            for r in mine:
                i = tasks.index(r.task)
                se = np.sqrt(cov[i, i] + sampling_variance(r, c.noise))
                found.append((r.recovery_pct - mean[i], float(se)))
    return found


def rounded(c: Components) -> dict[str, object]:
    """JSON-ready."""
    return {
        "tau": {k: round(v, 3) for k, v in c.tau.items()},
        "shares": {k: round(v, 3) for k, v in c.shares.items()},
        "residual": {k: round(v, 3) for k, v in c.residual.items()},
        "noise": round(c.noise, 3),
        "near": round(c.near, 3),
        "rho": c.rho,
    }


def main() -> None:
    """Fit, write, report."""
    rows = recovery_table()
    c = fit(rows)
    OUT.write_text(json.dumps(rounded(c), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rounded(c)))
    for name in CLASSES:
        methods = {m for m, k in CLASS_OF.items() if k == name}
        e = np.array(left_out(rows, c, methods))
        inside = np.mean(np.abs(e[:, 0]) <= 1.645 * e[:, 1])
        error = np.abs(e[:, 0]).mean()
        print(
            f"{name}: {len(e)} numbers of left-out models, mean absolute error {error:.2f} points, "
            f"{inside:.0%} inside their 90% interval"
        )


if __name__ == "__main__":
    main()
