"""A pool: equal servers of a fleet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qsim.bounds import MAX_REPLICAS, shown
from qsim.checks import is_number, whole
from qsim.errors import ScenarioError
from qsim.profiles.schema import Profile
from qsim.sim.fleet.lifecycle import Lifecycle
from qsim.sim.scheduler.config import EngineConfig, EngineOptions


@dataclass(frozen=True)
class Pool:
    """Equal servers of a fleet, as a user asks for them.

    Attributes
    ----------
    profile : Profile or str
        A profile, the id of a shipped one, or a path.
    replicas : int
        Servers, each on ``tensor_parallel_size`` GPUs; >= 1.
    options : EngineOptions
        vLLM settings that differ from the profile's.
    weight : float
        How many requests a server gets beside one of weight 1, by the routers that know weights.
    name : str, optional
        What it is called in results; the profile's id (numbered, if several pools have it) unless
        given.
    lifecycle : Lifecycle
        Times and powers of a server that starts or stops.
    sleeps : bool
        A server that is taken out of use goes to sleep instead of off.

    Raises
    ------
    ScenarioError
        If a number is not allowed.
    """

    profile: Profile | str
    replicas: int = 1
    options: EngineOptions = field(default_factory=EngineOptions)
    weight: float = 1.0
    name: str | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    sleeps: bool = False

    def __post_init__(self) -> None:
        whole("replicas", self.replicas, 1, MAX_REPLICAS)
        if not is_number(self.weight) or not 0 < self.weight < math.inf:
            raise ScenarioError(f"weight is {self.weight!r}; must be a finite number > 0")
        if self.name is not None and not (
            isinstance(self.name, str) and self.name.strip() == self.name and self.name
        ):
            raise ScenarioError(f"name of a pool is {shown(self.name)}; must be a word or a few")


@dataclass(frozen=True)
class ServerPool(Pool):
    """The same of servers that come and go: ``replicas`` is the most that may exist at a time."""

    profile: Profile


@dataclass(frozen=True)
class ResolvedPool:
    """A pool as it is run."""

    #: unlike that of any other pool of the fleet
    name: str
    profile: Profile
    #: vLLM's settings, all of them
    config: EngineConfig
    #: as of :class:`Pool`; where an autoscaler scales the pool, ``replicas`` is the most
    replicas: int
    weight: float = 1.0
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    sleeps: bool = False
    #: servers at the beginning, where an autoscaler scales the pool
    first: int | None = None

    @property
    def asked(self) -> int:
        """Servers that were asked for: those at the beginning."""
        return self.replicas if self.first is None else self.first

    @property
    def gpus(self) -> int:
        """Of all its servers."""
        return self.replicas * self.profile.identity.tensor_parallel_size

    def to_dict(self) -> dict[str, Any]:
        """What it is, with vLLM's settings, as results tell it."""
        return {
            "name": self.name,
            "profile": self.profile.id,
            "replicas": self.asked,
            "weight": self.weight,
            **asdict(self.config),
        }


def resolve_pool(pool: Pool) -> ResolvedPool:
    """Look up its profile and fill in vLLM's settings.

    Raises
    ------
    ScenarioError
        If an option is not allowed.
    ProfileError
        If the profile is unknown or malformed.
    """
    from qsim.profiles.lookup import load_profile, version_of

    version = pool.options.vllm_version
    if isinstance(pool.profile, str):
        profile = load_profile(pool.profile, version)
    else:
        profile = version_of(pool.profile, version)
    return ResolvedPool(
        profile.id if pool.name is None else pool.name,
        profile,
        pool.options.resolve(profile),
        pool.replicas,
        float(pool.weight),
        pool.lifecycle,
        pool.sleeps,
    )


def resolve_pools(pools: Sequence[Pool]) -> tuple[ResolvedPool, ...]:
    """Those of one fleet: they serve one model, and have different names.

    Raises
    ------
    ScenarioError
        If there are none, too many servers, several models, or names that are given twice.
    ProfileError
        If a profile is unknown or malformed.
    """
    if not pools:
        raise ScenarioError("no pool is given; a fleet needs at least one")
    for pool in pools:
        if not isinstance(pool, Pool):
            raise ScenarioError(f"a pool is {shown(pool)}; must be a qsim.Pool")
    whole("replicas of all pools", sum(p.replicas for p in pools), 1, MAX_REPLICAS)
    given = Counter(p.name for p in pools if p.name is not None)
    twice = next((name for name, n in given.items() if n > 1), None)
    if twice is not None:
        raise ScenarioError(f"name of a pool is {twice!r} twice; every pool needs its own")
    found = [resolve_pool(p) for p in pools]
    models = sorted({p.profile.identity.model for p in found})
    if len(models) > 1:
        raise ScenarioError(
            f"the pools serve {' and '.join(models)}; behind one router all must serve one model"
        )
    return tuple(_named(found, [p.name is not None for p in pools]))


def resolve_servers(pools: Sequence[Pool]) -> tuple[ResolvedPool, ...]:
    """Those of servers that come and go: there may be none of a pool, and models may differ."""
    return tuple(_named([resolve_pool(p) for p in pools], [False] * len(pools)))


def _named(pools: Sequence[ResolvedPool], fixed: Sequence[bool]) -> list[ResolvedPool]:
    """The same with names that differ: what has only its profile's is numbered."""
    taken = {p.name for p, own in zip(pools, fixed, strict=True) if own}
    count = Counter(p.name for p in pools)
    named: list[ResolvedPool] = []
    for pool, own in zip(pools, fixed, strict=True):
        name = pool.name
        if not own and (count[name] > 1 or name in taken):
            number = 1
            while f"{pool.name} #{number}" in taken:
                number += 1
            name = f"{pool.name} #{number}"
        taken.add(name)
        named.append(replace(pool, name=name))
    return named
