"""Move the long tables of a Markdown page into CSV files beside it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping

#: tables of more rows become files
MOST_ROWS = 36


def move_long_tables(
    page: str, prefix: str, names: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """The page with a reference in the place of each long table, and the files' texts by name.

    ``names`` says what a file is called, by the first words of its table's head (the head's cells,
    joined by a comma).
    """
    files: dict[str, str] = {}

    def moved(match: re.Match[str]) -> str:
        rows = [[c.strip() for c in line.strip("|").split("|")] for line in match[0].splitlines()]
        head, found = rows[0], rows[2:]
        if len(found) <= MOST_ROWS:
            return match[0]
        joined = ",".join(head)
        name = next((n for words, n in names.items() if joined.startswith(words)), None)
        if name is None:
            raise ValueError(f"no name for the file of a table with the head {joined!r}")
        file = f"{prefix}-{name}.csv"
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([cell or "what" for cell in head])
        writer.writerows(found)
        files[file] = out.getvalue()
        shown = f"{len(found)} rows: [data/{file}](data/{file}).\n"
        if len(found) > 3 * MOST_ROWS:
            return shown
        return f"{shown}\n```{{csv-table}}\n:file: data/{file}\n:header-rows: 1\n```\n"

    return re.sub(r"(?:^\|.*\n)+", moved, page, flags=re.MULTILINE), files
