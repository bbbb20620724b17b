"""Opening a trace file: compressed or not, as a head to recognise it by, chunks and lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from qsim.errors import MissingExtraError, TraceError

#: what is read (and decompressed) at a time, which bounds the memory of reading
CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
#: a longer line is no request; a file without line breaks must not fill the memory
MOST_LINE_BYTES = 64 << 20
#: a format that is one JSON document is held as a whole, several times its size
MOST_DOCUMENT_BYTES = 512 << 20
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
#: errors of damaged data; the modules of the others are imported where they are needed
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
_DAMAGED_NAMES = ("LZMAError", "BadZipFile", "ZstdError")
#: the first bytes of each kind of compression
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}


def _zstd() -> Any:
    """Python's own zstd (3.14), or its backport."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        try:
            from backports import zstd  # type: ignore[no-redef, unused-ignore]
        except ImportError:
            raise MissingExtraError("backports.zstd", "zstd", "reading zstd") from None
    return zstd


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

    @cached_property
    def packing(self) -> str:
        """How it is compressed: gzip, zstd, xz, bzip2 or zip; empty if it is not."""
        with self._open_raw() as raw:
            start = raw.read(6)
        return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")

    def _open_raw(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be opened: {error.strerror}") from None

    def open(self) -> BinaryIO:
        """The bytes of the file, decompressed.

        Raises
        ------
        TraceError
            If it cannot be opened, or is a zip archive of none or several files.
        """
        kind = self.packing
        raw = self._open_raw()
        stream: Any = raw
        if kind == "gzip":
            stream = gzip.GzipFile(fileobj=raw)
        elif kind == "bzip2":
            import bz2

            stream = bz2.BZ2File(raw)
        elif kind == "xz":
            import lzma

            stream = lzma.LZMAFile(raw)  # noqa: SIM115
        elif kind == "zstd":
            stream = _zstd().ZstdFile(raw)
        elif kind == "zip":
            stream = self._open_zip(raw)
        if stream is not raw:
            stream = _Closing(stream, raw)
        return cast(BinaryIO, stream)

    def _open_zip(self, raw: BinaryIO) -> Any:
        import zipfile

        try:
            archive = zipfile.ZipFile(raw)
            names = [i.filename for i in archive.infolist() if not i.is_dir()]
            names = [n for n in names if not n.startswith("__MACOSX/")]
            if len(names) != 1:
                raise TraceError(
                    f"{self.path}: a zip archive of {len(names)} files ({', '.join(names[:5])}); "
                    "must hold one: unpack it and give the file"
                )
            return archive.open(names[0])
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise TraceError(f"{self.path}: not a readable zip archive: {error}") from None

    def read(self, size: int = MOST_DOCUMENT_BYTES) -> bytes:
        """The first ``size`` bytes, without a byte-order mark.

        Raises
        ------
        TraceError
            If the compressed data are damaged or cut off.
        """
        with self.open() as stream:
            data = self._checked_read(stream, size)
        if data[:2] in _UTF16_BOMS:
            raise self._utf16()
        return data.removeprefix(_UTF8_BOM)

    def read_whole(self) -> bytes:
        """The whole file, which must not be larger than a document may be.

        Raises
        ------
        TraceError
            If it is, or the compressed data are damaged or cut off.
        """
        data = self.read(MOST_DOCUMENT_BYTES + 1)
        if len(data) > MOST_DOCUMENT_BYTES:
            raise TraceError(
                f"{self.path}: more than {MOST_DOCUMENT_BYTES >> 20:,} MiB in one JSON document, "
                "which is read as a whole; give a part of it, or JSON lines"
            )
        return data

    @cached_property
    def head(self) -> bytes:
        """The first 64 KiB, which the formats are recognised by."""
        return self.read(HEAD_BYTES)

    def chunks(self) -> Iterator[bytes]:
        """The file 1 MiB at a time, without a byte-order mark, with ``\\n`` as line ends.

        Raises
        ------
        TraceError
            If the compressed data are damaged or cut off, or it is UTF-16.
        """
        with self.open() as stream:
            held = b""  # a carriage return at the end of a chunk
            first = True
            while chunk := self._checked_read(stream, CHUNK_BYTES):
                if first:
                    first = False
                    if chunk[:2] in _UTF16_BOMS:
                        raise self._utf16()
                    chunk = chunk.removeprefix(_UTF8_BOM)
                chunk = held + chunk
                held = b"\r" if chunk.endswith(b"\r") else b""
                if held:
                    chunk = chunk[:-1]
                yield chunk.replace(b"\r\n", b"\n") if b"\r" in chunk else chunk
            if held:
                yield held

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines with their numbers, from 1, without line ends; blank ones are left out.

        Raises
        ------
        TraceError
            If a line is longer than 64 MiB, or the compressed data are damaged.
        """
        number = 0
        pieces: list[bytes] = []
        held = 0
        for chunk in self.chunks():
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                number += 1
                if pieces:
                    pieces.append(line)
                    line = b"".join(pieces)
                    pieces, held = [], 0
                if line and not line.isspace():
                    yield number, line
            if rest:
                pieces.append(rest)
                held += len(rest)
                if held > MOST_LINE_BYTES:
                    raise self.long_line(number + 1, MOST_LINE_BYTES)
        line = b"".join(pieces)
        if line and not line.isspace():
            yield number + 1, line

    def long_line(self, number: int, limit: int) -> TraceError:
        """What to raise for a line that is longer than one can be."""
        return TraceError(
            f"{self.path}, line {number}: longer than {limit >> 20} MiB without a line break; not "
            "a line of a trace"
        )

    def _checked_read(self, stream: BinaryIO, size: int) -> bytes:
        try:
            return stream.read(size)
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile) or error.errno is None:
                raise self._damaged(error) from None
            raise TraceError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:
            if isinstance(error, _DAMAGED) or type(error).__name__ in _DAMAGED_NAMES:
                raise self._damaged(error) from None
            raise

    def _utf16(self) -> TraceError:
        return TraceError(
            f"{self.path}: the text is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
        )

    def _damaged(self, error: Exception) -> TraceError:
        return TraceError(
            f"{self.path}: the {self.packing or 'compressed'} data are damaged or cut off "
            f"({error}); fetch it again"
        )


class _Closing:
    """A decompressing stream that closes its file; ``fileobj`` tells how much of it was read."""

    def __init__(self, stream: Any, fileobj: BinaryIO) -> None:
        self._stream = stream
        self.fileobj = fileobj

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._stream.close()
        self.fileobj.close()

    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
