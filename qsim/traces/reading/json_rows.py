"""Rows of JSON: one object a line, or an array of objects, some at a time."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from qsim.checks import is_number
from qsim.errors import TraceError
from qsim.traces.reading import table
from qsim.traces.reading.source import MOST_LINE_BYTES, Source
from qsim.traces.reading.table import Kind, Rows
from qsim.traces.reading.times import parse_time_ns

#: a longer object is not looked into to recognise a format
_FIRST_BYTES = 16 << 20


def parse_json(text: bytes | str) -> Any:
    """What ``json.loads`` gives.

    Raises
    ------
    ValueError
        Also for nesting that is too deep, and for numbers that are too long.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def as_number(value: Any) -> float | None:
    """A number, also one that is a text (``"inf"``); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def objects(source: Source, longest: int = MOST_LINE_BYTES) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, of one JSON array, or over several lines each.

    Raises
    ------
    TraceError
        If a line or item is no JSON object, or is longer than 64 MiB.
    """
    head = source.head.lstrip()
    if head.startswith(b"["):
        yield from _items(source, "[", longest)
        return
    if head.startswith(b"{") and not _one_a_line(head):
        yield from _items(source, "", longest)
        return
    for number, line in source.lines():
        try:
            value = parse_json(line)
        except ValueError as error:
            shown = line[:80].decode("utf-8", "replace")
            raise TraceError(
                f"{source.path}, line {number}: {shown!r} is not JSON: {error}"
            ) from None
        if not isinstance(value, dict):
            raise TraceError(
                f"{source.path}, line {number}: {str(value)[:80]!r} is not a JSON object"
            )
        yield f"line {number}", value


def _one_a_line(head: bytes) -> bool:
    """Whether the first line is an object or ought to be; not so in what ``jq`` lays out."""
    line, end, _ = head.partition(b"\n")
    line = line.strip()
    if not end or line.endswith(b"}"):
        return True
    try:
        parse_json(line)
    except ValueError:
        return line not in (b"{", b"{ ") and not line.endswith((b",", b"{", b"["))
    return True


def _items(source: Source, opening: str, longest: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The items of an array, or objects that stand one after the other."""
    decoder = json.JSONDecoder()
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    chunks = source.chunks()
    text, at, ended = "", 0, False
    number = 0

    def more() -> bool:
        """Take in as much again as is there, so that a long item stays linear."""
        nonlocal text, at, ended
        pieces = [text[at:]]
        size = 0
        while not ended and size <= len(pieces[0]):
            chunk = next(chunks, None)
            ended = chunk is None
            pieces.append(decode(chunk or b"", ended))
            size += len(pieces[-1])
        text, at = "".join(pieces), 0
        return size > 0

    def skip(marks: str) -> str:
        """The next character that is neither blank nor one of the marks."""
        nonlocal at
        while True:
            while at < len(text) and (text[at].isspace() or text[at] in marks):
                at += 1
            if at < len(text) or not more():
                return text[at] if at < len(text) else ""

    if skip(opening) == "":
        return
    between, closing = (",", "]") if opening else ("", "")
    while (mark := skip(between)) != closing:
        number += 1
        where = f"{source.path}, item {number}"
        if mark == "":
            raise TraceError(f"{where}: the JSON array is not closed; the file is cut off")
        while True:
            try:
                value, end = decoder.raw_decode(text, at)
                # a number at the end of what is there may go on
                if end < len(text) or ended:
                    break
            except (ValueError, RecursionError) as error:
                if ended or isinstance(error, RecursionError):
                    raise TraceError(f"{where}: not JSON: {error}") from None
            if len(text) - at > longest:
                raise TraceError(f"{where}: longer than {longest >> 20} MiB, or not JSON")
            more()
        at = end
        if not isinstance(value, dict):
            raise TraceError(f"{where}: {str(value)[:80]!r} is not a JSON object")
        yield f"item {number}", value


def first_objects(source: Source, most: int = 20) -> list[dict[str, Any]]:
    """The first objects of a file of JSON; none if it holds something else."""
    if source.is_dir or source.head.lstrip()[:1] not in (b"{", b"["):
        return []
    if "firsts" not in source.__dict__:  # asked by one format after the other
        found: list[dict[str, Any]] = []
        try:
            for _, row in islice(objects(source, _FIRST_BYTES), most):
                found.append(row)
        except TraceError:
            pass  # it is told when the file is read
        source.__dict__["firsts"] = found
    return list(source.__dict__["firsts"])


def first_object(source: Source) -> dict[str, Any]:
    """The first object of a file of JSON lines or an array; empty if it holds something else."""
    return next(iter(first_objects(source)), {})


def lookup(row: Any, path: str) -> Any:
    """The value at a path such as ``usage.prompt_tokens``; None where there is none.

    A key that holds the dots itself goes first.
    """
    if not isinstance(row, dict):
        return None
    if path in row:
        return row[path]
    head, dot, rest = path.partition(".")
    while dot:
        if head in row:
            found = lookup(row[head], rest)
            if found is not None:
                return found
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return None


def lookup_first(row: Any, paths: Sequence[str]) -> Any:
    """The value at the first of several paths that is there; None where none is."""
    return next((v for v in (lookup(row, path) for path in paths) if v is not None), None)


def _convert(value: Any, kind: Kind) -> Any:
    if kind == "text":
        return value if value is None or isinstance(value, str | list) else json.dumps(value)
    if kind == "date":
        return parse_time_ns(value) if isinstance(value, str) else None
    if isinstance(value, str):
        try:
            value = int(value) if kind == "stamp" else float(value.replace("_", "x"))
        except ValueError:
            return None
    if not is_number(value):
        return None
    if kind == "stamp":
        good = isinstance(value, int) and -(1 << 63) <= value < 1 << 63
        return value if good else None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def read_json(source: Source, wanted: Sequence[tuple[str, Kind]]) -> Iterator[Rows]:
    """Columns of a file of JSON objects by their paths, some rows at a time.

    Raises
    ------
    TraceError
        If a line is no JSON object.
    """
    names = [path for path, _ in wanted]
    first = 0
    places: list[str] = []
    values: list[list[Any]] = [[] for _ in wanted]
    texts: dict[tuple[int, int], str] = {}  # of values that cannot be converted

    def rows() -> Rows:
        own_places, own_texts, start = list(places), dict(texts), first
        number = np.arange(start, start + len(own_places))

        def locate(number: int, column: int) -> tuple[str, str]:
            at = number - start
            return own_places[at], own_texts.get((at, column), "") or str(own[column][at])

        own = [list(column) for column in values]
        return Rows(number, own, names, locate, source)

    for place, row in objects(source):
        for k, (path, kind) in enumerate(wanted):
            value = lookup(row, path)
            converted = _convert(value, kind)
            if converted is None:
                texts[len(places), k] = "nothing" if value is None else str(value)[:200]
            values[k].append(converted)
        places.append(place)
        if len(places) == -(-table.BATCH_ROWS // 4):
            yield rows()
            first += len(places)
            places, texts = [], {}
            values = [[] for _ in wanted]
    if places:
        yield rows()
