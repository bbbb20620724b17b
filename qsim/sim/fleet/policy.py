"""What decides how many servers are on, and all that it may know: the present and the past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qsim.arrays import IntArray


@dataclass(frozen=True)
class PoolSignals:
    """What the servers of one pool tell of themselves, as vLLM's ``/metrics`` does."""

    #: ``vllm:num_requests_running``, ``vllm:num_requests_waiting`` and ``vllm:kv_cache_usage_perc``
    #: (a share, 0 to 1), summed over the servers that are on and those that drain
    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    #: the same of those that are on
    running_on: float = 0.0
    waiting_on: float = 0.0
    kv_usage_on: float = 0.0
    #: requests that have had their first token so far: ``vllm:time_to_first_token_seconds_count``
    first_tokens: int = 0
    #: the sum of their times from the server to the first token:
    #: ``vllm:time_to_first_token_seconds_sum``
    ttft_s: float = 0.0


@dataclass(frozen=True)
class Observation:
    """What a controller can see. Tuples have one entry a pool."""

    #: time of the trace
    now_s: float
    #: servers; those that wake up count as starting
    on: tuple[int, ...]
    starting: tuple[int, ...]
    draining: tuple[int, ...]
    asleep: tuple[int, ...]
    #: requests in the servers' queues that have not begun to run
    waiting: tuple[int, ...]
    #: requests that were sent to servers and are not finished
    outstanding: tuple[int, ...]
    #: requests at the gateway, for want of a server that is on
    held: int
    #: requests that came in each period of the policy so far; read only. Empty where the end of the
    #: trace is not known beforehand.
    arrivals: IntArray
    #: since the run began
    elapsed_s: float = 0.0
    #: requests that came so far
    arrived: int = 0
    #: for policies that ask for them; else empty
    signals: tuple[PoolSignals, ...] = ()


class Policy(Protocol):
    """Asked at the start of the trace and then once a period."""

    @property
    def period_s(self) -> float:
        """Seconds between two decisions."""

    def initial(self) -> tuple[int, ...]:
        """Servers of each pool that are on when the trace begins."""

    def decide(self, seen: Observation) -> tuple[int, ...]:
        """Servers of each pool that are to be on, or on their way there, from now on."""


@dataclass(frozen=True)
class Constant:
    """The same servers all the time."""

    counts: tuple[int, ...]
    period_s: float = 3600.0

    def initial(self) -> tuple[int, ...]:
        return self.counts

    def decide(self, seen: Observation) -> tuple[int, ...]:
        return self.counts
