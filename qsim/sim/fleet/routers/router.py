"""Routers: which replica a request goes to.

Those that know prefixes and sessions are in :mod:`qsim.sim.fleet.routers.affinity`, the one that
knows KV caches in :mod:`qsim.sim.fleet.routers.kv_aware`, those for replicas that differ in
:mod:`qsim.sim.fleet.routers.mixed`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from qsim.catalog.versions import DEFAULT_VERSION, rules_of
from qsim.errors import ScenarioError
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.routers.affinity import PrefixAffinity, SessionAffinity
from qsim.sim.fleet.routers.base import Draws, FleetView, Least, Rng, Router
from qsim.sim.fleet.routers.kv_aware import KvAware
from qsim.sim.fleet.routers.mixed import (
    ExpectedFinish,
    PowerOfTwo,
    WeightedLeastRequests,
    WeightedLeastTokens,
    WeightedRandom,
    WeightedRoundRobin,
)
from qsim.sim.fleet.routers.spec import PARAMETERS, RouterSpec, parse_router


class RoundRobin:
    """Each replica in turn."""

    def __init__(self, view: FleetView, rng: Rng) -> None:
        self._n = len(view.outstanding_requests)
        self._open: list[int] | None = None  # all
        self._next = -1

    def choose(self, request: int, now_ps: int) -> int:
        self._next = (self._next + 1) % self._n
        if self._open is not None:
            at = bisect_left(self._open, self._next)
            self._next = self._open[at] if at < len(self._open) else self._open[0]
        return self._next

    def only(self, servers: list[int]) -> None:
        self._open = servers if len(servers) < self._n else None


class Random:
    """Each replica with the same probability."""

    def __init__(self, view: FleetView, rng: Rng) -> None:
        self._draws = Draws(len(view.outstanding_requests), rng())
        self._open = set(range(len(view.outstanding_requests)))

    def choose(self, request: int, now_ps: int) -> int:
        while (target := self._draws.draw()) not in self._open:
            pass
        return target

    def only(self, servers: list[int]) -> None:
        self._open = set(servers)


class LeastRequests:
    """The replica with the fewest requests outstanding; ties go to the next one in turn.

    It counts by itself, so that nothing is looked through, however many replicas there are: one
    more where it sends a request, one less where one has finished.
    """

    def __init__(self, view: FleetView, rng: Rng) -> None:
        self._load = list(view.outstanding_requests)
        # by load, the replicas that have it, a bit each
        self._having = [0] * (max(self._load) + 1)
        for replica, load in enumerate(self._load):
            self._having[load] |= 1 << replica
        self._least = 0  # no replica has less
        self._last = -1
        self._closed = 0  # who takes no request, a bit each

    def only(self, servers: list[int]) -> None:
        self._closed = (1 << len(self._load)) - 1
        for replica in servers:
            self._closed -= 1 << replica

    def choose(self, request: int, now_ps: int) -> int:
        having, least = self._having, self._least
        while not having[least]:
            least += 1
        self._least = least
        those = having[least]
        if self._closed:
            while not (those := having[least] & ~self._closed):
                least += 1
        later = those >> (self._last + 1)
        if later:
            target = self._last + (later & -later).bit_length()
        else:
            target = (those & -those).bit_length() - 1
        self._last = target
        if least + 1 == len(having):
            having.append(0)
        self._move(target, least + 1)
        return target

    def finished(self, replica: int) -> None:
        """A request of this replica has finished."""
        load = self._load[replica] - 1
        self._move(replica, load)
        if load < self._least:
            self._least = load

    def _move(self, replica: int, load: int) -> None:
        bit = 1 << replica
        self._having[self._load[replica]] -= bit
        self._having[load] += bit
        self._load[replica] = load


class LeastTokens(Least):
    """The replica with the fewest tokens outstanding (prompt and output of its requests)."""

    def __init__(self, view: FleetView, rng: Rng) -> None:
        super().__init__(view.outstanding_tokens)


class VllmBalancer:
    """vLLM's own balancer for data-parallel engines behind one API server.

    The engine with the least load gets the request. The engines' waiting and running requests, and
    how much of their KV cache is used, are published every 100 ms; in between, the API server
    counts what it sent itself as waiting. What the load is, and which of equals is taken, depends
    on the version (:class:`qsim.catalog.versions.VersionRules`, "balancer"; vllm/v1/engine/
    core_client.py, ``DPLBAsyncMPClient.get_core_engine_for_request``).
    """

    #: the fleet calls ``refresh`` this often while requests are outstanding
    period_ps = PS_PER_S // 10

    def __init__(self, view: FleetView, rng: Rng, version: str = DEFAULT_VERSION) -> None:
        rules = rules_of(version)
        self._rotates = rules.balancer_rotates
        self.reads_kv_usage = rules.balancer_by_cache_pressure
        self._view = view
        self._in_flight = view.outstanding_requests
        n = len(self._in_flight)
        self._waiting = [0] * n
        self._running = [0] * n
        self._pressure = [0.0] * n  # what each waiting request counts beside itself
        self._start = 0
        self._open = set(range(n))

    def only(self, servers: list[int]) -> None:
        self._open = set(servers)

    def refresh(self) -> None:
        """Take over the counts that the engines publish now."""
        for i, (waiting, running) in enumerate(self._view.queue_lengths()):
            self._waiting[i] = waiting
            self._running[i] = running
        if self.reads_kv_usage:
            for i, usage in enumerate(self._view.kv_usage()):
                self._pressure[i] = 6.0 * max(0.0, usage - 0.5)

    def choose(self, request: int, now_ps: int) -> int:
        n = len(self._waiting)
        target, least = -1, 0.0
        for i in range(self._start, self._start + n):
            engine = i if i < n else i - n
            if engine not in self._open:
                continue
            waiting, running = self._waiting[engine], self._running[engine]
            if self.reads_kv_usage:
                load = float(max(self._in_flight[engine], waiting + running))
                load += waiting * self._pressure[engine]
            else:
                load = float(4 * waiting + running)
            if target < 0 or load < least:
                target, least = engine, load
        self._waiting[target] += 1
        if self._rotates:
            self._start = (self._start + 1) % n
        return target


ROUTERS: dict[str, Callable[..., Router]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "least-requests": LeastRequests,
    "least-tokens": LeastTokens,
    "power-of-two": PowerOfTwo,
    "vllm": VllmBalancer,
    "prefix-affinity": PrefixAffinity,
    "session-affinity": SessionAffinity,
    "kv-aware": KvAware,
    "expected-finish": ExpectedFinish,
}

#: the same for replicas of different weights
_WEIGHTED: dict[str, Callable[..., Router]] = {
    "round-robin": WeightedRoundRobin,
    "random": WeightedRandom,
    "least-requests": WeightedLeastRequests,
    "least-tokens": WeightedLeastTokens,
    **{name: ROUTERS[name] for name in ("power-of-two", *PARAMETERS)},
}


def check_router(text: str) -> RouterSpec:
    """A router's name, with its parameters behind a colon: see :data:`PARAMETERS`.

    Raises
    ------
    ScenarioError
        For an unknown router or parameter, or a value that is not allowed.
    """
    return parse_router(text, ROUTERS)


def check_weights(router: str, weights: Sequence[float]) -> None:
    """Refuse weights that a router does not know.

    Raises
    ------
    ScenarioError
        If they differ, and the router takes none.
    """
    router = check_router(router).name
    if len(set(weights)) > 1 and router not in _WEIGHTED:
        why = (
            "vLLM's own balancer has none"
            if router == "vllm"
            else "it knows from the profiles how fast each server is"
        )
        raise ScenarioError(
            f"weight is {' and '.join(f'{w:g}' for w in dict.fromkeys(weights))}, but router "
            f"{router} takes no weights: {why}; leave them out, or take one of: "
            f"{', '.join(_WEIGHTED)}"
        )


def make_router(
    name: str,
    view: FleetView,
    rng: Rng,
    version: str = DEFAULT_VERSION,
    weights: Sequence[float] = (),
) -> Router:
    """The router called ``name``, perhaps with parameters behind it.

    ``rng`` makes its generator, if it draws: numpy's generators take longer to import than a
    short simulation takes. ``version`` is the release of vLLM whose balancer ``vllm`` is.
    ``weights`` say how many requests each replica gets beside the others; none, if all are equal.

    Raises
    ------
    ScenarioError
        If there is no router of that name, or it takes no weights or not these parameters.
    """
    spec = check_router(name)
    if spec.name == "vllm":
        return VllmBalancer(view, rng, version)
    check_weights(name, weights)
    unequal = list(weights) if len(set(weights)) > 1 else None
    if spec.name in PARAMETERS:
        return ROUTERS[spec.name](view, rng, unequal, spec.parameters)
    if unequal is not None:
        return _WEIGHTED[spec.name](view, rng, unequal)
    return ROUTERS[spec.name](view, rng)
