"""The root command: a table of subcommands, and what happens when one fails."""

from __future__ import annotations

import atexit
import difflib
import errno
import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NoReturn

import click

from qsim import __version__
from qsim.bounds import one_line
from qsim.cli._command import TableGroup
from qsim.errors import NotKeptWarning, QsimError
from qsim.interrupts import ended_by_signals

#: by name, the line for the help page; each is in the module of its name
COMMANDS = {
    "plan": "Find the smallest fleet of each method that meets the SLOs.",
    "capacity": "Find the most that given GPUs carry within the SLOs.",
    "schedule": "Find which servers are on when, over a day or a week.",
    "simulate": "Replay a trace against a fleet: latency, throughput, energy.",
    "tune": "Find the settings that nothing beats in every objective.",
    "curve": "Show what fleets do over load, and where they break.",
    "compare": "Hold a benchmark's result or a recording beside its simulation.",
    "sweep": "Simulate every point of a grid, one row a run.",
    "study": "Show what quantization does to a model, from tasks to GPUs.",
    "profiles": "List and show the calibrated profiles.",
    "traces": "Describe, convert and synthesise request traces.",
    "quality": "Show how much quality each method keeps.",
    "prices": "Show what GPUs cost, and the carbon of grids.",
    "schema": "Print the JSON Schema of a scenario file.",
    "methods": "List the quantization methods, and what fits.",
    "calibrate": "Measure a server and fit a profile of it.",
}

#: commands that multiply no matrices: starting a thread per core takes longer than importing the
#: rest of numpy
_NO_BLAS = ("simulate", "plan", "capacity", "curve")


@cache
def _collect_seldom() -> None:
    """Look for garbage in cycles less often, and not in what is given back by the process's end.

    A fifth of the time of a small command went into looking through modules, which are never freed.
    """
    gc.set_threshold(100_000, 20, 20)
    atexit.register(gc.freeze)


def _fail(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
    """Say what went wrong on one line and end."""
    with suppress(OSError):  # stderr may be a terminal that is gone
        click.echo(f"Error: {one_line(message)}", err=True)
    ctx.exit(exit_code)


class LazyGroup(TableGroup):
    """The root: what is known of all commands without importing them."""

    package, lines = "qsim.cli", COMMANDS

    def main(self, *args: Any, **extra: Any) -> Any:
        _collect_seldom()
        return super().main(*args, **extra)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None if there is none of that name."""
        if cmd_name in _NO_BLAS:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with near matches for a command that does not exist."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"no command {name!r}{hint} The commands are {', '.join(COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, after a look for words that are no text."""
        for word in args:
            if not word.isascii() and any("\ud800" <= c <= "\udfff" for c in word):
                raise click.UsageError(
                    f"{one_line(word)!r} is not text in this system's encoding; rename the file, "
                    "or set the locale to UTF-8",
                    ctx,
                )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; turn what may go wrong into one line and an exit code."""
        not_kept: list[str] = []
        try:
            with ended_by_signals(), _noted(not_kept):
                result = super().invoke(ctx)
            if not_kept:
                _fail(ctx, "; ".join(not_kept), 1)
            return result
        except QsimError as e:
            _fail(ctx, str(e), e.exit_code)
        except click.UsageError as e:  # click prints it, with the value that was given
            e.message = one_line(e.message)  # type: ignore[misc]
            raise
        except KeyboardInterrupt:
            with suppress(OSError):
                click.echo("\nInterrupted.", err=True)
            ctx.exit(130)
        except MemoryError:
            _fail(ctx, "there is not enough memory for this; ask for less", 1)
        except OSError as e:
            if e.errno == errno.EPIPE:  # whoever read our output has gone: click ends quietly
                raise
            name = f"{e.filename}: " if e.filename else ""
            _fail(ctx, f"{name}{e.strerror or e}", 1)


@contextmanager
def _noted(not_kept: list[str]) -> Iterator[None]:
    """Tell that something is not kept when it happens, as a note; and remember it."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
        if not issubclass(category, NotKeptWarning):
            usual(message, category, *more, **named)
            return
        if str(message) not in not_kept:
            not_kept.append(str(message))
            with suppress(OSError):
                click.echo(f"Note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", NotKeptWarning)
        warnings.showwarning = show
        yield


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qsim")
def main() -> None:
    """Simulate quantized LLM serving: latency, cost and energy of a fleet of vLLM servers.

    qsim replays a request trace against profiles that were measured on real servers.

    \b
    qsim plan azure-conv-2023 --model llama-3.1-8b --slo ttft:p99:500 --slo tpot:p99:50
    qsim simulate TRACE --profile h200_sxm/llama-3.1-8b/fp8-w8a8 --replicas 2
    qsim plan scenario.yaml --set slos=[ttft:p99:300]

    Exit codes: 0 done, 2 bad input, 3 no fleet meets the SLOs (or --fail-on-slo),
    4 calibration failed, 5 an optional package is missing, 130 interrupted (by Ctrl-C, SIGTERM
    or SIGHUP alike).
    """
