"""What a campaign of measurements shows on the terminal, and says when it is interrupted."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qsim.cli._progress import draw

__all__ = ["campaign_progress", "interruptible"]


@contextmanager
def campaign_progress() -> Iterator[Callable[[tuple[int, ...], str, str, float], None]]:
    """What each GPU does and the time left: one line on a terminal, else a line a change."""
    terminal = sys.stderr.isatty()
    lock = threading.Lock()
    doing: dict[tuple[int, ...], tuple[str, str]] = {}
    begin_s = time.monotonic()
    most_s = 0.0

    def report(group: tuple[int, ...], name: str, what: str, left_s: float) -> None:
        nonlocal most_s
        with lock:
            changed = doing.get(group) != (name, what)
            doing[group] = (name, what)
            elapsed_s = time.monotonic() - begin_s
            share = elapsed_s / (elapsed_s + left_s) if elapsed_s + left_s > 0 else 1.0
            most_s = max(most_s, share)
            left = f"{int(left_s) // 60}:{int(left_s) % 60:02d} left"
            if what.startswith(("complete", "failed")):
                gpus = ",".join(map(str, group))
                draw(f"{chr(13) if terminal else ''}GPU {gpus}: {name} {what}\n")
            elif terminal:
                filled = round(20 * most_s)
                bar = "#" * filled + "-" * (20 - filled)
                work = " | ".join(
                    f"GPU {','.join(map(str, g))} {n.split('--')[1]} {w}"
                    for g, (n, w) in sorted(doing.items())
                )
                width = os.get_terminal_size(sys.stderr.fileno()).columns
                line = f"[{bar}] {most_s:4.0%} {left} | {work}"
                draw(f"\r\x1b[K{line[: width - 1]}")
            elif changed:
                gpus = ",".join(map(str, group))
                draw(f"{elapsed_s:6.1f} s  GPU {gpus}: {name} {what} ({left})\n")

    yield report
    if terminal:
        draw("\n")


@contextmanager
def interruptible(resume: bool = False) -> Iterator[None]:
    """Tell who interrupts a campaign how to go on; ``resume``: ``--resume`` was given already."""
    try:
        yield
    except KeyboardInterrupt:
        how = "the same command goes on" if resume else "add --resume to go on"
        draw(f"\nComplete recordings are kept: {how}.\n")
        raise
