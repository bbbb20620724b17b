"""Runs ``qsim calibrate`` with few short loads instead of minutes of them. For tests only.

python drive.py run --model ... (the options of qsim calibrate run)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NVML = str(Path(__file__).parent / "fakes" / "nvml")
sys.path[:0] = [str(ROOT), NVML]
os.environ["PYTHONPATH"] = NVML  # for the process that samples power, too

from qsim.calibrate.measure import measurement  # noqa: E402
from qsim.calibrate.measure.speed import Speed  # noqa: E402
from qsim.calibrate.measure.workload import HoldoutTrace, Limits, Phase  # noqa: E402


def _burst(count: int, prompt: int, output: int) -> dict[str, list[float]]:
    return {"at_s": [0.0] * count, "prompt": [prompt] * count, "output": [output] * count}


def short_phases(
    speed: Speed,
    limits: Limits,
    budget_s: float,
    seed: int = 0,
    holdout: Sequence[HoldoutTrace] = (),
    only_holdout: bool = False,
    clients: Sequence[int] = (),
) -> Generator[Phase, Speed | None, None]:
    """Five loads of a fraction of a second, or four; and closed loops."""
    one = {"concurrency": 2, "prompt": [40, 700, 9000], "output": [1, 1, 2]}
    late = {"at_s": [0.0, 0.02, 0.05], "prompt": [300, 20, 60], "output": [9, 3, 30]}
    yield Phase("warm", "a burst", "burst", "skip", (_burst(2, 50, 4),), expected_s=0.1)
    yield Phase("idle", "no requests", "idle", "fit", idle_s=0.2, expected_s=0.2)
    yield Phase("ladder", "a burst", "burst", "fit", (_burst(8, 64, 60),), expected_s=0.2)
    if not only_holdout:
        over = (_burst(3, 30, 20), one)
        yield Phase("pre", "prompts over decodes", "rows", "fit", over, 0.0, 0.2)
    yield Phase("val_moderate", "arrivals", "rows", "holdout", (late,), expected_s=0.2)
    for n in clients:
        loop = {"concurrency": n, "prompt": [50] * 3 * n, "output": [4] * 3 * n}
        yield Phase(f"clients{n}", "clients", "clients", "holdout", (loop,), 0.0, 0.2, n)


def shorten() -> None:
    """Put the short loads in the place of the real ones."""
    measurement.phases = short_phases  # type: ignore[assignment]
    measurement.GAP_S = 0.02


if __name__ == "__main__":
    shorten()
    from qsim.cli import main

    main(["calibrate", *sys.argv[1:]], prog_name="qsim")
