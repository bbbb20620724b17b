"""What the tests share that start the stub of vLLM's server, or scripts of ``recordings/``."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
NVML = HERE / "fakes" / "nvml"
STUB = [sys.executable, str(HERE / "stub_server.py"), "serve"]
MARK = "QSIM_TEST_MARK"


def script(name: str) -> ModuleType:
    """``recordings/<name>.py`` as a module."""
    path = HERE.parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def stub_environment(**more: str) -> dict[str, str]:
    """This process's environment with the stand-in for NVML, and ``more``."""
    return {**os.environ, "PYTHONPATH": str(NVML), **more}


def marked(mark: str) -> list[str]:
    """The command lines of all processes that have inherited QSIM_TEST_MARK=mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found.append(line)
        except OSError:  # it has just ended
            continue
    return found


def none_left(mark: str, timeout_s: float = 300.0) -> list[str]:
    """Wait until no marked process is left; those that are after the time."""
    deadline = time.monotonic() + timeout_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
