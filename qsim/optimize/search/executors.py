"""Opening the executor that is asked for: this process, several of this machine, or Dask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qsim.bounds import MAX_JOBS
from qsim.checks import whole
from qsim.optimize.search.executor import SerialExecutor, TaskExecutor


@contextmanager
def open_executor(
    jobs: int, at_most: int | None = None, dask: str | None = None
) -> Iterator[TaskExecutor]:
    """An executor with ``jobs`` processes, ``at_most`` so many (for 1 none beside this one).

    When the body is left by an exception, Ctrl-C among them, running tasks are killed rather
    than waited for: they only compute, there is nothing to clean up.

    ``jobs`` are processes on this machine (with ``dask`` the number is checked and not used),
    ``at_most`` as many tasks as there will ever be at a time. ``dask`` is the address of a
    scheduler, ``tcp://host:8786``, or its scheduler file (``.json``).

    Raises
    ------
    ScenarioError
        If ``jobs`` is not a whole number >= 1, or the scheduler cannot be reached, has no
        workers or they run another version of qsim.
    MissingExtraError
        For ``dask`` without the package ``distributed``.
    QsimError
        From a task that cost :data:`MAX_DEATHS` workers their lives, say for lack of memory.
    """
    whole("jobs", jobs, 1, MAX_JOBS)
    executor = _executor(jobs if at_most is None else max(1, min(jobs, at_most)), dask)
    try:
        yield executor
    except BaseException:
        executor.abort()
        raise
    executor.shutdown()


def _executor(jobs: int, dask: str | None) -> TaskExecutor:
    if dask is not None:
        from qsim.optimize.search.executor_dask import DaskExecutor

        return DaskExecutor(dask)
    if jobs == 1:
        return SerialExecutor()
    from qsim.optimize.search.executor_local import LocalExecutor

    return LocalExecutor(jobs)
