"""The runs of a sweep or a study: each is kept at once, and not done again on resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from qsim.errors import InputError, ScenarioError
from qsim.interrupts import uninterrupted
from qsim.optimize.search.executor import TaskExecutor
from qsim.optimize.search.journal import JournalEnd, append_lines, held, read_lines

__all__ = ["RunJournal", "do_runs", "open_run_journal"]

Point = TypeVar("Point")
Task = TypeVar("Task")


class RunJournal:
    """Finished runs by what decides them.

    Parameters
    ----------
    path : Path or None
        None keeps nothing.
    resume : bool
        Whether runs may be there already.
    what : str
        What they are of, for errors: ``"sweep"``.

    Attributes
    ----------
    rows : dict
        By key; each with ``figures`` (a dict) and ``error`` (text).
    failure : str
        Why runs are no longer kept, or "".

    Raises
    ------
    ScenarioError
        If runs are there and are not to be resumed, or the file is damaged or no such journal.
    """

    def __init__(self, path: Path | None, resume: bool, what: str) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.end = JournalEnd()
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
            with suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()


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

    Parameters
    ----------
    executor : TaskExecutor
    journal : RunJournal
    points : iterable
    task : callable
        What a point's run needs. A point for which this raises InputError is not kept.
    key : callable
        What decides a run's figures, of the point and its task.
    submit : callable
        Starts a task in ``executor``.
    figures : callable
        A run's figures, JSON-ready, of its task and what the task returned.

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
