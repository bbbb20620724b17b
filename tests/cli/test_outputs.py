"""Every file is tried before the work, and the answer is told whatever happens to one of them."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.helpers import fails, qsim

SLO = ["--slo", "ttft:p99:500"]


def commands(trace: Path, profile: Path) -> dict[str, list[object]]:
    return {
        "simulate": ["simulate", trace, "--profile", profile],
        "plan": ["plan", trace, "--profile", profile, *SLO, "--jobs", 1],
        "tune": ["tune", trace, "--profile", profile, "--trials", 3, "--jobs", 1,
                 "--no-importance"],
        "sweep": ["sweep", trace, "--profile", profile, "--grid", "replicas=1,2", "--jobs", 1],
        "schedule": ["schedule", "azure-conv-2023:duration=120,rate=4", "--profile", profile,
                     *SLO, "--window", "1min", "--policy", "none", "--max-replicas", 2,
                     "--jobs", 1],
    }  # fmt: skip


#: command, option, the file's name
OPTIONS = [
    ("simulate", "--json", "a.json"),
    ("simulate", "--requests", "a.csv"),
    ("simulate", "--requests", "a.parquet"),
    ("simulate", "--steps", "a.jsonl"),
    ("simulate", "--timeline", "a.json"),
    ("simulate", "--report", "a.html"),
    ("simulate", "--save-scenario", "a.yaml"),
    ("plan", "--json", "a.json"),
    ("plan", "--report", "a.html"),
    ("plan", "--picture", "a.png"),
    ("plan", "--export", "vllm=%s/a.sh"),
    ("plan", "--export", "kubernetes=%s/"),
    ("tune", "--csv", "a.csv"),
    ("tune", "--trials-csv", "a.csv"),
    ("tune", "--picture", "a.png"),
    ("sweep", "--out", "a.csv"),
    ("schedule", "--json", "a.json"),
    ("schedule", "--export", "csv=%s/a.csv"),
]


@pytest.mark.parametrize(("command", "option", "name"), OPTIONS)
def test_what_is_in_the_way_is_told_before_the_work(
    command: str, option: str, name: str, trace: Path, profile: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = commands(trace, profile)[command]

    def never(*args: object, **more: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("qsim.sim.fleet.fleet.Fleet.run", never)

    def at(folder: Path) -> object:
        return name % folder if "%s" in name else folder / name

    (tmp_path / "file").write_text("")
    fails(qsim(*words, option, at(tmp_path / "file" / "x")), 1, f"Error: {option}", "not a folder")
    if not name.endswith("/"):
        (tmp_path / "taken" / name.rpartition("/")[2]).mkdir(parents=True)
        result = qsim(*words, option, at(tmp_path / "taken"))
        if option != "--export":  # there it means a file in that folder
            fails(result, 1, f"Error: {option}", "is a folder, not a file")
    if os.geteuid() == 0:  # root may write anywhere: what would be refused is played
        monkeypatch.setattr("tempfile.NamedTemporaryFile", denied)
    (tmp_path / "closed").mkdir(mode=0o555)
    fails(qsim(*words, option, at(tmp_path / "closed")), 1, f"Error: {option}", "Permission denied")
    assert list((tmp_path / "closed").iterdir()) == []


def denied(*args: object, **more: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", "somewhere")


@pytest.mark.parametrize(("command", "option", "name"), OPTIONS)
def test_folders_are_made(
    command: str, option: str, name: str, trace: Path, profile: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new" / "er"
    result = qsim(
        *commands(trace, profile)[command], option, name % new if "%s" in name else new / name
    )
    assert result.exit_code == 0, result.output
    assert [p for p in new.iterdir() if p.is_file() and p.stat().st_size], option
    assert not [p for p in new.iterdir() if p.name.startswith(".tmp-")]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Stands for a full disk: what is longer cannot be written."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.mark.parametrize(("command", "option", "name"), OPTIONS)
def test_a_full_disk_at_the_end_does_not_lose_the_answer(
    command: str, option: str, name: str, trace: Path, profile: Path, tmp_path: Path
) -> None:
    words = commands(trace, profile)[command]
    expected = qsim(*words)
    assert expected.exit_code == 0, expected.output
    path = name % tmp_path if "%s" in name else tmp_path / "out" / name
    with files_of_at_most(20):
        result = qsim(*words, option, path)
    assert result.exit_code == 1, result.output
    assert result.stdout == expected.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"Error: not written: {option}"), last
    assert "File too large" in last
    folder = tmp_path / "out"
    left = list(folder.iterdir()) if folder.exists() else []
    assert [p for p in left if not p.name.endswith(".rows.jsonl")] == []


def test_a_full_disk_does_not_lose_a_streamed_simulation(
    trace: Path, profile: Path, tmp_path: Path
) -> None:
    words = ["simulate", trace, "--profile", profile, "--stream"]
    expected = qsim(*words)
    with files_of_at_most(20):
        result = qsim(*words, "--requests", tmp_path / "rows.csv")
    assert result.exit_code == 1
    assert result.stdout == expected.stdout
    assert f"--requests File too large ({tmp_path}/rows.csv)" in result.stderr
    assert not (tmp_path / "rows.csv").exists()


def test_one_file_is_not_written_twice_nor_over_the_trace(
    trace: Path, profile: Path, tmp_path: Path
) -> None:
    words = commands(trace, profile)["simulate"]
    same = tmp_path / "a.json"
    fails(qsim(*words, "--json", same, "--timeline", same), 2, "--json and --timeline", "same file")
    fails(qsim(*words, "--requests", trace), 2, "TRACE and --requests", "same file")
    assert trace.read_text().startswith("arrival_s")
    for device in ("/dev/null", "/dev/stdout"):
        assert qsim(*words, "--json", device, "--timeline", "/dev/null").exit_code == 0


def test_a_closed_stdout_does_not_lose_the_files(
    trace: Path, profile: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    words = [*commands(trace, profile)["plan"], "--json", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "qsim", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    process.stdout.close()
    _, errors = process.communicate(timeout=600)
    assert "Traceback" not in errors
    assert out.exists()
