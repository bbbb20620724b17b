"""Signals while the command's modules are imported: the process ends on one line.

Until the command runs there is nothing to clean up, and Python's own answer to Ctrl-C would be a
traceback out of whatever is being imported. This file imports as little as it can, since it
protects only what comes after it.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # typing is not worth its import here; checkers know the name
if TYPE_CHECKING:
    from types import FrameType


def end_at_once(number: int, frame: FrameType | None) -> None:
    """Say so and end the process, with the exit code of an interrupted command."""
    try:
        os.write(2, b"\nInterrupted.\n")
    finally:  # stderr may be a terminal that is gone
        os._exit(130)


def end_at_once_on_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP end the process; one that is ignored stays ignored.

    :func:`qsim.interrupts.ended_by_signals` takes over when the command begins.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None:  # Windows has no SIGHUP
            continue
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end_at_once)
