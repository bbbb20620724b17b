"""Prometheus's text format, which servers and exporters answer to ``/metrics`` with.

A line a sample (version 0.0.4 of the exposition format): ``name{label="value",...} value [time]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_LINE = re.compile(
    r"([a-zA-Z_:][\w:]*)(?:\{((?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\})?\s+(\S+)(?:\s+(-?\d+))?\s*"
)
_LABEL = re.compile(r"(\w+)\s*=\s*\"((?:[^\"\\]|\\.)*)\"")


@dataclass(frozen=True)
class Sample:
    """The value of a metric at one moment."""

    #: of the metric
    name: str
    labels: Mapping[str, str]
    #: it may be inf or NaN
    value: float
    #: Unix time in ms; None where the line does not tell it
    time_ms: int | None


def parse_sample(line: str) -> Sample | None:
    """The sample of a line; None if it is a comment, blank or malformed."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    name, labels, value, time_ms = found.groups()
    try:
        number = float(value)
    except ValueError:
        return None
    return Sample(
        name, dict(_LABEL.findall(labels or "")), number, int(time_ms) if time_ms else None
    )


def samples(text: str) -> Iterator[Sample]:
    """The samples of a text; what is none is passed over."""
    for line in text.splitlines():
        found = parse_sample(line)
        if found is not None:
            yield found
