"""Routers that send what belongs together to one replica: by prefix, or by session."""

from __future__ import annotations

import math

from qsim.sim.fleet.routers.base import FleetView, Least, Rng, Values, Weights
from qsim.sim.fleet.routers.mixed import LeastByWeight


class _Room:
    """Who has room beside the least loaded replica, and who that is.

    A replica has none with more than ``balance_abs_threshold`` requests above the least loaded one
    and more than ``balance_rel_threshold`` times as many; with weights, requests beside those of
    the heaviest replica.
    """

    def __init__(self, load: list[int], weights: Weights, parameters: Values) -> None:
        self._load = load
        self._most_extra = parameters["balance_abs_threshold"]
        self._most_ratio = parameters["balance_rel_threshold"]
        self._least = Least(load)
        self._by_weight: LeastByWeight | None = None
        self._weights: list[float] = []
        if weights is not None:
            self._by_weight = LeastByWeight(load, weights)
            self._weights = [w / max(weights) for w in weights]  # requests beside the heaviest's
        self.open = list(range(len(load)))

    def only(self, servers: list[int]) -> None:
        self.open = servers
        self._least.only(servers)
        if self._by_weight is not None:
            self._by_weight.only(servers)

    def least(self, request: int, now_ps: int) -> int:
        """The least loaded replica."""
        if self._by_weight is None:
            return self._least.choose(request, now_ps)
        return self._by_weight.least(1)

    def of(self, having: int) -> int:
        """The least loaded of these replicas, a bit each; -1 if it has no room."""
        if self._by_weight is not None:
            return self._of_weighted(having)
        load, target = self._load, -1
        while having:
            bit = having & -having
            having ^= bit
            replica = bit.bit_length() - 1
            if target < 0 or load[replica] < load[target]:
                target = replica
        least = self._least.least_load()
        if load[target] - least > self._most_extra and load[target] > self._most_ratio * least:
            return -1
        return target

    def _of_weighted(self, having: int) -> int:
        loads = [n / w for n, w in zip(self._load, self._weights, strict=True)]
        target = -1
        while having:
            bit = having & -having
            having ^= bit
            replica = bit.bit_length() - 1
            if target < 0 or loads[replica] < loads[target]:
                target = replica
        least = min([loads[i] for i in self.open])
        if loads[target] - least > self._most_extra and loads[target] > self._most_ratio * least:
            return -1
        return target


class PrefixAffinity:
    """The replica that has most of the request's prefix, if that is enough and it has room.

    Of the replicas to which the most of the request's leading prefix blocks were sent, the least
    loaded one gets it, if these blocks are more than ``cache_threshold`` of the prompt's and if it
    does not have more than ``balance_abs_threshold`` requests above the least loaded replica and
    more than ``balance_rel_threshold`` times as many. Otherwise the least loaded replica gets it.
    What was sent is taken to stay cached.

    The rule is that of the cache-aware policy of SGLang's gateway (``policies/cache_aware.rs``) and
    of vLLM's router, under the names of their options. They look at the fullest replica of all
    where this one looks at the replica that would get the request, and SGLang's sends what matches
    too little to the replica with the smallest tree. Their defaults are 0.3, 64 and 1.5 (vLLM's:
    0.5, 32 and 1.1). The limit here is lower: up to 64 requests more would leave a fleet's traffic
    with one system prompt on few of its replicas. llm-d, which adds scores for the share (weight
    3), short queues (2) and free KV cache (2), also gives way once requests wait;
    production-stack's ``kvaware`` follows a prefix that all but 2,000 tokens of a prompt match.
    """

    def __init__(self, view: FleetView, rng: Rng, weights: Weights, parameters: Values) -> None:
        self._view = view
        self._least_share = parameters["cache_threshold"]
        self._room = _Room(view.outstanding_requests, weights, parameters)
        self._everyone = (1 << len(view.outstanding_requests)) - 1
        #: by prefix block, the replicas to which it was sent, a bit each
        self._sent: dict[int, int] = {}

    def only(self, servers: list[int]) -> None:
        self._everyone = 0
        for replica in servers:
            self._everyone |= 1 << replica
        self._room.only(servers)

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
        if matched > self._least_share * len(ids):
            target = self._room.of(having)
        if target < 0:
            target = self._room.least(request, now_ps)
        bit = 1 << target
        for i in ids:
            sent[i] = sent.get(i, 0) | bit
        return target


class SessionAffinity:
    """Each session's own replica, unless that is down or has no room.

    Every session has an order of all replicas by a hash of both: highest random weight, or
    rendezvous hashing (Thaler and Ravishankar, 1998, IEEE/ACM Transactions on Networking 6); with
    weights by ``-weight / ln(hash)`` (Schindelhauer and Schomaker, 2005). The first replica that
    takes requests and has room gets the request. So sessions stay where they are when replicas
    come and go, but for those of a replica that goes and the share that one which comes takes
    over. Room is that of :class:`PrefixAffinity`; a session that was sent elsewhere comes back when
    its replica has room. Requests without a session go to the least loaded replica.

    production-stack's ``session`` router and vLLM's router (``consistent_hash``) do the same with a
    hash ring, without a limit: ``balance_abs_threshold=1e9``.
    """

    def __init__(self, view: FleetView, rng: Rng, weights: Weights, parameters: Values) -> None:
        self._view = view
        n = len(view.outstanding_requests)
        self._room = _Room(view.outstanding_requests, weights, parameters)
        self._weights = [1.0] * n if weights is None else weights
        self._keys = [_mixed(i + 1) for i in range(n)]
        self._first: dict[int, int] = {}  # by session, the first of those that take requests

    def only(self, servers: list[int]) -> None:
        self._room.only(servers)
        self._first.clear()

    def choose(self, request: int, now_ps: int) -> int:
        session = self._view.session_of(request)
        if session < 0:
            return self._room.least(request, now_ps)
        first = self._first.get(session, -1)
        if first < 0:
            first = self._first[session] = self._order(session)[0]
        if self._room.of(1 << first) >= 0:
            return first
        for replica in self._order(session):
            if self._room.of(1 << replica) >= 0:
                return replica
        return first  # the least loaded one has room, so nobody comes here

    def _order(self, session: int) -> list[int]:
        """The replicas that take requests, in the session's order."""
        scores = [
            (-self._weights[i] / math.log(_share(session, self._keys[i])), -i)
            for i in self._room.open
        ]
        scores.sort(reverse=True)
        return [-i for _, i in scores]


_MASK = (1 << 64) - 1


def _mixed(x: int) -> int:
    """64 bits that look drawn at random: the finalizer of splitmix64 (Steele et al., 2014)."""
    x = (x * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _share(session: int, key: int) -> float:
    """A number in (0, 1) by both."""
    return ((_mixed(_mixed(session + 1) ^ key) >> 12) + 0.5) / float(1 << 52)
