"""ShareGPT's conversations (JSON): lengths without times.

A request is the first question of a conversation with its answer, as ``vllm bench serve`` takes
them. There are no times, so a rate must be given; and no tokens, so they are counted by a tokenizer
that is named, or told from the characters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import TraceError
from qsim.traces.formats.options import TEXT_PARAMS, ReadOptions, number_param, text_counter
from qsim.traces.reading.build import Collector
from qsim.traces.reading.columns import is_json
from qsim.traces.reading.json_rows import first_object, objects
from qsim.traces.reading.source import Source
from qsim.traces.trace import Trace

WHAT = "JSON of ShareGPT (conversations with from, value); needs :rate=RPS"
PARAMS = {
    "rate": "requests a second, Poisson; the file has no times",
    **TEXT_PARAMS,
}


def recognise(source: Source) -> bool:
    """Whether the first object has conversations."""
    return is_json(source) and isinstance(first_object(source).get("conversations"), list)


def read(source: Source, options: ReadOptions) -> Trace:
    """Read the first turn of every conversation, at times drawn with the seed."""
    rate = number_param(source, options, "rate")
    if rate is None:
        raise TraceError(
            f"{source.path}: conversations without times; say how many come a second with "
            ":rate=RPS after the path"
        )
    count, how = text_counter(source, options)
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
