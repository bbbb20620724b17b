"""``python -m tests.fuzz N [SEED [WORKERS]]``."""

from __future__ import annotations

import os
import sys

from tests.fuzz.run import drawn, run, summary


def main() -> int:
    """Run N cases; print and keep what failed."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    workers = int(sys.argv[3]) if len(sys.argv) > 3 else len(os.sched_getaffinity(0))
    failed = run(drawn(count, seed), workers, progress=True)
    for words, times in summary(failed).most_common():
        print(f"{times:6d}  {words}")
    print(f"{count} cases of seed {seed}: {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
