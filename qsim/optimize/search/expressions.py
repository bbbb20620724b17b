"""Conditions on figures, such as ``quality>=98 and gpus<=4``: parsed, never run as code.

Python's own grammar (:mod:`ast`) says what binds closer. It never sees the text: names, numbers and
quoted texts, which are written as in tables of results (``fp8-w8a8``, ``p99_ttft_ms``), stand in
what it parses as numbered names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsim.bounds import shown
from qsim.errors import ScenarioError

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
_RULES = ("knee", "min", "max")
_SIGNS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
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
class _Several:
    parts: tuple[Condition, ...]

    def comparisons(self) -> Iterator[Comparison]:
        """The comparisons that it is made of."""
        for p in self.parts:
            yield from p.comparisons()


@dataclass(frozen=True)
class All(_Several):
    """Conditions that must hold together."""

    def holds(self, figures: Figures) -> bool:
        """Whether it is true of ``figures``."""
        return all(p.holds(figures) for p in self.parts)

    def __str__(self) -> str:
        return " and ".join(map(_nested, self.parts))


@dataclass(frozen=True)
class Any_(_Several):  # noqa: N801 - not typing's
    """Conditions of which one must hold."""

    def holds(self, figures: Figures) -> bool:
        """Whether it is true of ``figures``."""
        return any(p.holds(figures) for p in self.parts)

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
    return f"({part})" if isinstance(part, _Several) else str(part)


@dataclass(frozen=True)
class _Token:
    """A number, op, mark (bracket, comma), quoted text or word."""

    kind: str
    text: str

    @property
    def is_value(self) -> bool:
        return self.kind in ("number", "quoted", "word")


class _Expression:
    """A text as tokens; what is wrong with it is told in its own words."""

    def __init__(self, text: str, what: str) -> None:
        self.text, self.what = text, what
        if len(text) > _LONGEST:
            raise ScenarioError(
                f"{what} {shown(text)} has {len(text)} characters; must have at most {_LONGEST}"
            )
        self.tokens = list(self._read(text.rstrip()))

    def _read(self, text: str) -> Iterator[_Token]:
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"{text[position:].strip()[:20]!r} cannot be read")
            kind = str(match.lastgroup)
            yield _Token(kind, match[kind])
            position = match.end()

    def error(self, reason: str) -> ScenarioError:
        return ScenarioError(
            f"{self.what} {shown(self.text, 200)}: {reason}; write for example "
            '"quality>=98 and p99_ttft_ms<=500"'
        )

    def too_early(self) -> ScenarioError:
        return self.error("it ends too early")

    def unexpected(self, token: _Token) -> ScenarioError:
        return self.error(f"{token.text!r} is not expected there")

    def condition(self, tokens: Sequence[_Token]) -> Condition:
        """Python's grammar gives the tree; names and values stand in it as numbered names."""
        words = self._checked(tokens)
        try:
            tree = ast.parse(" ".join(words), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self.error("it cannot be read") from None
        return self._built(tree.body, tokens)

    def _checked(self, tokens: Sequence[_Token]) -> list[str]:
        """The tokens as Python's, each in a place where it may stand."""
        words: list[str] = []
        # what waits for the end of its condition, and what must come next
        open_: list[str] = []
        expected = "condition"
        for i, token in enumerate(tokens):
            lower = token.text.lower() if token.kind == "word" else token.text
            if expected == "condition" and lower in ("not", "("):
                open_.append(lower)
                if len(open_) > _DEEPEST:
                    raise self.error(f"brackets and not are nested deeper than {_DEEPEST}")
                words.append(lower)
            elif expected in ("condition", "value"):
                if not token.is_value:
                    if expected == "value":
                        left = tokens[i - 2].text
                        raise self.error(f"{left!r} is compared with {token.text!r}")
                    raise self.unexpected(token)
                words.append(f"_{i}")
                expected = "op" if expected == "condition" else "end"
            elif expected == "op":
                if token.kind != "op":
                    before = tokens[i - 1].text
                    raise self.error(
                        f"after {before!r} comes {token.text!r}, not one of < <= > >= == !="
                    )
                words.append("==" if token.text == "=" else token.text)
                expected = "value"
            elif lower in ("and", "or"):
                words.append(lower)
                expected = "condition"
            elif lower == ")" and "(" in open_:
                while open_.pop() != "(":
                    pass
                words.append(lower)
            elif "(" in open_:
                raise self.error("a bracket is not closed")
            else:
                raise self.unexpected(token)
            if expected == "end":
                while open_ and open_[-1] == "not":
                    open_.pop()
        if expected != "end":
            raise self.too_early()
        if open_:
            raise self.error("a bracket is not closed")
        return words

    def _built(self, node: ast.expr, tokens: Sequence[_Token]) -> Condition:
        if isinstance(node, ast.BoolOp):
            parts = tuple(self._built(value, tokens) for value in node.values)
            return All(parts) if isinstance(node.op, ast.And) else Any_(parts)
        if isinstance(node, ast.UnaryOp):
            return Not(self._built(node.operand, tokens))
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = (
                tokens[int(side.id[1:])]
                for side in (node.left, node.comparators[0])
                if isinstance(side, ast.Name)
            )
            return self._comparison(left, _SIGNS[type(node.ops[0])], right)
        raise self.error("it cannot be read")

    def _comparison(self, left: _Token, sign: str, right: _Token) -> Comparison:
        if left.kind == "number" and right.kind == "word":
            left, right, sign = right, left, _FLIPPED[sign]
        if left.kind != "word":
            raise self.error(f"{left.text!r} is compared with {right.text!r}")
        value: float | str = right.text.strip("\"'")
        if right.kind == "number":
            value = float(right.text)
            if abs(value) > _LARGEST:
                raise self.error(f"{shown(right.text)} is too large; numbers go to {_LARGEST:g}")
        elif sign not in ("==", "!="):
            raise self.error(f"{right.text!r} is no number")
        return Comparison(left.text, sign, value)

    def rule(self, where: Condition | None, tokens: Sequence[_Token]) -> Pick:
        """``knee``, ``min NAME`` or ``max NAME``."""
        if not tokens:
            raise self.too_early()
        word = tokens[0].text.lower()
        length = 1 if word == "knee" else 2
        if word not in _RULES:
            raise self.error(f"{word!r} is no rule; the rules are knee, min NAME and max NAME")
        if len(tokens) < length:
            raise self.too_early()
        if len(tokens) > length:
            raise self.unexpected(tokens[length])
        return Pick(where, word, tokens[1].text if length == 2 else "")


def parse_condition(text: str, what: str = "condition") -> Condition:
    """Read comparisons of a figure with a number or a word, joined by and, or, not and brackets.

    Raises
    ------
    ScenarioError
        Saying where it stops making sense.
    """
    expression = _Expression(str(text), what)
    return expression.condition(expression.tokens)


def parse_pick(text: str) -> Pick:
    """Read ``knee``, ``min NAME``, ``max NAME``, a condition, or a condition, a comma and a rule.

    Raises
    ------
    ScenarioError
        Saying where it stops making sense.
    """
    expression = _Expression(str(text), "--pick")
    tokens = expression.tokens
    if tokens and tokens[0].text.lower() in _RULES:
        return expression.rule(None, tokens)
    comma = next((i for i, t in enumerate(tokens) if t.text in (",", ";")), len(tokens))
    where = expression.condition(tokens[:comma])
    if comma == len(tokens):
        return Pick(where, "first")
    return expression.rule(where, tokens[comma + 1 :])
