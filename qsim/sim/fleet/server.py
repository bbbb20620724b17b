"""A server of a fleet whose servers come and go: its states, and its books over all of them."""

from __future__ import annotations

from qsim.sim.engine.replica import Replica
from qsim.sim.fleet.lifecycle import OFF, STATES

__all__ = ["Life", "Server"]


class Life:
    """One engine, from on to off or asleep."""

    __slots__ = ("replica",)

    def __init__(self, replica: Replica) -> None:
        self.replica = replica


class Server:
    """One GPU, or the GPUs of one tensor-parallel server.

    Attributes
    ----------
    state : int
        Since ``since_ps``.
    state_ps, state_j : list
        Time and energy by state. The energy of a life counts as that of ``on``, draining included.
    """

    __slots__ = (
        "index",
        "life",
        "peak_running",
        "peak_waiting",
        "pool",
        "preemptions",
        "requests",
        "since_ps",
        "starts",
        "state",
        "state_j",
        "state_ps",
        "steps",
        "total_busy_ps",
        "wakes",
    )

    def __init__(self, index: int, pool: int) -> None:
        self.index = index
        self.pool = pool
        self.state = OFF
        self.since_ps = 0
        self.life: Life | None = None
        self.state_ps = [0] * len(STATES)
        self.state_j = [0.0] * len(STATES)
        self.starts = 0
        self.wakes = 0
        self.requests = 0
        self.steps = 0
        self.preemptions = 0
        self.peak_running = 0
        self.peak_waiting = 0
        self.total_busy_ps = 0

    @property
    def energy_j(self) -> float:
        """Energy so far, J."""
        return sum(self.state_j)

    def spend(self, now_ps: int, energy_j: float) -> None:
        """Close the books of the state up to ``now_ps``."""
        self.state_ps[self.state] += now_ps - self.since_ps
        self.state_j[self.state] += energy_j
        self.since_ps = now_ps

    def end_life(self, now_ps: int) -> None:
        """The engine is idle and goes."""
        assert self.life is not None
        replica = self.life.replica
        self.life = None
        replica.look(now_ps)
        self.steps += replica.steps
        self.preemptions += replica.preemptions
        self.peak_running = max(self.peak_running, replica.peak_running)
        self.peak_waiting = max(self.peak_waiting, replica.peak_waiting)
        self.total_busy_ps += replica.meter.total_busy_ps
        self.spend(now_ps, 0.0)
        self.state_j[STATES.index("on")] += replica.meter.energy_j
