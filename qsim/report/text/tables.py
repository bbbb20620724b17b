"""Text for people: aligned tables and numbers that read well."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

WIDTH = 100


def number(value: object, digits: int = 4) -> str:
    """A number with thousands separators and about ``digits`` digits; ``-`` for none.

    Whole numbers keep all their digits.
    """
    if value is None or isinstance(value, str):
        return "-" if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 9)}f}"


def fill(text: str, indent: str = "  ") -> str:
    """A paragraph in lines of at most :data:`WIDTH`, those after the first indented."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, indent: int = 0
) -> str:
    """Aligned text: the first ``left`` columns to the left, the others to the right.

    A header may hold line breaks. No line ends in blanks.
    """
    heads = [h.split("\n") for h in headers]
    height = max(len(h) for h in heads)
    lines = [
        [h[i - height + len(h)] if i >= height - len(h) else "" for h in heads]
        for i in range(height)
    ]
    body = [list(r) for r in rows]
    widths = [max(len(r[i]) for r in [*lines, *body]) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        parts = [
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return (" " * indent + "  ".join(parts)).rstrip()

    rule = " " * indent + "  ".join("-" * w for w in widths)
    return "\n".join([*map(line, lines), rule, *map(line, body)])


def continued(command: str) -> str:
    """A shell command over several lines, broken before options."""
    lines, line = [], ""
    for i, part in enumerate(command.split(" --")):
        word = part if i == 0 else f"--{part}"
        if line and len(line) + len(word) + 7 > WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "  " + " \\\n    ".join([*lines, line])
