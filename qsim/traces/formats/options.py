"""What a caller may tell a reader, and what a format's parameters may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsim.bounds import shown
from qsim.errors import MissingExtraError, TraceError
from qsim.traces.reading.columns import Column
from qsim.traces.reading.source import Source

#: of formats with texts
TEXT_PARAMS = {
    "chars": "characters a token; 4 unless given",
    "tokenizer": "tokenizer.json, or a Hugging Face id, that counts the tokens instead",
}


@dataclass(frozen=True)
class ReadOptions:
    """How to read."""

    #: put rows in order of arrival instead of refusing a file that is not
    sort: bool = False
    #: for formats whose reading is a draw (ServeGen's rate windows)
    seed: int = 0
    #: parameters given after the path, for the formats that have any
    params: Mapping[str, str] = field(default_factory=dict)
    #: which column is what, by role, where the caller says so (``--columns``)
    columns: Mapping[str, Column] = field(default_factory=dict)


def number_param(source: Source, options: ReadOptions, key: str) -> float | None:
    """A parameter that is a number > 0; None if it is not given.

    Raises
    ------
    TraceError
        If it is something else.
    """
    text = options.params.get(key)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise TraceError(f"{source.path}: {key} is {shown(text)}; must be a number > 0")
    return value


def whole_param(source: Source, options: ReadOptions, key: str, least: int = 1) -> int | None:
    """A parameter that is a whole number of at least ``least``; None if it is not given.

    Raises
    ------
    TraceError
        If it is something else.
    """
    text = options.params.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or not least <= int(text[:20]) <= 10**9:
        raise TraceError(
            f"{source.path}: {key} is {shown(text)}; must be a whole number >= {least}"
        )
    return int(text)


def chosen(
    source: Source, options: ReadOptions, key: str, entries: Sequence[str], what: str
) -> int:
    """Which one of several entries of a file a parameter names, from 0.

    The parameter ``key`` counts from 1, and a single entry needs none. An error says what each of
    the entries is, and ``what`` they are called, in the plural.

    Raises
    ------
    TraceError
        If there is no such entry, or several and none is named.
    """
    told = ", ".join(f"{i} ({entry})" for i, entry in enumerate(entries, 1))[:500]
    text = options.params.get(key)
    if text is None:
        if len(entries) > 1:
            raise TraceError(
                f"{source.path}: {len(entries)} {what}; choose one with :{key}=N after the path: "
                f"{told}"
            )
        return 0
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 1 <= number <= len(entries):
        raise TraceError(f"{source.path}: {key} is {shown(text)}; must be one of {told}")
    return number - 1


def text_counter(source: Source, options: ReadOptions) -> tuple[Callable[[str], int], str]:
    """Counts the tokens of a text; and how, for people.

    Raises
    ------
    TraceError
        If the tokenizer cannot be loaded.
    MissingExtraError
        If one is named and the package is not installed.
    """
    name = options.params.get("tokenizer")
    if name is None:
        chars = number_param(source, options, "chars") or 4.0
        return (
            lambda text: round(len(text) / chars) or int(bool(text)),
            f"tokens are estimated as {chars:g} characters each; :tokenizer=ID counts them",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("tokenizers", "tokenizers", "counting tokens") from None
    try:
        own: Any = (
            Tokenizer.from_file(name) if name.endswith(".json") else Tokenizer.from_pretrained(name)
        )
    except Exception as error:
        raise TraceError(f"{source.path}: tokenizer {name!r} cannot be loaded: {error}") from None
    return lambda text: len(own.encode(text).ids), f"tokens are counted by {name}"
