"""ShareGPT's conversations (JSON): lengths without times.

A request is the first question of a conversation with its answer, as ``vllm bench serve`` takes
them. There are no times, so a rate must be given; and no tokens, so they are counted by a tokenizer
that is named, or told from the characters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qsim.errors import MissingExtraError, TraceError
from qsim.traces.formats.options import ReadOptions
from qsim.traces.reading.collect import Collector
from qsim.traces.reading.json_rows import first_object, objects
from qsim.traces.reading.mapped import is_json
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

__all__ = ["PARAMS", "WHAT", "read", "recognise"]

WHAT = "JSON of ShareGPT (conversations with from, value); needs :rate=RPS"
PARAMS = {
    "rate": "requests a second, Poisson; the file has no times",
    "chars": "characters a token; 4 unless given",
    "tokenizer": "tokenizer.json, or a Hugging Face id, that counts the tokens instead",
}


def recognise(source: Source) -> bool:
    """Whether the first object has conversations."""
    return is_json(source) and isinstance(first_object(source).get("conversations"), list)


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the first turn of every conversation, at times drawn with the seed."""
    rate = _number(source, options, "rate")
    if rate is None:
        raise TraceError(
            f"{source.path}: conversations without times; say how many come a second with "
            ":rate=RPS after the path"
        )
    count, how = _counter(source, options)
    requests = Collector(source, "sharegpt", ("rate", "conversations[0]", "conversations[1]"))
    del requests.builder.columns["arrival"]
    requests.builder.notes += [
        f"arrivals are drawn as Poisson at {rate:g}/s (--seed); the first question and answer of "
        "each conversation are taken",
        how,
    ]
    rng = np.random.default_rng(options.seed)
    time = 0.0
    for place, row in objects(source):
        turns = row.get("conversations")
        texts: list[Any] = []
        if isinstance(turns, list):
            texts = [t.get("value") for t in turns[:2] if isinstance(t, dict)]
        if len(texts) < 2 or not all(isinstance(t, str) for t in texts):
            requests.skip("conversation of less than two turns")
            continue
        requests.add(place, time, count(texts[0]), count(texts[1]))
        time += float(rng.exponential(1 / rate))
    return requests.build()


def _number(source: Source, options: ReadOptions, key: str) -> float | None:
    text = options.params.get(key)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise TraceError(f"{source.path}: {key} is {text!r}; must be a number > 0")
    return value


def _counter(source: Source, options: ReadOptions) -> tuple[Callable[[str], int], str]:
    """Counts the tokens of a text; and how, for people."""
    name = options.params.get("tokenizer")
    if name is None:
        chars = _number(source, options, "chars") or 4.0
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
