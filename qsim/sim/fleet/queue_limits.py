"""Limits of what an API server takes in: who comes while it has too much is rejected (HTTP 503).

vLLM counts in the API server's process (vllm/v1/engine/async_llm.py, ``check_admission``): the
unfinished requests, waiting or running, and the prompt tokens of the requests that have no token
yet, each with its whole prompt. Several data-parallel engines behind one API server share a count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsim.sim.scheduler.config import EngineConfig

if TYPE_CHECKING:
    from qsim.sim.fleet.dispatcher import Dispatcher


class QueueLimits:
    """Decides for the servers of a fleet, by their settings; made only if there is a limit.

    Where the limits are shared (the router is vLLM's own) all are engines behind one API server.
    """

    def __init__(self, configs: Sequence[EngineConfig], shared: bool) -> None:
        self.shared = shared
        self._most_requests = [c.max_num_queued_reqs for c in configs]
        self._most_tokens = [c.max_num_queued_tokens for c in configs]
        #: prompt tokens of the requests without a token, by replica
        self.queued_tokens = [0] * len(configs)
        #: how many were rejected for which limit
        self.rejected_by_requests = self.rejected_by_tokens = 0

    def rejects(self, servers: Dispatcher, target: int, now_ps: int) -> bool:
        """Whether a request is rejected that comes now to a replica; counts it.

        The replica is of no meaning if the limits are shared.
        """
        replicas = range(len(self.queued_tokens)) if self.shared else (target,)
        for i in replicas:
            servers.replicas[i].catch_up(now_ps)
        most_requests = self._most_requests[max(target, 0)]
        most_tokens = self._most_tokens[max(target, 0)]
        requests = sum([servers.outstanding_requests[i] for i in replicas])
        if most_requests is not None and requests + 1 > most_requests:
            self.rejected_by_requests += 1
            return True
        tokens = sum([self.queued_tokens[i] for i in replicas])
        if most_tokens is not None and tokens >= most_tokens:
            self.rejected_by_tokens += 1
            return True
        return False

    def notes(self) -> list[str]:
        """What a reader should know."""
        found = (
            (self.rejected_by_requests, "max_num_queued_reqs", self._most_requests),
            (self.rejected_by_tokens, "max_num_queued_tokens", self._most_tokens),
        )
        return [
            f"{count} requests were rejected (HTTP 503): {name} is {_told(limits)}; they count as "
            "failed, and latencies are those of the others"
            for count, name, limits in found
            if count
        ]


def _told(limits: Sequence[int | None]) -> str:
    """The limits of all servers in words."""
    return " or ".join(str(v) for v in dict.fromkeys(limits) if v is not None)
