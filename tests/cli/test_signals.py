"""However a command is ended, nothing of it stays: no process, no temporary file, no open pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qsim.files import temporary_prefix
from tests.calibrate.stub import MARK, none_left

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


def begin(tmp_path: Path, *args: object, ignored: str = "") -> subprocess.Popen[str]:
    """Start ``qsim ARGS``, a sweep, in a group of its own; wait until two more runs are kept."""
    # nothing is ignored that was when the tests were started, as under nohup
    main = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    main += f"signal.signal(signal.{ignored}, signal.SIG_IGN); " if ignored else ""
    main += "from qsim.cli import main; main()"
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    before = kept(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", main, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, MARK: str(tmp_path), "TMPDIR": str(temporary)},
    )  # fmt: skip
    wait_for(tmp_path, before + 2, process)
    return process


def kept(tmp_path: Path) -> int:
    journal = tmp_path / "out" / "rows.csv.rows.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for(tmp_path: Path, runs: int, process: subprocess.Popen[str]) -> None:
    while kept(tmp_path) < runs:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def sweep(tmp_path: Path, profile: Path, jobs: int) -> list[object]:
    """More runs than there is time for, of a moment each."""
    return ["sweep", "azure-conv-2023:duration=20,rate=30", "--profile", profile,
            "--grid", "max_num_seqs=1:4000", "--out", tmp_path / "out" / "rows.csv",
            "--jobs", jobs]  # fmt: skip


def files_left(tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "tmp").rglob("*"))


@pytest.mark.parametrize(
    ("jobs", "number", "group"),
    [
        (1, signal.SIGTERM, False),
        (2, signal.SIGTERM, False),
        (2, signal.SIGTERM, True),
        (1, signal.SIGHUP, False),
        (2, signal.SIGHUP, True),
    ],
)
def test_sigterm_and_sighup_end_a_command_as_ctrl_c_does(
    tmp_path: Path, profile: Path, jobs: int, number: int, group: bool
) -> None:
    process = begin(tmp_path, *sweep(tmp_path, profile, jobs))
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "finished runs are kept" in err
    assert err.rstrip().endswith("Interrupted.")
    assert none_left(str(tmp_path)) == []
    assert files_left(tmp_path) == []


@pytest.mark.parametrize("module", ["click", "qsim.cli._root", "numpy", "qsim.sim.simulate"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_modules_are_imported_ends_without_a_traceback(
    module: str, name: str
) -> None:
    code = f"""
import os, signal, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.{name})

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.meta_path.insert(0, Sender())
from qsim.__main__ import run
run()
"""
    words = ["simulate", "azure-conv-2023:duration=5", "--profile", "h200_sxm/llama-3.1-8b/bf16"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nInterrupted.\n")


def test_nothing_is_imported_before_signals_are_answered() -> None:
    code = "import os, signal, sys; before = set(sys.modules); import qsim.__main__; "
    code += "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {
        "__future__", "importlib", "importlib._bootstrap", "importlib._bootstrap_external",
        "warnings", "qsim", "qsim.__main__", "qsim.startup",
    }  # fmt: skip


@pytest.mark.parametrize("group", [False, True])
def test_sigkill_of_the_parent_ends_its_workers(tmp_path: Path, profile: Path, group: bool) -> None:
    process = begin(tmp_path, *sweep(tmp_path, profile, 2))
    assert files_left(tmp_path), "the workers' folder"
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate(timeout=600)  # returns when nobody holds the pipes any more
    assert none_left(str(tmp_path)) == []
    if group:  # nobody was left to do it: the next start does
        assert files_left(tmp_path)
        again = begin(tmp_path, *sweep(tmp_path, profile, 2), "--resume")
        again.terminate()
        again.communicate(timeout=600)
    assert files_left(tmp_path) == []


def test_what_was_to_be_ignored_stays_ignored(tmp_path: Path, profile: Path) -> None:
    """As under nohup."""
    words = sweep(tmp_path, profile, 2)
    process = begin(tmp_path, *words, ignored="SIGHUP")
    os.killpg(process.pid, signal.SIGHUP)
    wait_for(tmp_path, kept(tmp_path) + 5, process)
    process.terminate()
    process.communicate(timeout=600)
    assert process.returncode == 130


def test_a_dead_process_is_cleaned_up_after_and_a_living_one_is_not(tmp_path: Path) -> None:
    from qsim.files import remove_stale, write_text

    ours = temporary_prefix()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    machine = ours.split("-")[1]
    gone = [f".tmp-qsim-{machine}-{dead}-abc.csv", f"qsim-{machine}-{dead}-folder"]
    kept = [
        f".tmp-{ours}abc.csv",  # of a living process
        f".tmp-qsim-{'0' * 8}-{dead}-abc.csv",  # of another machine
        ".tmp-abc.csv", "qsim-1-2-x", "rows.csv", f"qsim-{machine}-{dead}",  # not ours
    ]  # fmt: skip
    for name in (gone[0], *kept):
        (tmp_path / name).touch()
    (tmp_path / gone[1] / "inside").mkdir(parents=True)
    write_text(tmp_path / "new.txt", "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "new.txt"])
    remove_stale(tmp_path / "nowhere")
