"""Write the tables of docs/fidelity.md, and the files of its figures in docs/data.

::

    qsim calibrate validate RECORDING... --out tables.md
    python docs/scripts/fidelity_tables.py tables.md

The short tables go into the page between its two marks, the long ones into ``docs/data``: each
statistic of each load (``fidelity-cells.csv``), those that are off by more than 5% with what helps
to judge them (``fidelity-off.csv``), the scheduler's steps (``fidelity-steps.csv``). Figures are
taken as they are printed.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent
MARKS = ("<!-- tables of fidelity_tables.py -->\n", "<!-- end -->\n")
STATISTICS = ("mean", "median", "p90", "p99")
LOADS = r"^## ([^\n]+)\n\nProfile [^\n]+\n(.*?)(?=^## |\Z)"
PHASES = r"^### (\S+):[^\n]*\n\n(\d+) request[^\n]*\n(.*?)(?=^### |\Z)"
CELL = re.compile(r"\**([\d.,]+) / ([\d.,]+) ([+-][\d.]+)%\**")


def section(page: str, title: str) -> str:
    """What stands under a heading of the second level, or an error that names it."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"no section {title!r}: is this what calibrate validate --out wrote?")
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The rows of Markdown tables, their heads among them, their rules not."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in found if not set("".join(row)) <= set("-:")]


def cells(page: str) -> Iterator[list[str]]:
    """A row for each statistic of each load, left out of the fit or among what was fitted."""
    for recording, text in re.findall(LOADS, page, re.MULTILINE | re.DOTALL):
        for phase, requests, tables in re.findall(PHASES, text, re.MULTILINE | re.DOTALL):
            for row in rows(tables)[1:]:
                kind, quantity = row[:2]
                names = ("",) if quantity == "energy J" else STATISTICS
                for name, cell in zip(names, row[2:], strict=False):
                    values = CELL.fullmatch(cell)
                    if values is not None:
                        plain = [v.replace(",", "") for v in values.groups()]
                        yield [recording, phase, requests, kind, quantity, name, *plain]


def write(name: str, head: Sequence[str], found: Sequence[Sequence[str]]) -> None:
    """A CSV file in docs/data."""
    with (DOCS / "data" / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(found)


def main() -> None:
    """Read what ``calibrate validate --out`` wrote."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path)
    page = parser.parse_args().tables.read_text(encoding="utf-8")
    short = section(page, "In short").strip()
    off = section(page, "Loads left out: what is off by more than 5%")
    counted = off.strip().split("\n\n")[0]
    steps = rows(section(page, "Does the scheduler run the same steps?"))
    recordings, total = steps[1:-1], steps[-1]
    write(
        "fidelity-cells.csv",
        ["recording", "load", "requests", "fit", "quantity", "statistic", "simulated", "measured",
         "error_percent"],
        list(cells(page)),
    )  # fmt: skip
    write(
        "fidelity-off.csv",
        ["recording", "load", "requests", "statistic", "simulated / measured", "error", "nearby",
         "between", "repeats", "held"],
        rows(off)[1:],
    )  # fmt: skip
    write(
        "fidelity-steps.csv",
        ["recording", "steps", "agree", "agree, arrivals as recorded"],
        [[r[0], *r[2:]] for r in recordings],
    )
    target = DOCS / "fidelity.md"
    text = target.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    summary = (
        f"{short}\n\nOf what is off by more than 5% on loads left out "
        f"([data/fidelity-off.csv](data/fidelity-off.csv)):\n{counted}\n\n"
        f"Of {int(total[2]):,} steps the scheduler made {total[3]} as recorded, {total[4]} with "
        "the recorded arrivals\n([data/fidelity-steps.csv](data/fidelity-steps.csv)).\n"
    )
    target.write_text(f"{before}{MARKS[0]}\n{summary}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
