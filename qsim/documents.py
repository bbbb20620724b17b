"""JSON, YAML and CSV from outside, read with bounds: size, nesting, digits, repeated keys.

Every document that qsim reads goes through here. JSON is that of RFC 8259: no NaN, no infinities.
YAML is the core schema of YAML 1.2, with neither aliases nor tags: ``010`` is ten, ``1:30``,
``yes`` and ``2026-01-01`` are texts. CSV is bounded by line, cell, rows and what gzip may
unpack to.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from qsim.bounds import shown
from qsim.errors import QsimError, ScenarioError

#: largest document, bytes
MAX_JSON = 16 << 20
MAX_YAML = 256 << 10
#: deepest nesting of lists and objects
MAX_DEPTH = 32
#: longest whole number, digits; 64 bits have 20
MAX_DIGITS = 25

Error = type[QsimError]


class _BoundError(ValueError):
    """A document that breaks a bound."""


def read_text(
    path: str | os.PathLike[str], error: Error = ScenarioError, *, most: int = MAX_JSON
) -> str:
    """A file of UTF-8 text of at most ``most`` bytes, with or without a byte-order mark.

    Raises
    ------
    QsimError
        (of the class ``error``) if it cannot be read, is larger, or is not UTF-8.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as f:
            data = f.read(most + 1)
    except ValueError as e:  # a zero byte in the name
        raise error(f"cannot read {shown(name)}: {e}") from None
    except OSError as e:
        raise error(f"cannot read {name}: {e.strerror or e}") from None
    if len(data) > most:
        raise error(f"{name}: is larger than {_size(most)}, the most that is read of such a file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise error(f"{name}: is not UTF-8 (byte {e.start} is {data[e.start]:#04x})") from None


def read_json(
    path: str | os.PathLike[str], error: Error = ScenarioError, *, most: int = MAX_JSON
) -> Any:
    """The data of a JSON file; see :func:`parse_json`."""
    return parse_json(read_text(path, error, most=most), os.fspath(path), error, most=most)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The data of a YAML file; see :func:`parse_yaml`."""
    return parse_yaml(read_text(path, ScenarioError, most=MAX_YAML), os.fspath(path))


def parse_json(text: str, where: str, error: Error = ScenarioError, *, most: int = MAX_JSON) -> Any:
    """JSON as plain data; ``where``, the file, begins an error.

    Raises
    ------
    QsimError
        (of the class ``error``) if it is not JSON or longer than ``most``, repeats a key in an
        object, holds a number that is not finite or has more than 25 digits, or is nested deeper
        than 32.
    """
    if len(text) > most:
        raise error(f"{where}: is larger than {_size(most)}, the most that is read of such a file")
    try:
        data = _DECODER.decode(text)
        _check_depth(data)
        if ("\\u" in text or not text.isascii()) and _SURROGATE.search(
            text
        ):  # half of a pair cannot be written out again
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except _BoundError as e:
        raise error(f"{where}: {e}") from None
    except json.JSONDecodeError as e:
        raise error(f"{where}: not JSON: {e}") from None
    except UnicodeEncodeError:
        raise error(f"{where}: holds a character that is half of a surrogate pair") from None
    except RecursionError:
        raise error(f"{where}: is nested deeper than {MAX_DEPTH}") from None
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _BoundError(f"the key {shown(key)} comes twice in one object")
            seen.add(key)
    return data


def _whole(text: str) -> int:
    digits = len(text.lstrip("+-"))
    if digits > MAX_DIGITS:
        raise _BoundError(f"holds a whole number of {digits} digits; at most {MAX_DIGITS} are read")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _BoundError(f"holds the number {shown(text)}, which is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise _BoundError(f"holds {text}; numbers must be finite")


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_number, parse_constant=_constant
)


def _check_depth(data: Any) -> None:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            member
            for part in level
            for member in (part.values() if isinstance(part, dict) else part)
            if isinstance(member, dict | list)
        ]
    if level:
        raise _BoundError(f"is nested deeper than {MAX_DEPTH}")


_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def plain_scalar(text: str) -> Any:
    """What an unquoted scalar means in the core schema of YAML 1.2 (section 10.3.2).

    Raises
    ------
    ValueError
        For a number that is not finite or too long.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return _whole(text)
    if len(text) <= MAX_DIGITS:
        if _OCTAL.fullmatch(text):
            return int(text[2:], 8)
        if _HEX.fullmatch(text):
            return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return _number(text)
    if _NOT_FINITE.fullmatch(text):
        raise _BoundError(f"holds {text}; numbers must be finite")
    return text


def read_yaml_documents(path: str | os.PathLike[str]) -> list[Any]:
    """The documents of a YAML file that may have several; see :func:`parse_yaml`."""
    text = read_text(path, ScenarioError, most=MAX_YAML)
    found: list[Any] = parse_yaml(text, os.fspath(path), several=True)
    return found


def parse_yaml(text: str, where: str, *, several: bool = False) -> Any:
    """YAML as plain data; None for an empty document, a list of documents if there are ``several``.

    Raises
    ------
    ScenarioError
        If it is not YAML, repeats a key, has aliases, tags, more than one document or a key that is
        not a text, or breaks a bound of :func:`parse_json`. It begins with ``where``, the file.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if len(text) > MAX_YAML:
        raise ScenarioError(f"{where}: is larger than {_size(MAX_YAML)}")
    try:
        documents = _compose(iter(YAML(typ="safe", pure=True).parse(text)), several)
        return documents if several else documents[0] if documents else None
    except _BoundError as e:
        raise ScenarioError(f"{where}: {e}") from None
    except (YAMLError, ValueError, RecursionError, IndexError, TypeError, AttributeError) as e:
        # all but the first are what the library's scanner raises on some malformed texts
        raise ScenarioError(f"{where}: not YAML: {' '.join(str(e).split())[:300]}") from None


def _compose(events: Iterator[Any], several: bool) -> list[Any]:
    from ruamel.yaml import events as kinds

    root: list[Any] = []
    # containers that are open: the values, and of a mapping the key that waits for its value
    open_: list[Any] = [root]
    keys: list[Any] = [None]
    documents = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, kinds.DocumentStartEvent):
            documents += 1
            if documents > 1 and not several:
                raise _BoundError(f"line {line}: a second document begins; there must be one")
            continue
        if isinstance(event, kinds.AliasEvent):
            raise _BoundError(
                f"line {line}: has an alias (*{shown(event.anchor)[1:-1]}); write it out"
            )
        if isinstance(event, kinds.MappingEndEvent | kinds.SequenceEndEvent):
            open_.pop()
            keys.pop()
            continue
        if not isinstance(event, kinds.NodeEvent):
            continue
        if getattr(event, "tag", None) is not None:
            raise _BoundError(f"line {line}: has a tag; write plain values")
        if isinstance(event, kinds.ScalarEvent):
            plain = bool(event.implicit[0])
            try:
                value = plain_scalar(event.value) if plain else event.value
            except _BoundError as e:
                raise _BoundError(f"line {line}: {e}") from None
        else:
            value = {} if isinstance(event, kinds.MappingStartEvent) else []
        parent, key = open_[-1], keys[-1]
        if isinstance(parent, list):
            parent.append(value)
        elif key is None:
            if not isinstance(value, str):
                raise _BoundError(f"line {line}: the key {shown(value)} is not a text")
            if value in parent:
                raise _BoundError(f"line {line}: the key {shown(value)} comes twice")
            keys[-1] = value
            continue
        else:
            parent[key] = value
            keys[-1] = None
        if isinstance(value, dict | list):
            if len(open_) > MAX_DEPTH:
                raise _BoundError(f"line {line}: is nested deeper than {MAX_DEPTH}")
            open_.append(value)
            keys.append(None)
    return root


def to_yaml(data: Any, *, several: bool = False) -> str:
    """Plain data as YAML that reads the same under YAML 1.1 and 1.2.

    A text that either would take for a number or a word of its own is quoted. With ``several``,
    ``data`` is a list of documents.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, value: str) -> Any:
        try:
            style = None if plain_scalar(value) == value else "'"
        except _BoundError:
            style = "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]
    if several:
        return str(
            yaml.dump_all(data, Dumper=Dumper, sort_keys=False, explicit_start=True, width=1000)
        )
    return str(yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


#: longest line, bytes; the csv module itself refuses a cell of more than 131,072 characters
MAX_LINE = 1 << 20
#: most that one file may unpack to, bytes
MAX_BYTES = 2 << 30
MAX_ROWS = 1_000_000


def csv_lines(
    path: str | os.PathLike[str], error: type[QsimError], *, most_rows: int = MAX_ROWS
) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, gzip or not, with the number of each one's last line.

    Raises
    ------
    QsimError
        (of the class ``error``) if the file cannot be read, is no CSV in UTF-8, or has a line
        longer than 1 MiB, a cell longer than 131,072 characters, more than ``most_rows`` rows or
        more than 2 GiB.
    """
    import csv
    import gzip
    import zlib

    name = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b" or name.endswith(".gz")
            stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            reader = csv.reader(_lines(stream, name, error))
            for count, cells in enumerate(reader):
                if count > most_rows:
                    raise error(f"{name}: has more than {most_rows} rows")
                yield reader.line_num, cells
    except FileNotFoundError:
        raise error(f"cannot read {name}: no such file") from None
    except UnicodeDecodeError as e:
        raise error(f"{name}: is not UTF-8 ({e.reason})") from None
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as e:
        reason = getattr(e, "strerror", None) or e
        raise error(f"cannot read {name}: {shown(str(reason), 200)[1:-1]}") from None


def _lines(stream: Any, name: str, error: type[QsimError]) -> Iterator[str]:
    total = number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        total += len(line)
        if len(line) > MAX_LINE:
            raise error(f"{name}: line {number} is longer than {MAX_LINE >> 20} MiB")
        if total > MAX_BYTES:
            raise error(f"{name}: unpacks to more than {MAX_BYTES >> 30} GiB")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def rows_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a column a name; empty where there is no value."""
    import csv
    import io

    out = io.StringIO()
    names = list(dict.fromkeys(n for row in rows for n in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
