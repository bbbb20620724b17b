"""A trace part by part: files and presets that need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from os import PathLike
from os.path import exists  # False for a text too long to be a path
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qsim.errors import TraceError
from qsim.traces.load import named, opened, preset_request
from qsim.traces.reading.source import Source
from qsim.traces.reshape import Reshaping
from qsim.traces.trace import Trace

#: Requests in a part at most, where a trace is cut here.
PART_REQUESTS = 1 << 16
#: From here on :func:`is_large` says that a trace is.
LARGE_REQUESTS = 2_000_000
LARGE_BYTES = 128 << 20
#: for files that are compressed
LARGE_PACKED_BYTES = 32 << 20


class _Watched(Source):
    """A source that tells how much of its file was read."""

    def open(self) -> BinaryIO:
        """As :meth:`Source.open`."""
        stream = super().open()
        self.__dict__["_raw"] = getattr(stream, "fileobj", None) or stream
        return stream

    def forget(self) -> None:
        """Nothing was read yet."""
        self.__dict__.pop("_raw", None)

    @property
    def share(self) -> float:
        """The share of the file that was read, in [0, 1]."""
        raw: BufferedIOBase | None = self.__dict__.get("_raw")
        if raw is None:
            return 0.0
        try:
            return min(1.0, raw.tell() / max(1, self.path.stat().st_size))
        except (OSError, ValueError):  # closed: it was read to the end
            return 1.0


@dataclass(eq=False)
class TraceParts:
    """The parts of one trace, in order of arrival, to be gone through once."""

    #: as ``Trace.name``
    name: str
    _parts: Iterator[Trace]
    #: about which share of the trace has come when so many requests have, in [0, 1]
    share: Callable[[int], float]
    #: as ``Trace.meta``, of what was read so far
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def skipped(self) -> dict[str, int]:
        """How many rows each rule of the format left out so far."""
        return dict(self.meta.get("skipped") or {})

    def __iter__(self) -> Iterator[Trace]:
        for part in self._parts:
            self.meta = part.meta
            yield part

    def shaped(
        self,
        start_s: float | None = None,
        end_s: float | None = None,
        speed: float | None = None,
        head: int | None = None,
        *,
        seed: int = 0,
        **others: Any,
    ) -> TraceParts:
        """Cut and scaled as :func:`qsim.traces.shape` does with a whole trace.

        Raises
        ------
        TraceError
            If a value is not allowed; while the parts come, if no request is left.
        """
        asked = Reshaping(start=start_s, end=end_s, speed=speed, head=head, **others)
        parts = _shape(self, asked, seed)

        def share(requests: int) -> float:
            return max(self.share(requests), requests / head if head else 0.0)

        return TraceParts(self.name, parts, share)


def open_parts(
    source: str | PathLike[str],
    *,
    format: str | None = None,
    seed: int = 0,
    columns: str | None = None,
) -> TraceParts:
    """Open a trace file or a preset to be read part by part.

    The arguments and the rows are those of :func:`qsim.traces.load_trace`. CSV, JSON lines and
    Parquet are read as they are needed; formats that are one document or a draw (``vllm-bench``,
    ``servegen``) are read whole and then cut.

    Raises
    ------
    TraceError
        As ``load_trace``; about the rows while the parts come.
    """
    name, params = named(source)
    if exists(name):
        from qsim.traces.reading.build import read_parts

        watched = _Watched(Path(name))
        chosen, options = opened(watched, format, False, seed, params, columns)
        if chosen.reading is None:
            whole = chosen.read(watched, options)
            n = len(whole)
            return TraceParts(whole.name, _cut(whole), lambda requests: requests / n)
        parts = read_parts(chosen.reading(watched, options))
        watched.forget()  # so far only the head was looked at
        return TraceParts(watched.name, parts, lambda _: watched.share)
    from qsim.traces.synth.synthesize import expected_requests, iter_chunks

    asked = preset_request(name, params, format, columns, seed)
    expected = expected_requests(asked.workload, asked.span)
    drawn = iter_chunks(asked.workload, asked.span, asked.seed)
    return TraceParts(name, drawn, lambda requests: min(1.0, requests / expected))


def is_large(source: str | PathLike[str]) -> bool:
    """Whether a trace had better be taken in parts.

    A preset of more than 2 million expected requests, or a file of more than 128 MiB (32 MiB if
    it is compressed or Parquet).
    """
    name, params = named(source)
    path = Path(name)
    if exists(name):
        if path.is_dir():
            return False
        packed = path.suffix in (".gz", ".parquet", ".zst", ".xz", ".bz2", ".zip")
        return path.stat().st_size > (LARGE_PACKED_BYTES if packed else LARGE_BYTES)
    from qsim.traces.synth.synthesize import expected_requests

    asked = preset_request(name, params)
    return expected_requests(asked.workload, asked.span) > LARGE_REQUESTS


def _cut(trace: Trace) -> Iterator[Trace]:
    for begin in range(0, len(trace), PART_REQUESTS):
        yield trace.take(np.arange(begin, min(begin + PART_REQUESTS, len(trace))))


def _shape(parts: TraceParts, asked: Reshaping, seed: int) -> Iterator[Trace]:
    left = asked.head
    start_s, end_s = asked.start or 0.0, asked.end
    reshaped = asked.piecewise(seed)
    seen: tuple[float, float] | None = None
    inside_any, empty = False, True
    for part in parts:
        arrival: Any = part.arrival_s
        seen = (float(arrival[0]) if seen is None else seen[0], float(arrival[-1]))
        if start_s or end_s is not None:
            inside = arrival >= start_s
            if end_s is not None:
                inside &= arrival < end_s
                if arrival[0] >= end_s:
                    break
            if not inside.any():
                continue
            part = part.take(np.flatnonzero(inside))
            part = replace(part, arrival_s=part.arrival_s - start_s)
        inside_any = True
        kept = reshaped(part)
        if kept is None:
            continue
        if left is not None:
            kept = kept.head(left)
            left -= len(kept)
        empty = False
        yield kept
        if left == 0:
            break
    if empty and inside_any:
        raise asked.nothing_left(parts.name)
    if empty and seen is not None:
        raise TraceError(
            f"{parts.name}: no request arrives in [{start_s:g} s, {end_s or float('inf'):g} s); "
            f"arrivals run from {seen[0]:g} s to {seen[1]:g} s or later"
        )
