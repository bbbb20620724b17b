"""How long a server takes for a request, as a router can estimate it from the profile."""

from __future__ import annotations

from collections.abc import Sequence

from qsim.sim.engine.timing import PS_PER_MS, Timing
from qsim.sim.fleet.pool import ResolvedPool
from qsim.sim.scheduler.config import EngineConfig

_FULL_CLOCK = (1.0, 1.0, 1.0)


class ServerSpeed:
    """The expected time to a request's last token, with so many others beside it.

    While ``rows`` requests run, a request takes its own prefill, a decode step for each token of
    its output, and the prefills of the ``rows`` that take the places of those that end meanwhile.
    If more requests than seats or KV blocks are there, it waits its share. Steps are at full clock,
    the host's part of them hidden behind the GPU where it is shorter.
    """

    __slots__ = ("_budget", "_host_ps", "_kv_tokens", "_seats", "_timing")

    def __init__(self, config: EngineConfig, timing: Timing) -> None:
        self._timing = timing
        self._seats = config.seats
        self._budget = config.max_num_batched_tokens
        self._kv_tokens = (config.num_gpu_blocks - 1) * config.block_size
        self._host_ps = timing.result_ps + timing.turn_ps

    def finish_ms(
        self, outstanding: int, prompt_tokens: int, mean_prompt: float, mean_output: float
    ) -> float:
        """Milliseconds to the last token.

        Parameters
        ----------
        outstanding : int
            Requests that the server has.
        prompt_tokens : int
            Of the request.
        mean_prompt, mean_output : float
            Tokens of a request of this traffic.
        """
        there = outstanding + 1
        places = max(1.0, min(self._seats, self._kv_tokens / (mean_prompt + mean_output)))
        rows = max(1, min(there, int(places)))
        context = int(rows * (mean_prompt + mean_output / 2))
        others = rows * self._prefill_ps(int(mean_prompt))
        each = mean_output * self._decode_ps(rows, context) + others
        waits = max(0.0, there / places - 1.0)
        return (self._prefill_ps(prompt_tokens) + each * (1.0 + waits)) / PS_PER_MS

    def _decode_ps(self, rows: int, context_tokens: int) -> float:
        timing = self._timing
        host = timing.schedule_ps[rows] + timing.launch_ps[timing.decode_mode[rows]][rows]
        host += timing.update_ps[rows] + self._host_ps
        gpu = timing.full_clock_span_ps(rows, context_tokens) + timing.gpu_gap_ps
        return max(gpu, host)

    def _prefill_ps(self, tokens: int) -> float:
        """What a prompt adds to the steps that it is part of."""
        total, done = 0, 0
        while done < tokens:
            n = min(tokens - done, self._budget)
            _, span = self._timing.mixed_span_ps(n, 0, 0, [(n, done)], _FULL_CLOCK)
            total += span
            done += n
        return float(total)


def speeds_of(pools: Sequence[ResolvedPool], timings: Sequence[Timing]) -> list[ServerSpeed]:
    """By pool; those with equal servers have the same one."""
    speeds: list[ServerSpeed] = []
    for k, (pool, timing) in enumerate(zip(pools, timings, strict=True)):
        for other, speed in zip(pools[:k], speeds, strict=True):
            if other.config == pool.config and other.profile == pool.profile:
                speeds.append(speed)
                break
        else:
            speeds.append(ServerSpeed(pool.config, timing))
    return speeds
