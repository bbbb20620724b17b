"""Checks that arguments of many kinds need, with the words of their errors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeGuard

from qsim.bounds import shown
from qsim.errors import MissingExtraError, ScenarioError

#: largest whole number that a double holds exactly, and its neighbours
MAX_WHOLE = 1 << 53


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is an int or a float: True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(name: str, value: object, least: int = 1, most: int = MAX_WHOLE) -> None:
    """Check a whole number.

    Raises
    ------
    ScenarioError
        If it is none, less than ``least`` or more than ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        above = value >= least if isinstance(value, int) and not isinstance(value, bool) else False
        limit = f" and <= {most}" if above else ""
        raise ScenarioError(f"{name} is {shown(value)}; must be a whole number >= {least}{limit}")


def finite(
    name: str, value: object, least: float = 0.0, most: float = 1e18, *, above: bool = False
) -> None:
    """Check a number; ``above``: ``least`` itself is refused.

    Raises
    ------
    ScenarioError
        If it is none, not finite, less than ``least`` or more than ``most``.
    """
    good = is_number(value) and least <= value <= most and not (above and value == least)
    if not good:
        sign = ">" if above else ">="
        raise ScenarioError(
            f"{name} is {shown(value)}; must be a finite number {sign} {least:g}, at most {most:g}"
        )


_COUNT = re.compile(r"([+-]?\d+(?:\.\d+)?)([kmgtKMGT])?")


def parse_count(text: str) -> int:
    """A whole number, or one with k/m/g/t (1000s) or K/M/G/T (1024s) behind it, as in vLLM.

    Raises
    ------
    ValueError
        For anything else.
    """
    match = _COUNT.fullmatch(str(text).strip())
    if match and len(match[0]) <= 4000:  # Python reads whole numbers of 4,300 digits
        digits, unit = match.groups()
        if unit is None and digits.lstrip("+-").isdecimal():
            return int(digits)
        if unit is not None and len(digits) <= 30:
            base = 1000 if unit.islower() else 1024
            number = float(digits) * base ** ("kmgt".index(unit.lower()) + 1)
            if number == int(number):
                return int(number)
    raise ValueError(f"{shown(text)} is not a whole number (thousands may be written 8k, 1024s 8K)")


def near_names(name: str, known: Iterable[str]) -> str:
    """What may have been meant by an unknown name, or else all that are known."""
    import difflib

    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"


def check_ending(option: str, path: str, endings: tuple[str, ...]) -> None:
    """Check before the work that a file of rows can be written.

    Raises
    ------
    ScenarioError
        If its name ends in none of ``endings``.
    MissingExtraError
        For Parquet without pyarrow.
    """
    if not path.endswith(endings):
        *others, last = endings
        known = f"{', '.join(others)} or {last}" if others else last
        raise ScenarioError(f"{option} is {path!r}; must end in {known}")
    if path.endswith(".parquet"):
        from importlib.util import find_spec

        if find_spec("pyarrow") is None:
            raise MissingExtraError("pyarrow", "parquet", f"{option} FILE.parquet")
