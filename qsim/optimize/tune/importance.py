"""How much each decision matters for each objective."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsim.errors import QsimError
from qsim.optimize.search.measures import Measure
from qsim.optimize.search.storage import quiet_optuna

#: trials that importances are worked out from; of more, so many that are spread evenly
MOST_TRIALS = 250


@dataclass(frozen=True)
class Importance:
    """How much of an objective's variation each decision explains; or why that is not known."""

    objective: str
    shares: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def importances(study: Any, measures: Sequence[Measure], seed: int) -> tuple[Importance, ...]:
    """Importances of each objective by fANOVA (Hutter et al., ICML 2014), as Optuna has it.

    The values of a decision without an order, such as profiles, are put in the order of the
    objective's mean under each, in which a tree splits them as well as in any way (Breiman et al.,
    Classification and Regression Trees, 1984, 4.2.2). Optuna would give each a column of its own
    and go through every subset of them, which for 30 profiles never ends.
    """
    complete = [t for t in study.get_trials(deepcopy=False) if t.values is not None]
    if len(complete) > MOST_TRIALS:
        step = len(complete) / MOST_TRIALS
        complete = [complete[int(i * step)] for i in range(MOST_TRIALS)]
    with quiet_optuna():
        return tuple(_importance(complete, i, m, seed) for i, m in enumerate(measures))


def _importance(trials: Sequence[Any], objective: int, measure: Measure, seed: int) -> Importance:
    values = [float(t.values[objective]) for t in trials]
    if len(set(values)) < 2:
        return Importance(measure.name, reason="it was the same in every trial")
    if not all(map(math.isfinite, values)):
        return Importance(measure.name, reason="it was not finite in every trial")
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            shares = get_param_importances(
                _ordered(trials, values), evaluator=FanovaImportanceEvaluator(seed=seed)
            )
    except (ValueError, RuntimeError, QsimError) as e:
        return Importance(measure.name, reason=str(e))
    return Importance(measure.name, {k: float(v) for k, v in shares.items()})


def _ordered(trials: Sequence[Any], values: Sequence[float]) -> Any:
    """A study of one objective in which every decision has an order."""
    import optuna
    from optuna.distributions import CategoricalDistribution, IntDistribution

    distributions = dict(trials[0].distributions)
    places: dict[str, dict[Any, int]] = {}
    for name, distribution in distributions.items():
        if not isinstance(distribution, CategoricalDistribution):
            continue
        by_choice: dict[Any, list[float]] = defaultdict(list)
        for trial, value in zip(trials, values, strict=True):
            by_choice[trial.params[name]].append(value)
        means = {c: sum(v) / len(v) for c, v in by_choice.items()}
        # the order of the space decides between equals, so that the same study gives the same
        order = sorted((c for c in distribution.choices if c in means), key=lambda c: means[c])
        places[name] = {choice: place for place, choice in enumerate(order)}
        distributions[name] = IntDistribution(0, max(1, len(order) - 1))
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    study.add_trials(
        optuna.trial.create_trial(
            value=value,
            params={n: places[n][p] if n in places else p for n, p in trial.params.items()},
            distributions=distributions,
        )
        for trial, value in zip(trials, values, strict=True)
    )
    return study
