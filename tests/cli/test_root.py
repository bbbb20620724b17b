from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qsim import __version__
from qsim.cli import main
from qsim.cli._root import COMMANDS
from tests.cli.helpers import fails, qsim


def python(code: str, *args: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


MAIN = "from qsim.cli import main; main(prog_name='qsim')"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, click.Command)
    result = qsim(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.stdout


def leaves(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands below ``command``, and groups, with the words that lead there."""
    yield path, command
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below
            yield from leaves(below, *path, name)


def test_a_repeated_option_is_an_error_in_every_command() -> None:
    tried = 0
    for path, command in leaves(main):
        for param in command.params:
            if not isinstance(param, click.Option) or param.multiple or param.is_eager:
                continue
            first, second = param.opts[-1], (param.secondary_opts or param.opts)[0]
            words = [first, second] if param.is_flag else [first, "1", f"{second}=2"]
            result = qsim(*path, *words)
            assert result.exit_code == 2, (path, words)
            assert f"is given 2 times ({first}" in result.stderr, (path, words, result.stderr)
            assert result.stdout == ""
            tried += 1
    assert tried > 150


def test_options_of_several_values_may_be_repeated(trace: Path, profile: Path) -> None:
    fails(qsim("simulate", trace, "--profile", "A", "--profile", "B"), 2,
          "--profile is given 2 times (--profile A, --profile B)")  # fmt: skip
    slos = ("--slo", "ttft:p99:500", "--slo", "tpot:p99:25")
    assert qsim("simulate", trace, "--profile", profile, *slos).exit_code == 0


def test_help_lists_all_commands_and_imports_none() -> None:
    code = f"import sys\ntry:\n    {MAIN}\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(python(code, "--help"), capture_output=True, text=True, check=True)
    for name, line in COMMANDS.items():
        assert name in done.stdout
        assert line in done.stdout
        assert f"qsim.cli.{name}" not in done.stderr.split()
    for heavy in ("numpy", "yaml", "simpy", "scipy", "sklearn", "optuna", "matplotlib"):
        assert heavy not in done.stderr.split()


def test_simulate_imports_nothing_heavy(trace: Path) -> None:
    code = f"import sys\ntry:\n    {MAIN}\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        python(code, "simulate", trace, "--profile", "h200_sxm/llama-3.1-8b/bf16", "--machines", 0),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stderr.split())
    assert "qsim.sim.simulate" in loaded
    assert not loaded & {"scipy", "sklearn", "optuna", "matplotlib", "pandas", "pyarrow"}
    # what is light, but not needed for a file, a shipped profile and a router that does not draw;
    # of DuckDB the core alone
    assert not loaded & {"duckdb", "jinja2", "numpy.ma", "numpy.random", "ruamel.yaml", "yaml",
                         "qsim.calibrate", "qsim.optimize.plan.result", "qsim.profiles.checks",
                         "qsim.profiles.factors", "qsim.quality", "qsim.traces.synth.presets",
                         "qsim.traces.formats.servegen"}  # fmt: skip


def test_version() -> None:
    assert qsim("--version").stdout == f"qsim, version {__version__}\n"


def test_an_unknown_command_has_near_matches() -> None:
    result = qsim("simulat")
    assert result.exit_code == 2
    assert "did you mean 'simulate'?" in result.stderr


def test_no_command_shows_the_help() -> None:
    result = qsim()
    assert "Commands:" in result.output


def test_output_closed_early_is_not_a_traceback(trace: Path, profile: Path) -> None:
    process = subprocess.Popen(
        python(MAIN, "simulate", trace, "--profile", profile, "--json", "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    process.wait()
    assert "Traceback" not in errors
    assert "Error" not in errors


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
@pytest.mark.parametrize("after_some", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_nothing_behind(
    tmp_path: Path, profile: Path, slower: Path, jobs: int, after_some: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        python(MAIN, "plan", "azure-conv-2023:duration=80,rate=50", "--profile", profile,
               "--profile", slower, "--slo", "ttft:p99:500", "--jobs", jobs, "--progress",
               "--json", out / "plan.json", "--picture", out / "plan.png"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr
    if after_some:
        process.stderr.readline()  # the bar at 0%: before the first simulation
    process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to workers too
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Interrupted" in errors
    assert list(out.iterdir()) == []
