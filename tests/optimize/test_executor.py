from __future__ import annotations

import math
import multiprocessing
import os
import time

import pytest

from qsim.errors import QsimError, ScenarioError
from qsim.optimize.executor import SerialExecutor, available_cores, open_executor


def test_one_job_runs_here() -> None:
    with open_executor(1) as executor:
        assert isinstance(executor, SerialExecutor)
        assert executor.submit(os.getpid).result() == os.getpid()
        assert isinstance(executor.submit(math.sqrt, -1).exception(), ValueError)


def test_more_jobs_run_elsewhere_and_no_more_than_asked() -> None:
    with open_executor(4, at_most=1) as executor:
        assert isinstance(executor, SerialExecutor)
    with open_executor(2, at_most=5) as executor:
        assert executor.submit(os.getpid).result() != os.getpid()
    assert not multiprocessing.active_children()


def test_leaving_by_an_exception_kills_what_runs() -> None:
    before = set(multiprocessing.active_children())

    def interrupted() -> None:
        with open_executor(2) as executor:
            executor.submit(math.factorial, 3).result()
            executor.submit(time.sleep, 3600)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for child in set(multiprocessing.active_children()) - before:
        child.join(timeout=20)
        assert not child.is_alive()


def test_a_dead_worker_is_an_error_that_says_so() -> None:
    with pytest.raises(QsimError, match="fewer than 2 jobs"), open_executor(2) as executor:
        executor.submit(os._exit, 9).result()


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_jobs_must_be_a_count(jobs: int) -> None:
    with pytest.raises(ScenarioError, match="jobs is"), open_executor(jobs):
        pass


def test_there_is_a_core() -> None:
    assert available_cores() >= 1
