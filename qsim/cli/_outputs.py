"""What a command says and writes: every path is tried before the work, and the answer is told
whatever happens to one of them.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from qsim.bounds import one_line, printable
from qsim.errors import MissingExtraError, OutputError, QsimError, ScenarioError
from qsim.files import check_folder_writable, check_writable, write_text


def say(text: str, nl: bool = True, err: bool = False) -> None:
    """Print text, on stderr with ``err``.

    Names in it may come from a file, so nothing in it but its line ends controls the terminal.
    """
    click.echo("\n".join(map(printable, text.split("\n"))), nl=nl, err=err)


def note(text: str) -> None:
    """A remark on stderr; lost if that is closed."""
    with suppress(OSError):
        click.echo(f"Note: {one_line(text)}", err=True)


def tell(text: str) -> None:
    """Progress, on stderr."""
    say(f"  {text}", err=True)


def tell_reading(name: str, meta: Mapping[str, Any]) -> None:
    """Say on stderr how a file was understood, and what was left out of it."""
    for text in meta.get("notes") or ():
        note(f"{name}: {text}")
    skipped = meta.get("skipped") or {}
    if isinstance(skipped, Mapping):
        for rule, count in skipped.items():
            if count:
                note(f"{name}: {count} rows skipped ({rule})")


def to_json(data: Any) -> str:
    """JSON text of plain data, the same bytes for the same data; ValueError for nan or inf."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(data: Any, path: str) -> None:
    """Write to a file, or to stdout for ``-``."""
    text = to_json(data)
    if path == "-":
        click.echo(text, nl=False)
    else:
        write_text(path, text)


#: parameters that name a file to be written, and their options
_FILES = {
    "out": "--out",
    "json_path": "--json",
    "csv_path": "--csv",
    "trials_path": "--trials-csv",
    "requests_path": "--requests",
    "steps_path": "--steps",
    "timeline_path": "--timeline",
    "report_path": "--report",
    "picture_path": "--picture",
    "save_scenario": "--save-scenario",
    "save_scores": "--save-scores",
}


def check_outputs(given: Mapping[str, Any], exports: Iterable[Any] = ()) -> None:
    """Try every file that a command's parameters and its exports name.

    What cannot be written is an OutputError, with the option and what is in the way (for Parquet
    without pyarrow a MissingExtraError); two that are the same file, or the trace, a ScenarioError.
    """
    wanted = [(option, given.get(name)) for name, option in _FILES.items()]
    wanted += [(f"--export {e.kind}", e.path) for e in exports]
    seen: dict[str, str] = {}
    trace = given.get("trace")
    if trace and Path(str(trace)).is_file():
        seen[os.path.realpath(str(trace))] = "TRACE"
    for option, path in wanted:
        if path is None or path == "-":
            continue
        check_output(option, path, folder=option.startswith("--export") and _is_folder(path))
        real = os.path.realpath(path)
        other = seen.setdefault(real, option)
        if other != option and (not os.path.exists(real) or os.path.isfile(real)):
            raise ScenarioError(f"{other} and {option} are the same file, {path}; give another one")


def _is_folder(path: str) -> bool:
    return path.endswith(("/", os.sep)) or Path(path).is_dir()


def check_output(option: str, path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Try one file, or a folder that is to take files: the errors of :func:`check_outputs`."""
    if not os.fspath(path):
        raise OutputError(f"{option} is empty; give a {'folder' if folder else 'file'}")
    if Path(path).suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet", f"{option} {path}")
    try:
        (check_folder_writable if folder else check_writable)(path)
    except OSError as e:
        raise OutputError(f"{option} {path}: {_reason(e, os.fspath(path))}") from e


def _reason(error: OSError, path: str) -> str:
    text = error.strerror or str(error)
    other = error.filename and str(error.filename) not in (path, str(Path(path)))
    return f"{text} ({error.filename})" if other else text


def one_to_stdout(
    given: Mapping[str, Any], exports: Iterable[Any], files: Iterable[str] = ("json",)
) -> list[str]:
    """The option that goes to stdout in the place of the table, if there is one.

    If several do (exports without a path, and ``files`` to ``-``) that is a ScenarioError.
    """
    found = [str(e) for e in exports if e.path is None]
    found += [f"--{k} -" for k in files if given[f"{k}_path"] == "-"]
    if len(found) > 1:
        raise ScenarioError(
            f"{' and '.join(found)} would both go to stdout; give a path to all but one"
        )
    return found


PICTURES = (".png", ".svg", ".pdf")


def need_matplotlib(option: str, path: str | None, endings: tuple[str, ...] = PICTURES) -> None:
    """Fail before the work, not after it, if a picture cannot be drawn or has a wrong name."""
    if path is None:
        return
    if Path(path).suffix.lower() not in endings:
        raise ScenarioError(f"{option} is {path!r}; must end in {' or '.join(endings)}")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "report", option)


class Outputs:
    """Writes one thing after the other; what fails is told at the end and stops none of the rest.

    Use :meth:`attempt` around each, and :meth:`finish` at the end.
    """

    def __init__(self) -> None:
        self._failed: list[str] = []
        self._closed: OSError | None = None
        self._interrupt: KeyboardInterrupt | None = None

    @contextmanager
    def attempt(self, option: str) -> Iterator[None]:
        """Whatever cannot be written, or drawn in time for Ctrl-C, is noted."""
        try:
            yield
        except OSError as e:
            self.failure(option, e)
        except QsimError as e:
            self._failed.append(f"{option}: {e}")
        except KeyboardInterrupt as e:
            self._interrupt = e

    def failure(self, option: str, error: OSError) -> None:
        """Note what went wrong with a file."""
        if error.errno == errno.EPIPE:  # whoever read our output has gone
            self._closed = error
        else:
            self._failed.append(f"{option} {_reason(error, '')}")

    def interrupted(self, by: KeyboardInterrupt) -> None:
        """Ctrl-C ended a part of the work; the rest of the answer is still told."""
        self._interrupt = by

    def echo(self, text: str | Callable[[], str], nl: bool = True) -> None:
        """Print on stdout; with ``nl`` it is text for people."""
        with self.attempt("stdout"):
            text = text if isinstance(text, str) else text()
            if nl:
                say(text)
            else:  # rows and exports, which are read by programs
                click.echo(text, nl=False)

    def export(self, exports: Iterable[Any], write: Callable[[Any], str | None]) -> None:
        """Write each export; ``write`` returns what is for stdout."""
        for export in exports:
            with self.attempt(f"--export {export.kind}"):
                text = write(export)
                if text is not None:
                    self.echo(text, nl=False)

    @property
    def failed(self) -> bool:
        """Whether something could not be written."""
        return bool(self._failed)

    def finish(self) -> None:
        """Tell what went wrong: OutputError if something could not be written, or the interrupt."""
        if self._failed:
            raise OutputError("not written: " + "; ".join(self._failed))
        if self._interrupt is not None:
            raise self._interrupt
        if self._closed is not None:
            raise self._closed
