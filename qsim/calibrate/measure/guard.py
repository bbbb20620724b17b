"""Runs a command in this process group and kills the group when the parent is gone.

Started as ``python guard.py COMMAND...`` with a pipe as stdin that only the parent holds: when
the parent ends in whatever way, the pipe closes. Needs the standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command; return its exit code, 128 + n if signal n ended it (as a shell does)."""
    # the group is told to end by SIGTERM; the guard stays to the last
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(
            sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=_default_signals
        )
    except OSError as e:
        print(f"cannot start {sys.argv[1]!r}: {e.strerror or e}", file=sys.stderr)
        return 127

    def watch() -> None:
        while os.read(0, 4096):  # sys.stdin would be locked when the interpreter ends
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _default_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
