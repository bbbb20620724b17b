"""Where simulations run: in this process, or in several of this machine.

Both are ``concurrent.futures`` executors, and what a task returns depends on the task alone, so
the answer is the same wherever it ran.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from qsim.errors import QsimError, ScenarioError

__all__ = ["available_cores", "open_executor"]


def available_cores() -> int:
    """The number of cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


class SerialExecutor(Executor):
    """Runs every task at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as e:
            future.set_exception(e)
        return future


class _Pool(ProcessPoolExecutor):
    """Processes that Ctrl-C does not reach: it is for this one, which then ends them.

    They are started by ``submit`` and inherit its signal mask, so that there is no moment at
    which one of them could answer Ctrl-C with a traceback.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As ``ProcessPoolExecutor``."""
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().submit(fn, *args, **kwargs)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def open_executor(jobs: int, at_most: int | None = None) -> Iterator[Executor]:
    """An executor with ``jobs`` processes, ``at_most`` so many (for 1 none beside this one).

    When the body is left by an exception, Ctrl-C among them, running tasks are killed rather
    than waited for: they only compute, there is nothing to clean up.

    Raises
    ------
    ScenarioError
        If ``jobs`` is not a whole number >= 1.
    QsimError
        If a process dies, say of lack of memory.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ScenarioError(f"jobs is {jobs!r}; must be a whole number >= 1")
    jobs = jobs if at_most is None else min(jobs, at_most)
    if jobs == 1:
        yield SerialExecutor()
        return
    before = {p.pid for p in multiprocessing.active_children()}
    # spawn, not fork: the same on every platform, and safe when the caller has threads
    context = multiprocessing.get_context("spawn")
    pool = _Pool(jobs, mp_context=context, initializer=_ignore_interrupt)
    try:
        yield pool
    except BaseException as e:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.terminate()
        if isinstance(e, BrokenExecutor):
            raise QsimError(
                "a worker process died in the middle of a simulation, for lack of memory perhaps; "
                f"try again with fewer than {jobs} jobs"
            ) from e
        raise
    pool.shutdown()


def _ignore_interrupt() -> None:
    """The same for systems without signal masks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
