"""``python -m qsim`` and the command ``qsim``."""

from __future__ import annotations

from qsim.startup import end_at_once_on_signals


def run() -> None:
    """Run the command line; a signal ends it without a traceback from here on."""
    end_at_once_on_signals()
    from qsim.cli import main

    main(prog_name="qsim")


if __name__ == "__main__":
    run()
