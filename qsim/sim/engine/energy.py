"""Energy of one server over time, and the trailing power that drives its clock.

Between two evaluations the model counts whole tokens and GPU time only, so the result does not
depend on how often it was asked; an evaluation turns the counts into joules.
"""

from __future__ import annotations

from math import exp

from qsim.profiles.schema import Power
from qsim.sim.engine.timing import PS_PER_S, Timing

#: a level this close to where the work would take it is at rest
_AT_REST = 0.05


class PowerMeter:
    """Counts the work of one server and evaluates its energy and throttle level.

    Attributes
    ----------
    energy_j : float
        Energy up to the last evaluation, idle power included.
    mean_w : float
        Trailing exponential mean of power with time constant ``tau_s``.
    level : float
        0 (full clock) to 1 (held at the power cap).
    factors : tuple of three floats
        What GPU spans are multiplied by, by execution mode.
    settles_ps : int
        Half of ``tau_s``: how long a level that is not at rest may be relied on. 0 if nothing ever
        throttles.
    """

    __slots__ = (
        "_caps",
        "_full_w",
        "_last_ps",
        "_power",
        "_start_w",
        "_throttle",
        "busy_ps",
        "context_tokens",
        "decode_tokens",
        "energy_j",
        "factors",
        "level",
        "mean_w",
        "pairs_doubled",
        "prefill_tokens",
        "settles_ps",
        "total_busy_ps",
    )

    def __init__(self, power: Power, timing: Timing) -> None:
        self._power = (
            power.idle_w,
            power.busy_w,
            power.j_per_prefill_token,
            power.j_per_decode_token,
            power.j_per_context_token,
            power.j_per_pair * 0.5,
            power.cap_w,
            power.tau_s,
        )
        self._throttle = timing.throttle
        self._start_w, self._full_w = timing.throttle_start_w, timing.throttle_full_w
        self._caps = any(timing.throttle)
        self.settles_ps = round(0.5 * power.tau_s * PS_PER_S) if self._caps else 0
        self._last_ps = 0
        self.energy_j = 0.0
        self.mean_w = power.idle_w
        self.level = 0.0
        self.factors = (1.0, 1.0, 1.0)
        self.total_busy_ps = 0
        # work since the last evaluation
        self.busy_ps = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.context_tokens = 0
        self.pairs_doubled = 0

    def start(self, now_ps: int) -> None:
        """Begin to count at ``now_ps``."""
        self._last_ps = now_ps

    def evaluate(self, now_ps: int) -> float:
        """Account for everything since the last evaluation; the energy of that stretch, J."""
        elapsed_ps = now_ps - self._last_ps
        if elapsed_ps <= 0:
            return 0.0
        idle_w, busy_w, prefill_j, decode_j, context_j, half_pair_j, cap_w, tau_s = self._power
        elapsed_s = elapsed_ps / PS_PER_S
        energy = (
            idle_w * elapsed_s
            + busy_w * (self.busy_ps / PS_PER_S)
            + prefill_j * self.prefill_tokens
            + decode_j * self.decode_tokens
            + context_j * self.context_tokens
            + half_pair_j * self.pairs_doubled
        )
        share = 1.0 - exp(-elapsed_s / tau_s)
        before = self.mean_w
        mean = before + (energy / elapsed_s - before) * share
        if mean > cap_w:
            # the regulator: bursts may pass the cap, the trailing mean may not
            energy = elapsed_s * (before + (cap_w - before) / share)
            mean = cap_w
        self.mean_w = mean
        self.energy_j += energy
        self._last_ps = now_ps
        self.total_busy_ps += self.busy_ps
        self.busy_ps = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.context_tokens = 0
        self.pairs_doubled = 0
        if self._caps:
            start_w = self._start_w
            level = (mean - start_w) / (self._full_w - start_w)
            if level > 0.0:
                if level > 1.0:
                    level = 1.0
                self.level = level
                a, b, c = self._throttle
                self.factors = (1.0 + a * level, 1.0 + b * level, 1.0 + c * level)
            elif self.level:
                self.level = 0.0
                self.factors = (1.0, 1.0, 1.0)
        return energy

    def at_rest(self, rows: int, context_tokens: int, span_ps: int) -> bool:
        """Whether the level stays where it is while steps of so many decodes follow each other."""
        idle_w, busy_w, _, decode_j, context_j, _, _, _ = self._power
        step_j = decode_j * rows + context_j * context_tokens
        watts = idle_w + busy_w + step_j * PS_PER_S / span_ps
        start_w = self._start_w
        goal = (watts - start_w) / (self._full_w - start_w)
        if goal < 0.0:
            goal = 0.0
        elif goal > 1.0:
            goal = 1.0
        return -_AT_REST < goal - self.level < _AT_REST
