"""Servers that fail: when, for how long, and what their clients do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsim.bounds import shown
from qsim.checks import finite, whole
from qsim.errors import ScenarioError
from qsim.sim.fleet.pool import ResolvedPool

#: longest times that are taken, s
_MOST_S = 1e9
#: more failures than that a second are no server, and no end of events
_LEAST_MTBF_S = 0.01


@dataclass(frozen=True)
class Failure:
    """One server fails once.

    Attributes
    ----------
    at_s : float
        When, on the trace's clock. A server that is not on then has nothing that could fail.
    for_s : float
        How long it is under repair; then it starts, which takes its pool's ``start_s``.
    server : int
        Its number in its pool, from 0.
    pool : str or int
        Name or number of the pool.
    """

    at_s: float
    for_s: float
    server: int = 0
    pool: str | int = 0

    def __post_init__(self) -> None:
        finite("at_s of a failure", self.at_s, 0.0, 1e10)
        finite("for_s of a failure", self.for_s, 0.0, _MOST_S)
        whole("server of a failure", self.server, 0)


@dataclass(frozen=True)
class Failures:
    """How servers fail: those in a list, and others at random.

    Requests under way at a server that fails are lost, and its KV cache is empty when it comes
    back. Clients send a lost request again after ``retry_after_s``, up to ``retries`` times; after
    that it has failed.

    Attributes
    ----------
    mtbf_s : float, optional
        Mean time that a server is on before it fails, exponentially distributed; none fails at
        random unless given.
    repair_s : float
        Mean time to repair, exponentially distributed; 0 for none but the start.
    """

    events: Sequence[Failure] = ()
    mtbf_s: float | None = None
    repair_s: float = 0.0
    retries: int = 2
    retry_after_s: float = 0.5

    def __post_init__(self) -> None:
        if not all(isinstance(e, Failure) for e in self.events):
            raise ScenarioError("events of failures holds something that is no qsim.Failure")
        if self.mtbf_s is not None:
            finite("mtbf_s", self.mtbf_s, _LEAST_MTBF_S, _MOST_S)
        finite("repair_s", self.repair_s, 0.0, _MOST_S)
        whole("retries", self.retries, 0, 1000)
        finite("retry_after_s", self.retry_after_s, 0.0, _MOST_S)

    def listed(self, pools: Sequence[ResolvedPool]) -> list[tuple[int, float, float]]:
        """(server's number in the fleet, at_s, for_s) of the events in the list.

        Raises
        ------
        ScenarioError
            If a pool has no such name or number, or no such server.
        """
        first = [sum(p.replicas for p in pools[:k]) for k in range(len(pools))]
        found = []
        for event in self.events:
            number = _number(event.pool, pools)
            pool = pools[number]
            if event.server >= pool.replicas:
                raise ScenarioError(
                    f"server of a failure is {event.server}; {pool.name} has {pool.replicas}, "
                    "numbered from 0"
                )
            found.append((first[number] + event.server, event.at_s, event.for_s))
        return found

    def draw(self, seed: int, server: int, life: int) -> tuple[float, float]:
        """How long a life of a server lasts, and how long its repair takes, s.

        They depend on server and life alone, so that two fleets under the same seed differ in
        nothing else.
        """
        assert self.mtbf_s is not None
        rng = np.random.default_rng([seed, server, life])
        return float(rng.exponential(self.mtbf_s)), float(rng.exponential(self.repair_s))


def _number(pool: str | int, pools: Sequence[ResolvedPool]) -> int:
    names = [p.name for p in pools]
    if isinstance(pool, int) and not isinstance(pool, bool) and 0 <= pool < len(pools):
        return pool
    if isinstance(pool, str) and pool in names:
        return names.index(pool)
    raise ScenarioError(
        f"pool of a failure is {shown(pool)}; must be one of: {', '.join(names)}, or a number "
        f"from 0 to {len(pools) - 1}"
    )
