"""What the child processes of a measurement share."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["child_environment"]


def child_environment() -> dict[str, str]:
    """The environment under which ``python -m qsim...`` finds this same qsim."""
    root = str(Path(__file__).resolve().parents[3])
    behind = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{behind}" if behind else root}
