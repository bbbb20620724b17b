"""From the blocks that a reader parsed to one checked Trace."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.errors import TraceError
from qsim.traces.source import Source
from qsim.traces.trace import HashIds, Trace

__all__ = ["Reading", "TraceBuilder", "read_parts", "read_whole"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class TraceBuilder:
    """Collects requests in the order of the file, checks their times, and makes the Trace.

    Parameters
    ----------
    source : Source
        The file, for messages and the trace's name.
    format : str
        The name of the format, kept in ``meta["format"]``.
    sort : bool
        Put the requests in order of arrival instead of refusing a file that is not.
    absolute : bool
        The times are of a clock (dates, ``perf_counter``): count them from the earliest.
    ticks_per_s : int
        The unit of the times given to ``add``. Whole ticks are kept as integers to the end, so
        that nothing is lost when a large clock value is subtracted.
    """

    def __init__(
        self,
        source: Source,
        format: str,
        *,
        sort: bool,
        absolute: bool = False,
        ticks_per_s: int = 1,
    ) -> None:
        self._source = source
        self._format = format
        self._sort = sort
        self._absolute = absolute
        self._ticks_per_s = ticks_per_s
        self._times: list[npt.NDArray[Any]] = []
        self._prompt: list[IntArray] = []
        self._output: list[IntArray] = []
        self._hash_values = array("q")
        self._hash_lengths = array("q")
        self._last: Any = None
        self._rows = 0
        self._origin: Any = None  # of the clock, once a part was taken
        #: tokens that a prefix-block id stands for; 0 while there are no ids
        self.block_tokens = 0
        #: what an error about an empty trace should add
        self.hint: Callable[[], str] = str
        self.skipped: dict[str, int] = {}

    def skip(self, reason: str, count: int = 1) -> None:
        """Count rows that a rule of the format leaves out."""
        if count:
            self.skipped[reason] = self.skipped.get(reason, 0) + count

    def add(
        self,
        line: IntArray,
        times: npt.NDArray[Any],
        prompt_tokens: IntArray,
        output_tokens: IntArray,
        *,
        column: str,
        place: str = "line",
    ) -> None:
        """Append requests; ``line`` and ``column`` say where their times stand."""
        if len(times) == 0:
            return
        if not self._sort:
            self._check_times(line, times, column, place)
            self._last = times[-1]
        self._times.append(times)
        self._prompt.append(prompt_tokens)
        self._output.append(output_tokens)
        self._rows += len(times)

    def add_hash_ids(self, ids: list[int]) -> None:
        """Append the prefix-block ids of one request, in the order of ``add``."""
        self._hash_values.extend(ids)
        self._hash_lengths.append(len(ids))

    def _check_times(
        self, line: IntArray, times: npt.NDArray[Any], column: str, place: str
    ) -> None:
        where = f"{self._source.path}, {place}"
        help_ = "--sort (sort=True) puts the requests in order of arrival"
        if not self._absolute and (times < 0).any():
            row = int(np.argmax(times < 0))
            raise TraceError(
                f"{where} {int(line[row])}, column {column!r}: {times[row].item()!r} is negative; "
                f"times must be >= 0: {help_} and starts the clock at the earliest"
            )
        before = times[:1] if self._last is None else np.array([self._last], times.dtype)
        down = np.diff(np.concatenate([before, times])) < 0
        if down.any():
            row = int(np.argmax(down))
            back = np.concatenate([before, times])[row] - times[row]
            raise TraceError(
                f"{where} {int(line[row])}, column {column!r}: arrives "
                f"{back / self._ticks_per_s:g} s before the request above it; "
                f"times must not go down: {help_}"
            )

    def build(self, *, name: str = "", **meta: Any) -> Trace:
        """The whole trace.

        Raises
        ------
        TraceError
            If nothing is left.
        """
        if self._rows == 0:
            raise self.nothing()
        return self._trace(name, meta)

    def take(self) -> Trace | None:
        """What was added since the last call, on the clock of the first request of all.

        None if nothing was. Not for traces that are to be sorted.
        """
        return self._trace("", {}) if self._rows else None

    def nothing(self) -> TraceError:
        """What to raise if there is no request in the file."""
        left = ", ".join(f"{n} rows skipped: {why}" for why, n in self.skipped.items())
        hint = self.hint()
        return TraceError(
            f"{self._source.path}: no request in it"
            + (f" ({left})" if left else "; the file has no data row")
            + (f"; {hint}" if hint else "")
        )

    def _trace(self, name: str, meta: dict[str, Any]) -> Trace:
        times = np.concatenate(self._times)
        self._times.clear()
        prompt = np.concatenate(self._prompt)
        self._prompt.clear()
        output = np.concatenate(self._output)
        self._output.clear()
        hash_ids = None
        if self.block_tokens:
            offsets = np.zeros(self._rows + 1, dtype=np.int64)
            np.cumsum(np.frombuffer(self._hash_lengths, dtype=np.int64), out=offsets[1:])
            values = np.array(self._hash_values, dtype=np.int64)
            hash_ids = HashIds(values, offsets, self.block_tokens)
        self._hash_values, self._hash_lengths = array("q"), array("q")
        self._rows = 0
        if self._sort:
            order = np.argsort(times, kind="stable")
            times, prompt, output = times[order], prompt[order], output[order]
            hash_ids = None if hash_ids is None else hash_ids.take(order)
        if self._origin is None:
            self._origin = times[0] if self._absolute or times[0] < 0 else 0
        if self._origin:
            times = times - self._origin
        return Trace(
            arrival_s=times / self._ticks_per_s if self._ticks_per_s != 1 else times,
            prompt_tokens=prompt,
            output_tokens=output,
            hash_ids=hash_ids,
            name=name or self._source.name,
            meta={"format": self._format, "skipped": dict(self.skipped), **meta},
        )


#: a builder, and the steps of reading: after each of them it has some more requests
Reading = tuple[TraceBuilder, Iterator[None]]


def read_whole(reading: Reading) -> Trace:
    """Read to the end, and build the trace."""
    builder, steps = reading
    for _ in steps:
        pass
    return builder.build()


def read_parts(reading: Reading) -> Iterator[Trace]:
    """Build a trace of what each step of reading brings.

    Raises
    ------
    TraceError
        At the end, if nothing came.
    """
    builder, steps = reading
    empty = True
    for _ in steps:
        part = builder.take()
        if part is not None:
            empty = False
            yield part
    if empty:
        raise builder.nothing()
