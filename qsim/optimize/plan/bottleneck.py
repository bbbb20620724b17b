"""Where the time of a fleet goes, from the step log of its simulation.

Every moment of every replica, from the first arrival to the last token, is put to one account:

* ``prefill``: the part of a step's GPU span that its prompt tokens cost, beyond what the step's
  decodes alone would take (attention and matrix products: compute);
* ``decode``: the rest of the span at full clock (reading weights and KV cache: bandwidth);
* ``power_cap``: what the span was longer than at full clock;
* ``host``: the GPU waited for the host thread although the engine had requests;
* ``idle``: the engine had no request.

Beside these, the share of the time in which requests waited in an engine's queue, by what they
waited for: another to end (``seats``: ``max_num_seqs`` were running), KV blocks (``kv_memory``), or
their turn within the token budget (``token_budget``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from qsim.optimize.search.fleet_task import FleetTask
from qsim.sim.engine.clock import clock_origin_s
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_S, Timing
from qsim.sim.scheduler.config import EngineConfig
from qsim.traces.trace import Trace

ACCOUNTS = ("prefill", "decode", "power_cap", "host", "idle")
QUEUES = ("seats", "kv_memory", "token_budget")
#: of a longer trace the busiest stretch of so many requests is looked at
MOST_REQUESTS = 20_000

_NAMES = {
    "prefill": "prefill compute",
    "decode": "decode bandwidth",
    "power_cap": "power cap",
    "host": "host thread",
    "idle": "idle",
    "seats": "max_num_seqs (as many ran)",
    "kv_memory": "KV blocks",
    "token_budget": "their turn in the token budget",
}


@dataclass(frozen=True)
class TimeShares:
    """Shares of all replicas' time."""

    #: by :data:`ACCOUNTS`; they sum to 1
    time: Mapping[str, float]
    #: by :data:`QUEUES`: the share of the time in which requests waited for it
    waiting: Mapping[str, float]
    preemptions: int
    #: how many were looked at
    requests: int

    @property
    def largest(self) -> str:
        """The account with the largest share, idle time left out."""
        return max((a for a in ACCOUNTS if a != "idle"), key=lambda a: self.time[a])

    def text(self) -> list[str]:
        """Sentences for people."""
        order = sorted(ACCOUNTS, key=lambda a: -self.time[a])
        shares = ", ".join(f"{_NAMES[a]} {self.time[a]:.1%}" for a in order)
        queues = [q for q in QUEUES if self.waiting[q] > 0]
        waits = ", ".join(f"for {_NAMES[q]} {self.waiting[q]:.1%}" for q in queues)
        return [
            f"bottleneck: {_NAMES[self.largest]}; shares of the GPUs' time: {shares}",
            f"requests waited in the queue {waits or 'never'}"
            + (" of the time" if waits else "")
            + f"; {self.preemptions:,} preemptions",
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "largest": self.largest,
            "time_shares": dict(self.time),
            "waiting_shares": dict(self.waiting),
            "preemptions": self.preemptions,
            "requests": self.requests,
        }


def time_shares(task: FleetTask) -> TimeShares:
    """Simulate the fleet of ``task`` step by step and add up where its time goes."""

    trace = busiest_requests(task.trace, MOST_REQUESTS)
    steps: list[Step] = []
    result = replace(task, trace=trace).simulate(steps)
    by_replica: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        by_replica[step.replica].append(step)
    first_s = float(trace.arrival_s[0])
    begin = round((first_s - clock_origin_s(first_s)) * PS_PER_S)
    end = begin + round(result.duration_s * PS_PER_S)
    prompt = float(trace.prompt_tokens.mean())
    time = dict.fromkeys(ACCOUNTS, 0)
    waiting = dict.fromkeys(QUEUES, 0)
    first = 0
    for pool in task.pools:
        config = pool.options.resolve(pool.profile)
        timing = Timing(pool.profile, config)
        for replica in range(first, first + pool.replicas):
            _account(by_replica[replica], begin, end, timing, time)
            _queues(by_replica[replica], config, prompt, waiting)
        first += pool.replicas
    total = sum(time.values())
    return TimeShares(
        {a: t / total for a, t in time.items()},
        {q: t / total for q, t in waiting.items()},
        int(result.preemptions.sum()),
        len(trace),
    )


def _account(steps: list[Step], begin: int, end: int, timing: Timing, time: dict[str, int]) -> None:
    """Put one replica's time from ``begin`` to ``end`` to the accounts, in ps."""
    at, busy = begin, False  # busy: the engine had requests when the GPU became free
    for s in steps:
        gap = max(0, s.gpu_start_ps - at)
        idle = 0 if busy else min(gap, max(0, s.schedule_ps - at))
        time["idle"] += idle
        time["host"] += gap - idle
        prefill, decode = _nominal(s, timing)
        span = s.gpu_end_ps - max(s.gpu_start_ps, at)
        extra = max(0, span - prefill - decode)
        # a span that ends with the launch was stretched by it: the GPU waited for the host
        time["host" if s.gpu_end_ps == s.launch_end_ps else "power_cap"] += extra
        time["decode"] += min(decode, span)
        time["prefill"] += span - extra - min(decode, span)
        at, busy = s.gpu_end_ps, s.running + s.waiting > 0
    time["idle"] += max(0, end - at)


def _nominal(step: Step, timing: Timing) -> tuple[int, int]:
    """The step's span at full clock in ps: of its prompt tokens, and of its decodes."""
    rows, context = step.num_decode, step.decode_context_tokens
    decode = timing.decode_span_ps(rows, context, 1.0) if rows else 0
    if not step.prefill:
        return 0, decode
    tokens = rows + sum(n for n, _ in step.prefill)
    _, span = timing.mixed_span_ps(tokens, rows, context, step.prefill, (1.0, 1.0, 1.0))
    return max(0, span - decode), min(span, decode)


def _queues(
    steps: list[Step], config: EngineConfig, prompt: float, waiting: dict[str, int]
) -> None:
    """The time in which requests waited, by what the step's schedule had run out of, in ps."""
    usable = config.num_gpu_blocks - 1
    need = min(1.0, prompt / config.block_size / usable)  # KV share of a mean prompt
    for before, s in pairwise(steps):
        if not s.waiting:
            continue
        if s.running >= config.max_num_seqs:
            cause = "seats"
        elif 1.0 - s.kv_usage < need:
            cause = "kv_memory"
        else:
            cause = "token_budget"
        waiting[cause] += s.update_ps - before.update_ps


def busiest_requests(trace: Trace, count: int) -> Trace:
    """The ``count`` requests in a row that arrive within the shortest time; all if there are fewer.

    Times are those of the trace.
    """
    if len(trace) <= count:
        return trace
    at = trace.arrival_s
    first = int(np.argmin(at[count - 1 :] - at[: len(at) - count + 1]))
    return trace.take(np.arange(first, first + count))
