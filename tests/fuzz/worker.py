"""Runs cases in this process: a case a line on stdin, its finding a line on stdout.

The parent (:mod:`tests.fuzz.run`) ends a case that takes too long together with this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fuzz.cases import Case

__all__ = ["judge", "main"]

#: memory that one case may need, bytes
MEMORY = 1 << 30
EXIT_CODES = {0, 1, 2, 3, 4, 5}
#: control characters that a terminal obeys, but for tab, line break and return
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_watched: dict[str, Any] = {"on": False, "folder": "", "outside": []}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note whatever would be written outside of the case's folder."""
    if not _watched["on"]:
        return
    paths: list[Any] = []
    if event == "open":
        path, mode, flags = arguments
        writes = isinstance(flags, int) and flags & WRITES
        if isinstance(path, str | bytes | os.PathLike) and (
            writes or (isinstance(mode, str) and set(mode) & set("wax+"))
        ):
            paths = [path]
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate"):
        paths = [arguments[0]]
    elif event in ("os.rename", "os.link", "os.symlink"):
        paths = list(arguments[:2])
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        if "fc-list" not in str(arguments[0]):  # matplotlib's search for fonts
            _watched["outside"].append(f"{event} {arguments[:2]!r:.200}")
    elif event in ("socket.connect", "socket.getaddrinfo"):
        _watched["outside"].append(f"{event} {arguments[-1]!r:.100}")
    for path in paths:
        if isinstance(path, int):
            continue
        with contextlib.suppress(ValueError, TypeError):
            where = os.path.realpath(os.fsdecode(path))
            good = (_watched["folder"], "/dev/null", "/dev/stdout", "/dev/tty")
            if not where.startswith(good) and "__pycache__" not in where:
                _watched["outside"].append(f"{event} {where}")


def _call(argv: list[str]) -> tuple[int, str, str, BaseException | None]:
    """Exit code, stdout, stderr and what was raised."""
    if argv[0].startswith("@"):
        return _call_python(argv)
    from click.testing import CliRunner

    from qsim.cli import main as qsim

    result = CliRunner().invoke(qsim, argv)
    raised = result.exception
    return (
        result.exit_code,
        result.stdout,
        result.stderr,
        None if raised is None or isinstance(raised, SystemExit) else raised,
    )


def _call_python(argv: list[str]) -> tuple[int, str, str, BaseException | None]:
    """What has no command of its own."""
    from qsim.errors import QsimError
    from qsim.quality.measure import load_run
    from qsim.sim.replay import load_scenario, replay

    error = io.StringIO()
    try:
        if argv[0] == "@replay":
            replay(load_scenario(argv[1]))
        else:
            load_run(argv[1], ["gsm8k"])
    except QsimError as e:
        error.write(f"Error: {e}\n")
        return e.exit_code, "", error.getvalue(), None
    except Exception as e:
        return 1, "", "", e
    return 0, "", "", None


def judge(case: Case, folder: Path) -> list[str]:
    """Run a case in an empty folder; what was wrong, a line each."""
    for part in (folder, folder / "work", folder / "work" / "out", folder / "tmp"):
        part.mkdir(exist_ok=True)
    work = folder / "work"
    for name, data in case.files.items():
        path = work / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    before = {p for p in work.rglob("*") if p.is_file()}
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start = _peak()
    os.chdir(work)
    _watched.update(on=True, folder=os.path.realpath(folder), outside=[])
    begin = time.process_time()
    try:
        code, out, err, raised = _call(case.argv)
    finally:
        _watched["on"] = False
        os.chdir("/")
        signal.signal(signal.SIGINT, signal.default_int_handler)
    found: list[str] = []
    seconds = time.process_time() - begin  # the machine may be shared
    if raised is not None:
        where = traceback.extract_tb(raised.__traceback__)
        own = [f for f in where if "/qsim/" in f.filename] or list(where)
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        found.append(f"raised {type(raised).__name__} at {at}: {str(raised)[:200]}")
    elif code not in EXIT_CODES:
        found.append(f"exit code {code}")
    if "Traceback (most recent call last)" in err:
        found.append("traceback on stderr")
    if raised is None and code != 0 and "Error: " not in err and code != 3:
        found.append(f"exit code {code} without a line of error")
    if len(err) > 20_000:
        found.append(f"stderr has {len(err)} characters")
    control = CONTROL.search(err) or CONTROL.search(out)
    if control:
        found.append(f"control character {control[0]!r} in the output")
    if re.search(r"^[^\n]*(RuntimeWarning|DeprecationWarning)", err, re.MULTILINE):
        found.append(f"warning: {err.strip()[:200]}")
    used = _peak() - start
    if used > MEMORY:
        found.append(f"memory {used / 2**20:.0f} MiB")
    if seconds > 20:
        found.append(f"took {seconds:.0f} s")
    found += [f"outside: {what}" for what in _watched["outside"][:3]]
    strays = [
        p for p in work.rglob("*")
        if p.is_file() and p not in before and "out" not in p.relative_to(work).parts
        and p.name.startswith((".tmp", "PWNED"))
    ]  # fmt: skip
    if (work / "PWNED").exists() or strays:
        found.append(f"left behind: {[p.name for p in strays]}")
    return found


def _peak() -> int:
    """Peak of the resident memory since it was reset, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def main() -> None:
    """Judge cases until stdin ends."""
    folder = Path(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import duckdb  # noqa: F401 - reserves address space
    import numpy  # noqa: F401
    import optuna  # noqa: F401
    import pydantic  # noqa: F401

    from qsim.calibrate.adapt import telemetry_fit

    telemetry_fit._ROUNDS, telemetry_fit._DRAWS = 1, 16  # what a fit finds is tested elsewhere
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = size + 3 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(_audit)
    for number, line in enumerate(sys.stdin):
        case = Case.from_json(json.loads(line))
        own = folder / str(number % 2)
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        os.environ["TMPDIR"] = str(own / "tmp")
        os.environ["HOME"] = str(own)
        found = judge(case, own)
        out.write(json.dumps(found) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
