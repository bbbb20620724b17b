"""docs/tune.md shows what its commands print, and its Python runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import qsim

PAGE = Path(__file__).parents[2] / "docs" / "tune.md"
BLOCK = re.compile(r"^    \$ (qsim (?:.*\\\n)*.*)\n\n((?:    .*\n|\n)*)", re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    found = []
    for command, output in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        lines = [line.removeprefix("    ") for line in output.rstrip().split("\n")]
        found.append((re.sub(r"\\\n\s*", "", command), "\n".join(lines)))
    return found


def test_there_are_commands() -> None:
    assert len(commands()) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_command_prints_what_the_page_shows(number: int) -> None:
    command, output = commands()[number]
    result = qsim(*shlex.split(command)[1:], "--jobs", 1, "--no-progress")
    assert result.exit_code == (0 if number == 0 else 3), result.output
    assert result.stdout.rstrip() == output


def test_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    compile(blocks[0], str(PAGE), "exec")  # it takes minutes
    names: dict[str, Any] = {}
    exec(compile(blocks[1], str(PAGE), "exec"), names)
    assert "vllm serve" in capsys.readouterr().out
    assert names["point"].figures["quality"] >= 99


SWEEP = PAGE.with_name("sweep.md")


def test_the_sweeps_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SWEEP.read_text(encoding="utf-8")
    found = re.findall(r"^    \$ (qsim (?:.*\\\n)*.*)\n", text, re.MULTILINE)
    assert len(found) == 2
    monkeypatch.chdir(tmp_path)
    for command in found:
        words = shlex.split(re.sub(r"\\\n\s*", "", command))
        result = qsim(*words[1:], "--jobs", 1, "--no-progress")
        assert result.exit_code == 0, result.output
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 8
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 20
    assert sorted({r["seed"] for r in rows}) == list(range(10))


def test_python_of_sweep_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", SWEEP.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(block, str(SWEEP), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 4
