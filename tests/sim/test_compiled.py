"""Which of two forms of the inner loop runs: compiled, or the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qsim.sim
from qsim.sim.engine import fast_forward

FOLDER = Path(qsim.sim.__file__).parent
COMPILED = [p for p in FOLDER.rglob("*.so") if not p.name.startswith("inner")]


def file_of_fast_forward(root: Path, **environment: str) -> str:
    """What a new process takes for the module, with the package below ``root``."""
    code = "import qsim.sim.engine.fast_forward as e; print(e.__file__)"
    # PYTHONPATH comes before where the package is installed
    env = {**os.environ, "PYTHONPATH": str(root), **environment}
    run = [sys.executable, "-c", code]
    return subprocess.run(run, env=env, cwd=root, capture_output=True, text=True, check=True).stdout


def test_the_environment_can_ask_for_the_sources() -> None:
    assert (
        file_of_fast_forward(FOLDER.parents[1], QSIM_PURE="1").strip().endswith("fast_forward.py")
    )


@pytest.mark.skipif(not COMPILED, reason="nothing was compiled: make compiled")
def test_compiled_modules_are_used() -> None:
    assert not fast_forward.__file__.endswith(".py")
    assert not file_of_fast_forward(FOLDER.parents[1], QSIM_PURE="0").strip().endswith(".py")


@pytest.mark.parametrize("edited", [False, True])
def test_a_source_that_is_newer_than_what_was_compiled_counts(tmp_path: Path, edited: bool) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(FOLDER.parent, tmp_path / "qsim", ignore=ignored)
    (tmp_path / "pyproject.toml").touch()
    source = tmp_path / "qsim" / "sim" / "engine" / "fast_forward.py"
    compiled = source.with_name("fast_forward.cpython-311-x86_64-linux-gnu.so")
    compiled.write_bytes(b"not what a loader takes")
    os.utime(compiled, (1e9, 1e9) if edited else None)
    if not edited and sys.platform == "linux" and sys.version_info[:2] == (3, 11):
        with pytest.raises(subprocess.CalledProcessError):
            file_of_fast_forward(tmp_path, QSIM_PURE="0")
    if edited:
        assert file_of_fast_forward(tmp_path, QSIM_PURE="0").strip() == str(source)
