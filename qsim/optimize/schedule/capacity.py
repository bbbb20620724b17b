"""How much traffic n servers of a profile carry under the SLOs, and at what power: by simulation.

The traffic is a stretch of the trace, sped up or slowed down. Rates are found to 4%. Between one
server and the most that were simulated, what each carries is interpolated: several servers carry a
little more each than one alone, because the router evens out their queues.

The table only says where a schedule begins to search: every fleet of the answer is simulated in its
own window.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from qsim.arrays import FloatArray
from qsim.errors import InfeasibleError
from qsim.optimize.search.fleet_task import offered_load
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.results.backlog import BacklogOutcome
from qsim.sim.results.continued import settled
from qsim.sim.results.result import SimulationResult
from qsim.sim.results.slo import Slo, SloOutcome, check_slos
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace

PRECISION = 0.04
#: fleets above it carry what this one does a server
LARGEST = 8


@dataclass(frozen=True)
class CapacityTask:
    """A stretch of traffic to carry by one pool."""

    trace: Trace
    pool: ServerPool
    slos: tuple[Slo, ...]
    servers: int
    too_long: str = "error"
    allow_backlog: bool = False
    text_prompts: bool = False


@dataclass(frozen=True)
class PoolCapacity:
    """What servers of one profile carry."""

    #: requests a second that one server carries, and each of ``servers``
    one_rps: float
    many_rps: float
    servers: int
    #: mean number of requests in each of ``servers`` servers at ``many_rps``
    in_flight: float
    #: power of a server by its requests a second, ascending from 0
    loads_rps: tuple[float, ...]
    watts: tuple[float, ...]
    simulations: int = field(default=0, compare=False)

    def of(self, n: int) -> float:
        """Requests a second that n servers carry."""
        if n <= 1 or self.servers <= 1:
            return n * self.one_rps
        # 1/n of the way from one to many: queues even out as 1/n
        share = (1 - 1 / min(n, self.servers)) / (1 - 1 / self.servers)
        return n * (self.one_rps + (self.many_rps - self.one_rps) * share)

    def power_w(self, rate_rps: FloatArray) -> FloatArray:
        """Power of a server at so many requests a second each."""
        return np.asarray(np.interp(rate_rps, self.loads_rps, self.watts))


def measure_capacity(task: CapacityTask) -> PoolCapacity:
    """Find what one server and ``servers`` of them carry.

    Raises
    ------
    InfeasibleError
        If even next to no traffic misses an SLO.
    """
    search = _Search(task)
    load = offered_load(task.trace, task.pool.profile, task.pool.options.resolve(task.pool.profile))
    rate = len(task.trace) / task.trace.duration_s
    guess = 0.5 * rate / max(load, 1e-9)  # SLOs rarely allow the best efficiency
    one = search.highest(1, guess)
    many = min(task.servers, LARGEST)
    each = search.highest(many, one * many) / many if many > 1 else one
    in_flight = each * search.mean_e2el_s
    points = sorted({0.0: task.pool.profile.power.idle_w, **search.watts}.items())
    return PoolCapacity(
        one,
        max(one, each),
        many,
        in_flight,
        tuple(p[0] for p in points),
        tuple(p[1] for p in points),
        search.count,
    )


class _Search:
    def __init__(self, task: CapacityTask) -> None:
        self.task = task
        self.rate = len(task.trace) / task.trace.duration_s
        self.watts: dict[float, float] = {}
        self.count = 0
        self.worst = ""
        self.mean_e2el_s = 0.0  # at the latest rate that was met

    def highest(self, servers: int, guess_rps: float) -> float:
        """The highest rate that was met, at most 4% below one that was not."""
        low, high = 0.0, guess_rps
        while self._met(servers, high):
            low, high = high, 2 * high
            if high > 1e6:
                return low
        while high > low * (1 + PRECISION):
            middle = (low * high) ** 0.5 if low else high / 2
            if self._met(servers, middle):
                low = middle
            else:
                high = middle
            if high < guess_rps / 512:
                pool = self.task.pool
                raise InfeasibleError(
                    f"{pool.profile.id}: {self.worst} even at {high:.2g} requests/s: no number of "
                    "servers helps"
                )
        return low

    def _met(self, servers: int, rate_rps: float) -> bool:
        task = self.task
        trace = replace(
            task.trace, arrival_s=task.trace.arrival_s - float(task.trace.arrival_s[0])
        ).speed(rate_rps / self.rate)

        def run(some: Trace) -> SimulationResult:
            return simulate(
                some,
                task.pool.profile,
                replicas=servers,
                options=task.pool.options,
                too_long=task.too_long,
                text_prompts=task.text_prompts,
            )

        result = run(trace)
        self.count += 1
        self.watts[rate_rps / servers] = result.energy_j / result.duration_s / servers
        outcomes = check_slos(result, task.slos)
        worst: SloOutcome | BacklogOutcome = max(outcomes, key=lambda o: o.ratio)
        if worst.met and not task.allow_backlog:
            backlog = BacklogOutcome(settled(result.load, trace, run))
            worst = worst if backlog.met else backlog
        if worst.met:
            self.mean_e2el_s = result.statistic("e2el", "mean") / 1000
        else:
            self.worst = worst.sentence()
        return worst.met
