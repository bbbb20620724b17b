"""What is to be started: one or more pools of equal vLLM servers, as every export takes it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qsim.errors import InfeasibleError
from qsim.optimize.plan.candidate import Candidate
from qsim.profiles.schema import Profile
from qsim.sim.fleet.autoscaling import Autoscaler
from qsim.sim.scheduler.config import EngineConfig, EngineOptions

#: seconds from `vllm serve` to its first answer on /health: the largest of the starts measured on
#: an H200 (50-105 s, weights on a local disk or drawn); loading over a network is not in it
STARTUP_S = 105.0


@dataclass(frozen=True)
class Pool:
    """Equal servers behind one router."""

    #: id of the profile that was simulated
    profile: str
    gpu: str
    model: str
    method: str
    engine: EngineConfig
    #: servers that run
    replicas: int
    tensor_parallel_size: int = 1
    vllm_args: tuple[str, ...] = ()
    options: EngineOptions = field(default_factory=EngineOptions)
    #: the router that was simulated
    router: str = "least-requests"
    vllm_version: str = ""
    #: as many as an autoscaler may start; None for twice ``replicas``
    max_replicas: int | None = None
    #: the most requests that one server's queue held in the simulation; a longer queue is outside
    #: of what was predicted
    waiting: int | None = None
    #: from the start of a server until it answers
    startup_s: float = STARTUP_S
    #: what was simulated; ``replicas`` are the servers at the beginning then
    autoscaler: Autoscaler | None = None
    #: behind the name, where the pools of one export would share it: see :func:`distinct`
    suffix: str = ""
    #: how many requests the router gives a server beside one of weight 1; None where all servers of
    #: the fleet are equal
    weight: float | None = None

    @classmethod
    def of(
        cls,
        profile: Profile,
        options: EngineOptions,
        replicas: int,
        router: str = "least-requests",
        **more: Any,
    ) -> Pool:
        """Servers of a profile; ``more`` are further attributes."""
        identity = profile.identity
        return cls(
            profile.id,
            identity.gpu,
            identity.model,
            identity.method,
            options.resolve(profile),
            replicas,
            identity.tensor_parallel_size,
            tuple(identity.vllm_args),
            options,
            router,
            options.vllm_version or identity.vllm_version,
            **more,
        )

    @property
    def name(self) -> str:
        """A name for files and Kubernetes: lower case, digits and ``-``, at most 50 characters.

        One that had to be cut ends in a hash of what it stands for.
        """
        text = f"{self.model}-{self.method}-{self.gpu.split('_')[0]}".lower()
        if self.tensor_parallel_size > 1:
            text += f"-tp{self.tensor_parallel_size}"
        name = "".join(c if c.isascii() and c.isalnum() else "-" for c in text).strip("-")
        if not name[:1].isalpha():  # a Service's name begins with a letter
            name = f"vllm-{name}"
        if len(name) + len(self.suffix) <= _LONGEST:
            return name + self.suffix
        return _cut(name, self.suffix or f"-{_digest(self.profile)}")


_LONGEST = 50


def _cut(name: str, end: str) -> str:
    return name[: _LONGEST - len(end)].rstrip("-") + end


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def distinct(pools: Sequence[Pool]) -> list[Pool]:
    """The pools, each with a name of its own.

    Those that would share one (``a.b`` and ``a-b``, or one profile with two settings) get a hash
    of what they are behind it.
    """
    names = [p.name for p in pools]
    if len(set(names)) == len(names):
        return list(pools)
    found: list[Pool] = []
    taken: set[str] = set()
    for pool in pools:
        if names.count(pool.name) > 1:
            what = f"{pool.profile} {pool.options} {pool.vllm_args}"
            own = replace(pool, suffix=f"-{_digest(what)}")
            count = 1
            while own.name in taken:
                count += 1
                own = replace(pool, suffix=f"-{_digest(what)}-{count}")
            pool = own
        taken.add(pool.name)
        found.append(pool)
    return found


def pools_of(candidate: Candidate, router: str = "least-requests") -> list[Pool]:
    """The fleet of a candidate: a pool, or those of a mixed fleet.

    Raises
    ------
    InfeasibleError
        If no fleet of the candidate meets the SLOs: there is nothing to start.
    """
    if candidate.engine is None or candidate.replicas is None or candidate.outcome is None:
        raise InfeasibleError(f"{candidate.profile} is infeasible: {candidate.reason}")
    rows = candidate.outcome.summary.get("replicas") or ()
    sizes = candidate.outcome.sizes or (candidate.replicas,)
    weights: list[float | None] = [p.weight for p in candidate.parts]
    pools, first = [], 0
    for blank, n, weight in zip(candidate.blanks, sizes, weights or [None], strict=True):
        own = rows[first : first + n]
        first += n
        assert blank.engine is not None
        pools.append(
            Pool(
                blank.profile,
                blank.gpu,
                blank.model,
                blank.method,
                blank.engine,
                n,
                blank.tensor_parallel_size,
                blank.vllm_args,
                blank.options,
                router,
                blank.vllm_version,
                waiting=max((int(r["peak_waiting"]) for r in own), default=None),
                weight=weight,
            )
        )
    return pools
