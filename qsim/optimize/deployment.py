"""What is to be started: one or more pools of equal vLLM servers, as every export takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qsim.errors import InfeasibleError
from qsim.optimize.candidate import Candidate
from qsim.profile import Profile
from qsim.sim.config import EngineConfig, EngineOptions

__all__ = ["STARTUP_S", "Pool", "pool_of"]

#: seconds from `vllm serve` to its first answer on /health: the largest of the starts measured on
#: an H200 (50-105 s, weights on a local disk or drawn); loading over a network is not in it
STARTUP_S = 105.0


@dataclass(frozen=True)
class Pool:
    """Equal servers behind one router.

    Attributes
    ----------
    profile : str
        Id of the profile that was simulated.
    replicas : int
        Servers that run.
    max_replicas : int or None
        As many as an autoscaler may start; None for twice ``replicas``.
    waiting : int or None
        The most requests that one server's queue held in the simulation; a longer queue is
        outside of what was predicted.
    router : str
        The router that was simulated.
    startup_s : float
        From the start of a server until it answers.
    """

    profile: str
    gpu: str
    model: str
    method: str
    engine: EngineConfig
    replicas: int
    tensor_parallel_size: int = 1
    vllm_args: tuple[str, ...] = ()
    options: EngineOptions = field(default_factory=EngineOptions)
    router: str = "least-requests"
    vllm_version: str = ""
    max_replicas: int | None = None
    waiting: int | None = None
    startup_s: float = STARTUP_S

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
            identity.vllm_version,
            **more,
        )

    @property
    def name(self) -> str:
        """A name for files and Kubernetes: lower case, digits and ``-``, at most 50 characters."""
        text = f"{self.model}-{self.method}-{self.gpu.split('_')[0]}".lower()
        if self.tensor_parallel_size > 1:
            text += f"-tp{self.tensor_parallel_size}"
        return "".join(c if c.isalnum() else "-" for c in text)[:50].strip("-")


def pool_of(candidate: Candidate, router: str = "least-requests") -> Pool:
    """The fleet of a candidate.

    Raises
    ------
    InfeasibleError
        If no fleet of the candidate meets the SLOs: there is nothing to start.
    """
    if candidate.engine is None or candidate.replicas is None or candidate.outcome is None:
        raise InfeasibleError(f"{candidate.profile} is infeasible: {candidate.reason}")
    replicas = candidate.outcome.summary.get("replicas") or ()
    return Pool(
        candidate.profile,
        candidate.gpu,
        candidate.model,
        candidate.method,
        candidate.engine,
        candidate.replicas,
        candidate.tensor_parallel_size,
        candidate.vllm_args,
        candidate.options,
        router,
        candidate.vllm_version,
        waiting=max((int(r["peak_waiting"]) for r in replicas), default=None),
    )
