"""Where a study lives: in memory, in a journal file, or in any storage that Optuna has."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qsim.errors import ScenarioError

__all__ = ["open_storage", "quiet_optuna", "uninterrupted"]


def open_storage(where: str | os.PathLike[str] | None) -> Any:
    """An Optuna storage.

    Parameters
    ----------
    where : str, optional
        None for memory; a URL such as ``sqlite:///studies.db``, ``postgresql://...`` or
        ``redis://...``; anything else is the path of a journal file, made when there is none.

    Raises
    ------
    ScenarioError
        If it cannot be opened, with Optuna's reason.
    """
    from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalRedisBackend

    if where is None:
        return InMemoryStorage()
    text = os.fspath(where)
    try:
        if text.startswith("redis://"):
            return JournalStorage(JournalRedisBackend(text))
        if "://" in text:
            return RDBStorage(text)
        path = Path(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_journal(path)
        return JournalStorage(JournalFileBackend(text))
    except ScenarioError:
        raise
    except Exception as e:  # sqlalchemy's, redis', the driver's, the file system's
        reason = " ".join(str(e).split())
        raise ScenarioError(
            f"study is {text!r}: cannot be opened ({type(e).__name__}: {reason[:300]}); give the "
            "path of a journal file, or a storage URL of Optuna such as sqlite:///studies.db"
        ) from e


def _check_journal(path: Path) -> None:
    """Refuse a file that is no journal; cut off a last line that was not written to its end."""
    data = path.read_bytes()
    if data and not data.startswith(b'{"op_code"'):
        raise ScenarioError(
            f"study is {str(path)!r}: this file is no Optuna journal; give another path, or a "
            "storage URL such as sqlite:///studies.db"
        )
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the end of a ``with`` block.

    A storage may be left locked, or answer with an error of its own, when it is interrupted in the
    middle of an operation.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            usual(*came[-1])
