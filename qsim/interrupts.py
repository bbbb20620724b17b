"""Signals that end the work: Ctrl-C, ``kill`` (SIGTERM), and a terminal that goes away (SIGHUP).

All three raise KeyboardInterrupt in the main thread, so that whatever cleans up after Ctrl-C does
so after the others, too. A signal that the process was started to ignore (``nohup``, a job of a
script's background) stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qsim.startup import end_at_once

#: what ends a command, where the platform has it
ENDING_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does, for the time of a ``with`` block.

    Once one of them has come both are ignored until the end of the block: what is cleaning up is
    not interrupted again by a caller who sends them twice. Ctrl-C still is obeyed each time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def end(number: int, frame: Any) -> None:
        for other in before:
            if other != signal.SIGINT:
                signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in ENDING_SIGNALS:
        # a handler of the caller's own is left alone, and so is "ignore"
        usual = signal.getsignal(number)
        if usual == end_at_once or (usual == signal.SIG_DFL and number != signal.SIGINT):
            handler = signal.default_int_handler if number == signal.SIGINT else end
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put these signals off until the end of a ``with`` block.

    A storage may be left locked, or a process half started, when it is interrupted in the middle
    of an operation. What would end the process at once (no handler) is not put off.
    """
    usual: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        usual = {n: h for n in ENDING_SIGNALS if callable(h := signal.getsignal(n))}
    came: list[tuple[int, Any]] = []
    for number in usual:
        signal.signal(number, lambda n, frame: came.append((n, frame)))
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if came:
            last, frame = came[-1]
            usual[signal.Signals(last)](last, frame)
