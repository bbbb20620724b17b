"""Other traffic of the same kind: a new draw of a preset, or a trace put together anew.

A file is one draw of its traffic, and there is no second. :class:`Resample` puts stretches of it
in the place of others near them (a local block bootstrap; Paparoditis and Politis, 2002): what
happens within a stretch, such as bursts and the lengths that come together, stays as it was, and
so does the course of a day, because no stretch moves far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from qsim.traces.load import load_trace, preset_names, split_params
from qsim.traces.reshape import Reshaping, forecast
from qsim.traces.trace import Trace, taken

#: stretches that a trace is cut into, and bounds of their length in s
_STRETCHES = 50
_SHORTEST_S, _LONGEST_S = 1.0, 60.0
#: a stretch comes from at most so many of its lengths away
_REACH = 5


class Resampling(Protocol):
    """Draws traffic; can be pickled, so that a worker does it."""

    def draw(self, seed: int) -> Trace:
        """The same trace for the same seed."""

    def text(self) -> str:
        """How, for people."""


@dataclass(frozen=True)
class Resample:
    """Stretches of a trace in the place of others near them."""

    trace: Trace

    @property
    def stretch_s(self) -> float:
        """Length of a stretch, s."""
        return min(max(self.trace.duration_s / _STRETCHES, _SHORTEST_S), _LONGEST_S)

    def draw(self, seed: int) -> Trace:
        """The same trace for the same seed; of a trace below two stretches, or one whose later
        turns wait for answers, itself."""
        trace, length = self.trace, self.stretch_s
        first, duration_s = float(trace.arrival_s[0]), trace.duration_s
        count = math.ceil(duration_s / length)
        if count < 2 or trace.turns is not None:
            return trace
        rng = np.random.default_rng([seed, len(trace)])
        begins = np.arange(count) * length
        sources = begins + rng.uniform(-_REACH * length, _REACH * length, count)
        sources = np.clip(sources, 0.0, max(0.0, duration_s - length))
        at = trace.arrival_s - first
        lows = np.searchsorted(at, sources, side="left")
        highs = np.searchsorted(at, sources + length, side="left")
        highs[-1] = max(highs[-1], lows[-1])
        index = np.concatenate([np.arange(a, b) for a, b in zip(lows, highs, strict=True)])
        if len(index) == 0:
            return trace
        shift = np.repeat(begins - sources, highs - lows)
        arrival = first + at[index] + shift
        keep = arrival <= first + duration_s
        order = np.argsort(arrival[keep], kind="stable")
        index = index[keep][order]
        columns = {**taken(trace.columns(), index), "arrival_s": arrival[keep][order]}
        return replace(trace, **columns, meta=dict(trace.meta))

    def text(self) -> str:
        """How, for people."""
        if self.trace.turns is not None:
            return "the trace as it is: its sessions cannot be put together anew"
        return (
            f"stretches of {self.stretch_s:.3g} s of the trace in the place of others at most "
            f"{_REACH * self.stretch_s:.3g} s away"
        )


@dataclass(frozen=True)
class PresetDraw:
    """New draws of a preset, shaped as the plan's trace was."""

    name: str
    params: tuple[tuple[str, str], ...]
    seed: int
    asked: Reshaping
    growth: float = 1.0
    peak_hour: bool = False

    def draw(self, seed: int) -> Trace:
        """The draw number ``seed`` after the plan's own."""
        params = {**dict(self.params), "seed": str(self.seed + seed)}
        source = f"{self.name}:" + ",".join(f"{k}={v}" for k, v in params.items())
        trace = self.asked.apply(load_trace(source), self.seed + seed)
        return forecast(trace, self.growth, self.peak_hour)[0]

    def text(self) -> str:
        """How, for people."""
        return f"new draws of the preset {self.name}"


def preset_draw(
    source: str,
    seed: int,
    asked: Reshaping,
    growth: float = 1.0,
    peak_hour: bool = False,
) -> PresetDraw | None:
    """New draws of ``source``, each reshaped as ``asked``, or None if it is no preset."""
    name, params = split_params(source)
    if name not in preset_names():
        return None
    own = int(float(params.pop("seed", seed)))
    return PresetDraw(name, tuple(params.items()), own, asked, growth, peak_hour)
