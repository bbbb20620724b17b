"""The child processes of a measurement: modules of this same qsim."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path


def start(module: str, *options: str, stderr: int | None = None) -> subprocess.Popen[str]:
    """Start ``python -m MODULE OPTIONS`` with pipes, in a group of its own."""
    root = str(Path(__file__).resolve().parents[3])
    behind = os.environ.get("PYTHONPATH")
    return subprocess.Popen(
        [sys.executable, "-m", module, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{behind}" if behind else root},
    )


def end(process: subprocess.Popen[str], timeout_s: float) -> None:
    """Close its stdin, which ends it; kill it if it does not end in time."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
