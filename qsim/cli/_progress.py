"""Progress on stderr, and what is said there when it is interrupted."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import click

from qsim.cli._outputs import note

_WIDTH = 30


def draw(text: str) -> None:
    """Write on stderr as it is, if that can still be done."""
    with suppress(OSError):  # no work is to be lost for a bar, if the terminal is gone
        click.echo(text, nl=False, err=True)


class _Bar:
    """On a terminal one line that is rewritten; elsewhere a line every tenth of the way."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._share = 0.0
        self._tenths = 0
        self._drawn_s = 0.0
        self._begin_s = time.monotonic()
        draw(self._line("") + ("" if self._terminal else "\n"))

    def update(self, share: float, text: str = "") -> None:
        """Show ``share`` in [0, 1]; it never goes back."""
        self._share = min(1.0, max(self._share, share))
        now_s = time.monotonic()
        if self._terminal:
            if now_s - self._drawn_s >= 0.05 or self._share >= 1:
                self._drawn_s = now_s
                draw(f"\r\x1b[K{self._line(text)}")
        elif int(self._share * 10) > self._tenths:
            self._tenths = int(self._share * 10)
            draw(self._line(text) + "\n")

    def finish(self) -> None:
        """Leave a clean line behind."""
        if self._terminal:
            draw("\r\x1b[K")

    def _line(self, text: str) -> str:
        filled = round(self._share * _WIDTH)
        bar = "#" * filled + "-" * (_WIDTH - filled)
        elapsed_s = time.monotonic() - self._begin_s
        return f"{self._label} [{bar}] {self._share:4.0%} {elapsed_s:4.0f} s  {text}".rstrip()


@contextmanager
def progress_bar(
    label: str, shown: bool | None = None
) -> Iterator[Callable[[float, str], None] | None]:
    """A callback ``(share, text)`` that draws a bar, or None when there is to be none.

    By default (``shown`` is None) there is a bar when stderr is a terminal.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield None
        return
    bar = _Bar(label)
    try:
        yield bar.update
    finally:
        bar.finish()


@contextmanager
def resumable(kept: str | None, resume: bool = False) -> Iterator[None]:
    """Tell who interrupts what is kept, as in "the study is kept in FILE", and how to go on.

    ``resume`` is whether ``--resume`` was given already.
    """
    try:
        yield
    except KeyboardInterrupt:
        if kept is not None:
            draw("\n")
            note(f"{kept}; go on with the same command{'' if resume else ' and --resume'}")
        raise


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
