"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from qsim.cli import main

TRACE = """arrival_s,prompt_tokens,output_tokens
0.0,200,20
0.0,1500,40
0.4,90,1
1.1,700,60
1.15,30,5
"""


def qsim(*args: object) -> Result:
    """Run ``qsim ARGS`` in this process."""
    return CliRunner().invoke(main, [str(a) for a in args])


def fails(result: Result, code: int, *words: str) -> None:
    """The command failed as it should: exit code, one 'Error:' line with ``words``, no output."""
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: "), result.stderr
    for word in words:
        assert word in line, (word, line)


def write(path: Path, text: str) -> Path:
    """Write ``text`` to ``path``."""
    path.write_text(text, encoding="utf-8")
    return path
