from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsim.errors import QsimError, ScenarioError
from qsim.optimize.plan.planning import plan
from qsim.optimize.search.executor import SerialExecutor
from qsim.optimize.search.executors import open_executor
from qsim.optimize.search.shared_values import Shelf, run_with
from qsim.processes import available_cores
from qsim.traces.trace import Trace
from tests.make_profile import make_profile


def test_one_job_runs_here() -> None:
    with open_executor(1) as executor:
        assert isinstance(executor, SerialExecutor)
        assert executor.submit(os.getpid).result() == os.getpid()
        assert isinstance(executor.submit(math.sqrt, -1).exception(), ValueError)


def test_more_jobs_run_elsewhere_and_no_more_than_asked(others: set[object]) -> None:
    with open_executor(4, at_most=1) as executor:
        assert isinstance(executor, SerialExecutor)
    with open_executor(2, at_most=5) as executor:
        assert executor.submit(os.getpid).result() != os.getpid()
    assert set(multiprocessing.active_children()) <= others


def test_leaving_by_an_exception_kills_what_runs(others: set[object]) -> None:
    def interrupted() -> None:
        with open_executor(2) as executor:
            executor.submit(math.factorial, 3).result()
            executor.submit(time.sleep, 3600)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for child in set(multiprocessing.active_children()) - others:
        deadline = time.monotonic() + 600
        while child.is_alive():  # also while a thread of the pool has reaped it and not yet said so
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_dead_worker_is_an_error_that_says_so() -> None:
    with pytest.raises(QsimError, match="fewer than 2 jobs"), open_executor(2) as executor:
        executor.submit(os._exit, 9).result()


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_jobs_must_be_a_count(jobs: int) -> None:
    with pytest.raises(ScenarioError, match="jobs is"), open_executor(jobs):
        pass


def test_there_is_a_core() -> None:
    assert available_cores() >= 1


def die_once(marker: Path, value: int) -> int:
    """Kill the own process when first called, as a lack of memory would; ``value`` later."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return value
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")


class Weighed:
    """Notes in a file whenever it is unpickled."""

    def __init__(self, log: Path, weight: int) -> None:
        self.log, self.data = log, bytes(weight)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with self.log.open("a") as f:
            f.write(f"{os.getpid()}\n")


def size_of(thing: Weighed, twice: dict[str, Weighed]) -> tuple[int, bool]:
    return len(thing.data), twice["again"] is thing


def test_a_killed_worker_costs_only_its_task(tmp_path: Path, others: set[object]) -> None:
    with open_executor(2) as executor:
        futures = [executor.submit(die_once, tmp_path / str(i % 3), i) for i in range(8)]
        assert [f.result() for f in futures] == list(range(8))
    assert set(multiprocessing.active_children()) <= others


def test_a_worker_killed_while_idle_is_replaced() -> None:
    with open_executor(2) as executor:
        pid = executor.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        others = [executor.submit(os.getpid).result() for _ in range(4)]
    assert pid not in others


def test_innocent_tasks_survive_a_deadly_one() -> None:
    with open_executor(2) as executor:
        deadly = executor.submit(os._exit, 9)
        others = [executor.submit(math.factorial, i) for i in range(20)]
        assert [f.result() for f in others] == [math.factorial(i) for i in range(20)]
        assert isinstance(deadly.exception(), QsimError)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_shared_value_is_sent_to_each_process_once(tmp_path: Path, jobs: int) -> None:
    log = tmp_path / "log"
    log.touch()
    with open_executor(jobs) as executor:
        thing = executor.share(Weighed(log, 1_000_000))
        executor.share(thing)
        futures = [executor.submit(size_of, thing, {"again": thing}) for _ in range(10)]
        assert {f.result() for f in futures} == {(1_000_000, True)}
    readers = log.read_text().split()
    assert len(readers) == len(set(readers)) <= (0 if jobs == 1 else jobs)


def test_a_packed_task_holds_no_shared_value(tmp_path: Path) -> None:
    shelf = Shelf()
    thing = Weighed(tmp_path / "log", 1_000_000)
    key = shelf.put(thing)
    assert shelf.put(Weighed(tmp_path / "log", 1_000_000)) == key, "equal content, one key"
    payload, used = shelf.pack((size_of, (thing, {"again": thing}), {}))
    assert len(payload) < 1000
    assert used == [key]
    assert run_with(payload, {key: thing}) == (1_000_000, True)


def test_what_waits_is_not_run_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_executor(2) as executor:
            executor.submit(math.factorial, 3).result()
            for i in range(9):
                executor.submit(time.sleep, 3600 if i < 2 else 0)
            executor.submit((tmp_path / "ran").touch)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "ran").exists()


def test_a_plan_survives_the_death_of_all_its_workers(others: set[object]) -> None:
    trace = Trace(np.arange(60) / 30.0, np.full(60, 300), np.full(60, 40), name="even")
    profiles = [make_profile(method=m, decode_ms=d) for m, d in (("bf16", 6), ("fp8-w8a8", 4))]
    slos = ["tpot:p99:8", "ttft:p99:100"]
    killed: list[int] = []

    def kill(share: float, name: str) -> None:
        if not killed:
            for child in set(multiprocessing.active_children()) - others:
                assert isinstance(child.pid, int)
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    expected = plan(trace, profiles=profiles, slos=slos).to_dict()
    assert plan(trace, profiles=profiles, slos=slos, jobs=2, progress=kill).to_dict() == expected
    assert len(killed) == 2


def test_a_wait_that_is_interrupted_holds_up_no_thread(tmp_path: Path) -> None:
    """As if Ctrl-C came while ``wait`` takes its locks: the process still ends."""
    code = """
import sys, time
from pathlib import Path
from qsim.optimize.search.executor_local import LocalExecutor

if __name__ == "__main__":
    executor = LocalExecutor(1)
    future = executor.submit(Path.touch, Path(sys.argv[1]))
    future._condition.acquire()
    while not Path(sys.argv[1]).exists():
        time.sleep(0.05)
    time.sleep(1.0)  # the outcome is told, or rather cannot be
    executor.abort()
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    subprocess.run([sys.executable, script, tmp_path / "done"], check=True, timeout=600)
