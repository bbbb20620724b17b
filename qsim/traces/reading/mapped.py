"""Reading any table whose columns are known: CSV, Parquet, JSON lines or a JSON array."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray, IntArray
from qsim.errors import TraceError
from qsim.traces.prefix_ids import fitting_block_tokens, most_ids, prefix_id
from qsim.traces.reading.build import UNIX_FROM_S, Reading, TraceBuilder
from qsim.traces.reading.columns import ROLES, Column, is_json, is_parquet, names_of
from qsim.traces.reading.json_rows import lookup, objects, read_json
from qsim.traces.reading.parquet import duration_ticks_per_s, parquet_columns, read_parquet
from qsim.traces.reading.source import Source
from qsim.traces.reading.table import Dialect, Kind, Rows, dialect_of, read_csv
from qsim.traces.reading.times import UNITS, Unit, looks_like_date
from qsim.traces.trace import MOST_PRIORITY

#: what an id stands for where neither the file nor the lengths say: Mooncake's block
_DEFAULT_BLOCK_TOKENS = 512
_SAMPLE_ROWS = 100
_TIME = "a finite number (or a date like 2024-05-10T12:00:00.5Z in every row)"


def _resolved(
    source: Source, mapping: Mapping[str, Column], names: Sequence[str]
) -> dict[str, Column]:
    """The mapping with the names as the file has them, which may differ in case."""
    found: dict[str, Column] = {}
    lower = {name.lower(): name for name in reversed(names)}
    for role, column in mapping.items():
        name = column.name if column.name in names else lower.get(column.name.lower())
        if name is None:
            raise TraceError(
                f"{source.path}: no column {column.name!r} for the {ROLES[role]} ({role}); the "
                f"columns are {', '.join(names)[:500]}"
            )
        if list(names).count(name) > 1:
            raise TraceError(
                f"{source.path}: {list(names).count(name)} columns are called {name!r}, which "
                f"is to tell {ROLES[role]}; rename the others"
            )
        found[role] = Column(name, column.unit, column.given)
    return found


class _Table:
    """One of the kinds of files behind one face: a sample of the times, and the rows."""

    def __init__(self, source: Source, mapping: Mapping[str, Column]) -> None:
        self.source = source
        self.ticks_per_s: int | None = None  # where the file's types tell the unit
        self.is_date = False
        self._dialect: Dialect | None = None
        if is_parquet(source):
            columns = {c.name: c for c in reversed(parquet_columns(source))}
            self.columns = _resolved(source, mapping, list(columns))
            self._parquet = columns
            time = columns[self.columns["arrival"].name]
            self.is_date = time.is_date
            self.ticks_per_s = duration_ticks_per_s(source, time)
        elif is_json(source):
            self.columns = dict(mapping)
        else:
            self._dialect = dialect_of(source.head)
            self.columns = _resolved(source, mapping, self._dialect.names)
        self._kind = (
            "parquet" if is_parquet(source) else "csv" if self._dialect is not None else "json"
        )

    def sample(self, role: str = "arrival") -> str:
        """The first value of a column, such as the time, that is not empty."""
        name = self.columns[role].name
        if self._kind == "json":
            for _, row in islice(objects(self.source), _SAMPLE_ROWS):
                value = lookup(row, name)
                if value is not None and value != "":
                    return str(value)
            return ""
        if self._kind == "parquet":
            column = self._parquet[name]
            if column.type != "VARCHAR" and not column.type.endswith("INT"):
                return "" if role == "arrival" else "0" if column.is_number else column.type
            for rows in read_parquet(self.source, [(column, "text")]):
                return next((str(v) for v in rows.values[0][:_SAMPLE_ROWS] if v is not None), "")
            return ""
        assert self._dialect is not None
        at = self._dialect.names.index(name)
        lines = self.source.head.decode("utf-8", "replace").replace("\r", "\n").split("\n")
        try:
            for record in islice(
                csv.reader((x.replace("\0", "") for x in lines), delimiter=self._dialect.delimiter),
                1,
                _SAMPLE_ROWS,
            ):
                if at < len(record) and record[at].strip():
                    return record[at].strip()
        except csv.Error:
            pass
        return ""

    def rows(self, wanted: Sequence[tuple[str, Kind]]) -> Iterator[Rows]:
        """Columns by their names."""
        if self._kind == "parquet":
            return read_parquet(self.source, [(self._parquet[n], k) for n, k in wanted])
        if self._kind == "json":
            return read_json(self.source, wanted)
        assert self._dialect is not None
        at = [(self._dialect.names.index(name), kind) for name, kind in wanted]
        return read_csv(self.source, at, dialect=self._dialect)

    def clock(self) -> tuple[Unit, Kind, bool]:
        """The unit of the times, how to convert them, and whether the unit may be guessed anew."""
        column = self.columns["arrival"]
        if self.is_date:
            return UNITS["iso"], "date", False
        if self.ticks_per_s is not None:
            return Unit(self.ticks_per_s, words="durations"), "stamp", False
        sample = self.sample()
        digits = sample.lstrip("-")
        stamp: Kind = "stamp" if digits.isdecimal() and len(digits) > 15 else "number"
        if column.unit is not None and (column.given or not looks_like_date(sample)):
            unit = UNITS[column.unit]
            return unit, "date" if unit.date else stamp, not (column.given or unit.clock)
        if looks_like_date(sample):
            return UNITS["iso"], "date", False
        return UNITS["s"], stamp, True


def read_mapped(
    source: Source,
    format: str,
    mapping: Mapping[str, Column],
    *,
    sort: bool,
    strict: bool = False,
    absolute: bool = False,
    zero: str = "no output token",
    filters: Sequence[tuple[str, str, str]] = (),
) -> Reading:
    """Read a table whose columns are known, some rows at a time.

    Parameters
    ----------
    mapping : mapping of str to Column
        By role; ``arrival``, ``prompt`` and ``output`` must be there.
    strict : bool
        A length of 0 is an error; otherwise such rows are skipped and counted.
    absolute : bool
        Count times from the first one, whatever they are.
    zero : str
        What a row without output is called.
    filters : sequence of (str, str, str)
        Column, what its text must begin with in lower case, and how that was asked for: other
        rows are skipped.

    Raises
    ------
    TraceError
        If a column is missing.
    """
    for role in ("arrival", "prompt", "output"):
        if role not in mapping:
            raise TraceError(
                f"{source.path}: no column tells {ROLES[role]}; say which with --columns "
                f"{role}=COLUMN (the columns are {', '.join(names_of(source))[:500]})"
            )
    table = _Table(source, mapping)
    unit, kind, guess = table.clock()
    builder = TraceBuilder(
        source,
        format,
        sort=sort,
        absolute=absolute or unit.clock,
        ticks_per_s=unit.ticks_per_s,
        guess_unit=guess,
    )
    names = {name.lower(): name for name in names_of(source)}
    for name, _, asked in filters:
        if name.lower() not in names:
            raise TraceError(
                f"{source.path}: no column {name!r} for {asked}; the columns are "
                f"{', '.join(names.values())[:500]}"
            )
    filters = [(names[name.lower()], wanted, asked) for name, wanted, asked in filters]
    columns = table.columns
    for role in ("priority", "timeout"):
        if role in columns and not columns[role].given and not _is_number(table.sample(role)):
            builder.notes.append(
                f"column {columns[role].name!r} is not read as {role}: it holds no numbers"
            )
            del columns[role]
    builder.columns = {
        role: c.name + (f" ({unit.words})" if role == "arrival" else "")
        for role, c in columns.items()
    }
    if "timeout" in columns:
        words = UNITS[columns["timeout"].unit or "s"].words
        builder.columns["timeout"] = f"{columns['timeout'].name} ({words})"
    reader = _Mapped(table, builder, kind, unit, strict, zero, filters)
    if filters:
        builder.hint = reader.seen_text
    return builder, reader.steps()


def _is_number(text: str) -> bool:
    try:
        return not text or abs(float(text)) >= 0
    except ValueError:
        return False


@dataclass(eq=False)
class _Mapped:
    """Adds the rows of a table to a builder."""

    _table: _Table
    _builder: TraceBuilder
    _kind: Kind
    _unit: Unit
    _strict: bool
    _zero: str
    _filters: Sequence[tuple[str, str, str]]

    def __post_init__(self) -> None:
        columns = self._table.columns
        self._question = self._unit == UNITS["s"] and columns["arrival"].unit is None
        self._seen: dict[str, set[str]] = {}
        self._wanted: list[tuple[str, Kind]] = [
            (columns["arrival"].name, self._kind),
            (columns["prompt"].name, "count"),
            (columns["output"].name, "count"),
        ]
        self._at: dict[str, int] = {}
        sessions = "session" in columns and "delay" in columns
        kinds: list[tuple[str, Kind]] = [("hash_ids", "text"), ("block", "count")]
        if sessions:
            kinds += [("session", "text"), ("delay", "text")]
        kinds += [("priority", "text"), ("timeout", "text")]
        for role, k in kinds:
            if role in columns:
                self._at[role] = len(self._wanted)
                self._wanted.append((columns[role].name, k))
        self._filter_at = len(self._wanted)
        self._wanted += [(name, "text") for name, _, _ in self._filters]
        self._block_tokens: int | None = None
        self._row = 0  # of the builder
        self._sessions: dict[str, tuple[int, float]] = {}

    def seen_text(self) -> str:
        """Which values of the filters' columns there are."""
        return "; ".join(f"{key} is one of {sorted(found)}" for key, found in self._seen.items())

    def steps(self) -> Iterator[None]:
        """Add some rows a step."""
        for all_rows in self._table.rows(self._wanted):
            rows = self._filtered(all_rows)
            if not len(rows):
                continue
            self._add(rows)
            yield

    def _filtered(self, rows: Rows) -> Rows:
        for k, (_, wanted, asked) in enumerate(self._filters):
            texts = rows.texts(self._filter_at + k)
            self._seen.setdefault(asked.partition("=")[0], set()).update(texts[:1000])
            keep = [i for i, text in enumerate(texts) if text.lower().startswith(wanted)]
            self._builder.skip(f"not {asked}", len(texts) - len(keep))
            rows = rows.take(np.array(keep, np.int64))
        return rows

    def _add(self, rows: Rows) -> None:
        builder = self._builder
        if self._strict:
            what = "a whole number >= 1"
            prompt, output = rows.ints(1, what, 1), rows.ints(2, what, 1)
        else:
            prompt, output = rows.ints(1), rows.ints(2)
            keep = (prompt > 0) & (output > 0)
            if not keep.all():
                builder.skip("no prompt token", int(((prompt <= 0) & (output > 0)).sum()))
                builder.skip(self._zero, int((output <= 0).sum()))
                if not keep.any():
                    return
                rows, prompt, output = rows.take(keep), prompt[keep], output[keep]
        if "delay" in self._at:
            times: npt.NDArray[Any] = self._times_of_sessions(rows)
        elif self._kind == "date":
            times = rows.dates_ns(0)
        elif self._kind == "stamp":
            times = rows.whole(0, "a whole number, as the first one is")
        else:
            times = rows.floats(0, _TIME)
        name = rows.names[0]
        priority = self._optional(
            rows,
            "priority",
            0.0,
            lambda value: abs(value) <= MOST_PRIORITY and value == int(value),
            "a whole number: the smaller goes first",
        )
        builder.add(
            rows.number,
            times,
            prompt,
            output,
            column=name,
            place=rows.place,
            priority=None if priority is None else priority.astype(np.int64),
            timeout_s=self._optional(
                rows,
                "timeout",
                np.inf,
                lambda value: value > 0,
                "a time > 0 that the client waits (empty: without limit)",
            ),
        )
        if self._question and self._row == 0:
            self._ask(name, times)
        self._row += len(rows)
        if "hash_ids" in self._at:
            self._add_ids(rows, prompt)

    def _optional(
        self, rows: Rows, role: str, missing: float, good: Callable[[float], bool], expected: str
    ) -> FloatArray | None:
        """Numbers that may be empty, each in its column's unit; None without such a column."""
        at = self._at.get(role)
        if at is None:
            return None
        ticks = UNITS[self._table.columns[role].unit or "s"].ticks_per_s
        found = np.full(len(rows), missing)
        for i, text in enumerate(rows.texts(at)):
            if text.strip():
                try:
                    found[i] = float(text) / ticks
                except ValueError:
                    found[i] = np.nan
                if not good(float(found[i])):
                    rows.fail(i, at, expected)
        return found

    def _ask(self, name: str, times: npt.NDArray[Any]) -> None:
        """Say so if seconds, which nothing tells, make a rate that is hardly meant."""
        span_s = float(times.max() - times.min())
        rate = len(times) / span_s if span_s > 0 else 1.0
        if len(times) > 3 and not 0.01 <= rate <= 5000 and times.min() < UNIX_FROM_S:
            self._builder.notes.append(
                f"{name} is read as seconds, which makes {rate:.3g} requests/s; if it is another "
                f"unit, say so: --columns 'arrival={name}[ms],...'"
            )

    def _times_of_sessions(self, rows: Rows) -> npt.NDArray[Any]:
        """Times of all rows; of a turn that waits without one, the earliest that can be."""
        sessions, delays = rows.texts(self._at["session"]), rows.values[self._at["delay"]]
        times = list(rows.values[0])
        unit = self._table.columns["delay"].unit
        ticks = UNITS[unit].ticks_per_s if unit else self._unit.ticks_per_s
        for i, (session, text) in enumerate(zip(sessions, delays, strict=True)):
            before = self._sessions.get(session) if session else None
            if text is not None and str(text).strip() and before is not None:
                try:
                    delay_s = float(text) / ticks
                except ValueError:
                    delay_s = -1.0
                if not 0 <= delay_s < 1e10:
                    rows.fail(i, self._at["delay"], "a delay >= 0")
                delay = delay_s * self._unit.ticks_per_s
                if times[i] is None:
                    times[i] = before[1] + delay
                self._builder.add_turn(self._row + i, before[0], delay)
            if times[i] is None:
                rows.fail(i, 0, "a time")
            if session:
                self._sessions[session] = (self._row + i, times[i])
        return np.array(times, np.float64 if self._kind == "number" else np.int64)

    def _add_ids(self, rows: Rows, prompt: IntArray) -> None:
        at = self._at["hash_ids"]
        lists: list[list[int]] = []
        for i, value in enumerate(rows.values[at]):
            try:
                lists.append(_ids(value))
            except (TypeError, ValueError):
                rows.fail(i, at, "a list of prefix ids with blanks between them")
        counts = [len(ids) for ids in lists]
        stated = self._stated_block(rows)
        if self._block_tokens is None and (stated or any(counts)):
            pairs = [(p, n) for p, n in zip(prompt.tolist(), counts, strict=True) if n]
            found = stated or fitting_block_tokens(
                [p for p, _ in pairs], [n for _, n in pairs], _DEFAULT_BLOCK_TOKENS
            )
            if not stated and found is not None and found != _DEFAULT_BLOCK_TOKENS:
                self._builder.notes.append(
                    f"a prefix id stands for {found} prompt tokens, as the lengths of the prompts "
                    "show (a column hash_block_tokens says otherwise)"
                )
            self._block_tokens = found or _DEFAULT_BLOCK_TOKENS
        size = self._block_tokens
        if size is not None:
            self._builder.block_tokens = size
            for i, (n, tokens) in enumerate(zip(counts, prompt.tolist(), strict=True)):
                if n > most_ids(tokens, size):
                    rows.fail(
                        i, at, f"right: {n} ids for {tokens} prompt tokens are more than one for "
                        f"each {size}; say in a column hash_block_tokens what an id stands for",
                    )  # fmt: skip
        for ids in lists:
            self._builder.add_hash_ids(ids)

    def _stated_block(self, rows: Rows) -> int:
        if "block" not in self._at:
            return 0
        values = rows.ints(self._at["block"], "a whole number >= 1", 1)
        expected = self._block_tokens or int(values[0])
        if (values != expected).any():
            row = int(np.argmax(values != expected))
            rows.fail(row, self._at["block"], f"{expected}, as in the rows above")
        return expected


def _ids(value: Any) -> list[int]:
    """Prefix ids of a list, or of a text with blanks or commas between them.

    Raises
    ------
    TypeError
        If one is neither a whole number nor a text.
    """
    if value is None:
        return []
    if isinstance(value, str):
        parts = value.strip("[]() \t").replace(",", " ").split()
        return [prefix_id(_whole_or_text(part.strip("'\""))) for part in parts]
    if not isinstance(value, list | tuple):
        raise TypeError(value)
    return [prefix_id(one) for one in value]


def _whole_or_text(text: str) -> object:
    if text.lstrip("-").isdecimal() and text.isascii():
        return int(text)
    if not any(c.isalnum() for c in text):
        raise ValueError(text)
    return text
