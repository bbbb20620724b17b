"""Where a study lives, and opening it: memory, a journal file, or any storage that Optuna has.

A storage URL is told in messages without user, password and secret parameters.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsim.errors import ScenarioError
from qsim.optimize.search.journal import held, remove_empty

if TYPE_CHECKING:
    from qsim.optimize.search.study import Problem, StudySettings


def open_storage(where: str | os.PathLike[str] | None) -> Any:
    """An Optuna storage.

    ``where`` is None for memory; a URL such as ``sqlite:///studies.db``, ``postgresql://...`` or
    ``redis://...``; anything else is the path of a journal file, made when there is none.

    Raises
    ------
    ScenarioError
        If it cannot be opened, with Optuna's reason.
    """
    from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
    from optuna.storages.journal import JournalRedisBackend

    from qsim.optimize.search.storage_journal import CheckedJournal

    if where is None:
        return InMemoryStorage()
    text = os.fspath(where)
    try:
        if text.startswith("redis://"):
            return JournalStorage(JournalRedisBackend(text))
        if "://" in text:
            return RDBStorage(text)
        return JournalStorage(CheckedJournal(Path(text)))
    except ScenarioError:
        raise
    except Exception as e:  # sqlalchemy's, redis', the driver's, the file system's
        reason = without_password(" ".join(str(e).split()), text)
        raise ScenarioError(
            f"study is {shown_storage(text)!r}: cannot be opened ({type(e).__name__}: "
            f"{reason[:300]}); give the path of a journal file, or a storage URL of Optuna such as "
            "sqlite:///studies.db"
        ) from None  # the cause may hold the password


def is_file(where: str | os.PathLike[str] | None) -> bool:
    """Whether a study's place is a journal file, and not a URL or memory."""
    return where is not None and "://" not in os.fspath(where)


@contextmanager
def held_study(where: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keep the studies in ``where`` to oneself for the time of a ``with`` block.

    A journal file is locked, for all who share the file system. For a database the name is taken
    on this machine; a process of another machine is noticed when it adds a trial.

    Raises
    ------
    ScenarioError
        If another process works with them, or the file cannot be written to.
    """
    if where is None:
        yield
        return
    text = os.fspath(where)
    what = f"study {shown_storage(text)!r}"
    with ExitStack() as stack:
        if is_file(text):
            path = Path(text)
            try:
                stack.enter_context(held(path, what))
            except OSError as e:
                raise ScenarioError(
                    f"{what}: {e.strerror or e} ({e.filename}); give the path of a journal file "
                    "that can be written to"
                ) from e
            stack.callback(remove_empty, path)
        else:
            stack.enter_context(_name_held(text, what))
        yield


@contextmanager
def _name_held(url: str, what: str) -> Iterator[None]:
    """Take a name that the kernel gives back when this process ends (Linux's abstract sockets)."""
    if sys.platform != "linux":
        yield
        return
    name = hashlib.sha256(url.encode()).hexdigest()[:32]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as taken:
        try:
            taken.bind(f"\0qsim-study-{name}")
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                raise
            raise ScenarioError(
                f"{what} is in use by another process; wait until that ends, or give another place"
            ) from None
        yield


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Only warnings from Optuna's log for the time of a ``with`` block."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")
#: parameters of a URL that are secrets
_SECRET = re.compile(r"([?&;][^=&;]*(?:pass|pwd|secret|token|key)[^=&;]*=)[^&;#\s]*", re.IGNORECASE)


def shown_storage(where: object) -> str:
    """A storage for a message: a URL without user, password and secret parameters."""
    text = str(where)
    if "://" not in text:
        return text
    # to the last @: a password that was not quoted may hold one, and a slash
    scheme, _, rest = text.partition("://")
    if "@" in rest:
        text = f"{scheme}://***@{rest.rpartition('@')[2]}"
    return _SECRET.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def without_password(message: str, where: str) -> str:
    """A driver's message about a storage, without its user, password and secret parameters."""
    from urllib.parse import unquote

    message = message.replace(where, shown_storage(where))
    if "://" in where and "@" in where:
        given = where.partition("://")[2].rpartition("@")[0]
        for part in {given, *given.split(":", 1)}:
            for form in (part, unquote(part)):
                if len(form) > 1:
                    message = message.replace(form, "***")
    for match in _SECRET.finditer(where):
        secret = match[0][len(match[1]) :]
        if len(secret) > 1:
            message = message.replace(secret, "***")
    return _SECRET.sub(r"\1***", _CREDENTIALS.sub("***@", message))


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
