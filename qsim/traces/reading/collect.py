"""Requests one by one, from formats that are a document: checked, sorted, made into a Trace."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import TraceError
from qsim.traces.reading.build import UNITS, TraceBuilder
from qsim.traces.reading.source import Source
from qsim.traces.reading.times import parse_time_ns
from qsim.traces.trace import Trace

__all__ = ["Collector"]

_STEPS = 1 << 14


class Collector:
    """Takes the requests of a document in any order.

    Parameters
    ----------
    source : Source
        The file.
    format : str
        Its format's name.
    names : (str, str, str)
        What the file calls arrival, prompt tokens and output tokens.
    ticks_per_s : int
        The unit of the times.
    """

    def __init__(
        self, source: Source, format: str, names: tuple[str, str, str], *, ticks_per_s: int = 1
    ) -> None:
        self._source = source
        self._names = names
        self._ticks_per_s = ticks_per_s
        self.builder = TraceBuilder(
            source, format, sort=True, absolute=True, ticks_per_s=ticks_per_s, guess_unit=True
        )
        self.builder.columns = dict(zip(("arrival", "prompt", "output"), names, strict=True))
        self.builder.columns["arrival"] += f" ({UNITS[ticks_per_s]})"
        self._rows: list[tuple[float, int, int, int, float]] = []

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._source.path

    def skip(self, reason: str, count: int = 1) -> None:
        """Count requests that are left out."""
        self.builder.skip(reason, count)

    def fail(self, place: str, column: int, value: Any, expected: str) -> TraceError:
        """What to raise for a value that is not as expected."""
        shown = "nothing" if value is None else repr(value)[:120]
        return TraceError(
            f"{self._source.path}, {place}, column {self._names[column]!r}: {shown} is not "
            f"{expected}"
        )

    def add(
        self,
        place: str,
        time: Any,
        prompt: Any,
        output: Any,
        *,
        priority: int = 0,
        timeout_s: float = math.inf,
    ) -> bool:
        """Take a request; those without a prompt or output token are skipped and counted.

        Returns
        -------
        bool
            Whether it was taken.

        Raises
        ------
        TraceError
            If a value is missing or malformed; ``place`` says where it stands.
        """
        at = self._time(place, time)
        lengths = [self._length(place, k, v) for k, v in ((1, prompt), (2, output))]
        if 0 in lengths:
            self.skip("no prompt token" if lengths[0] == 0 else "no output token")
            return False
        self._rows.append((at, lengths[0], lengths[1], priority, timeout_s))
        if len(self._rows) == _STEPS:
            self._flush()
        return True

    def _time(self, place: str, value: Any) -> float:
        if isinstance(value, str):
            ns = parse_time_ns(value)
            if ns is not None:
                self.builder.columns["arrival"] = f"{self._names[0]} (dates)"
                ticks, rest = divmod(ns * self._ticks_per_s, 10**9)
                return ticks if not rest else ns * self._ticks_per_s / 10**9
            try:
                value = float(value)
            except ValueError:
                raise self.fail(place, 0, value, "a time") from None
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not abs(value) < 2**63 or not math.isfinite(value):
            raise self.fail(place, 0, value, "a time")
        return value  # type: ignore[no-any-return]

    def _length(self, place: str, column: int, value: Any) -> int:
        given = value
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
            value = int(value)  # as some exporters write numbers
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not 0 <= value < 2**53 or value != int(value):
            raise self.fail(place, column, given, "a whole number of tokens >= 0")
        return int(value)

    def _flush(self) -> None:
        if not self._rows:
            return
        times, prompts, outputs, priority, timeout_s = zip(*self._rows, strict=True)
        whole = all(isinstance(t, int) for t in times)
        self.builder.add(
            np.arange(len(times)),
            np.array(times, np.int64 if whole else np.float64),
            np.array(prompts, np.int64),
            np.array(outputs, np.int64),
            column=self._names[0],
            priority=np.array(priority, np.int64) if any(priority) else None,
            timeout_s=np.array(timeout_s) if min(timeout_s) < math.inf else None,
        )
        self._rows = []

    def build(self) -> Trace:
        """The trace, in order of arrival from the first request on.

        Raises
        ------
        TraceError
            If there is no request.
        """
        self._flush()
        return self.builder.build()
