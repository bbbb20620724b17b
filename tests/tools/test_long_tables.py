"""Long tables of a page become files beside it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "scripts" / "long_tables.py"
MOVE = runpy.run_path(str(SCRIPT))["move_long_tables"]


def table(rows: int) -> str:
    return "| model | ms |\n|---|---:|\n" + "".join(f"| m{i} | {i}, {i} |\n" for i in range(rows))


@pytest.mark.parametrize("rows", [1, 36])
def test_a_short_table_stays(rows: int) -> None:
    page = f"Text.\n\n{table(rows)}\nMore.\n"
    assert MOVE(page, "p", {}) == (page, {})


@pytest.mark.parametrize(("rows", "shown"), [(37, True), (200, False)])
def test_a_long_table_becomes_a_file(rows: int, shown: bool) -> None:
    page, files = MOVE(f"Text.\n\n{table(rows)}\nMore.\n", "p", {"model,ms": "spans"})
    lines = files["p-spans.csv"].splitlines()
    assert lines[:2] == ["model,ms", 'm0,"0, 0"']
    assert len(lines) == rows + 1
    assert f"{rows} rows: [data/p-spans.csv](data/p-spans.csv)." in page
    assert (":file: data/p-spans.csv" in page) is shown
    assert page.startswith("Text.\n")
    assert page.endswith("\nMore.\n")


def test_a_long_table_without_a_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no name .* 'model,ms'"):
        MOVE(table(50), "p", {"other": "x"})
