"""Which columns a file has, and which is what: names that are known, and names that a user gives.

A name is compared without case and without signs between its words: ``Prompt Tokens``,
``prompt_tokens`` and ``promptTokens`` are one. ``usage.prompt_tokens`` is the value
``prompt_tokens`` within ``usage``, in JSON and in structs of Parquet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qsim.errors import TraceError
from qsim.traces.reading.json_rows import first_objects
from qsim.traces.reading.parquet import MAGIC, parquet_columns
from qsim.traces.reading.source import Source
from qsim.traces.reading.table import dialect_of
from qsim.traces.reading.times import UNITS

#: what a column can be, with what it means
ROLES = {
    "arrival": "when the request came",
    "prompt": "tokens of its prompt",
    "output": "tokens of its answer",
    "session": "which session it is a turn of",
    "delay": "how long after the answer before it a turn is sent",
    "hash_ids": "prefix-block ids",
    "block": "prompt tokens that a prefix id stands for",
    "priority": "its priority, a whole number: the smaller goes first, as vLLM has it",
    "timeout": "how long its client waits for the answer",
}
#: names of each, in the order in which they are tried
ALIASES: Mapping[str, tuple[str, ...]] = {
    "arrival": (
        "arrival_s", "arrival", "arrived_at", "arrival_time", "arrival_timestamp",
        "request_start_time", "request_start", "request_time", "request_timestamp", "start_time",
        "started_at", "send_time", "sent_at", "created_at", "created", "timestamp", "datetime",
        "date_time", "date", "time", "ts",
    ),
    "prompt": (
        "prompt_tokens", "input_tokens", "num_prefill_tokens", "num_prompt_tokens", "prompt_size",
        "input_length", "input_len", "prompt_length", "prompt_len", "context_tokens",
        "request_tokens", "prefill_tokens", "num_input_tokens", "input_token_num",
        "prompt_token_count", "input_token_count", "input_sequence_length", "isl", "tokens_in",
        "usage.prompt_tokens", "usage.input_tokens",
        "response.usage.prompt_tokens", "response.usage.input_tokens",
    ),
    "output": (
        "output_tokens", "completion_tokens", "num_decode_tokens", "token_size",
        "num_output_tokens", "output_length", "output_len", "completion_length", "generated_tokens",
        "generation_tokens", "response_tokens", "decode_tokens", "num_generated_tokens",
        "output_token_num", "completion_token_count", "output_token_count",
        "output_sequence_length", "osl", "tokens_out",
        "usage.completion_tokens", "usage.output_tokens",
        "response.usage.completion_tokens", "response.usage.output_tokens",
    ),
    "session": ("session_id", "session", "conversation_id"),
    "delay": ("delay_s", "delay", "delay_ms", "think_time_s", "think_time"),
    "hash_ids": ("hash_ids", "prefix_ids", "block_hashes"),
    "block": ("hash_block_tokens",),
    "priority": ("priority", "vllm_priority", "request_priority"),
    "timeout": ("timeout_s", "timeout", "client_timeout", "request_timeout", "timeout_ms"),
}  # fmt: skip
#: units at the end of a name
_SUFFIXES = (
    ("s", ("s", "sec", "secs", "second", "seconds")),
    ("ms", ("ms", "millis", "msec", "millisecond", "milliseconds")),
    ("us", ("us", "micros", "usec", "microsecond", "microseconds")),
    ("ns", ("ns", "nanos", "nsec", "nanosecond", "nanoseconds")),
)
_SUFFIX_UNITS = tuple(unit for unit, _ in _SUFFIXES)
_SUFFIX = {text: unit for unit, texts in _SUFFIXES for text in texts}
_TIMES = ("arrival", "delay", "timeout")
#: roles of which a column of the usual name may hold something else
_PLAIN = ("priority", "timeout")


@dataclass(frozen=True)
class Column:
    """A column of a file, and how to read it."""

    #: as the file has it
    name: str
    #: a key of :data:`qsim.traces.reading.times.UNITS`: given, or told by the name. None: told by
    #: the values.
    unit: str | None = None
    #: whether the unit (of a priority or timeout, the column) was given by the user
    given: bool = False


def normal(name: str) -> str:
    """A name without case and without signs between its words."""
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def unit_of(name: str) -> str | None:
    """The unit at the end of a name: ``arrival_ms``, ``Elapsed (s)``, ``startNanos``."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name.rpartition(".")[2])
    return _SUFFIX.get(words[-1].lower()) if len(words) > 1 else None


def _without_unit(name: str) -> str:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|\.", name)
    if len(words) > 1 and words[-1].lower() in _SUFFIX:
        words = words[:-1]
    return "".join(words).lower()


def find_columns(names: Iterable[str]) -> dict[str, Column]:
    """The columns of known names, by role.

    Raises
    ------
    TraceError
        If two columns have the same name but for case and signs.
    """
    listed = list(names)
    by_name: dict[str, str] = {}
    for name in reversed(listed):
        by_name[normal(name)] = name
    timeless: dict[str, str] = {}
    for name in reversed(listed):
        if unit_of(name):
            timeless[_without_unit(name)] = name
    found: dict[str, Column] = {}
    for role, aliases in ALIASES.items():
        for alias in aliases:
            own = by_name.get(normal(alias))
            if own is None and role in _TIMES:
                own = timeless.get(normal(alias))
            if own is not None:
                found[role] = Column(own, unit_of(own) if role in _TIMES else None)
                break
    return found


_ONE = re.compile(r"\s*([a-z_]+)\s*=\s*(.+?)\s*(?:\[([a-z_]+)\])?\s*")


def parse_columns(text: str) -> dict[str, Column]:
    """What ``--columns`` says: ``arrival=start_time[unix_ms],prompt=usage.prompt_tokens``.

    Raises
    ------
    TraceError
        If a part is not of that form, or a role or unit is unknown.
    """
    found: dict[str, Column] = {}
    for part in text.split(","):
        match = _ONE.fullmatch(part)
        if match is None:
            raise TraceError(
                f"--columns: {part!r} is not ROLE=COLUMN or ROLE=COLUMN[UNIT]; it looks like "
                "arrival=start_time[unix_ms],prompt=usage.prompt_tokens,output=tokens_out"
            )
        role, name, unit = match.groups()
        if role not in ROLES:
            raise TraceError(f"--columns: {role!r} is unknown; must be one of {', '.join(ROLES)}")
        if role in found:
            raise TraceError(f"--columns: {role} is given twice")
        units = list(UNITS) if role == "arrival" else list(_SUFFIX_UNITS) if role in _TIMES else []
        if unit is not None and unit not in units:
            allowed = f"one of {', '.join(units)}" if units else "left out"
            raise TraceError(f"--columns: unit of {role} is {unit!r}; must be {allowed}")
        given = bool(unit) or role in _PLAIN
        found[role] = Column(name, unit or (unit_of(name) if role in _TIMES else None), given)
    return found


def is_parquet(source: Source) -> bool:
    """Whether a file is Parquet."""
    return not source.is_dir and source.head.startswith(MAGIC)


def is_json(source: Source) -> bool:
    """Whether a file begins as JSON does."""
    return not source.is_dir and source.head.lstrip()[:1] in (b"{", b"[")


def names_of(source: Source) -> list[str]:
    """The columns of a file: its header, Parquet's schema, or the paths of the first object."""
    if source.is_dir:
        return []
    if "names" not in source.__dict__:  # asked by one format after the other
        source.__dict__["names"] = _names_of(source)
    return list(source.__dict__["names"])


def has_columns(source: Source, columns: Iterable[str]) -> bool:
    """Whether a table, CSV or Parquet, has all of these columns, in any case."""
    if source.is_dir or is_json(source):
        return False
    return {c.lower() for c in columns} <= {n.lower() for n in names_of(source)}


def _names_of(source: Source) -> list[str]:
    if is_parquet(source):
        return [column.name for column in parquet_columns(source)]
    if is_json(source):
        # a value may be missing in some of them
        return list(dict.fromkeys(p for row in first_objects(source) for p in _paths(row)))
    return list(dialect_of(source.head).names)


def _paths(row: Mapping[str, Any], before: str = "", depth: int = 4) -> Iterator[str]:
    for key, value in row.items():
        path = f"{before}{key}"
        yield path
        if isinstance(value, dict) and depth:
            yield from _paths(value, f"{path}.", depth - 1)
