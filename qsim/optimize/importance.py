"""How much each decision matters for each objective."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qsim.errors import QsimError
from qsim.optimize.measures import Measure

__all__ = ["Importance", "importances"]


@dataclass(frozen=True)
class Importance:
    """How much of an objective's variation each decision explains; or why that is not known."""

    objective: str
    shares: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def _value(objective: int, trial: Any) -> float:
    return float(trial.values[objective])


def importances(study: Any, measures: Sequence[Measure], seed: int) -> tuple[Importance, ...]:
    """Importances of each objective by fANOVA (Hutter et al., ICML 2014), as Optuna has it."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    complete = [t for t in study.get_trials(deepcopy=False) if t.values is not None]
    found = []
    for i, measure in enumerate(measures):
        values = {t.values[i] for t in complete}
        if len(values) < 2:
            found.append(Importance(measure.name, reason="it was the same in every trial"))
            continue
        if not all(map(math.isfinite, values)):
            found.append(Importance(measure.name, reason="it was not finite in every trial"))
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                shares = get_param_importances(
                    study,
                    evaluator=FanovaImportanceEvaluator(seed=seed),
                    target=partial(_value, i),
                )
        except (ValueError, RuntimeError, QsimError) as e:
            found.append(Importance(measure.name, reason=str(e)))
            continue
        found.append(Importance(measure.name, {k: float(v) for k, v in shares.items()}))
    return tuple(found)
