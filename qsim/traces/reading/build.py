"""From the blocks that a reader parsed to one checked Trace."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray, IntArray
from qsim.checks import is_number
from qsim.errors import TraceError
from qsim.traces.reading.source import Source
from qsim.traces.reading.times import TICKS_PER_S, parse_time_ns
from qsim.traces.trace import HashIds, Trace, Turns, join_column, taken

#: a trace that begins so late is on the clock of a computer: 1973 and later
UNIX_FROM_S = 1e8
#: numbers that are taken for Unix times in s even where a format has ms: of 2001 to 2049
_UNIX_S = (1e9, 2.5e9)
#: columns of a request, with what they are where a part does not have them
_MISSING = {"arrival_s": 0.0, "prompt_tokens": 0.0, "output_tokens": 0.0, "priority": 0.0,
            "timeout_s": np.inf}  # fmt: skip
UNITS = {ticks: name for name, ticks in TICKS_PER_S.items()}


def unix_ticks_per_s(stamp: float) -> int:
    """The unit of a Unix time by its size: in s it would be past the year 5138."""
    for ticks, end in ((1, 1e11), (1000, 1e14), (10**6, 1e17)):
        if stamp < end:
            return ticks
    return 10**9


@dataclass(eq=False)
class TraceBuilder:
    """Collects requests in the order of the file, checks their times, and makes the Trace."""

    #: the file, for messages and the trace's name
    source: Source
    #: the name of the format, kept in ``meta["format"]``
    format: str
    _: KW_ONLY
    #: put the requests in order of arrival instead of refusing a file that is not
    sort: bool
    #: the times are of a clock (dates, ``perf_counter``): count them from the earliest. Without it
    #: that is done with times which can only be those of a clock: negative ones, and Unix times
    #: (from 3 years on).
    absolute: bool = False
    #: the unit of the times given to ``add``. Whole ticks are kept as integers to the end, so that
    #: nothing is lost when a large clock value is subtracted.
    ticks_per_s: int = 1
    #: let Unix times in ms, us or ns, where ``ticks_per_s`` would make them the far future, tell
    #: their own unit
    guess_unit: bool = False
    #: tokens that a prefix-block id stands for; 0 while there are no ids
    block_tokens: int = 0
    #: what an error about an empty trace should add
    hint: Callable[[], str] = str
    skipped: dict[str, int] = field(default_factory=dict)
    #: by role, the column that was taken for it, for formats of which that can be asked
    columns: dict[str, str] = field(default_factory=dict)
    #: how the file was understood, where a reader of the answer should know
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parts: dict[str, list[Any]] = {name: [] for name in _MISSING}
        self._hash_values = array("q")
        self._hash_lengths = array("q")
        # later turns of sessions: the row, the row that it waits for, how long after its answer
        self._turns: list[tuple[int, int, float]] = []
        self._has_sessions = False
        self._last: Any = None
        self._rows = 0
        self._origin: Any = None  # of the clock, once a part was taken
        self._taken = 0
        self._known: set[str] = set()  # optional columns of the first part

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
        place: Callable[[int], str] = "line {}".format,
        priority: IntArray | None = None,
        timeout_s: FloatArray | None = None,
    ) -> None:
        """Append requests; ``place`` of ``line`` and ``column`` say where their times stand."""
        if len(times) == 0:
            return
        if self._rows == 0 and self._last is None and self.guess_unit:
            self._settle_unit(float(times[0]), column)
        if not self.sort:
            self._check_times(line, times, column, place)
            self._last = times[-1]
        values = (times, prompt_tokens, output_tokens, priority, timeout_s)
        for parts, part in zip(self._parts.values(), values, strict=True):
            parts.append(part)
        self._rows += len(times)

    def add_turn(self, row: int, previous: int | None, delay: float) -> None:
        """Say which row a row waits for, both counted from 0, and how long after its answer.

        Sessions stand in a file one after the other, so its rows are then sorted by arrival;
        ``previous`` may be None for that alone.
        """
        self.sort = self._has_sessions = True
        if previous is not None:
            self._turns.append((row, previous, delay))

    def _settle_unit(self, first: float, column: str) -> None:
        """Numbers of the size of a Unix time tell their unit, whatever the format's own is."""
        if _UNIX_S[0] <= first < _UNIX_S[1]:
            ticks = 1
        elif first / self.ticks_per_s >= 1e11:
            ticks = unix_ticks_per_s(first)
        else:
            return
        if ticks != self.ticks_per_s:
            self.notes.append(
                f"{column} begins at {first:.0f}: read as Unix time in {UNITS[ticks]}, not as "
                f"{UNITS[self.ticks_per_s]} from a start of its own"
            )
            self.ticks_per_s = ticks

    def add_hash_ids(self, ids: list[int]) -> None:
        """Append the prefix-block ids of one request, in the order of ``add``."""
        self._hash_values.extend(array("q", ids))  # all of them or, on an error, none
        self._hash_lengths.append(len(ids))

    def _check_times(
        self,
        line: IntArray,
        times: npt.NDArray[Any],
        column: str,
        place: Callable[[int], str],
    ) -> None:
        path = self.source.path
        help_ = "--sort (sort=True) puts the requests in order of arrival"
        if not self.absolute and (times < 0).any():
            row = int(np.argmax(times < 0))
            raise TraceError(
                f"{path}, {place(int(line[row]))}, column {column!r}: {times[row].item()!r} is "
                f"negative; times must be >= 0: {help_} and starts the clock at the earliest"
            )
        before = times[:1] if self._last is None else np.array([self._last], times.dtype)
        down = np.diff(np.concatenate([before, times])) < 0
        if down.any():
            row = int(np.argmax(down))
            back = np.concatenate([before, times])[row] - times[row]
            raise TraceError(
                f"{path}, {place(int(line[row]))}, column {column!r}: arrives "
                f"{back / self.ticks_per_s:g} s before the request above it; "
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
        if self._rows and self._has_sessions:
            raise TraceError(
                f"{self.source.path}: a session's next turn follows the one before it, wherever "
                "both stand in the file, so it cannot be taken part by part: give --no-stream"
            )
        if not self._rows:
            return None
        part = self._trace("", {})
        for name in ("priority", "timeout_s"):
            values = getattr(part, name)
            if self._taken and values is not None and name not in self._known:
                raise TraceError(
                    f"{self.source.path}: a {name} stands in the file for the first time after "
                    f"{self._taken:,} requests; give --no-stream"
                )
            if values is not None:
                self._known.add(name)
        self._taken += len(part)
        return part

    def nothing(self) -> TraceError:
        """What to raise if there is no request in the file."""
        left = ", ".join(f"{n} rows skipped: {why}" for why, n in self.skipped.items())
        hint = self.hint()
        return TraceError(
            f"{self.source.path}: no request in it"
            + (f" ({left})" if left else "; the file has no data row")
            + (f"; {hint}" if hint else "")
        )

    def _trace(self, name: str, meta: dict[str, Any]) -> Trace:
        sizes = [len(block) for block in self._parts["arrival_s"]]
        columns: dict[str, Any] = {}
        for column, parts in self._parts.items():
            columns[column] = join_column(parts, sizes, _MISSING[column])
            parts.clear()
        turns = None
        if self._turns:
            turns = Turns(np.full(self._rows, -1, np.int64), np.zeros(self._rows))
            rows, previous, delays = zip(*self._turns, strict=True)
            turns.previous[list(rows)] = previous
            turns.delay_s[list(rows)] = np.array(delays) / self.ticks_per_s
        columns |= {"turns": turns, "hash_ids": None}
        if self.block_tokens:
            offsets = np.zeros(self._rows + 1, dtype=np.int64)
            np.cumsum(np.frombuffer(self._hash_lengths, dtype=np.int64), out=offsets[1:])
            values = np.array(self._hash_values, dtype=np.int64)
            columns["hash_ids"] = HashIds(values, offsets, self.block_tokens)
        self._hash_values, self._hash_lengths = array("q"), array("q")
        self._rows = 0
        if self.sort:
            columns = taken(columns, np.argsort(columns["arrival_s"], kind="stable"))
        times = columns["arrival_s"]
        if self._origin is None:
            far = times[0] / self.ticks_per_s >= UNIX_FROM_S
            column = self.columns.get("arrival", "")
            if far and self.guess_unit and column and not column.endswith("(dates)"):
                plain, known, _ = column.rpartition(" (")
                unit = f"(Unix time in {UNITS[self.ticks_per_s]})"
                self.columns["arrival"] = f"{plain if known else column} {unit}"
            self._origin = times[0] if self.absolute or times[0] < 0 or far else 0
        if self._origin:
            times = times - self._origin
        columns["arrival_s"] = times / self.ticks_per_s if self.ticks_per_s != 1 else times
        return Trace(
            **columns,
            name=name or self.source.name,
            meta={
                "format": self.format,
                "skipped": dict(self.skipped),
                **({"notes": list(self.notes)} if self.notes else {}),
                **({"columns": dict(self.columns)} if self.columns else {}),
                **meta,
            },
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


_STEPS = 1 << 14


@dataclass(eq=False)
class Collector:
    """Takes the requests of a document in any order."""

    #: the file
    source: Source
    #: its format's name
    format: str
    #: what the file calls arrival, prompt tokens and output tokens
    names: tuple[str, str, str]
    #: the unit of the times
    ticks_per_s: int = 1
    _rows: list[tuple[float, int, int, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builder = TraceBuilder(
            self.source, self.format, sort=True, absolute=True, ticks_per_s=self.ticks_per_s,
            guess_unit=True,
        )  # fmt: skip
        roles = ("arrival", "prompt", "output")
        self.builder.columns = dict(zip(roles, self.names, strict=True))
        self.builder.columns["arrival"] += f" ({UNITS[self.ticks_per_s]})"

    def skip(self, reason: str, count: int = 1) -> None:
        """Count requests that are left out."""
        self.builder.skip(reason, count)

    def fail(self, place: str, column: int, value: Any, expected: str) -> TraceError:
        """What to raise for a value that is not as expected."""
        shown = "nothing" if value is None else repr(value)[:120]
        return TraceError(
            f"{self.source.path}, {place}, column {self.names[column]!r}: {shown} is not {expected}"
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
                self.builder.columns["arrival"] = f"{self.names[0]} (dates)"
                ticks, rest = divmod(ns * self.ticks_per_s, 10**9)
                return ticks if not rest else ns * self.ticks_per_s / 10**9
            try:
                value = float(value)
            except ValueError:
                raise self.fail(place, 0, value, "a time") from None
        if not is_number(value) or not abs(value) < 2**63 or not math.isfinite(value):
            raise self.fail(place, 0, value, "a time")
        return value

    def _length(self, place: str, column: int, value: Any) -> int:
        given = value
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
            value = int(value)  # as some exporters write numbers
        if not is_number(value) or not 0 <= value < 2**53 or value != int(value):
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
            column=self.names[0],
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
