"""Processes of this machine, each replaced when it dies."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from qsim.errors import QsimError
from qsim.files import remove_stale, temporary_prefix
from qsim.interrupts import uninterrupted
from qsim.optimize.search.executor import MAX_DEATHS, TaskExecutor
from qsim.optimize.search.shared_values import Shelf, run_from_folder

T = TypeVar("T")
#: how often a thread that cannot tell an outcome looks whether there is anybody to tell it to
_LOOK_S = 0.2


@dataclass
class _Task:
    payload: bytes
    future: Future[Any]
    deaths: int = 0


class LocalExecutor(TaskExecutor):
    """``jobs`` processes with a queue before them.

    Each process is a pool of its own, so that when one dies it is known which task it was at:
    that task goes back to the head of the queue and nothing else is lost. When this process dies,
    in whatever way, each of them ends, and they remove the folder of the shared values.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = self.width = jobs
        self.window = 2 * jobs
        self._lock = threading.RLock()
        self._queue: deque[_Task] = deque()
        self._idle: list[ProcessPoolExecutor] = []
        self._pools: set[ProcessPoolExecutor] = set()
        self._settled = threading.Condition(self._lock)
        self._closed = False
        self._shelf = Shelf()
        remove_stale(tempfile.gettempdir())  # of processes that were killed with all their workers
        self._folder = tempfile.TemporaryDirectory(
            prefix=temporary_prefix(), ignore_cleanup_errors=True
        )
        self._children_before = {p.pid for p in multiprocessing.active_children()}

    def share(self, value: T) -> T:
        """As :meth:`TaskExecutor.share`; the value lies in a temporary file, and is read once."""
        with uninterrupted(), self._lock:
            path = Path(self._folder.name, self._shelf.put(value))
            data = self._shelf.pickled.pop(path.name, None)
            if data is not None and not path.exists():
                path.write_bytes(data)
        return value

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue ``fn(*args, **kwargs)``; the future's error is a QsimError if its workers die."""
        future: Future[Any] = Future()
        with uninterrupted(), self._lock:
            if self._closed:
                raise RuntimeError("the executor is closed")
            self._queue.append(_Task(self._shelf.pack((fn, args, kwargs))[0], future))
            self._dispatch()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Finish what was submitted, or drop what has not begun; then end the processes."""
        with self._lock:
            if cancel_futures:
                while self._queue:
                    self._queue.popleft().future.cancel()
            while wait and not self._closed and (self._queue or len(self._idle) < len(self._pools)):
                self._settled.wait()
            self._closed = True
            pools = list(self._pools)
            self._pools.clear()
        for pool in pools:
            pool.shutdown(wait=wait)
        self._folder.cleanup()

    def abort(self) -> None:
        """Kill the processes."""
        with self._lock:
            self._closed = True
            while self._queue:
                self._queue.popleft().future.cancel()
            for pool in self._pools:
                pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child.pid not in self._children_before:
                child.terminate()
        self._folder.cleanup()

    def _dispatch(self) -> None:
        """Give waiting tasks to idle processes; a new process only where there are too few."""
        while self._queue and not self._closed:
            if not self._idle and len(self._pools) >= self._jobs:
                return
            task = self._queue.popleft()
            if not task.future.running() and not task.future.set_running_or_notify_cancel():
                continue
            pool = self._idle.pop() if self._idle else self._start()
            try:
                done = _submit(pool, run_from_folder, task.payload, self._folder.name)
            except BrokenExecutor:  # it died while it had nothing to do
                self._pools.discard(pool)
                self._queue.appendleft(task)
                continue
            done.add_done_callback(partial(self._finish, pool, task))

    def _start(self) -> ProcessPoolExecutor:
        # spawn, not fork: the same on every platform, and safe when the caller has threads
        context = multiprocessing.get_context("spawn")
        with _shielded():
            resource_tracker.ensure_running()  # a process, too; it is started with the first queue
        pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_begin, initargs=(self._folder.name,)
        )
        self._pools.add(pool)
        return pool

    def _finish(self, pool: ProcessPoolExecutor, task: _Task, done: Future[Any]) -> None:
        """Called in a thread of the pool when ``done`` is."""
        error = None if done.cancelled() else done.exception()
        outcome: Callable[[], None] | None = None
        with self._lock:
            if self._closed or done.cancelled():
                return
            if isinstance(error, BrokenExecutor):
                self._pools.discard(pool)
                task.deaths += 1
                if task.deaths < MAX_DEATHS:
                    self._queue.appendleft(task)
                else:
                    gone = QsimError(
                        f"a worker process died {task.deaths} times in the middle of the same "
                        "task, for lack of memory perhaps; try again with fewer than "
                        f"{self._jobs} jobs (--jobs) or a shorter trace (--head, --end). A script "
                        "of your own needs  if __name__ == '__main__':  around its entry"
                    )
                    gone.__cause__ = error
                    outcome = partial(task.future.set_exception, gone)
            else:
                self._idle.append(pool)
                if error is not None:
                    outcome = partial(task.future.set_exception, error)
                else:
                    outcome = partial(task.future.set_result, done.result())
            self._dispatch()
            self._settled.notify_all()
        if outcome is not None:  # without the lock: whoever waits for it may submit at once
            self._tell(task.future, outcome)

    def _tell(self, future: Future[Any], outcome: Callable[[], None]) -> None:
        """Give a future its outcome, unless its lock is held by a wait that was interrupted.

        ``concurrent.futures.wait`` takes the locks of all its futures in turn; Ctrl-C between two
        of them leaves the first ones locked for ever, and with them the pool's thread, which the
        interpreter joins at its end.
        """
        condition = future._condition
        while not condition.acquire(timeout=_LOOK_S):
            if self._closed:
                return
        try:
            outcome()
        finally:
            condition.release()


def _submit(pool: ProcessPoolExecutor, fn: Callable[..., Any], *args: Any) -> Future[Any]:
    """Submit; the process may be started here."""
    with _shielded():
        return pool.submit(fn, *args)


@contextmanager
def _shielded() -> Iterator[None]:
    """What a terminal sends to all its processes does not reach those that are started here.

    Ctrl-C and the end of a terminal are for this process, which then ends the others. They inherit
    the thread's signal mask, so that there is no moment at which they could answer Ctrl-C with a
    traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(folder: str) -> None:
    """Run in a new process: Ctrl-C is not for it, and it ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems without signal masks
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()


def _end_with_parent(folder: str) -> None:
    """Wait for the parent's end; then remove what it can no longer remove, and end.

    Not PR_SET_PDEATHSIG: it is sent when the *thread* ends that started the process, which here is
    often one of a pool whose process died.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    multiprocessing.connection.wait([parent.sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
