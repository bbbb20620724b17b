"""Opening a study: a new one, or the one that is to go on."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from qsim.errors import ScenarioError
from qsim.optimize.search.storage import open_storage, shown_storage

if TYPE_CHECKING:
    from qsim.optimize.search.study import Problem, StudySettings

__all__ = ["check_study", "open_study"]

#: key of the study's user attribute that holds what it was begun with
_SETTINGS = "qsim"


def check_study(storage: str | None, name: str, resume: bool) -> None:
    """Find at the beginning of the work what would end it when the study is opened.

    ``storage`` is as for :func:`qsim.optimize.search.storage.open_storage`, ``name`` that of the
    study, or what the names of several begin with.

    Raises
    ------
    ScenarioError
        If the storage cannot be opened or is damaged, or there is such a study already and it is
        not to be resumed.
    """
    if storage is None:
        return
    import optuna

    opened = open_storage(storage)
    if resume:
        return
    for known in optuna.get_all_study_names(opened):
        if known == name or known.startswith(f"{name}-"):
            raise _exists(_where(known, storage))


def _where(name: str, storage: str | None) -> str:
    return f"study {name!r} in {shown_storage(storage)!r}"


def _exists(where: str) -> ScenarioError:
    return ScenarioError(
        f"{where} exists already; go on with it (--resume), give it another name (--study-name) or "
        "another place (--study)"
    )


def open_study(problem: Problem, settings: StudySettings, identity: dict[str, Any]) -> Any:
    import optuna

    storage = open_storage(settings.storage)
    directions: Any = ["maximize" if o.maximize else "minimize" for o in problem.objectives]
    wanted = {
        "sampler": settings.sampler,
        "seed": settings.seed,
        "batch": settings.batch,
        "population": settings.population if settings.sampler == "nsga2" else None,
        "objectives": [
            f"{d} {o.name}" for d, o in zip(directions, problem.objectives, strict=True)
        ],
        "space": problem.space.to_dict(),
        **identity,
    }
    wanted = json.loads(json.dumps(wanted))  # as it will come back
    exists = settings.name in optuna.get_all_study_names(storage)
    where = _where(settings.name, settings.storage)
    if exists and not settings.resume:
        raise _exists(where)
    study = optuna.create_study(
        storage=storage, study_name=settings.name, directions=directions, load_if_exists=True
    )
    begun = study.user_attrs.get(_SETTINGS)
    if begun is None:
        if len(study.get_trials(deepcopy=False)):
            raise ScenarioError(f"{where} was not made by qsim; give another name (--study-name)")
        with warnings.catch_warnings():  # experimental; only a dashboard reads it
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([o.name for o in problem.objectives])
        study.set_user_attr(_SETTINGS, wanted)
    elif begun != wanted:
        differ = [k for k in {**begun, **wanted} if begun.get(k) != wanted.get(k)]
        k = differ[0]
        raise ScenarioError(
            f"{where} was begun with another {', '.join(differ)}: {k} was {begun.get(k)!r} and is "
            f"now {wanted.get(k)!r}; resume it as it was begun, or begin another (--study-name)"
        )
    return study
