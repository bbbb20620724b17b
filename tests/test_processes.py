"""A call that a second process makes beside this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qsim import processes
from qsim.processes import Beside, available_cores, can_fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")

TWO_CORES = """
import os, sys, time, warnings
from qsim import processes
from qsim.processes import Beside
processes.available_cores = lambda: 2
"""


def run(script: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, which has one thread; it may use two cores."""
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"} | more
    return subprocess.run(
        [sys.executable, "-c", TWO_CORES + script],
        capture_output=True, text=True, check=False, env=env, timeout=300,
    )  # fmt: skip


def test_there_is_a_core() -> None:
    assert available_cores() >= 1


def test_another_process_makes_the_call() -> None:
    done = run(
        "with Beside(lambda: (os.getpid(), 'x' * 1_000_000)) as beside:\n"
        "    pid, text = beside.value()\n"
        "print(pid != os.getpid(), len(text))\n"
        "try:\n    os.waitpid(-1, 0)\nexcept ChildProcessError:\n    print('no child is left')\n"
    )
    assert (done.stdout, done.stderr) == ("True 1000000\nno child is left\n", "")


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("processes.available_cores = lambda: 1", "one core"),
        ("import threading\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
         "a thread"),
        ("def fork(): raise BlockingIOError(11, 'no more processes')\nos.fork = fork", "too many"),
        ("def pipe(): raise OSError(24, 'Too many open files')\nos.pipe = pipe", "no pipe"),
    ],
)  # fmt: skip
def test_this_process_makes_the_call_if_it_cannot_fork(first: str, told: str) -> None:
    done = run(
        f"{first}\nwith Beside(os.getpid) as beside:\n    print(beside.value() == os.getpid())\n"
    )
    assert (done.stdout, done.stderr) == ("True\n", ""), told


def test_or_if_it_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(processes, "can_fork", never)
    with Beside(os.getpid, worth=False) as beside:
        assert beside.value() == os.getpid()


def test_no_fork_beside_a_thread_or_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available_cores", lambda: 2)
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert not can_fork()
    finally:
        end.set()
        thread.join()
    monkeypatch.setattr(processes, "_THREADS", "/nowhere")
    assert not can_fork()


def test_an_error_is_raised_once_where_the_value_is_asked_for() -> None:
    done = run(
        "from qsim.errors import TraceError\n"
        "def call():\n    raise TraceError('t.csv: no request')\n"
        "with Beside(call) as beside:\n    print('meanwhile', flush=True)\n    beside.value()\n"
    )
    assert done.stdout == "meanwhile\n"
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("TraceError: t.csv: no request\n")


def test_a_warning_is_told_once() -> None:
    done = run(
        "def call():\n    warnings.warn('a warning', stacklevel=1)\n    return os.getpid()\n"
        "with Beside(call) as beside:\n    print(beside.value() == os.getpid())\n"
    )
    assert done.stdout == "True\n"
    assert done.stderr.count("UserWarning: a warning") == 1


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(3)", "sys.exit()"])
def test_a_call_that_dies_is_made_again(end: str) -> None:
    done = run(
        "own = os.getpid()\n"
        f"def call():\n    if os.getpid() != own:\n        {end}\n    return 'made here'\n"
        "with Beside(call) as beside:\n    print(beside.value())\n"
    )
    assert (done.stdout, done.stderr) == ("made here\n", "")


def test_what_nobody_asks_for_is_ended() -> None:
    done = run(
        "import signal\n"
        "with Beside(lambda: time.sleep(100_000)) as beside:\n    child = beside._child\n"
        "assert child\n"
        "try:\n    os.kill(child, 0)\nexcept ProcessLookupError:\n    print('gone')\n"
    )
    assert (done.stdout, done.stderr) == ("gone\n", "")


def test_children_that_are_ignored_are_done_without() -> None:
    done = run(
        "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "with Beside(lambda: 7) as beside:\n    print(beside.value())\n"
    )
    assert (done.stdout, done.stderr) == ("7\n", "")


def wait_for(true: Callable[[], bool]) -> None:
    """Wait for what is sure to come, however slow the machine."""
    for _ in range(6000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come")


@pytest.mark.parametrize("to_group", [True, False], ids=["Ctrl-C", "kill"])
@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "working"])
def test_a_signal_ends_both(tmp_path: Path, to_group: bool, waits: bool) -> None:
    file = tmp_path / "child"
    script = (
        "def call():\n"
        f"    open({str(file)!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"    os.rename({str(file)!r} + '.new', {str(file)!r})\n"
        "    time.sleep(100_000)\n"
        "from qsim.interrupts import ended_by_signals\n"
        "try:\n"
        "    with ended_by_signals(), Beside(call) as beside:\n"
        f"        {'beside.value()' if waits else 'time.sleep(100_000)'}\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_CORES + script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(file.exists)
        child = int(file.read_text())
        assert child != process.pid
        if to_group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=120) == ("interrupted\n", "")
        wait_for(lambda: not Path(f"/proc/{child}").exists())
    finally:
        process.kill()
        process.wait()


SIMULATE = """
forks = []
fork = os.fork
def counted():
    forks.append(fork())
    return forks[-1]
os.fork = counted
if os.environ.get("SMALL_TOO"):
    begin = Beside.__init__
    Beside.__init__ = lambda self, call, worth=True: begin(self, call, True)
if os.environ.get("ONE_CORE"):
    processes.available_cores = lambda: 1
if os.environ.get("FAILS"):
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the command does before numpy is imported
    import qsim.sim.machines as machines
    from qsim.errors import ScenarioError
    def fails(*a, **k):
        raise ScenarioError("no ranges today")
    machines.quick_ranges = fails
from qsim.cli import main
try:
    main(sys.argv[1:] or os.environ["ARGS"].split(), prog_name="qsim")
finally:
    sys.stderr.write(f"{len(forks)} forks")
"""


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--slo ttft:p95:300 --replicas 2 --router round-robin",
        "--mtbf 20 --replicas 2 --seed 4",
        "--concurrency 8",
    ],
)
def test_simulate_writes_the_same_bytes_forked_or_not(tmp_path: Path, more: str) -> None:
    said = []
    for name, forks in (("forked", 1), ("alone", 0)):
        path = tmp_path / name
        args = (
            "simulate azure-conv-2023:requests=300,rate=6,seed=3 --profile "
            f"h200_sxm/llama-3.1-8b/fp8-w8a8 {more} --json {path}"
        )
        core = {"ONE_CORE": "1"} if name == "alone" else {}
        done = run(SIMULATE, ARGS=args, SMALL_TOO="1", **core)
        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith(f"{forks} forks"), done.stderr
        said.append((done.stdout, path.read_bytes(), done.stderr.rsplit("\n", 1)[0]))
    assert said[0][:2] == said[1][:2]
    assert b'"range_90"' in said[0][1]


def test_simulate_tells_an_error_of_the_ranges_as_it_is() -> None:
    args = "simulate azure-conv-2023:requests=30 --profile h200_sxm/llama-3.1-8b/fp8-w8a8"
    told = []
    for core in ({}, {"ONE_CORE": "1"}):
        done = run(SIMULATE, ARGS=args, SMALL_TOO="1", FAILS="1", **core)
        assert done.returncode == 2
        told.append(done.stderr.rsplit("\n", 1))
    assert told[0][0] == told[1][0]
    assert told[0][0].endswith("Error: no ranges today")
    assert [t[1] for t in told] == ["1 forks", "0 forks"]


def test_small_traces_are_not_worth_a_fork() -> None:
    args = "simulate azure-conv-2023:requests=30 --profile h200_sxm/llama-3.1-8b/fp8-w8a8"
    done = run(SIMULATE, ARGS=args)
    assert done.stderr.endswith("0 forks")
    assert "90%: what the figures may be" in done.stdout


@pytest.mark.parametrize("quote", ["", '"'], ids=["plain", "by DuckDB"])
def test_a_simulation_leaves_no_thread_that_keeps_it_from_forking(
    tmp_path: Path, quote: str
) -> None:
    """Neither numpy's libraries nor a trace's reader: otherwise no ranges would be beside."""
    table = tmp_path / "t.csv"
    rows = "".join(f"{i},{quote}{i + 9}{quote},5\n" for i in range(99))
    table.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    args = f"simulate {table} --profile h200_sxm/llama-3.1-8b/fp8-w8a8"
    duckdb = "import atexit; atexit.register(lambda: print('_duckdb' in sys.modules))\n"
    done = run(duckdb + SIMULATE, ARGS=args, SMALL_TOO="1")
    assert done.stderr.endswith("1 forks"), done.stderr
    assert done.stdout.endswith(f"{bool(quote)}\n")
