"""Optuna's journal of a study in a file whose lines have checksums."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from qsim.errors import NotKeptWarning, ScenarioError
from qsim.optimize.search.journal import JournalEnd, append_lines, read_lines


class CheckedJournal(BaseJournalBackend):
    """The lines of Optuna's ``JournalFileBackend``, which reads them, each with a checksum.

    It is for one process at a time: see :func:`qsim.optimize.search.storage.held_study`.

    The file at ``path`` is made if there is none.

    Raises
    ------
    ScenarioError
        If the file is no journal, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._failed = False
        what = f"study {str(path)!r}"
        with path.open("ab+") as f:  # made, and found to be writable
            f.seek(0)
            begin = f.read(32)
        if begin and not begin.startswith(b'{"op_code"'):
            raise ScenarioError(
                f"{what}: this file is no Optuna journal; give another path, or a storage URL "
                "such as sqlite:///studies.db"
            )
        self._lines, self._end = read_lines(path, what) if begin else ([], JournalEnd())

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The lines from one on."""
        return self._lines[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines; they are on disk when this returns.

        When that fails, say for a full disk, the study goes on in memory: what it costs to compute
        is not to be lost for a file. The file then ends where it could last be written.
        """
        if not self._failed:
            try:
                self._end = append_lines(self._path, self._end, logs, sync=True)
            except OSError as e:
                self._failed = True
                warnings.warn(
                    f"study {str(self._path)!r}: {e.strerror}; trials after that are not kept",
                    NotKeptWarning,
                    stacklevel=2,
                )
        self._lines.extend(json.loads(json.dumps(log)) for log in logs)  # as they would be read
