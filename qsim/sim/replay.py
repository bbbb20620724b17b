"""``python -m qsim.sim.replay SCENARIO.json``: a scheduler scenario, turn by turn."""

from __future__ import annotations

import sys

from qsim.sim.scheduler.replay import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
