"""The command line: one file per command, thin.

The commands' modules are imported when a command is used, not to list them, so that
``qsim --help`` answers at once.
"""

from __future__ import annotations

from qsim.cli._root import main

__all__ = ["main"]
