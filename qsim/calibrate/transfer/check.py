"""A composed profile against a measured one, by execution mode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsim.calibrate.transfer.build import Teacher, transfer
from qsim.calibrate.transfer.learn import points_of
from qsim.calibrate.transfer.power import step_j
from qsim.calibrate.transfer.spans import MODES, Spans, StepPoint
from qsim.errors import CalibrationError
from qsim.profiles.schema import Profile


@dataclass(frozen=True)
class Difference:
    """Errors of one quantity over steps, in percent of the measured value."""

    quantity: str
    errors: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the absolute errors."""
        return float(np.median(np.abs(self.errors)))

    @property
    def p90(self) -> float:
        """90th percentile of the absolute errors."""
        return float(np.percentile(np.abs(self.errors), 90))

    @property
    def worst(self) -> float:
        """The largest, with its sign."""
        return max(self.errors, key=abs)

    @property
    def mean(self) -> float:
        """The mean, with its sign."""
        return float(np.mean(self.errors))


def power_w(profile: Profile, spans: Spans, point: StepPoint) -> float:
    """Power while a step like this repeats, W, at most the cap."""
    p = profile.power
    return min(p.cap_w, p.idle_w + p.busy_w + 1e3 * step_j(p, point) / spans.ms(point))


def compare_profiles(composed: Profile, measured: Profile) -> list[Difference]:
    """Differences of GPU spans by mode, of power and of KV blocks.

    Steps of decodes with 256, 1,024 and 4,096 tokens of context each, and of one prompt.
    """
    a, b = Spans(composed), Spans(measured)
    points = points_of(measured)
    found = []
    for mode in MODES:
        errors = [100 * (a.ms(p) / b.ms(p) - 1) for p in points if p.mode == mode]
        found.append(Difference(mode, tuple(errors)))
    watts = [
        100 * (power_w(composed, a, p) / power_w(measured, b, p) - 1)
        for p in points
        if p.mode == "decode" and p.rows <= 256
    ]
    found.append(Difference("power", tuple(watts)))
    blocks = composed.memory.num_gpu_blocks / measured.memory.num_gpu_blocks
    found.append(Difference("kv_tokens", (100 * (blocks - 1),)))
    return found


def leave_out(teacher: Teacher, measured: Profile) -> Profile:
    """The transferred profile of a measured one, learnt from the other models alone.

    Raises
    ------
    CalibrationError
        If nothing else was measured.
    """
    i = measured.identity
    others = teacher.without(i.model)
    if not others.samples:
        raise CalibrationError(f"no other model than {i.model} was measured to learn from")
    return transfer(others, i.gpu, i.model, i.architecture, i.method, i.tensor_parallel_size)
