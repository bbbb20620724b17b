"""Journals: finished work as lines of JSON, each with a checksum of itself and all before it.

A line that was edited, and one before which others are missing, is thus found when the journal is
read. A last line without a line break was not written to its end (its process was killed) and is
cut off: its work is done again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsim.errors import ScenarioError

__all__ = ["JournalEnd", "append_lines", "held", "read_lines"]

_CHECK = re.compile(rb',"check":"([0-9a-f]{16})"\}$')


@dataclass(frozen=True)
class JournalEnd:
    """Where the next line goes: the size of the file, and the checksum of what it holds."""

    size_bytes: int = 0
    check: str = ""


def _next_check(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()[:16]


def read_lines(path: Path, what: str) -> tuple[list[dict[str, Any]], JournalEnd]:
    """The objects of a journal, and its end. A torn last line is cut off from the file.

    Lines without a checksum, as earlier versions of qsim wrote them, are taken at the beginning of
    a journal as they are.

    Raises
    ------
    ScenarioError
        If a line was changed, or lines are missing, with ``what`` (say ``"study 'a.journal'"``)
        and the line's number.
    OSError
        If it cannot be read.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    found: list[dict[str, Any]] = []
    check, checked = "", False
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
        match = _CHECK.search(line)
        body = line if match is None else line[: match.start()] + b"}"
        check = _next_check(check, body)
        if match is None and checked:
            raise _damaged(what, number, "has no checksum")
        if match is not None and match[1].decode() != check:
            raise _damaged(what, number, "does not fit its checksum")
        checked = checked or match is not None
        try:
            item = json.loads(body)
        except (ValueError, RecursionError):
            item = None
        if not isinstance(item, dict):
            raise _damaged(what, number, "is no JSON object")
        found.append(item)
    return found, JournalEnd(whole, check)


def _damaged(what: str, number: int, reason: str) -> ScenarioError:
    return ScenarioError(
        f"{what} is damaged: line {number} {reason}; it was changed, or lines before it are "
        "missing. Restore the file from a copy, or remove it and begin anew"
    )


def append_lines(
    path: Path, end: JournalEnd, items: Sequence[Mapping[str, Any]], *, sync: bool = False
) -> JournalEnd:
    """Add objects to a journal that ends at ``end``, all of them or none; returns its new end.

    Raises
    ------
    OSError
        With ``path`` as its filename, say for a full disk; the journal is as it was.
    """
    check, lines = end.check, []
    for item in items:
        body = json.dumps(item, separators=(",", ":"), ensure_ascii=False).encode()
        check = _next_check(check, body)
        lines.append(body[:-1] + f',"check":"{check}"}}\n'.encode())
    data = b"".join(lines)
    try:
        with path.open("ab", buffering=0) as f:  # what failed is not to be written when it closes
            try:
                left = memoryview(data)
                while left:
                    left = left[f.write(left) or 0 :]
                if sync:
                    os.fsync(f.fileno())
            except OSError:
                with suppress(OSError):
                    f.truncate(end.size_bytes)
                raise
    except OSError as e:
        raise OSError(e.errno or errno.EIO, e.strerror or str(e), str(path)) from e
    return JournalEnd(end.size_bytes + len(data), check)


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Keep a journal to oneself for the time of a ``with`` block; it is made if there is none.

    The lock ends with the process, however that ends, and leaves no file.

    Raises
    ------
    ScenarioError
        If another process holds it.
    OSError
        If the file cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as f:
        try:
            import fcntl

            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ScenarioError(
                f"{what} is in use by another process; wait until that ends, or give another path"
            ) from None
        except (ImportError, OSError):  # Windows, or a file system without locks
            pass
        yield
