"""Routers: which replica a request goes to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from qsim.catalog.versions import DEFAULT_VERSION, rules_of
from qsim.errors import ScenarioError
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.fleet.router_mixed import (
    ExpectedFinish,
    LeastByWeight,
    WeightedLeastRequests,
    WeightedLeastTokens,
    WeightedPowerOfTwo,
    WeightedRandom,
    WeightedRoundRobin,
)
from qsim.sim.fleet.router_view import Draws, FleetView, Pairs, Rng, Router

__all__ = ["ROUTERS", "FleetView", "Router", "check_weights", "make_router"]


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


class _Least:
    """The replica with the least load; ties go to the next one in turn."""

    def __init__(self, load: list[int]) -> None:
        self._load = load
        self._open: list[int] | None = None  # all
        self._last = -1

    def only(self, servers: list[int]) -> None:
        self._open = servers if len(servers) < len(self._load) else None

    def least_load(self) -> int:
        """Of those that take requests."""
        if self._open is None:
            return min(self._load)
        return min([self._load[i] for i in self._open])

    def choose(self, request: int, now_ps: int) -> int:
        load = self._load
        least = self.least_load()
        if self._open is not None:
            those = [i for i in self._open if load[i] == least]
            later = [i for i in those if i > self._last]
            self._last = later[0] if later else those[0]
            return self._last
        start = self._last + 1
        # list.index runs in C: a rotating scan without a Python loop
        try:
            self._last = load.index(least, start)
        except ValueError:
            self._last = load.index(least)
        return self._last


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


class LeastTokens(_Least):
    """The replica with the fewest tokens outstanding (prompt and output of its requests)."""

    def __init__(self, view: FleetView, rng: Rng) -> None:
        super().__init__(view.outstanding_tokens)


class PowerOfTwo:
    """The one with fewer requests outstanding of two replicas drawn at random."""

    def __init__(self, view: FleetView, rng: Rng) -> None:
        self._load = view.outstanding_requests
        self._pairs = Pairs(len(self._load), rng())

    def choose(self, request: int, now_ps: int) -> int:
        a, b = self._pairs.draw()
        return b if self._load[b] < self._load[a] else a

    def only(self, servers: list[int]) -> None:
        self._pairs.open = servers


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


class PrefixAffinity:
    """The replica that has most of the request's prefix, if that is enough and it has room.

    Of the replicas to which the most of the request's leading prefix blocks were sent, the least
    loaded one gets it, if these blocks are more than ``LEAST_SHARE`` of the prompt's and if it does
    not have more than ``MOST_EXTRA`` requests above the least loaded replica and more than
    ``MOST_RATIO`` times as many. Otherwise the least loaded replica gets it. What was sent is taken
    to stay cached.

    The rule is that of the cache-aware policy of SGLang's gateway and of vLLM's router, whose
    defaults are 0.3, 64 and 1.5 (``--cache-threshold``, ``--balance-abs-threshold``,
    ``--balance-rel-threshold``). The limit here is lower: up to 64 requests more would leave a
    fleet's traffic with one system prompt on few of its replicas. llm-d, which adds scores for the
    share (weight 3), short queues (2) and free KV cache (2), also gives way once requests wait;
    production-stack's ``kvaware`` follows a prefix that all but 2,000 tokens of a prompt match.
    """

    LEAST_SHARE = 0.5
    MOST_EXTRA = 4
    MOST_RATIO = 1.5

    def __init__(self, view: FleetView, rng: Rng, weights: list[float] | None = None) -> None:
        self._view = view
        self._load = view.outstanding_requests
        self._least = _Least(self._load)
        self._by_weight: LeastByWeight | None = None
        self._weights: list[float] = []
        if weights is not None:
            self._by_weight = LeastByWeight(self._load, weights)
            self._weights = [w / max(weights) for w in weights]  # requests beside the heaviest's
        self._everyone = (1 << len(self._load)) - 1
        #: by prefix block, the replicas to which it was sent, a bit each
        self._sent: dict[int, int] = {}
        self._open = list(range(len(self._load)))

    def only(self, servers: list[int]) -> None:
        self._open = servers
        self._everyone = 0
        for replica in servers:
            self._everyone |= 1 << replica
        self._least.only(servers)
        if self._by_weight is not None:
            self._by_weight.open = servers

    def forget(self, replica: int) -> None:
        """Its KV cache is gone."""
        keep = ~(1 << replica)
        for i, those in self._sent.items():
            self._sent[i] = those & keep

    def choose(self, request: int, now_ps: int) -> int:
        ids = self._view.prefix_ids(request)
        sent = self._sent
        having, matched = self._everyone, 0
        for i in ids:
            those = sent.get(i, 0) & having
            if not those:
                break
            having = those
            matched += 1
        target = -1
        if matched > self.LEAST_SHARE * len(ids):
            if self._by_weight is None:
                target = self._with_room(having)
            else:
                target = self._with_weighted_room(having)
        if target < 0:
            by_weight = self._by_weight
            if by_weight is None:
                target = self._least.choose(request, now_ps)
            else:
                target = by_weight.least(1)
        bit = 1 << target
        for i in ids:
            sent[i] = sent.get(i, 0) | bit
        return target

    def _with_room(self, having: int) -> int:
        """The least loaded of these replicas, -1 if it has too much to do."""
        load, target = self._load, -1
        while having:
            bit = having & -having
            having ^= bit
            replica = bit.bit_length() - 1
            if target < 0 or load[replica] < load[target]:
                target = replica
        least = self._least.least_load()
        if load[target] - least > self.MOST_EXTRA and load[target] > self.MOST_RATIO * least:
            return -1
        return target

    def _with_weighted_room(self, having: int) -> int:
        """The same, by load per weight."""
        loads = [n / w for n, w in zip(self._load, self._weights, strict=True)]
        target = -1
        while having:
            bit = having & -having
            having ^= bit
            replica = bit.bit_length() - 1
            if target < 0 or loads[replica] < loads[target]:
                target = replica
        least = min([loads[i] for i in self._open])
        if loads[target] - least > self.MOST_EXTRA and loads[target] > self.MOST_RATIO * least:
            return -1
        return target


ROUTERS: dict[str, Callable[..., Router]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "least-requests": LeastRequests,
    "least-tokens": LeastTokens,
    "power-of-two": PowerOfTwo,
    "vllm": VllmBalancer,
    "prefix-affinity": PrefixAffinity,
    "expected-finish": ExpectedFinish,
}

#: the same for replicas of different weights
_WEIGHTED: dict[str, Callable[..., Router]] = {
    "round-robin": WeightedRoundRobin,
    "random": WeightedRandom,
    "least-requests": WeightedLeastRequests,
    "least-tokens": WeightedLeastTokens,
    "power-of-two": WeightedPowerOfTwo,
    "prefix-affinity": PrefixAffinity,
}


def check_weights(router: str, weights: Sequence[float]) -> None:
    """Refuse weights that a router does not know.

    Raises
    ------
    ScenarioError
        If they differ, and the router takes none.
    """
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
    """The router called ``name``.

    ``rng`` makes its generator, if it draws: numpy's generators take longer to import than a
    short simulation takes. ``version`` is the release of vLLM whose balancer ``vllm`` is.
    ``weights`` say how many requests each replica gets beside the others; none, if all are equal.

    Raises
    ------
    ScenarioError
        If there is no router of that name, or it takes no weights.
    """
    if name not in ROUTERS:
        raise ScenarioError(f"router is {name!r}; must be one of: {', '.join(ROUTERS)}")
    if name == "vllm":
        return VllmBalancer(view, rng, version)
    check_weights(name, weights)
    if len(set(weights)) > 1:
        return _WEIGHTED[name](view, rng, list(weights))
    return ROUTERS[name](view, rng)
