"""Mixed fleets of a plan: for pairs of profiles, the smallest counts that meet every limit.

Under stock limits two kinds of servers may do what neither can alone, or do it for less. For each
pair, and for each count of the one, the smallest count of the other is found by bisection: more
servers are taken never to be worse, as for fleets of one profile. What cannot be better than the
best fleet known (by cost or GPUs) is not simulated. How much is tried is bounded, and told.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from qsim.errors import TraceError
from qsim.optimize.plan.budget import Budget
from qsim.optimize.plan.candidate import Candidate, Part
from qsim.optimize.search.drive import Step
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, TaskPool
from qsim.optimize.search.measures import worst_quality
from qsim.profiles.schema import Profile

#: pairs of profiles that are mixed, the most promising ones
MOST_PAIRS = 10
#: counts of the one pool of a pair that are tried, spread evenly where there are more
MOST_COUNTS = 16


@dataclass(frozen=True)
class MixReport:
    """Which mixed fleets were looked for."""

    #: profiles that were mixed
    pairs: tuple[tuple[str, ...], ...]
    #: pairs that might do and were not tried: :data:`MOST_PAIRS` more promising ones were
    left_out: int
    #: pairs of which not every count was tried
    coarse: tuple[tuple[str, ...], ...]
    simulations: int
    #: the best mixed fleet that was found, by the profiles' names; "" for none
    best: str = ""
    #: it is better than every fleet of one profile within the stock
    beats: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "pairs": [list(p) for p in self.pairs],
            "pairs_not_tried": self.left_out,
            "pairs_not_every_count": [list(p) for p in self.coarse],
            "simulations": self.simulations,
            "best": self.best or None,
            "beats_every_pure_fleet": self.beats,
        }


@dataclass(frozen=True)
class Pair:
    """Two candidates to mix."""

    #: with the weights of their servers; counts are of no meaning yet
    parts: tuple[Part, Part]
    #: servers of each that meet every limit alone
    needed: tuple[int, int]
    #: servers of each that may be used: those that there are, and fewer than are enough alone
    most: tuple[int, int]
    #: GPUs that there are, where both use one type
    shared: int | None = None

    @property
    def names(self) -> tuple[str, str]:
        """The profiles."""
        return self.parts[0].blank.profile, self.parts[1].blank.profile

    @property
    def outer(self) -> int:
        """The pool whose counts are gone through: that with the fewer ones."""
        return 0 if self.most[0] <= self.most[1] else 1

    def counts(self) -> list[int]:
        """Counts of that pool, the largest first."""
        most = self.most[self.outer]
        if most <= MOST_COUNTS:
            return list(range(most, 0, -1))
        step = (most - 1) / (MOST_COUNTS - 1)
        return [1 + round(step * k) for k in reversed(range(MOST_COUNTS))]

    @property
    def coarse(self) -> bool:
        """Whether these are not all."""
        return self.most[self.outer] > MOST_COUNTS

    def most_beside(self, pool: int, count: int) -> int:
        """The most servers of the other pool beside so many of this one."""
        other = 1 - pool
        if self.shared is None:
            return self.most[other]
        sizes = [p.blank.tensor_parallel_size for p in self.parts]
        return min(self.most[other], (self.shared - count * sizes[pool]) // sizes[other])

    def promise(self, objective: str) -> tuple[float, float]:
        """Sort key, the best first: what is missing of enough, then the worth if all is linear."""
        best = (math.inf, math.inf)
        for first, other in ((0, 1), (1, 0)):
            n = self.most[first]
            m = (1 - n / self.needed[first]) * self.needed[other]
            short = max(0.0, m - self.most_beside(first, n)) / self.needed[other]
            worth = n * self.worth(first, objective) + m * self.worth(other, objective)
            best = min(best, (round(short, 6), worth))
        return best

    def worth(self, pool: int, objective: str) -> float:
        """Of one server: money or GPUs; for energy what its fleet takes, by the server."""
        blank = self.parts[pool].blank
        if objective == "cost":
            return blank.tensor_parallel_size * (blank.price.usd_per_hour if blank.price else 0.0)
        if objective == "gpus":
            return float(blank.tensor_parallel_size)
        energy = blank.outcome.summary["energy_j"] if blank.outcome else 0.0
        return float(energy) / self.needed[pool]


def choose_pairs(
    candidates: Sequence[Candidate],
    budget: Budget,
    objective: str,
    max_replicas: int,
    weights: Mapping[str, float],
) -> tuple[list[Pair], int]:
    """The pairs to try, the most promising first, and how many more there are.

    Of profiles that meet the limits in a fleet of some size, in stock or not: what no number of
    servers does is not mixed in.

    ``weights`` has that of a server beside one of weight 1, by profile.
    """
    able = []
    for c in candidates:
        alone = min((e.replicas for e in c.evaluations if e.met), default=None)
        if alone is None and c.outcome is not None and c.outcome.met:
            alone = c.outcome.replicas
        owned = budget.in_stock(c.gpu)
        if alone is None or owned is None or c.engine is None:
            continue
        most = min(owned // c.tensor_parallel_size, alone - 1, max_replicas - 1)
        if most >= 1:
            able.append((c, alone, most))
    pairs = []
    for (a, n, most_a), (b, m, most_b) in combinations(able, 2):
        if a.model != b.model:  # one router has one model behind it
            continue
        scale = min(weights[a.profile], weights[b.profile])
        parts = (
            Part(a, 0, float(f"{weights[a.profile] / scale:.3g}")),
            Part(b, 0, float(f"{weights[b.profile] / scale:.3g}")),
        )
        shared = budget.in_stock(a.gpu) if a.gpu == b.gpu else None
        pairs.append(Pair(parts, (n, m), (most_a, most_b), shared))
    pairs.sort(key=lambda p: (*p.promise(objective), p.names))
    return pairs[:MOST_PAIRS], max(0, len(pairs) - MOST_PAIRS)


def search_pair(
    task: FleetTask,
    pair: Pair,
    objective: str,
    budget: Budget,
    bound: float,
    max_replicas: int,
) -> Generator[Step, FleetOutcome, tuple[Candidate | None, int]]:
    """The best mixed fleet of a pair that is not worse than ``bound``, and the simulations.

    ``task`` is a fleet of both pools in the pair's order, of any size; ``bound`` is what the best
    fleet known is worth by the objective, inf for none.
    """
    outer = pair.outer
    done: dict[tuple[int, ...], FleetOutcome] = {}
    best: Candidate | None = None
    least = 1  # with fewer of the outer pool no fewer of the inner one suffice
    counts = pair.counts()
    try:
        for at, i in enumerate(counts):
            worth = bound if best is None else best.worth(objective)
            most = min(
                pair.most_beside(outer, i),
                max_replicas - i,
                _affordable(pair, outer, i, objective, worth, strictly=best is not None),
            )
            if least > most:
                continue
            guess = math.ceil((1 - i / pair.needed[outer]) * pair.needed[1 - outer])
            probes = _smallest_above(least - 1, min(max(least, guess), most), most)
            j = next(probes)
            count: int | None = None
            while True:
                sizes = _sizes(outer, i, j)
                if sizes not in done:
                    done[sizes] = yield task.sized(sizes), 2 * (len(counts) - at)
                try:
                    j = probes.send(done[sizes].met)
                except StopIteration as stop:
                    count = stop.value
                    break
            if count is None:
                least = most + 1
                continue
            least = count
            sizes = _sizes(outer, i, count)
            parts = [replace(p, replicas=n) for p, n in zip(pair.parts, sizes, strict=True)]
            found = replace(blank_mix(parts), feasible=True, outcome=done[sizes])
            value = found.worth(objective)
            better = value < worth if best is not None else value <= worth
            if better and not budget.overruns(found, done[sizes]):
                best = found
    except TraceError:  # a prompt that one of the pools cannot hold
        return None, len(done)
    if best is None:
        return None, len(done)
    return replace(best, evaluations=tuple(done[s] for s in sorted(done))), len(done)


def _smallest_above(low: int, guess: int, most: int) -> Generator[int, bool, int | None]:
    """The smallest count above ``low``, up to ``most``, that suffices; None if ``most`` does not.

    Yields a count and is sent whether it suffices; ``low`` is taken not to. From ``guess`` on it
    goes up or down in steps that double, then bisects.
    """
    high: int | None = None
    probe, step, missed = guess, 1, False
    while True:
        if (yield probe):
            high = probe
        else:
            low, missed = probe, True
        if high is None:
            if low >= most:
                return None
            probe = min(most, low + step)
            step *= 2
        elif high - low == 1:
            return high
        elif missed:
            probe = (low + high) // 2
        else:
            probe = max(low + 1, high - step)
            step *= 2


def _sizes(outer: int, i: int, j: int) -> tuple[int, int]:
    return (i, j) if outer == 0 else (j, i)


def _affordable(
    pair: Pair, outer: int, i: int, objective: str, worth: float, *, strictly: bool
) -> int:
    """The most servers of the inner pool that are not worse than ``worth``."""
    if objective not in ("cost", "gpus") or not math.isfinite(worth):
        return 1 << 30
    one = pair.worth(1 - outer, objective)
    left = worth - i * pair.worth(outer, objective)
    if one <= 0:
        return 1 << 30 if left >= 0 else 0
    if strictly:
        return math.ceil(left / one * (1 - 1e-9) - 1e-9) - 1
    return math.floor(left / one * (1 + 1e-9) + 1e-9)


def blank_mix(parts: Sequence[Part]) -> Candidate:
    """The candidate of pools before its search; its quality is that of the worst pool.

    Nobody knows which pool an answer comes from, so that no average is what a client gets.
    """
    blanks = [p.blank for p in parts]
    errors: dict[str, float] = {}
    for blank in blanks:
        for key, value in blank.error_percent.items():
            errors[key] = max(value, errors.get(key, 0.0))
    return replace(
        blanks[0],
        profile=" + ".join(b.profile for b in blanks),
        gpu=" + ".join(b.gpu for b in blanks),
        method=" + ".join(b.method for b in blanks),
        note=" ".join(dict.fromkeys(b.note for b in blanks if b.note)),
        caution="; ".join(dict.fromkeys(b.caution for b in blanks if b.caution)),
        source=None,
        router="",
        price=None,
        error_percent=errors,
        quality=worst_quality([b.quality for b in blanks]),
        feasible=False,
        reason="",
        shortfall=None,
        grown_from=None,
        replications=None,
        carries=None,
        nearest_limit=None,
        outcome=None,
        evaluations=(),
        parts=tuple(parts),
    )


def task_of_parts(
    base: FleetTask, parts: Sequence[Part], profiles: Mapping[str, Profile]
) -> FleetTask:
    """The fleet of the pools, to be simulated."""
    return base.of_pools(
        [TaskPool(profiles[p.blank.profile], p.replicas, p.blank.options, p.weight) for p in parts]
    )
