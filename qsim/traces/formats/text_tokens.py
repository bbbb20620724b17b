"""Counting the tokens of texts: by a tokenizer that is named, or by characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qsim.errors import MissingExtraError, TraceError
from qsim.traces.formats.options import ReadOptions, number_param
from qsim.traces.reading.source import Source

__all__ = ["TEXT_PARAMS", "text_counter"]

TEXT_PARAMS = {
    "chars": "characters a token; 4 unless given",
    "tokenizer": "tokenizer.json, or a Hugging Face id, that counts the tokens instead",
}


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
