"""Opening a trace file: gzip or not, as a head to recognise it by and as blocks of whole lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from qsim.errors import TraceError

__all__ = ["BLOCK_BYTES", "Source"]

#: Text is parsed this many (decompressed) bytes at a time, which bounds the memory of reading.
BLOCK_BYTES = 4 << 20
HEAD_BYTES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """A file or a directory that holds a trace."""

    path: Path

    @property
    def name(self) -> str:
        """What reports call it: the last part of the path."""
        return self.path.name

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory (ServeGen's client folders)."""
        return self.path.is_dir()

    def open(self) -> BinaryIO:
        """The bytes of the file, decompressed if they are gzip."""
        try:
            raw = self.path.open("rb")
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be opened: {error.strerror}") from None
        magic = raw.read(2)
        if magic != _GZIP_MAGIC:
            raw.seek(0)
            return raw
        raw.close()
        return cast(BinaryIO, gzip.open(self.path, "rb"))

    def read(self, size: int = -1) -> bytes:
        """The first ``size`` bytes (all by default), without a byte-order mark.

        Raises
        ------
        TraceError
            If the gzip data are damaged or cut off.
        """
        with self.open() as stream:
            return self._checked_read(stream, size).removeprefix(_UTF8_BOM)

    @cached_property
    def head(self) -> bytes:
        """The first 64 KiB, which the formats are recognised by."""
        return self.read(HEAD_BYTES)

    def blocks(self) -> Iterator[bytes]:
        """The file as blocks of about 4 MiB, each ending at the end of a line."""
        with self.open() as stream:
            rest = b""
            first = True
            while True:
                block = self._checked_read(stream, BLOCK_BYTES)
                if first:
                    block, first = block.removeprefix(_UTF8_BOM), False
                if not block:
                    break
                cut = block.rfind(b"\n") + 1
                if cut == 0:
                    rest += block
                    continue
                yield rest + block[:cut]
                rest = block[cut:]
            if rest:
                yield rest

    def _checked_read(self, stream: BinaryIO, size: int) -> bytes:
        try:
            return stream.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TraceError(
                f"{self.path}: the gzip data are damaged or cut off ({error}); fetch it again"
            ) from None
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read: {error.strerror or error}") from None
