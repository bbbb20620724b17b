"""The step recorder: a plugin inside vLLM's processes, its installation and its files."""

from __future__ import annotations

from qsim.calibrate.recorder.install import Hooks, install, read_hooks
from qsim.calibrate.recorder.read import StepRow, read_steps

__all__ = ["Hooks", "StepRow", "install", "read_hooks", "read_steps"]
