"""A Dask cluster of two processes gives what this process gives."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qsim.errors import MissingExtraError, QsimError, ScenarioError
from qsim.optimize.plan.planning import plan
from qsim.optimize.search import executor_dask
from qsim.optimize.search.executors import open_executor
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.optimize.search.test_executor import Weighed, die_once, size_of

distributed = pytest.importorskip("distributed")


@pytest.fixture
def address(dask_address: str) -> str:
    return dask_address


def test_tasks_run_there_and_their_errors_come_back(address: str) -> None:
    with open_executor(1, dask=address) as executor:
        assert executor.submit(os.getpid).result() != os.getpid()
        assert isinstance(executor.submit(math.sqrt, -1).exception(), ValueError)


def test_a_shared_value_is_not_in_the_tasks(address: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    with open_executor(1, dask=address) as executor:
        thing = executor.share(Weighed(log, 100_000))
        futures = [executor.submit(size_of, thing, {"again": thing}) for _ in range(10)]
        assert {f.result() for f in futures} == {(100_000, True)}
    assert len(log.read_text().split()) <= 2


def test_a_plan_is_the_same_there_also_when_a_worker_is_killed(address: str) -> None:
    trace = Trace(np.arange(60) / 30.0, np.full(60, 300), np.full(60, 40), name="even")
    profiles = [make_profile(method=m, decode_ms=d) for m, d in (("bf16", 6), ("fp8-w8a8", 4))]
    slos = ["tpot:p99:8", "ttft:p99:100"]
    expected = plan(trace, profiles=profiles, slos=slos).to_dict()
    assert plan(trace, profiles=profiles, slos=slos, dask=address).to_dict() == expected
    killed: list[int] = []

    def kill(share: float, name: str) -> None:
        if not killed:
            with distributed.Client(address, set_as_default=False) as client:
                killed.extend(client.run(os.getpid).values())
            os.kill(killed[0], signal.SIGKILL)

    found = plan(trace, profiles=profiles, slos=slos, dask=address, progress=kill)
    assert found.to_dict() == expected
    assert killed


def test_a_task_whose_worker_dies_is_run_again(address: str, tmp_path: Path) -> None:
    with open_executor(1, dask=address) as executor:
        assert executor.submit(die_once, tmp_path / "marker", 7).result(timeout=600) == 7


def test_a_task_that_kills_every_worker_is_an_error(address: str) -> None:
    with open_executor(1, dask=address) as executor:
        error = executor.submit(die_always)
        assert isinstance(error.exception(timeout=600), QsimError)


def die_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_other_versions_over_there_are_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_dask, "__version__", "9.9")
    with (
        pytest.raises(ScenarioError, match=r"runs qsim .* this is qsim 9\.9"),
        open_executor(1, dask=address),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nofile.json", "No such file"),
        ("{}/bad.json", "no scheduler file"),
        ("{}/list.json", "no scheduler file"),
        ("{}/stale.json", "Connection refused"),
        ("nonsense", "must be an address"),
        ("", "must be an address"),
        ("tcp://127.0.0.1:99999", "no scheduler answers"),
        ("tcp://127.0.0.1:9", "Connection refused"),
        ("127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_wrong_address_is_told_at_once(address: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "stale.json").write_text('{"address": "tcp://127.0.0.1:9"}')
    with (  # its words tell that it was refused, not waited for
        pytest.raises(ScenarioError, match=rf"dask is .*{words}"),
        open_executor(1, dask=address.format(tmp_path)),
    ):
        pass


SCHEDULER = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0",
             "--no-dashboard", "--scheduler-file"]  # fmt: skip
WORKER = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny",
          "--no-dashboard", "--scheduler-file"]  # fmt: skip


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_told_and_the_sweep_goes_on(tmp_path: Path) -> None:
    from qsim.optimize.sweep.sweeping import sweep

    file, journal = tmp_path / "scheduler.json", tmp_path / "rows.jsonl"
    trace = Trace(np.arange(60) / 30.0, np.full(60, 300), np.full(60, 40), name="even")
    base, over = {"trace": trace, "profile": make_profile()}, {"max_num_seqs": list(range(1, 200))}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([*SCHEDULER, str(file)], **quiet)  # type: ignore[call-overload]
    while not file.exists():
        assert scheduler.poll() is None
        time.sleep(0.1)
    worker = subprocess.Popen([*WORKER, str(file)], **quiet)  # type: ignore[call-overload]

    def kill(share: float, text: str) -> None:
        scheduler.kill()

    try:
        with pytest.raises(QsimError, match=r"the Dask scheduler .* is gone.*--resume"):
            sweep(base, over, journal=journal, dask=str(file), progress=kill)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    assert 0 < len(journal.read_text().splitlines()) < 199
    assert sweep(base, over, journal=journal, resume=True) == sweep(base, over)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with (
        pytest.raises(MissingExtraError, match=r"qsim\[distributed\]"),
        open_executor(1, dask="tcp://127.0.0.1:9"),
    ):
        pass
