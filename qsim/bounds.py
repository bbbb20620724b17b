"""What values from outside may be: names by pattern, numbers by range, texts and lists by length.

Profiles, recordings, scenarios and traces are files that people send each other. The classes here
annotate the fields of what such a file becomes (``base_ms: list[Ms]``); :mod:`qsim.edge` checks
them with pydantic. They import nothing themselves, so that a module of plain dataclasses stays
cheap to import.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from qsim.errors import QsimError, ScenarioError

#: largest settings of one engine. Times are tabulated for every number of tokens and requests.
MAX_BATCHED_TOKENS = 1 << 20
MAX_SEQS = 1 << 17
MAX_MODEL_LEN = 1 << 30
MAX_BLOCKS = 1 << 31
MAX_BLOCK_SIZE = 1 << 16
MAX_TENSOR_PARALLEL = 1024
#: servers of one fleet
MAX_REPLICAS = 10_000
MAX_SEED = (1 << 64) - 1
#: GPUs of one fleet
MAX_GPUS = 1_000_000
#: runs of one study or sweep, points of one grid
MAX_RUNS = 1_000_000
MAX_JOBS = 1024
#: requests of one draw
MAX_REQUESTS = 1_000_000_000
#: longest time of one part of a step, ms
MAX_MS = 1e7
#: largest error that is stated
MOST_PERCENT = 1e6
#: longest name of a GPU, model or method
MAX_NAME = 100

_NAME = re.compile(rf"[a-z0-9][a-z0-9._+-]{{0,{MAX_NAME - 1}}}", re.ASCII)
#: control characters, line separators, and marks that change the direction of writing
_UNPRINTABLE = "\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff"
_PRINTABLE = re.compile(f"[^{_UNPRINTABLE}]*")


def shown(value: object, longest: int = 60) -> str:
    """A value for an error: its ``repr``, cut where it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a whole number of more than 30 digits"
    if isinstance(value, str):
        value = value[: longest + 1]
    elif isinstance(value, list | tuple | dict) and len(value) > longest:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, deep nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def printable(text: str) -> str:
    """A text for a terminal: control characters, and marks of direction, as escapes."""
    if _PRINTABLE.fullmatch(text):
        return text
    return "".join(c if _PRINTABLE.fullmatch(c) else repr(c)[1:-1] for c in text)


#: longest message, characters
_MESSAGE = 4000


def one_line(message: str) -> str:
    """A message as one printable line; of a very long one the beginning and the end."""
    text = " ".join(message.split())
    if len(text) > _MESSAGE:
        left = len(text) - _MESSAGE
        text = f"{text[: _MESSAGE * 3 // 4]} [{left} more characters] {text[-_MESSAGE // 4 :]}"
    return printable(text)


def check_name(what: str, value: object, error: type[QsimError] = ScenarioError) -> str:
    """Check a name of a GPU, a model or a quantization method, and return it.

    Such names become parts of paths, of commands in a shell, of Kubernetes names and of labels in
    pictures.

    Raises
    ------
    QsimError
        (of the class ``error``) if it is anything but lower-case letters, digits and ``. _ + -``,
        begins with another character than a letter or a digit, holds ``..`` or is longer than 100.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value) or ".." in value:
        raise error(f"{what} is {shown(value)}; must be {NAME_RULE}")
    return value


NAME_RULE = (
    "a name of lower-case letters, digits and . _ + -, beginning with a letter or a digit, without "
    f"'..', at most {MAX_NAME} long"
)


class Closed:
    """Base of a dataclass that comes from outside: a field that it does not have is an error."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True)
class Number:
    """A finite number from ``least`` to ``most``, or above ``above``."""

    least: float = 0.0
    most: float = MAX_MS
    above: float | None = None

    @property
    def rule(self) -> str:
        """In the words of an error."""
        low = f">= {self.least:g}" if self.above is None else f"> {self.above:g}"
        return f"a number, finite and {low}, at most {self.most:g}"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        low = {"ge": self.least} if self.above is None else {"gt": self.above}
        return {"type": "float", "strict": True, "le": self.most, "allow_inf_nan": False} | low


@dataclass(frozen=True)
class Whole:
    """A whole number from ``least`` to ``most``."""

    least: int = 0
    most: int = 1 << 53

    @property
    def rule(self) -> str:
        return f"a whole number >= {self.least} and <= {self.most}"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {"type": "int", "strict": True, "ge": self.least, "le": self.most}


@dataclass(frozen=True)
class Text:
    """A text of one line."""

    longest: int = 1000
    shortest: int = 0

    @property
    def rule(self) -> str:
        least = f"{self.shortest} to " if self.shortest else "at most "
        return f"a text of {least}{self.longest} characters, without control characters"

    def allows(self, text: str) -> bool:
        """Whether ``text`` is one."""
        good = self.shortest <= len(text) <= self.longest
        return good and _PRINTABLE.fullmatch(text) is not None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {
            "type": "str",
            "strict": True,
            "min_length": self.shortest,
            "max_length": self.longest,
            # "$" alone would take a line's end behind the text
            "pattern": f"^[^{_UNPRINTABLE}]*$(?![\\s\\S])",
            "regex_engine": "python-re",
        }


@dataclass(frozen=True)
class Identifier:
    """A name of a GPU, a model or a method: see :func:`check_name`."""

    rule = NAME_RULE

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        # "." followed by another is excluded by a look-ahead, which Rust's engine does not have
        return {
            "type": "str",
            "strict": True,
            "pattern": rf"^(?!.*\.\.){_NAME.pattern}\Z",
            "regex_engine": "python-re",
        }


@dataclass(frozen=True)
class Truth:
    """True or false, and nothing that might stand for them."""

    rule = "true or false"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {"type": "bool", "strict": True}


@dataclass(frozen=True)
class Items:
    """A list or an object by the number of its members."""

    most: int
    least: int = 0

    @property
    def rule(self) -> str:
        least = "" if self.least == self.most else f"{self.least} to "
        return f"a list of {least}{self.most} values"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), "min_length": self.least, "max_length": self.most}


@dataclass(frozen=True)
class Plain:
    """Nested plain data of any shape: texts, finite numbers, lists, objects with printable keys."""

    depth: int = 16
    members: int = 100_000

    rule = "plain data: texts of one line, finite numbers, true, false, null, lists and objects"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {"type": "function-after", "function": self._check(), "schema": handler(source)}

    def _check(self) -> Any:
        def check(value: Any) -> Any:
            self.check(value)
            return value

        return {"type": "no-info", "function": check}

    def check(self, value: Any) -> None:
        """Check it.

        Raises
        ------
        ValueError
            Naming the part that is wrong.
        """
        left = self.members
        level = [value]
        for _ in range(self.depth):
            below: list[Any] = []
            for part in level:
                if isinstance(part, Mapping):
                    for key, member in part.items():
                        _plain_text(key)
                        below.append(member)
                elif isinstance(part, list | tuple):
                    below += part
                elif isinstance(part, str):
                    _plain_text(part)
                elif isinstance(part, float):
                    if not math.isfinite(part):
                        raise ValueError(f"holds {part!r}; numbers must be finite")
                elif isinstance(part, int):
                    if abs(part) >= 1 << 64:
                        raise ValueError(f"holds {shown(part)}; must be within 64 bits")
                elif part is not None:
                    raise ValueError(f"holds {shown(part)}; must be {self.rule}")
            left -= len(level)
            if left < 0:
                raise ValueError(f"holds more than {self.members} values")
            if not below:
                return
            level = below
        raise ValueError(f"is nested deeper than {self.depth}")


def _plain_text(text: object) -> None:
    if not isinstance(text, str) or len(text) > 10_000 or not _PRINTABLE.fullmatch(text):
        raise ValueError(
            f"holds {shown(text)}; texts must be of one line, without control characters, at most "
            "10000 long"
        )


Ms = Annotated[float, Number()]
Positive = Annotated[float, Number(above=0.0)]
Percent = Annotated[float, Number(-MOST_PERCENT, MOST_PERCENT)]
Count = Annotated[int, Whole()]
Flag = Annotated[bool, Truth()]
Line = Annotated[str, Text()]
Name = Annotated[str, Identifier()]
PlainObject = Annotated[dict[str, Any], Plain()]
