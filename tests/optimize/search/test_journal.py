"""Finished work that is kept is whole, or told to be damaged; and it is one process's at a time."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qsim.errors import ScenarioError
from qsim.optimize.search.journal import JournalEnd, append_lines, read_lines
from qsim.optimize.search.storage import check_study, held_study, open_storage

ITEMS = [{"n": i, "text": "é" * (i % 7), "x": [0.1 * i, None]} for i in range(20)]


def journal(path: Path) -> bytes:
    path.write_bytes(b"")
    end = JournalEnd()
    for at in range(0, 20, 3):
        end = append_lines(path, end, ITEMS[at : at + 3])
    assert read_lines(path, "it") == (ITEMS, end)
    return path.read_bytes()


def test_every_change_inside_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = journal(path)
    lines = data.splitlines(keepends=True)
    rng = random.Random(1)
    damaged = [
        b"".join(lines[:5] + lines[6:]),  # one is missing
        b"".join(lines[3:]),  # the beginning is missing
        b"".join([*lines[:5], lines[6], lines[5], *lines[7:]]),  # two have changed places
        b"".join([*lines[:5], lines[5], *lines[5:]]),  # one comes twice
        data.replace(b'"n":7', b'"n":8'),
        data.replace(lines[9][-20:], b"}\n"),  # a checksum is missing
        data.replace(b'{"n":7', b'{"n"7'),
        *(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
          for at in rng.sample(range(len(data) - 1), 40)),
    ]  # fmt: skip
    for changed in damaged:
        path.write_bytes(changed)
        with pytest.raises(ScenarioError, match=r"^it is damaged: line \d+ .*begin anew$"):
            read_lines(path, "it")


def test_what_is_cut_off_at_the_end_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = journal(path)
    for size in (0, 1, 40, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        whole = data[:size].count(b"\n")
        found, end = read_lines(path, "it")
        assert found == ITEMS[:whole]
        assert path.stat().st_size == end.size_bytes == data[:size].rfind(b"\n") + 1
        append_lines(path, end, ITEMS[whole:])
        assert path.read_bytes() == data


def test_lines_of_before_there_were_checksums_are_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("".join(json.dumps(i) + "\n" for i in ITEMS[:9]))
    found, end = read_lines(path, "it")
    append_lines(path, end, ITEMS[9:])
    assert read_lines(path, "it")[0] == found + ITEMS[9:] == ITEMS
    path.write_bytes(path.read_bytes().replace(b'"n": 3', b'"n": 4'))
    with pytest.raises(ScenarioError, match="line 10 does not fit"):
        read_lines(path, "it")


def test_a_line_that_does_not_fit_on_the_disk_is_not_there(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    path = tmp_path / "journal"
    data = journal(path)
    end = read_lines(path, "it")[1]
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) + 10, usual[1]))
    try:
        with pytest.raises(OSError, match="too large") as e:
            append_lines(path, end, ITEMS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert e.value.filename == str(path)
    assert path.read_bytes() == data


HOLD = """
import sys
from qsim.optimize.search.storage import held_study
with held_study(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("place", ["{}/a.journal", "sqlite:///{}/a.db"])
def test_a_second_process_is_told_at_once(place: str, tmp_path: Path) -> None:
    where = place.format(tmp_path)
    with held_study(where):
        pass
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(ScenarioError, match="in use by another process"), held_study(where):
        pass
    process.kill()
    process.communicate()
    with held_study(where):
        pass
    assert list(tmp_path.iterdir()) == [], "no lock is left"


def test_a_lock_leaves_no_file_where_nothing_was_kept(tmp_path: Path) -> None:
    with held_study(str(tmp_path / "new" / "a.journal")):
        pass
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(ScenarioError, match=r"Is a directory .*folder"),
        held_study(str(tmp_path / "folder")),
    ):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ScenarioError, match=r"\(.*file.*\)"),
        held_study(str(tmp_path / "file" / "a.journal")),
    ):
        pass


def test_what_would_end_a_study_is_found_at_its_beginning(tmp_path: Path) -> None:
    where = str(tmp_path / "a.journal")
    check_study(None, "x", False)
    check_study(where, "x", False)
    import optuna

    optuna.create_study(storage=open_storage(where), study_name="x-part")
    check_study(where, "y", False)
    check_study(where, "x", True)
    with pytest.raises(ScenarioError, match=r"'x-part' .* exists already"):
        check_study(where, "x", False)
    path = Path(where)
    path.write_bytes(path.read_bytes().replace(b"x-part", b"x-bart"))
    with pytest.raises(ScenarioError, match="damaged: line 1"):
        check_study(where, "x", True)
