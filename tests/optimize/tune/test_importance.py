"""Importances end, however many profiles there are, and say what matters."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution

from qsim.optimize.search.measures import find_measure
from qsim.optimize.tune.importance import MOST_TRIALS, importances


def study(choices: int, trials: int, profile: float, replicas: float) -> optuna.Study:
    """A sum of a profile's share in no order, a number's share, and nothing of a third decision."""
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(choices)]
    worth = rng.permutation(choices) / (choices - 1)
    found = optuna.create_study()
    for _ in range(trials):
        c, n, seats = int(rng.integers(choices)), int(rng.integers(1, 9)), int(rng.integers(3))
        found.add_trial(
            optuna.trial.create_trial(
                params={"profile": names[c], "replicas": n, "seats": (64, 128, 256)[seats]},
                distributions={
                    "profile": CategoricalDistribution(names),
                    "replicas": IntDistribution(1, 8),
                    "seats": CategoricalDistribution((64, 128, 256)),
                },
                value=profile * worth[c] + replicas * n / 8,
            )
        )
    return found


def test_many_profiles_take_seconds_and_what_matters_is_seen() -> None:
    for profile, replicas, first in ((3.0, 1.0, "profile"), (1.0, 3.0, "replicas")):
        (found,) = importances(study(40, 200, profile, replicas), [find_measure("energy")], 0)
        assert next(iter(found.shares)) == first
        assert found.shares[first] > 0.6
        assert found.shares["seats"] < 0.05
        assert abs(sum(found.shares.values()) - 1) < 1e-9


def test_of_many_trials_a_sample_is_taken() -> None:
    many = study(5, 4 * MOST_TRIALS, 1.0, 3.0)
    calls = importances(many, [find_measure("energy")], 0)
    assert calls == importances(many, [find_measure("energy")], 0)
    assert next(iter(calls[0].shares)) == "replicas"
