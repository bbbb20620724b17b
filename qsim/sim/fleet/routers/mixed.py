"""Routers for replicas that differ: by weight, by expected finish, or one after the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from qsim.sim.fleet.routers.base import FleetView, Pairs, Rng, Weights

if TYPE_CHECKING:
    from qsim.sim.fleet.routers.server_speed import ServerSpeed


class WeightedRoundRobin:
    """Each replica in turn, in shares by weight: nginx's smooth weighted round-robin."""

    def __init__(self, view: FleetView, rng: Rng, weights: list[float]) -> None:
        self._weights = weights
        self._total = sum(weights)
        self._due = [0.0] * len(weights)
        self._open = list(range(len(weights)))

    def choose(self, request: int, now_ps: int) -> int:
        due, weights = self._due, self._weights
        target = self._open[0]
        for i in self._open:
            due[i] += weights[i]
            if due[i] > due[target]:
                target = i
        due[target] -= self._total
        return target

    def only(self, servers: list[int]) -> None:
        self._open = servers
        self._total = sum([self._weights[i] for i in servers])


class WeightedRandom:
    """Each replica with a probability by its weight."""

    def __init__(self, view: FleetView, rng: Rng, weights: list[float]) -> None:
        self._rng = rng()
        self._shares = np.cumsum(weights) / sum(weights)
        self._block: list[int] = []
        self._open = set(range(len(weights)))

    def choose(self, request: int, now_ps: int) -> int:
        while (target := self._draw()) not in self._open:
            pass
        return target

    def _draw(self) -> int:
        if not self._block:
            draws = self._rng.random(4096)
            self._block = np.searchsorted(self._shares, draws, side="right").tolist()
        return min(self._block.pop(), len(self._shares) - 1)

    def only(self, servers: list[int]) -> None:
        self._open = set(servers)


class LeastByWeight:
    """The replica with the least load per weight, what comes included; of equals, the next one."""

    def __init__(self, load: list[int], weights: list[float]) -> None:
        self._load = load
        self._inverse = [1.0 / w for w in weights]
        self.open = list(range(len(load)))
        self._last = -1

    def least(self, more: int) -> int:
        """Where ``more`` on top of its load is the least per weight."""
        least, chosen, after = 0.0, -1, False
        last = self._last
        for i in self.open:
            value = (self._load[i] + more) * self._inverse[i]
            if chosen < 0 or value < least or (value == least and not after and i > last):
                least, chosen, after = value, i, i > last
        self._last = chosen
        return chosen

    def only(self, servers: list[int]) -> None:
        self.open = servers


class WeightedLeastRequests(LeastByWeight):
    """The replica with the fewest requests outstanding per weight, this one included."""

    def __init__(self, view: FleetView, rng: Rng, weights: list[float]) -> None:
        super().__init__(view.outstanding_requests, weights)

    def choose(self, request: int, now_ps: int) -> int:
        return self.least(1)


class Packing(LeastByWeight):
    """The first replica that has less than ``most`` requests per weight, else the least loaded.

    So that those behind it have none, and can be switched off.
    """

    def __init__(self, view: FleetView, weights: list[float], most: int) -> None:
        super().__init__(view.outstanding_requests, weights)
        self._full = [math.ceil(most * w) for w in weights]

    def choose(self, request: int, now_ps: int) -> int:
        for i in self.open:
            if self._load[i] < self._full[i]:
                return i
        return self.least(1)


class WeightedLeastTokens(LeastByWeight):
    """The replica with the fewest tokens outstanding per weight, this request's included."""

    def __init__(self, view: FleetView, rng: Rng, weights: list[float]) -> None:
        super().__init__(view.outstanding_tokens, weights)
        self._view = view

    def choose(self, request: int, now_ps: int) -> int:
        prompt, output = self._view.length_of(request)
        return self.least(prompt + output)


class PowerOfTwo:
    """Of two replicas drawn at random, the one with fewer requests outstanding per weight."""

    def __init__(self, view: FleetView, rng: Rng, weights: Weights = None) -> None:
        self._load = view.outstanding_requests
        self._weights = [1.0] * len(self._load) if weights is None else weights
        self._pairs = Pairs(len(self._load), rng())

    def only(self, servers: list[int]) -> None:
        self._pairs.open = servers

    def choose(self, request: int, now_ps: int) -> int:
        a, b = self._pairs.draw()
        load, weights = self._load, self._weights
        return b if (load[b] + 1) * weights[a] < (load[a] + 1) * weights[b] else a


class ExpectedFinish:
    """The replica that is expected to finish the request first, by its profile.

    It knows what a router can: the requests outstanding at each replica, the request's prompt, and
    the mean prompt and output of what came and what finished before. See
    :class:`qsim.sim.fleet.routers.server_speed.ServerSpeed` for the estimate. Of equally fast
    replicas the one with the fewest requests gets it; of equals, the next one in turn.
    """

    def __init__(self, view: FleetView, rng: Rng) -> None:
        self._view = view
        self._load = view.outstanding_requests
        speeds = view.estimate()
        self._speeds = speeds
        #: replicas of each speed
        kinds: list[ServerSpeed] = []
        self._groups: list[list[int]] = []
        for i, speed in enumerate(speeds):
            for k, kind in enumerate(kinds):
                if kind is speed:
                    self._groups[k].append(i)
                    break
            else:
                kinds.append(speed)
                self._groups.append([i])
        self._all_groups = self._groups
        self._last = [-1] * len(self._groups)
        self._prompts = self._outputs = self._came = self._ended = 0

    def choose(self, request: int, now_ps: int) -> int:
        prompt, _ = self._view.length_of(request)
        self._came += 1
        self._prompts += prompt
        mean_prompt = self._prompts / self._came
        mean_output = self._outputs / self._ended if self._ended else 1.0
        load = self._load
        soonest, target, kind = 0.0, -1, -1
        for k, group in enumerate(self._groups):
            last = self._last[k]
            chosen, after = -1, False
            if not group:
                continue
            for i in group:
                if chosen < 0 or load[i] < load[chosen]:
                    chosen, after = i, i > last
                elif load[i] == load[chosen] and not after and i > last:
                    chosen, after = i, True
            ms = self._speeds[chosen].finish_ms(load[chosen], prompt, mean_prompt, mean_output)
            if target < 0 or ms < soonest:
                soonest, target, kind = ms, chosen, k
        self._last[kind] = target
        return target

    def only(self, servers: list[int]) -> None:
        self._groups = [[i for i in group if i in servers] for group in self._all_groups]

    def finished_tokens(self, output: int) -> None:
        """A request has finished with so many tokens of output."""
        self._ended += 1
        self._outputs += output
