"""Files that are written whole or not at all, and the temporary ones on the way there.

A temporary file or folder is named after the process that made it. A process that was killed
leaves it behind; the next one that writes to the same place finds that its owner is gone and
removes it.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from qsim.interrupts import uninterrupted

_OWNER = re.compile(r"\.?(?:tmp-)?qsim-([0-9a-f]{8})-(\d{1,10})-")


@cache
def _machine() -> str:
    """Tells apart the process numbers of machines, and of containers, that share a folder."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{zlib.crc32(f'{name} {space}'.encode()):08x}"


def temporary_prefix() -> str:
    """How names of this process's temporary files and folders begin (after ``.tmp-`` or not)."""
    return f"qsim-{_machine()}-{os.getpid()}-"


def remove_stale(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files and folders in ``folder`` whose process, of this machine, is gone."""
    try:
        found = [e for e in os.scandir(folder) if "qsim-" in e.name]
    except OSError:
        return
    for entry in found:
        owner = _OWNER.match(entry.name)
        if owner is None or owner[1] != _machine() or _alive(int(owner[2])):
            continue
        with suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                import shutil

                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process, or a number that is none
        return True
    return True


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``; renamed to it if the body succeeds, removed if not.

    A device or a pipe (``/dev/null``, ``/dev/stdout``) is not to be replaced: it is written to.

    Raises
    ------
    OSError
        With ``path`` as its ``filename``, whatever the file was at which it happened.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(target))
    if target.exists() and not target.is_file():
        with _named(target, target):
            yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target.parent)
    temporary: Path | None = None
    try:
        with uninterrupted():  # it is made and known, or neither
            temporary = _make_temporary(target)
        with _named(target, temporary):
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, target)
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def _make_temporary(target: Path) -> Path:
    import tempfile  # where nothing is written it is not needed

    try:
        # the ending stays: writers choose a format by it
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".tmp-{temporary_prefix()}", suffix=target.name[-32:]
        )
    except OSError as e:
        raise OSError(e.errno, e.strerror or str(e), str(target)) from e
    os.close(handle)
    return Path(name)


@contextmanager
def _named(target: Path, written: Path) -> Iterator[None]:
    """Errors of writing ``written`` name ``target``; those of other files stay as they are."""
    try:
        yield
    except OSError as e:
        if e.filename is not None and str(e.filename) != str(written):
            raise
        raise OSError(e.errno or errno.EIO, e.strerror or str(e), str(target)) from e


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise what :func:`atomic_path` would: a file is made beside ``path`` and removed again.

    Folders that are missing are not made; the nearest one above that exists is tried.

    Raises
    ------
    OSError
        With the path that is in the way as its ``filename``.
    """
    target = Path(path)
    if target.is_dir() or os.fspath(path).endswith(("/", os.sep)):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", os.fspath(path))
    if target.exists():
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "may not be written to", str(target))
        if not target.is_file():
            return
    check_folder_writable(target.parent)


def check_folder_writable(path: str | os.PathLike[str]) -> None:
    """The same for files in a folder, which need not exist yet."""
    folder = Path(path)
    while not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", str(folder))
        if folder.parent == folder:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
        folder = folder.parent
    remove_stale(folder)
    import tempfile

    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".tmp-{temporary_prefix()}") as f:
            f.write(b"x")
            f.flush()
    except OSError as e:
        raise OSError(e.errno or errno.EIO, e.strerror or str(e), str(folder)) from e


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))
