"""Power: idle and busy power and the energy of work, from the GPU's energy counter.

``E = idle_w * time + busy_w * gpu_busy_time + a * prefill tokens + b * decoded tokens +
c * context tokens read + d * prefill pairs`` by non-negative least squares on windows of a few
ticks of the counter. A constant plus work alone cannot tell an idle from a busy GPU and misses
light loads by a fifth; with the busy time, phases come out within a few percent. Where the
recording has an idle phase, ``idle_w`` is the median of its windows and only the rest is fitted:
among hundreds of busy windows, a regression would give it what their misfit leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from qsim.arrays import FloatArray
from qsim.calibrate.fit.timeline import Timeline
from qsim.calibrate.recordings.data import Recording
from qsim.catalog.gpus import GPUS
from qsim.errors import CalibrationError
from qsim.profiles.schema import Power

#: counter ticks to a window, and the longest window that is used, s
_TICKS = 3
_LONGEST_S = 0.6
#: so many windows without work, so long (s) after the last step, tell the idle power by themselves
_LEAST_IDLE, _SETTLED_S = 3, 0.5


def energy_windows(
    recording: Recording, timeline: Timeline
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Windows between ticks of the energy counter.

    Returns
    -------
    features : array, shape (windows, 6)
        Duration and GPU-busy time (s), prefill tokens, decoded tokens, context tokens, pairs.
    energy_j : array, shape (windows,)
    middle_s : array, shape (windows,)
        NaN for windows that are not to be used: those that are too long, and those before the first
        load, when the server was starting up (and another one may have had the GPU).
    """
    p, s = recording.power, recording.steps
    ticks = np.flatnonzero(np.diff(p.energy_j) > 0) + 1
    gpus = recording.server.tensor_parallel  # their counters tick one after another
    at = ticks[:: _TICKS * gpus]
    t, e = p.t_s[at], p.energy_j[at]
    work = (
        timeline.end_s - timeline.start_s,
        s.prefill_tokens,
        s.decodes,
        s.decode_context_tokens,
        s.pairs,
    )
    columns = [np.diff(t), *(_spread(timeline, np.asarray(w, dtype=float), t) for w in work)]
    usable = (np.diff(t) < _LONGEST_S * gpus) & (t[:-1] >= recording.phases[0].start_s)
    middle = np.where(usable, (t[1:] + t[:-1]) / 2, np.nan)
    return np.stack(columns, axis=1), np.diff(e), middle


def _spread(timeline: Timeline, amount: FloatArray, edges_s: FloatArray) -> FloatArray:
    """``amount`` of each step, spread evenly over its span, summed between ``edges_s``."""
    total = np.r_[0.0, np.cumsum(amount)]
    x = np.stack([timeline.start_s, timeline.end_s], axis=1).ravel()
    y = np.stack([total[:-1], total[1:]], axis=1).ravel()
    return np.diff(np.interp(edges_s, x, y))


def _since_work_s(timeline: Timeline, t_s: FloatArray) -> FloatArray:
    """How long before each time the last step had ended, s."""
    ends = np.r_[-np.inf, timeline.end_s]
    result: FloatArray = t_s - ends[np.searchsorted(timeline.end_s, t_s, side="right")]
    return result


def fit_power(
    recordings: Sequence[Recording],
    timelines: Sequence[Timeline],
    excluded: Sequence[frozenset[int]],
) -> Power:
    """Fit the energy model on all windows outside the ``excluded`` phases.

    Raises
    ------
    CalibrationError
        If there are too few readings.
    """
    from sklearn.linear_model import LinearRegression

    features, energies, settled = [], [], []
    for recording, timeline, out in zip(recordings, timelines, excluded, strict=True):
        x, y, middle = energy_windows(recording, timeline)
        keep = np.isfinite(middle)
        for i, phase in enumerate(recording.phases):
            if i in out:
                keep &= ~((middle > phase.start_s - 0.2) & (middle < phase.end_s + 0.3))
        features.append(x[keep])
        energies.append(y[keep])
        settled.append(_since_work_s(timeline, middle[keep]) > _SETTLED_S)
    a, y = np.concatenate(features), np.concatenate(energies)
    if len(y) < 30:
        raise CalibrationError(
            f"{len(y)} windows of the energy counter; a power model needs at least 30: "
            "record longer loads"
        )
    scale = np.maximum(a.max(axis=0), 1e-30)
    idle = (a[:, 1:] <= 0).all(axis=1) & np.concatenate(settled)
    c, fitted = np.zeros(a.shape[1]), slice(0, None)
    if idle.sum() >= _LEAST_IDLE:
        c[0], fitted = np.median(y[idle] / a[idle, 0]), slice(1, None)
    model = LinearRegression(positive=True, fit_intercept=False)
    rest = y - c[0] * a[:, 0]
    model.fit((a / scale)[:, fitted], rest, sample_weight=1 / np.maximum(y, 20.0))
    c[fitted] = model.coef_ / scale[fitted]
    return Power(
        idle_w=float(c[0]),
        busy_w=float(c[1]),
        j_per_prefill_token=float(c[2]),
        j_per_decode_token=float(c[3]),
        j_per_context_token=float(c[4]),
        j_per_pair=float(c[5]),
        cap_w=max(_limit_w(recordings), float(c[0]) + 1.0),
    )


def rounded(power: Power) -> Power:
    """To six digits."""
    return Power(**{name: float(f"{value:.6g}") for name, value in asdict(power).items()})


def _limit_w(recordings: Sequence[Recording]) -> float:
    """The power limit of all GPUs of a server; the highest mean power if it is not known."""
    server = recordings[0].server
    if server.power_limit_w:
        return server.power_limit_w * server.tensor_parallel
    if server.gpu in GPUS:
        return GPUS[server.gpu].tdp_w * server.tensor_parallel
    return float(max(np.percentile(r.power.power_avg_w, 99.5) for r in recordings))


def step_power_w(power: Power, recording: Recording, timeline: Timeline) -> FloatArray:
    """Modelled power during every step, shape (n,)."""
    s = recording.steps
    work_j = (
        power.j_per_prefill_token * s.prefill_tokens
        + power.j_per_decode_token * s.decodes
        + power.j_per_context_token * s.decode_context_tokens
        + power.j_per_pair * s.pairs
    )
    result: FloatArray = power.idle_w + power.busy_w + work_j / (timeline.span_ms / 1e3)
    return result


def trailing_power_w(power: Power, recording: Recording, timeline: Timeline) -> FloatArray:
    """The exponential mean of modelled power at the start of every step, shape (n,)."""
    step_w = step_power_w(power, recording, timeline)
    out = np.empty(len(step_w))
    start, end, tau = timeline.start_s, timeline.end_s, power.tau_s
    mean = power.idle_w
    idle_decay = np.exp(-np.maximum(np.r_[0.0, start[1:] - end[:-1]], 0.0) / tau)
    busy_decay = np.exp(-(end - start) / tau)
    for k in range(len(out)):
        mean = power.idle_w + (mean - power.idle_w) * idle_decay[k]
        out[k] = mean
        mean = step_w[k] + (mean - step_w[k]) * busy_decay[k]
        mean = min(mean, power.cap_w)
    return out
