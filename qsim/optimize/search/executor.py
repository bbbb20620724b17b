"""Where simulations run: in this process, in several of this machine, or on a Dask cluster.

All are ``concurrent.futures`` executors that can also ``share`` a value with all their tasks. What
a task returns depends on the task alone, so the answer is the same wherever it ran. A worker that
dies costs the time of the task that it was at: another one does it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

#: workers that one and the same task may cost before it is given up
MAX_DEATHS = 3


class TaskExecutor(Executor):
    """An executor that sends a big value to each worker once, not with every task."""

    #: tasks that run at a time, as far as it is known; 1 otherwise
    width: int = 1
    #: tasks that it makes sense to have under way: enough to keep it busy, and no more than needed,
    #: so that each result is at hand as soon as it is there
    window: int = 1

    def share(self, value: T) -> T:
        """Announce that many tasks will hold this very object; returns it.

        From then on it is not sent along with a task: a worker fetches it when it first needs
        it. It must not be changed any more.
        """
        return value

    def abort(self) -> None:
        """Drop what waits and end what runs, without waiting for it."""


class SerialExecutor(TaskExecutor):
    """Runs every task at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as e:
            future.set_exception(e)
        return future


class LaterExecutor(TaskExecutor):
    """Takes tasks in at once and starts them when there is room for them."""

    def __init__(self) -> None:
        self._calls: dict[Future[Any], Callable[[TaskExecutor], Future[Any]]] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Remember ``fn(*args, **kwargs)``."""
        future: Future[Any] = Future()
        self._calls[future] = lambda executor: executor.submit(fn, *args, **kwargs)
        return future

    def finished(
        self, executor: TaskExecutor, futures: Sequence[Future[Any]]
    ) -> Iterator[Future[Any]]:
        """Run the tasks, and yield each future as soon as it is done."""
        left = deque(futures)
        running: dict[Future[Any], tuple[int, Future[Any]]] = {}
        begun = 0
        while left or running:
            while left and len(running) < executor.window:
                future = left.popleft()
                call = self._calls.pop(future, None)
                if call is None:  # one that was refused, and not submitted
                    yield future
                    continue
                running[call(executor)] = (begun, future)
                begun += 1
            if not running:
                continue
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for inner in sorted(done, key=lambda f: running[f][0]):
                _, future = running.pop(inner)
                error = inner.exception()
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(inner.result())
                yield future
