"""``python -m qsim``: the same as the command ``qsim``."""

from __future__ import annotations

from qsim.cli import main

if __name__ == "__main__":
    main(prog_name="qsim")
