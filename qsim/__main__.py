"""``python -m qsim`` and the command ``qsim``."""

from __future__ import annotations

from qsim.startup import end_at_once_on_signals

__all__ = ["run"]


def run() -> None:
    """Run the command line; a signal ends it without a traceback from here on."""
    end_at_once_on_signals()
    _collect_seldom()
    from qsim.cli import main

    main(prog_name="qsim")


def _collect_seldom() -> None:
    """Look for garbage in cycles less often, and not in what is given back by the process's end.

    A fifth of the time of a small command went into looking through modules, which are never freed.
    """
    import atexit
    import gc

    gc.set_threshold(100_000, 20, 20)
    atexit.register(gc.freeze)


if __name__ == "__main__":
    run()
