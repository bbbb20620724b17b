"""A small CSV file of plain numbers is read without DuckDB, and says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim import load_trace
from qsim.errors import TraceError
from qsim.traces.reading import table

HEAD = "arrival_s,prompt_tokens,output_tokens"
CELLS = st.one_of(
    st.integers(0, 10**15 - 1).map(str),
    st.floats(0, 1e6).map(lambda x: f"{x:.15f}"),
    st.floats(0, 1e6).map(lambda x: f"{x:.3f}"),
    st.sampled_from(["0", "007", "1e3", ".5", "5.", "-1", "1_0", " 1", '"2"', "", "nan", "1,5"]),
)
ROWS = st.lists(st.tuples(CELLS, st.integers(1, 9).map(str), st.integers(1, 9).map(str)),
                max_size=4)  # fmt: skip


def loaded(path: Path) -> object:
    try:
        trace = load_trace(path, sort=True)
    except TraceError as e:
        return str(e)
    return [trace.arrival_s.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist()]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_both_ways_of_reading_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], end: str, last: bool
) -> None:
    path = tmp_path_factory.mktemp("plain") / "t.csv"
    text = end.join([HEAD, *map(",".join, rows)]) + (end if last else "")
    path.write_bytes(text.encode())
    found = loaded(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_plain_columns", lambda *_: None)
        assert loaded(path) == found


def test_plain_numbers_need_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_database() -> None:
        raise AssertionError

    monkeypatch.setattr(table, "_duckdb", no_database)
    path = tmp_path / "t.csv"
    path.write_text(f"{HEAD}\n0.25,10,2\n1,20,3\n")
    trace = load_trace(path)
    assert np.array_equal(trace.arrival_s, [0.25, 1.0])
    assert np.array_equal(trace.prompt_tokens, [10, 20])
    path.write_text(f"{HEAD}\n0,10,2\n" + "1,20,3\n" * 200_000)  # more than a MiB
    with pytest.raises(AssertionError):
        load_trace(path)


@pytest.mark.parametrize(("before", "lines"), [("sep=;\n", 1), ("# a\n# b\n", 2)])
def test_lines_before_the_header_are_refused_with_what_to_do(
    tmp_path: Path, before: str, lines: int
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{before}{HEAD.replace(',', ';')}\n0;10;2\n")
    with pytest.raises(TraceError, match=rf"line 1 is .* tail -n \+{lines + 1} FILE$"):
        load_trace(path)
    path.write_text(path.read_text().removeprefix(before))
    assert len(load_trace(path)) == 1
