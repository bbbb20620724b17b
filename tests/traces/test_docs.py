"""docs/traces.md says what qsim does: its Python runs, its commands work, its table is measured."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.traces.formats import FORMATS
from tests.traces.preset_table import table

DOC = (Path(__file__).resolve().parents[2] / "docs" / "traces.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code: str) -> None:
    exec(compile(code, "docs/traces.md", "exec"), {})


def commands() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in lines]


@pytest.mark.parametrize("command", commands())
def test_the_commands_work(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path("trace.jsonl.gz").write_text(
        '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
    )
    Path("windows.csv.gz").write_text(
        "model,client,t_s,rate_rps,cv,pattern,shape,scale\ndeepseek-r1,0,0,1,1,Gamma,1,1\n"
        "deepseek-r1,0,36000,1,1,Gamma,1,1\n"
    )
    program, *args = shlex.split(command)
    assert program == "qsim"
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.stderr


def test_the_table_of_presets_is_what_they_draw() -> None:
    stated = DOC.partition("<!-- preset table -->\n")[2].partition("<!-- end -->")[0]
    assert stated == table()


def test_every_format_is_listed() -> None:
    for one in FORMATS:
        assert f"| `{one.name}` |" in DOC, one.name
