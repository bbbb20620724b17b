"""Conditions on figures, such as ``quality>=98 and gpus<=4``: parsed, never run as code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qsim.bounds import shown
from qsim.errors import ScenarioError

__all__ = ["All", "Any_", "Comparison", "Condition", "Not", "Pick", "parse_condition", "parse_pick"]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.-])
      | (?P<op><=|>=|==|!=|=|<|>)
      | (?P<mark>[(),;])
      | (?P<quoted>"[^"]*"|'[^']*')
      | (?P<word>[A-Za-z_0-9][\w.+/-]*)
    )""",
    re.VERBOSE,
)
#: characters, and levels of brackets, of one condition; its largest number
_LONGEST, _DEEPEST, _LARGEST = 2000, 20, 1e18
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """``name op value``; what is not known compares as false."""

    name: str
    op: str
    value: float | str

    def holds(self, figures: Figures) -> bool:
        """Whether it is true of ``figures``."""
        actual = figures.get(self.name)
        if actual is None:
            return False
        if isinstance(actual, bool):
            actual = str(actual).lower()
        if self.op in ("==", "!="):
            equal = actual == self.value or str(actual) == str(self.value)
            return equal == (self.op == "==")
        if not isinstance(actual, int | float) or isinstance(self.value, str):
            return False
        return {
            "<": actual < self.value,
            ">": actual > self.value,
            "<=": actual <= self.value,
            ">=": actual >= self.value,
        }[self.op]

    def comparisons(self) -> Iterator[Comparison]:
        """Itself."""
        yield self

    def __str__(self) -> str:
        value = f"{self.value:.15g}" if isinstance(self.value, float) else self.value
        return f"{self.name}{self.op}{value}"


@dataclass(frozen=True)
class Not:
    """The contrary of a condition."""

    part: Condition

    def holds(self, figures: Figures) -> bool:
        """Whether it is true of ``figures``."""
        return not self.part.holds(figures)

    def comparisons(self) -> Iterator[Comparison]:
        """The comparisons that it is made of."""
        yield from self.part.comparisons()

    def __str__(self) -> str:
        return f"not {_nested(self.part)}"


@dataclass(frozen=True)
class All:
    """Conditions that must hold together."""

    parts: tuple[Condition, ...]

    def holds(self, figures: Figures) -> bool:
        """Whether it is true of ``figures``."""
        return all(p.holds(figures) for p in self.parts)

    def comparisons(self) -> Iterator[Comparison]:
        """The comparisons that it is made of."""
        for p in self.parts:
            yield from p.comparisons()

    def __str__(self) -> str:
        return " and ".join(map(_nested, self.parts))


@dataclass(frozen=True)
class Any_:  # noqa: N801 - not typing's
    """Conditions of which one must hold."""

    parts: tuple[Condition, ...]

    def holds(self, figures: Figures) -> bool:
        """Whether it is true of ``figures``."""
        return any(p.holds(figures) for p in self.parts)

    def comparisons(self) -> Iterator[Comparison]:
        """The comparisons that it is made of."""
        for p in self.parts:
            yield from p.comparisons()

    def __str__(self) -> str:
        return " or ".join(map(_nested, self.parts))


Condition = Comparison | Not | All | Any_


@dataclass(frozen=True)
class Pick:
    """Which point of a front to take: of those that meet ``where``, by ``rule``.

    ``rule`` is ``knee``, ``min`` or ``max``; the latter two of the figure ``name``. With ``first``
    it is the best in the first objective.
    """

    where: Condition | None
    rule: str
    name: str = ""

    def __str__(self) -> str:
        rule = f"{self.rule} {self.name}".strip()
        if self.where is None:
            return rule
        return str(self.where) if self.rule == "first" else f"{self.where}, {rule}"


def _nested(part: Condition) -> str:
    return f"({part})" if isinstance(part, All | Any_) else str(part)


class _Parser:
    def __init__(self, text: str, what: str) -> None:
        self.text, self.what = text, what
        self.tokens = list(self._tokens())
        self.at = 0
        self.depth = 0

    def _tokens(self) -> Iterator[tuple[str, str]]:
        if len(self.text) > _LONGEST:
            raise ScenarioError(
                f"{self.what} {shown(self.text)} has {len(self.text)} characters; must have at "
                f"most {_LONGEST}"
            )
        position = 0
        text = self.text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"{text[position:].strip()[:20]!r} cannot be read")
            kind = str(match.lastgroup)
            yield kind, match[kind]
            position = match.end()

    def error(self, reason: str) -> ScenarioError:
        return ScenarioError(
            f"{self.what} {shown(self.text, 200)}: {reason}; write for example "
            '"quality>=98 and p99_ttft_ms<=500"'
        )

    def peek(self, *words: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at][1].lower() in words

    def take(self) -> tuple[str, str]:
        if self.at >= len(self.tokens):
            raise self.error("it ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise self.error(f"{self.tokens[self.at][1]!r} is not expected there")

    def either(self) -> Condition:
        parts = [self.both()]
        while self.peek("or"):
            self.take()
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else Any_(tuple(parts))

    def both(self) -> Condition:
        parts = [self.one()]
        while self.peek("and"):
            self.take()
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def one(self) -> Condition:
        if not self.peek("not", "("):
            return self.comparison()
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self.error(f"brackets and not are nested deeper than {_DEEPEST}")
        inner: Condition
        if self.take()[1] == "(":
            inner = self.either()
            if not self.peek(")"):
                raise self.error("a bracket is not closed")
            self.take()
        else:
            inner = Not(self.one())
        self.depth -= 1
        return inner

    def comparison(self) -> Comparison:
        left, op, right = self.take(), self.take(), self.take()
        if op[0] != "op":
            raise self.error(f"after {left[1]!r} comes {op[1]!r}, not one of < <= > >= == !=")
        sign = "==" if op[1] == "=" else op[1]
        if left[0] == "number" and right[0] == "word":
            left, right, sign = right, left, _FLIPPED[sign]
        if left[0] != "word" or right[0] not in ("number", "word", "quoted"):
            raise self.error(f"{left[1]!r} is compared with {right[1]!r}")
        value: float | str = right[1].strip("\"'")
        if right[0] == "number":
            value = float(right[1])
            if abs(value) > _LARGEST:
                raise self.error(f"{shown(right[1])} is too large; numbers go to {_LARGEST:g}")
        elif sign not in ("==", "!="):
            raise self.error(f"{right[1]!r} is no number")
        return Comparison(left[1], sign, value)


def parse_condition(text: str, what: str = "condition") -> Condition:
    """Read comparisons of a figure with a number or a word, joined by and, or, not and brackets.

    Raises
    ------
    ScenarioError
        Saying where it stops making sense.
    """
    parser = _Parser(str(text), what)
    condition = parser.either()
    parser.end()
    return condition


def parse_pick(text: str) -> Pick:
    """Read ``knee``, ``min NAME``, ``max NAME``, a condition, or a condition, a comma and a rule.

    Raises
    ------
    ScenarioError
        Saying where it stops making sense.
    """
    parser = _Parser(str(text), "--pick")

    def rule(where: Condition | None) -> Pick:
        word = parser.take()[1].lower()
        if word == "knee":
            return Pick(where, "knee")
        if word not in ("min", "max"):
            raise parser.error(f"{word!r} is no rule; the rules are knee, min NAME and max NAME")
        return Pick(where, word, parser.take()[1])

    if parser.peek("knee", "min", "max"):
        pick = rule(None)
    else:
        condition = parser.either()
        pick = Pick(condition, "first")
        if parser.peek(",", ";"):
            parser.take()
            pick = rule(condition)
    parser.end()
    return pick
