"""One server of a fleet: the state it is in, and its books."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from qsim.sim.engine.replica import Replica
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.lifecycle import DRAINING, OFF, ON, STATES


@dataclass(slots=True, eq=False)
class Server:
    """One GPU, or the GPUs of one tensor-parallel server."""

    #: its number in the fleet, and its pool's
    index: int
    pool: int
    usable_blocks: int
    #: since ``since_ps``; ``changes`` counts how often it changed
    state: int = OFF
    changes: int = 0
    since_ps: int = 0
    #: the engine that it runs: each time that it starts a new one, with an empty KV cache
    replica: Replica | None = None
    #: time and energy by state. The energy of an engine counts as that of ``on``, draining
    #: included.
    state_ps: list[int] = field(default_factory=lambda: [0] * len(STATES))
    state_j: list[float] = field(default_factory=lambda: [0.0] * len(STATES))
    starts: int = 0
    wakes: int = 0
    steps: int = 0
    preemptions: int = 0
    peak_running: int = 0
    peak_waiting: int = 0
    total_busy_ps: int = 0
    least_free_blocks: int = 0
    beyond_requests: int = 0
    beyond_tokens: int = 0
    beyond_context: int = 0

    def __post_init__(self) -> None:
        self.least_free_blocks = self.usable_blocks

    @property
    def energy_j(self) -> float:
        """Energy so far, J."""
        return sum(self.state_j)

    def row(self) -> dict[str, Any]:
        """What it did; ``utilisation`` is the share of the time it was on that it computed."""
        on_ps = self.state_ps[ON] + self.state_ps[DRAINING]
        return {
            "steps": self.steps,
            "busy_s": self.total_busy_ps / PS_PER_S,
            "on_s": on_ps / PS_PER_S,
            "utilisation": self.total_busy_ps / on_ps if on_ps else math.nan,
            "energy_j": self.energy_j,
            "preemptions": self.preemptions,
            "peak_running": self.peak_running,
            "peak_waiting": self.peak_waiting,
            "peak_kv_usage": 1.0 - self.least_free_blocks / self.usable_blocks,
        }

    def spend(self, now_ps: int, energy_j: float) -> None:
        """Close the books of the state up to ``now_ps``."""
        self.state_ps[self.state] += now_ps - self.since_ps
        self.state_j[self.state] += energy_j
        self.since_ps = now_ps

    def end_life(self, now_ps: int) -> None:
        """The engine goes."""
        assert self.replica is not None
        replica = self.replica
        self.replica = None
        replica.look(now_ps)
        self.steps += replica.steps
        self.preemptions += replica.preemptions
        self.peak_running = max(self.peak_running, replica.peak_running)
        self.peak_waiting = max(self.peak_waiting, replica.peak_waiting)
        self.least_free_blocks = min(self.least_free_blocks, replica.least_free_blocks)
        self.beyond_requests += replica.beyond_requests
        self.beyond_tokens += replica.beyond_tokens
        self.beyond_context += replica.beyond_context
        self.total_busy_ps += replica.meter.total_busy_ps
        self.spend(now_ps, 0.0)
        self.state_j[ON] += replica.meter.energy_j
