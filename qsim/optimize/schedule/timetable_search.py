"""The optimized timetable: dynamic programming over fleets whose windows were simulated.

The program proposes the cheapest sequence by a table of what servers carry and draw. Every window
of it is then simulated. One that misses an SLO rules out its fleet, and all smaller ones, in that
window; one that meets them replaces the table's energy by its own; and the program proposes again,
until all it proposes has been simulated. The table is read 8% too favourably on purpose: a fleet
that might do is thus ruled out by a simulation and not by the table. At last the whole trace is
simulated with the servers' starts; a window that misses there rules out its fleet, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.errors import InfeasibleError
from qsim.optimize.schedule.capacity import PoolCapacity
from qsim.optimize.schedule.problem import PoolChoice, ScheduleProblem
from qsim.optimize.schedule.tasks import WindowOutcome, WindowTask, run_window
from qsim.optimize.search.executor import TaskExecutor
from qsim.sim.fleet.pool import ServerPool

#: the table's capacity is taken for so much more
OPTIMISM = 1.08
_ROUNDS = 40
_BISECTIONS = 24

Note = Callable[[str], None]


@dataclass(frozen=True)
class Proposal:
    """Fleets by window, all of them simulated in their windows."""

    #: servers by window (outer) and pool
    counts: tuple[tuple[int, ...], ...]
    #: what the objective counts, starts included, by the windows' own simulations
    worth: float


@dataclass
class WindowSearch:
    """Finds the cheapest fleets by window for one set of pools."""

    problem: ScheduleProblem
    #: the ``limit`` of each pool is the most servers of it that are tried
    choices: Sequence[PoolChoice]
    capacities: Sequence[PoolCapacity]
    executor: TaskExecutor
    #: how requests are routed, as in :func:`qsim.sim.fleet.dynamic.simulate_dynamic`
    pack: int = 0
    note: Note = field(default=lambda _: None)

    def __post_init__(self) -> None:
        p = self.problem
        gpus = [c.gpus for c in self.choices]
        self.states = fleet_states([c.pool.replicas for c in self.choices], p.max_gpus, gpus)
        if not len(self.states):
            raise InfeasibleError(
                f"max_gpus is {p.max_gpus}, and one server needs {min(gpus)}: raise it by "
                f"{min(gpus) - (p.max_gpus or 0)}"
            )
        self.known: dict[tuple[int, int], WindowOutcome] = {}
        self.banned = np.zeros((p.windows, len(self.states)), np.bool_)
        self.rates = p.requests() / p.window_s * p.margin
        self.capacity = np.array(
            [
                sum(c.of(int(n)) for c, n in zip(self.capacities, s, strict=True))
                for s in self.states
            ]
        )
        self.pools = self._weighted()
        self.costs, self.shares = self._table()
        self.scale = np.array([1.0] * p.windows)
        # of carbon, a start costs as much as the window before it is dirty
        dirtiest = max(range(p.windows), key=p.intensity)
        each = np.array([p.start_worth(c, dirtiest) for c in self.choices])
        self.changes = starts_between(self.states) @ each
        if p.objective == "carbon" and p.intensity(dirtiest):
            before = [p.intensity(max(0, t - 1)) for t in range(p.windows)]
            self.scale = np.array(before) / p.intensity(dirtiest)
        if p.max_gpus is not None:  # both fleets are there while one takes over
            both = np.maximum(self.states[:, None, :], self.states[None, :, :]) @ np.array(gpus)
            self.changes = np.where(both > p.max_gpus, np.inf, self.changes)

    def _weighted(self) -> tuple[ServerPool, ...]:
        """The pools, with weights as they carry traffic."""
        most = max(c.many_rps for c in self.capacities)
        return tuple(
            replace(c.pool, weight=k.many_rps / most)
            for c, k in zip(self.choices, self.capacities, strict=True)
        )

    def routed(self) -> list[PoolChoice]:
        """The choices with these weights."""
        return [replace(c, pool=p) for c, p in zip(self.choices, self.pools, strict=True)]

    def _table(self) -> tuple[FloatArray, FloatArray]:
        """What each state costs in each window by the table, and each pool's share of requests."""
        p = self.problem
        weights = self.states * np.array([q.weight for q in self.pools])
        shares = weights / weights.sum(axis=1, keepdims=True)
        costs = np.full((p.windows, len(self.states)), np.inf)
        rent = np.array([p.rent_usd(self.choices, s) for s in self.states])
        servers = np.maximum(self.states, 1)
        for t, rate in enumerate(self.rates):
            watts = np.zeros(len(self.states))
            for k, capacity in enumerate(self.capacities):
                each = rate * shares[:, k] / servers[:, k]
                watts += self.states[:, k] * capacity.power_w(each)
            watts -= self._off_w()
            worth = np.array(
                [p.worth(t, w * p.window_s, u) for w, u in zip(watts, rent, strict=True)]
            )
            costs[t] = np.where(self.capacity * OPTIMISM >= rate, worth, np.inf)
        return costs, shares

    def _off_w(self) -> FloatArray:
        """What the GPUs of each state would draw without servers."""
        p = self.problem
        if p.owned_gpus is None:
            return np.zeros(len(self.states))
        return np.asarray(self.states @ np.array([c.gpus for c in self.choices]) * p.off_w)

    # ------------------------------------------------------------------------ proposals

    def propose(self) -> Proposal:
        """The cheapest fleets of which every window was simulated and meets the SLOs.

        Raises
        ------
        InfeasibleError
            If some window cannot be served within the limits, or the quality floor not be held.
        """
        for _ in range(_ROUNDS):
            path, worth = self._path()
            new = [(t, s) for t, s in enumerate(path) if (t, s) not in self.known]
            if not new:
                counts = tuple(tuple(int(n) for n in self.states[s]) for s in path)
                return Proposal(counts, worth)
            self.simulate(new)
        raise InfeasibleError(
            f"no timetable was found in {_ROUNDS} rounds; give a longer --window or fewer methods"
        )

    def simulate(self, cells: Sequence[tuple[int, int]]) -> None:
        """Simulate fleets in their windows, and learn from them."""
        self.note(f"{len(cells)} windows")
        futures = [self.executor.submit(run_window, self._task(t, s)) for t, s in cells]
        for (t, s), future in zip(cells, futures, strict=True):
            self._learn(t, s, future.result())

    def _task(self, window: int, state: int) -> WindowTask:
        p = self.problem
        return WindowTask(
            p.trace,
            window * p.window_s,
            p.window_s,
            self.pools,
            tuple(int(n) for n in self.states[state]),
            p.slos,
            self.pack,
            p.too_long,
            speed=p.margin,
            allow_backlog=p.allow_backlog,
            text_prompts=p.text_prompts,
        )

    def _learn(self, window: int, state: int, outcome: WindowOutcome) -> None:
        p = self.problem
        self.known[window, state] = outcome
        if not outcome.met:
            self.ban(window, state)
            return
        energy = outcome.energy_j - self._off_w()[state] * p.window_s
        rent = p.rent_usd(self.choices, self.states[state].tolist())
        self.costs[window, state] = p.worth(window, energy, rent)
        total = sum(outcome.requests)
        if total:
            self.shares[state] = np.array(outcome.requests) / total

    def ban(self, window: int, state: int) -> None:
        """Rule out a fleet, and all that have no more of anything, in a window."""
        smaller = (self.states <= self.states[state]).all(axis=1)
        self.banned[window] |= smaller

    def state_of(self, counts: Sequence[int]) -> int:
        """The number of a state."""
        return int(np.flatnonzero((self.states == np.array(counts)).all(axis=1))[0])

    # ------------------------------------------------------------------------- the program

    def _path(self) -> tuple[list[int], float]:
        costs = np.where(self.banned, np.inf, self.costs)
        hopeless = ~np.isfinite(costs).any(axis=1)
        if hopeless.any():
            raise InfeasibleError(self._why(int(np.argmax(hopeless))))
        floor = self.problem.min_quality
        if floor is None:
            return self._cheapest(costs)
        lows = np.array([c.low_pct for c in self.choices])
        return self._with_quality(costs, lows, floor)

    def _cheapest(self, costs: FloatArray) -> tuple[list[int], float]:
        path, worth = cheapest_path(costs, self.changes, self.scale)
        if not path:
            raise InfeasibleError(
                f"max_gpus is {self.problem.max_gpus}: every window can be served, but while one "
                "fleet takes over from another both need GPUs; raise it by 1"
            )
        return path, worth

    def _with_quality(
        self, costs: FloatArray, lows: FloatArray, floor: float
    ) -> tuple[list[int], float]:
        """Charge for lost quality, by bisection as little as holds the floor."""
        lost = 100.0 - self.shares @ lows
        requests = self.rates / max(1e-12, float(self.rates.sum()))

        def reached(path: list[int]) -> float:
            return 100.0 - float(sum(requests[t] * lost[s] for t, s in enumerate(path)))

        path, worth = self._cheapest(costs)
        if reached(path) >= floor:
            return path, worth
        scale = float(np.nanmax(costs[np.isfinite(costs)])) * len(costs)
        low, high, best = 0.0, scale, None
        for _ in range(_BISECTIONS):
            charge = high if best is None else (low * high) ** 0.5 if low else high / 64
            tried, _ = self._cheapest(costs + charge * np.outer(requests, lost))
            if reached(tried) >= floor:
                best, high = tried, charge
            elif best is None:
                high *= 64
                if high > scale * 64**4:
                    break
            else:
                low = charge
        if best is None:
            raise InfeasibleError(
                f"min_quality is {floor:.15g}; the best that these pools reach within the other "
                f"limits is {reached(tried):.2f} (low end), {floor - reached(tried):.2g} below it"
            )
        own = sum(costs[t, s] for t, s in enumerate(best))
        own += sum(
            self.changes[a, b] * self.scale[t]
            for t, (a, b) in enumerate(itertools.pairwise(best), 1)
        )
        return best, float(own)

    def _why(self, window: int) -> str:
        p = self.problem
        begin_s = window * p.window_s
        where = f"window {begin_s:,.0f}-{begin_s + p.window_s:,.0f} s"
        load = f"{self.rates[window]:.4g} requests/s"
        tried = [
            (max(*o.ratios, 1 + o.overload), s, o)
            for (t, s), o in self.known.items()
            if t == window and not o.met
        ]
        most = ", ".join(f"{c.pool.replicas} of {c.label}" for c in self.choices)
        limit = f"max_gpus {p.max_gpus}" if p.max_gpus is not None else f"the most to try ({most})"
        if not tried:
            carried = float(self.capacity.max())
            return (
                f"{where} ({load}): within {limit} servers carry {carried:.4g} requests/s under "
                f"the SLOs, {1 - carried / self.rates[window]:.1%} too few"
            )
        ratio, _, outcome = min(tried, key=lambda x: x[0])
        if max(outcome.ratios) <= 1:
            return (
                f"{where} ({load}): the largest fleet within {limit} is overloaded, "
                f"{outcome.overload:.1%} of the requests are not finished as they arrive"
            )
        slo = p.slos[int(np.argmax(outcome.ratios))]
        return (
            f"{where} ({load}): {slo} is missed by {ratio - 1:.1%} with the largest fleet within "
            f"{limit}"
        )


def fleet_states(limits: Sequence[int], max_gpus: int | None, gpus: Sequence[int]) -> IntArray:
    """Every fleet that may be on: rows of counts by pool, at least one server in all.

    Parameters
    ----------
    limits : sequence of int
        The most servers of each pool.
    max_gpus : int, optional
        The most GPUs in all.
    gpus : sequence of int
        GPUs of one server of each pool.

    Returns
    -------
    int64 array, shape (states, pools)
    """
    rows = [s for s in itertools.product(*(range(n + 1) for n in limits)) if any(s)]
    table = np.array(rows, np.int64).reshape(-1, len(limits))
    if max_gpus is not None:
        table = table[table @ np.asarray(gpus) <= max_gpus]
    return table


def starts_between(states: IntArray) -> IntArray:
    """Servers of each pool that a change from one state to another starts.

    Returns
    -------
    int64 array, shape (states before, states after, pools)
    """
    return np.asarray(np.maximum(0, states[None, :, :] - states[:, None, :]))


def cheapest_path(
    costs: FloatArray, changes: FloatArray, scale: FloatArray | None = None
) -> tuple[list[int], float]:
    """The sequence of states of least cost.

    Parameters
    ----------
    costs : float64 array, shape (windows, states)
        What a state costs in a window; inf where it does not do.
    changes : float64 array, shape (states, states)
        What it costs to go from one state (row) to another between two windows; inf if one cannot.
    scale : float64 array, shape (windows,), optional
        Multiplies the changes before each window, for costs that vary over time.

    Returns
    -------
    path : list of int
        The state in each window; of equally cheap ones the first in the order of the states.
    cost : float
        inf, with an empty path, if nothing does.
    """
    windows, states = costs.shape
    best = costs[0].copy()
    back = np.zeros((windows, states), np.int64)
    for t in range(1, windows):
        total = best[:, None] + changes * (1.0 if scale is None else scale[t])
        back[t] = np.argmin(total, axis=0)
        best = total[back[t], np.arange(states)] + costs[t]
    last = int(np.argmin(best))
    if not np.isfinite(best[last]):
        return [], float("inf")
    path = [last]
    for t in range(windows - 1, 0, -1):
        path.append(int(back[t, path[-1]]))
    return path[::-1], float(best[last])
