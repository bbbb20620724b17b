"""Journals: finished work as lines of JSON, each with a checksum of itself and all before it.

The runs of a sweep or a study are kept in one as they are finished, and not done again on resuming.

A line that was edited, and one before which others are missing, is thus found when the journal is
read. A last line without a line break was not written to its end (its process was killed) and is
cut off: its work is done again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qsim.errors import InputError, ScenarioError
from qsim.interrupts import uninterrupted
from qsim.optimize.search.executor import TaskExecutor

_CHECK = re.compile(rb',"check":"([0-9a-f]{16})"\}$')


@dataclass(frozen=True)
class JournalEnd:
    """Where the next line goes: the size of the file, and the checksum of what it holds."""

    size_bytes: int = 0
    check: str = ""


def _next_check(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:16]


def read_lines(path: Path, what: str) -> tuple[list[dict[str, Any]], JournalEnd]:
    """The objects of a journal, and its end. A torn last line is cut off from the file.

    Lines without a checksum, as earlier versions of qsim wrote them, are taken at the beginning of
    a journal as they are.

    Raises
    ------
    ScenarioError
        If a line was changed, or lines are missing, with ``what`` (say ``"study 'a.journal'"``)
        and the line's number.
    OSError
        If it cannot be read.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    found: list[dict[str, Any]] = []
    check, checked = "", False
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
        match = _CHECK.search(line)
        body = line if match is None else line[: match.start()] + b"}"
        check = _next_check(check, body)
        if match is None and checked:
            raise _damaged(what, number, "has no checksum")
        if match is not None and match[1].decode() != check:
            raise _damaged(what, number, "does not fit its checksum")
        checked = checked or match is not None
        try:
            item = json.loads(body)
        except (ValueError, RecursionError):
            item = None
        if not isinstance(item, dict):
            raise _damaged(what, number, "is no JSON object")
        found.append(item)
    return found, JournalEnd(whole, check)


def _damaged(what: str, number: int, reason: str) -> ScenarioError:
    return ScenarioError(
        f"{what} is damaged: line {number} {reason}; it was changed, or lines before it are "
        "missing. Restore the file from a copy, or remove it and begin anew"
    )


def append_lines(
    path: Path, end: JournalEnd, items: Sequence[Mapping[str, Any]], *, sync: bool = False
) -> JournalEnd:
    """Add objects to a journal that ends at ``end``, all of them or none; returns its new end.

    Raises
    ------
    OSError
        With ``path`` as its filename, say for a full disk; the journal is as it was.
    """
    check, lines = end.check, []
    for item in items:
        body = json.dumps(item, separators=(",", ":"), ensure_ascii=False).encode()
        check = _next_check(check, body)
        lines.append(body[:-1] + f',"check":"{check}"}}\n'.encode())
    data = b"".join(lines)
    try:
        with path.open("ab", buffering=0) as f:  # what failed is not to be written when it closes
            try:
                left = memoryview(data)
                while left:
                    left = left[f.write(left) or 0 :]
                if sync:
                    os.fsync(f.fileno())
            except OSError:
                with suppress(OSError):
                    f.truncate(end.size_bytes)
                raise
    except OSError as e:
        raise OSError(e.errno or errno.EIO, e.strerror or str(e), str(path)) from e
    return JournalEnd(end.size_bytes + len(data), check)


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Keep a journal to oneself for the time of a ``with`` block; it is made if there is none.

    The lock ends with the process, however that ends, and leaves no file.

    Raises
    ------
    ScenarioError
        If another process holds it.
    OSError
        If the file cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as f:
        try:
            import fcntl

            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScenarioError(
                f"{what} is in use by another process; wait until that ends, or give another path"
            ) from None
        except (ImportError, OSError):  # Windows, or a file system without locks
            pass
        yield


def remove_empty(path: Path) -> None:
    """Remove a journal in which nothing is kept."""
    with suppress(OSError):
        if not path.stat().st_size:
            path.unlink()


Point = TypeVar("Point")
Task = TypeVar("Task")


class RunJournal:
    """Finished runs by what decides them.

    Without a ``path`` nothing is kept. ``resume`` says whether runs may be there already, and
    ``what`` what they are of, for errors: ``"sweep"``.

    Raises
    ------
    ScenarioError
        If runs are there and are not to be resumed, or the file is damaged or no such journal.
    """

    def __init__(self, path: Path | None, resume: bool, what: str) -> None:
        self.path = path
        #: by key; each with ``figures`` (a dict) and ``error`` (text)
        self.rows: dict[str, dict[str, Any]] = {}
        self.end = JournalEnd()
        #: why runs are no longer kept, or ""
        self.failure = ""
        if path is None or not path.stat().st_size:
            return
        lines, self.end = read_lines(path, f"the journal {path}")
        if lines and not resume:
            raise ScenarioError(
                f"{path} holds {len(lines)} finished runs of a {what} that was interrupted: go on "
                "with it (--resume), give another path (--out), or remove it to begin anew"
            )
        for number, row in enumerate(lines, 1):
            key, error, figures = (row.get(k) for k in ("key", "error", "figures"))
            if not (isinstance(key, str) and isinstance(error, str) and isinstance(figures, dict)):
                raise ScenarioError(f"{path} is no journal of a {what}: see line {number}")
            self.rows[key] = row

    def add(self, key: str, figures: Mapping[str, Any], error: str = "") -> None:
        """Append a run; if that fails, the work goes on without a journal."""
        if self.path is None or self.failure:
            return
        data = {"key": key, "error": error, "figures": dict(figures)}
        try:
            with uninterrupted():
                self.end = append_lines(self.path, self.end, [data])
        except OSError as e:
            self.failure = f"{e.filename}: {e.strerror}; runs after that were not kept"

    def discard(self) -> None:
        """Nothing in it is worth going on from."""
        if self.path is not None:
            self.path.write_bytes(b"")


class Fingerprints:
    """Hashes of what traces and profiles hold; that of one object is worked out once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}

    def of(self, value: Any) -> str:
        """The hash of a value; those of the latest 64 are remembered."""
        known = self._known.get(id(value))
        if known is None or known[0] is not value:
            known = value, hashlib.sha256(pickle.dumps(value, protocol=5)).hexdigest()
            if len(self._known) >= 64:
                self._known.pop(next(iter(self._known)))
            self._known[id(value)] = known
        return known[1]


@contextmanager
def open_run_journal(path: str | Path | None, resume: bool, what: str) -> Iterator[RunJournal]:
    """The journal, held for as long as the work takes; one without a run is not left behind."""
    if path is None:
        if resume:
            raise ScenarioError(f"resume needs the journal of the {what} that was interrupted")
        yield RunJournal(None, resume, what)
        return
    path = Path(path)
    with held(path, f"the journal {path}"):
        try:
            yield RunJournal(path, resume, what)
        finally:
            remove_empty(path)


def do_runs(
    executor: TaskExecutor,
    journal: RunJournal,
    points: Iterable[Point],
    *,
    task: Callable[[Point], Task],
    key: Callable[[Point, Task], str],
    submit: Callable[[Task], Future[Any]],
    figures: Callable[[Task, Any], Mapping[str, Any]],
) -> Iterator[tuple[Point, Mapping[str, Any], str]]:
    """Run every point that is not in the journal, a window of them at a time, and keep it there.

    ``task`` makes what a point's run needs; a point for which it raises InputError is not kept.
    ``key`` is what decides a run's figures, ``submit`` starts a task in ``executor``, and
    ``figures`` are a run's, JSON-ready, of its task and what the task returned.

    Yields
    ------
    tuple
        The point, its figures and "", or the point, no figures and why; as they are finished.
    """
    left = iter(points)
    running: dict[Future[Any], tuple[Point, Task, str]] = {}  # in the order in which they began
    more = True
    while more or running:
        while more and len(running) < executor.window:
            try:
                point = next(left)
            except StopIteration:
                more = False
                break
            try:
                work = task(point)
            except InputError as e:
                yield point, {}, str(e)
                continue
            name = key(point, work)
            known = journal.rows.get(name)
            if known is not None:
                yield point, known["figures"], known["error"]
                continue
            running[submit(work)] = (point, work, name)
        if not running:
            continue
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in [f for f in running if f in finished]:
            point, work, name = running.pop(future)
            found: Mapping[str, Any] = {}
            error = ""
            try:
                found = figures(work, future.result())
            except InputError as e:
                error = str(e)
            journal.add(name, found, error)
            yield point, found, error
