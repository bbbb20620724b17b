"""Types of a scenario's fields, beside those of :mod:`qsim.bounds`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from qsim.bounds import Items, Number, Text
from qsim.checks import is_number, parse_count
from qsim.scenario.section import Checked

#: members of one list of a scenario
MOST = 10_000


def empty_list() -> list[Any]:
    """A default. Of ``list`` itself pydantic parses the signature from its documentation."""
    return []


def empty_dict() -> dict[str, Any]:
    """The same for ``dict``."""
    return {}


def size(least: int, most: int) -> Checked:
    """A whole number; thousands may be written ``8k``, 1024s ``8K``, as vLLM takes them."""

    def check(value: Any) -> int:
        number = parse_count(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise ValueError
        return number

    return Checked(
        f"a whole number >= {least} and <= {most} (thousands may be written 8k, 1024s 8K)",
        check,
        {
            "anyOf": [
                {"type": "integer", "minimum": least, "maximum": most},
                {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?[kmgtKMGT]$"},
            ]
        },
    )


def text_or_number(rule: str) -> Checked:
    """A line of text, or a finite number."""
    text = Text()

    def check(value: Any) -> Any:
        if isinstance(value, str) and text.allows(value):
            return value
        if is_number(value) and abs(value) <= 1e18:
            return value
        raise ValueError

    return Checked(rule, check, {"type": ["string", "number"]})


def one_or_a_file(kind: Callable[[Any], bool], rule: str) -> Checked:
    """A name or a path as text; or, from Python, an object of its own."""
    text = Text(longest=4096, shortest=1)

    def check(value: Any) -> Any:
        if (isinstance(value, str) and text.allows(value)) or kind(value):
            return value
        raise ValueError

    return Checked(rule, check, {"type": "string"})


def _plain_value(value: Any) -> bool:
    if isinstance(value, str):
        return Text().allows(value)
    return value is None or isinstance(value, bool) or (is_number(value) and abs(value) <= 1e18)


def _values(value: Any) -> Any:
    """``NAME: [64, 128]``, ``NAME: 64:512:log``; or a list of ``NAME=VALUES``."""
    text = Text(longest=10_000)
    if isinstance(value, list) and len(value) <= MOST:
        if all(isinstance(v, str) and text.allows(v) for v in value):
            return value
    elif isinstance(value, dict) and len(value) <= MOST:
        for name, values in value.items():
            if not (isinstance(name, str) and text.allows(name)):
                raise ValueError
            listed = values if isinstance(values, list) else [values]
            if hasattr(values, "grid"):  # a decision, from Python
                continue
            if len(listed) > MOST or not all(map(_plain_value, listed)):
                raise ValueError
        return value
    raise ValueError


Amount = Annotated[float, Number(0.0, 1e18)]
Seconds = Annotated[float, Number(-1e18, 1e18)]
Factor = Annotated[float, Number(most=1e18, above=0.0)]
Share = Annotated[float, Number(most=1.0, above=0.0)]
Word = Annotated[str, Text(longest=1000, shortest=1)]
File = Annotated[str, Text(longest=4096, shortest=1)]
Texts = Annotated[list[Annotated[str, Text(longest=10_000)]], Items(MOST)]
_VALUE: dict[str, Any] = {"type": ["string", "number", "boolean", "null"]}
#: what is varied or searched, by name
Values = Annotated[
    Any,
    Checked(
        "names with values, such as {max_num_seqs: [64, 128], max_num_batched_tokens: "
        "2048:16384:x2}, or a list of NAME=VALUES",
        _values,
        {
            "anyOf": [
                {
                    "type": "object",
                    "additionalProperties": {"anyOf": [_VALUE, {"type": "array", "items": _VALUE}]},
                },
                {"type": "array", "items": {"type": "string"}},
            ]
        },
    ),
]
