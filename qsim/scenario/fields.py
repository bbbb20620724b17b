"""Types of a scenario's fields, beside those of :mod:`qsim.bounds`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator

from qsim.bounds import Items, Number, Text, shown
from qsim.checks import is_number, parse_count

__all__ = [
    "Amount",
    "Checked",
    "Factor",
    "File",
    "Seconds",
    "Section",
    "Share",
    "Texts",
    "Values",
    "Word",
    "empty_dict",
    "empty_list",
    "one_or_a_file",
    "size",
    "text_or_number",
]

#: members of one list of a scenario
MOST = 10_000


def empty_list() -> list[Any]:
    """A default. Of ``list`` itself pydantic parses the signature from its documentation: 5 ms."""
    return []


def empty_dict() -> dict[str, Any]:
    """The same for ``dict``."""
    return {}


class Section(BaseModel):
    """A part of a scenario: fields of their own type and no others; it does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, data: Any) -> Any:
        """A field without a value is as good as left out."""
        if isinstance(data, dict) and None in data.values():
            return {k: v for k, v in data.items() if v is not None}
        return data

    def given(self) -> dict[str, Any]:
        """What was given, as plain data, without what was left to its default."""
        return {k: _held(v) for k, v in self if k in self.model_fields_set}

    def resolved(self) -> dict[str, Any]:
        """All that is said, as plain data, defaults included; without what is None."""
        return {k: _held(v, all_=True) for k, v in self if v is not None}


def _held(value: Any, *, all_: bool = False) -> Any:
    """Sections as dicts; all else (a trace, a profile) as it is."""
    if isinstance(value, Section):
        return value.resolved() if all_ else value.given()
    if isinstance(value, list):
        return [_held(v, all_=all_) for v in value]
    return dict(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class Checked:
    """A field with a check of its own.

    Attributes
    ----------
    rule : str
        In the words of an error.
    check : callable
        Takes a value and returns what is kept; raises ValueError for any other.
    schema : dict
        What JSON Schema says of it.
    """

    rule: str
    check: Callable[[Any], Any]
    schema: dict[str, Any] = field(hash=False, default_factory=empty_dict)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        def check(value: Any) -> Any:
            try:
                return self.check(value)
            except ValueError:
                raise ValueError(f"is {shown(value)}; must be {self.rule}") from None

        return {"type": "function-plain", "function": {"type": "no-info", "function": check}}

    def __get_pydantic_json_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        return dict(self.schema)


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
