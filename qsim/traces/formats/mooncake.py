"""JSON lines with prefix-block ids: Mooncake, Qwen-Bailian, and vLLM's ``timed_trace``.

All three have ``input_length``, ``output_length``, ``hash_ids`` and ``timestamp``; they differ in
the unit of the time and in the tokens that an id stands for. A row with a ``session_id`` and
without a ``timestamp`` is the next turn of that session: it is sent ``delay`` ms after the answer
to the turn before it, as NVIDIA AIPerf sends it.

Dynamo's agentic form (``AgenticMooncakeRow`` in its lib/data-gen/src/mooncake.rs) adds
``request_id`` and ``wait_for``, the requests whose answers a row waits for, then ``delay`` and
``tool_wait_ms``; it also reads ``input_tokens``, ``output_tokens``, ``created_time`` and
``delay_ms`` as other names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NoReturn

import numpy as np

from qsim.checks import is_number
from qsim.errors import TraceError
from qsim.traces.formats.options import ReadOptions, whole_param
from qsim.traces.prefix_ids import fitting_block_tokens, most_ids, prefix_id
from qsim.traces.reading.build import Reading, TraceBuilder
from qsim.traces.reading.json_rows import first_object, first_objects, objects
from qsim.traces.reading.source import Source
from qsim.traces.reading.times import TICKS_PER_S
from qsim.traces.trace import MOST_PRIORITY

WHAT = {
    "mooncake": "JSON lines with timestamp (ms), input_length, output_length, hash_ids (512-token "
    "blocks)",
    "bailian": "JSON lines as Mooncake's, with chat_id, times in s and 16-token blocks",
    "timed-trace": "vLLM bench's timed_trace: JSON lines as Mooncake's, times in s (only when "
    "asked for)",
    "servegen-offline": "ServeGen's offline jobs: JSON lines as Mooncake's without times, 16-token "
    "blocks",
}
#: ticks a second of a format's times, and tokens that an id stands for
_STATED = {"mooncake": (1000, 512)}
PARAMS = {
    "output": "output tokens of rows that do not say (ServeGen's offline jobs)",
    "block": "prompt tokens that a hash id stands for",
    "unit": "of the timestamps: s, ms, us or ns",
    "turns": "wait, the default: a session's next turn waits for the answer before it; open: "
    "it comes its delay after the turn before it, as if answers took no time",
}
_BATCH_ROWS, _BATCH_IDS = 1 << 14, 1 << 19
_LENGTHS = ("input_length", "output_length")
#: other names, as Dynamo reads them
_ALIASES = {
    "input_tokens": "input_length",
    "output_tokens": "output_length",
    "created_time": "timestamp",
    "delay_ms": "delay",
}


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """A row under its own names."""
    for alias, name in _ALIASES.items():
        if alias in row and name not in row:
            row[name] = row[alias]
    return row


def _first_object(source: Source) -> dict[str, Any]:
    row = first_object(source)
    if _LENGTHS[0] not in row and ("hash_ids" in row or "wait_for" in row):
        row = _named(dict(row))
    return row if _LENGTHS[0] in row and _LENGTHS[1] in row else {}


def recognise(source: Source, name: str) -> bool:
    """Whether the first object has Mooncake's keys, and the one by which a format differs."""
    first = first_object(source)
    offline = {"input_length", "request_id"} <= set(first) and not {"timestamp", "delay"} & set(
        first
    )
    own = _first_object(source)
    return {
        "mooncake": bool(own) and "chat_id" not in own and not offline,
        "bailian": "chat_id" in own,
        "servegen-offline": offline,
    }.get(name, False)


def reading(source: Source, options: ReadOptions, name: str) -> Reading:
    """Read a trace: in ms with 512 tokens an id Mooncake's, in s with 16 tokens the others."""
    ticks_per_s, block_tokens = _STATED.get(name, (1, 16))
    params = options.params
    given = whole_param(source, options, "block")
    if params.get("turns", "wait") not in ("wait", "open"):
        raise TraceError(
            f"{source.path}: turns is {params['turns']!r}; must be wait (a session's next turn "
            "waits for the answer before it) or open (as if answers took no time)"
        )
    if "unit" in params:
        if params["unit"] not in TICKS_PER_S:
            raise TraceError(
                f"{source.path}: unit is {params['unit']!r}; must be one of "
                f"{', '.join(TICKS_PER_S)}"
            )
        ticks_per_s = TICKS_PER_S[params["unit"]]
    builder = TraceBuilder(
        source, name, sort=options.sort, ticks_per_s=ticks_per_s, guess_unit="unit" not in params
    )
    unit = next(name for name, ticks in TICKS_PER_S.items() if ticks == ticks_per_s)
    builder.columns = {
        "arrival": f"timestamp ({unit})",
        "prompt": _LENGTHS[0],
        "output": _LENGTHS[1],
    }
    all_at_once = name == "servegen-offline"
    lines = _Lines(
        source,
        builder,
        block_tokens,
        given,
        params.get("turns") == "open",
        ticks_per_s == 1000 and "unit" not in params,
        all_at_once,
        whole_param(source, options, "output"),
    )
    if all_at_once:
        builder.columns["arrival"] = "none: all at the start"
        builder.notes.append("an offline job: all of its requests arrive at the start")
    return builder, lines.steps()


#: place, time, lengths of prompt and output, number of ids, priority and timeout of a row
_Row = tuple[str, float, int, int, int, int, float]


@dataclass
class _Session:
    """Where a session is: its latest request in the file, and the earliest time of the next."""

    row: int
    at: float


@dataclass(eq=False)
class _Lines:
    """Reads the lines of one file; knows its sessions, and settles the block size."""

    _source: Source
    _builder: TraceBuilder
    #: tokens of an id by the format, and as they were given
    _stated: int
    _given: int | None
    #: turns do not wait for answers
    _open: bool
    #: whether milliseconds may be an error
    question_ms: bool
    #: whether there are no times
    all_at_once: bool
    #: of rows that do not say
    output_tokens: int | None

    def __post_init__(self) -> None:
        self._block_tokens = self._given
        self._sessions: dict[Any, _Session] = {}
        self._by_id: dict[Any, _Session] = {}
        self._rows = 0
        self._told_delay = self._told_priority = self._told_several = False
        self._said = {
            key
            for row in first_objects(self._source)
            for key, missing in (("priority", 0), ("timeout_s", None))
            if row.get(key) not in (None, missing)
        }

    def steps(self) -> Iterator[None]:
        """Read some thousands of rows at a time, fewer if they have many ids."""
        every = objects(self._source)
        while batch := self._batch(every):
            places, times, prompts, outputs, counts, priority, timeout_s = zip(*batch, strict=True)
            if any(counts):
                self._settle_block(places, prompts, counts)
            if self.question_ms and len(times) > 1:
                self._question(times)
            self._builder.add(
                np.arange(len(places)),
                np.array(times),
                np.array(prompts, np.int64),
                np.array(outputs, np.int64),
                column="timestamp",
                place=places.__getitem__,
                priority=self._if_any("priority", np.array(priority, np.int64), 0),
                timeout_s=self._if_any("timeout_s", np.array(timeout_s), inf),
            )
            yield

    def _batch(self, every: Iterator[tuple[str, dict[str, Any]]]) -> list[_Row]:
        """The next rows; none at the end."""
        batch: list[_Row] = []
        ids = 0
        for place, given in every:
            row = _named(given)
            if self.output_tokens is not None:
                row.setdefault(_LENGTHS[1], self.output_tokens)
            elif self.all_at_once and _LENGTHS[1] not in row:
                raise TraceError(
                    f"{self._source.path}, {place}: no {_LENGTHS[1]!r}; the job has none, so say "
                    "how many tokens each has with :output=N after the path"
                )
            prompt, output = (_length(self._source, place, row, key) for key in _LENGTHS)
            if prompt == 0 or output == 0:
                self._builder.skip("no prompt token" if prompt == 0 else "no output token")
                continue
            time, count = self._time(place, row), self._add_ids(place, row)
            self._rows += 1
            priority, timeout_s = self._priority(place, row), self._timeout_s(place, row)
            batch.append((place, time, prompt, output, count, priority, timeout_s))
            ids += count
            if len(batch) == _BATCH_ROWS or ids > _BATCH_IDS:
                break
        return batch

    def _if_any(self, key: str, values: Any, missing: float) -> Any:
        """A column, or None if no request seen so far says anything."""
        if key not in self._said and (values != missing).any():
            self._said.add(key)
        return values if key in self._said else None

    def _priority(self, place: str, row: dict[str, Any]) -> int:
        value = row.get("priority")
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MOST_PRIORITY:
            _fail(self._source, place, row, "priority", "a whole number: the larger goes first")
        if not self._told_priority:
            self._told_priority = True
            self._builder.notes.append(
                "priority is read as Dynamo's, where the larger goes first; vLLM's is its negative"
            )
        return -value

    def _timeout_s(self, place: str, row: dict[str, Any]) -> float:
        value = row.get("timeout_s")
        if value is None:
            return inf
        if not _is_number(value) or not value > 0:
            _fail(self._source, place, row, "timeout_s", "a number of seconds > 0")
        return float(value)

    def _time(self, place: str, row: dict[str, Any]) -> float:
        """When a request is sent; of a later turn the earliest time that can be."""
        source, builder = self._source, self._builder
        if self.all_at_once:
            return 0
        time: Any = row.get("timestamp")
        session, name = row.get("session_id"), row.get("request_id")
        before = None if session is None else self._sessions.get(_key(session))
        if row.get("wait_for"):
            before = self._awaited(place, row)
            delay = 0.0 + self._delay(place, row, "delay") + self._delay(place, row, "tool_wait_ms")
            time = before.at + delay
            builder.add_turn(self._rows, None if self._open else before.row, delay)
        elif time is None and before is not None:
            delay = self._delay(place, row, "delay")
            time = before.at + delay
            builder.add_turn(self._rows, None if self._open else before.row, float(delay))
            told = builder.columns["arrival"].replace("timestamp", "delay")
            builder.columns |= {"session": "session_id", "delay": told}
        else:
            if not _is_number(time):
                hint = " (or a session_id and delay, after a row of that session)"
                _fail(source, place, row, "timestamp", "a number" + hint)
            if row.get("delay") and before is not None and not self._told_delay:
                self._told_delay = True
                builder.notes.append(
                    "rows with a timestamp and a delay are sent at their timestamp"
                )
        own = _Session(self._rows, time)
        if session is not None:
            self._sessions[_key(session)] = own
        if name is not None:  # others may wait for it
            self._by_id[_key(name)] = own
        return time  # type: ignore[no-any-return]  # as it stands: whole or not

    def _delay(self, place: str, row: dict[str, Any], key: str) -> float:
        value = row.get(key)
        value = 0 if value is None else value
        if not _is_number(value) or value < 0:
            _fail(self._source, place, row, key, "a number of milliseconds >= 0")
        return value

    def _awaited(self, place: str, row: dict[str, Any]) -> _Session:
        """The last of those whose answers a row waits for, by their names."""
        names = row["wait_for"]
        names = names if isinstance(names, list) else [names]
        found = [self._by_id[_key(name)] for name in names if _key(name) in self._by_id]
        if not found:
            _fail(self._source, place, row, "wait_for", "a list of request_ids of rows above it")
        if len(names) > 1 and not self._told_several:
            self._told_several = True
            self._builder.notes.append(
                "a row that waits for several answers waits for the one of them that is asked for "
                "last"
            )
        return max(found, key=lambda entry: (entry.at, entry.row))

    def _add_ids(self, place: str, row: dict[str, Any]) -> int:
        ids = row.get("hash_ids")
        ids = [] if ids is None else ids
        if not isinstance(ids, list):
            _fail(self._source, place, row, "hash_ids", "a list of ids")
        try:
            self._builder.add_hash_ids(ids)
        except (TypeError, OverflowError):
            try:
                self._builder.add_hash_ids([prefix_id(i) for i in ids])
            except TypeError:
                _fail(self._source, place, row, "hash_ids", "a list of whole numbers or texts")
        return len(ids)

    def _settle_block(
        self, places: Sequence[str], prompts: Sequence[int], counts: Sequence[int]
    ) -> None:
        pairs = [(p, n) for p, n in zip(prompts, counts, strict=True) if n]
        if self._block_tokens is None:
            found = fitting_block_tokens([p for p, _ in pairs], [n for _, n in pairs], self._stated)
            if found is not None and found != self._stated:
                self._builder.notes.append(
                    f"a hash id stands for {found} prompt tokens, as the lengths of the prompts "
                    f"show (this format's own size is {self._stated}; :block=N says otherwise)"
                )
            self._block_tokens = self._stated if found is None else found
        size = self._block_tokens
        self._builder.block_tokens = size
        self._builder.columns["hash_ids"] = f"hash_ids ({size} tokens each)"
        for place, prompt, n in zip(places, prompts, counts, strict=True):
            if n > most_ids(prompt, size):
                what = "taken to be" if self._given is None else "given as"
                raise TraceError(
                    f"{self._source.path}, {place}, column 'hash_ids': {n} ids for "
                    f"{prompt} prompt tokens, more than one for each {size}; the block size is "
                    f"{what} {size}: give the right one with :block=N after the path"
                )

    def _question(self, times: Sequence[float]) -> None:
        self.question_ms = False
        span_s = (max(times) - min(times)) / 1000
        rate = len(times) / span_s if span_s > 0 else 0.0
        fractions = any(type(t) is float and not t.is_integer() for t in times)
        if rate > 100 and (fractions or (len(times) > 3 and rate > 500)):
            self._builder.notes.append(
                f"timestamps are read as milliseconds, which makes {rate:,.0f} requests/s; they "
                "look like seconds: if they are, give :unit=s after the path"
            )


def _key(session: Any) -> Any:
    return session if isinstance(session, str | int) else json.dumps(session, sort_keys=True)


def _is_number(value: Any) -> bool:
    return is_number(value) and abs(value) < 1e300


def _length(source: Source, place: str, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        _fail(source, place, row, key, "a whole number >= 0")
    return value


def _fail(source: Source, place: str, row: dict[str, Any], key: str, expected: str) -> NoReturn:
    where = f"{source.path}, {place}"
    if key not in row:
        raise TraceError(f"{where}: no {key!r}; it must be {expected}")
    raise TraceError(f"{where}, column {key!r}: {str(row[key])[:80]!r} is not {expected}")
