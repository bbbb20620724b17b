"""How much a study simulates: requests of each run, and the points of each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qsim.optimize.study.contenders import Contender
from qsim.profiles.measured_range import MeasuredRange

__all__ = ["SIZES", "Sizes", "clients_of"]


@dataclass(frozen=True)
class Sizes:
    """Points and requests."""

    #: of a run at a rate: enough for a p99 that the sample bounds at both ends
    requests: int = 800
    #: requests a client sends one after the other under saturation
    answers: int = 3
    #: the rate that all methods get, over the throughput of the slowest under saturation
    busy_share: float = 0.6
    #: rates of the load curve, over the throughput of the quickest under saturation
    rate_shares: tuple[float, ...] = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.1)
    #: clients, and ``max_num_seqs``
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    batch: tuple[int, ...] = (16, 32, 64, 128, 256)
    #: under saturation, of one server
    most_clients: int = 512
    #: of the gaps between arrivals
    cvs: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    #: tokens of the grid of lengths
    prompts: tuple[int, ...] = (256, 1024, 4096)
    outputs: tuple[int, ...] = (64, 256, 1024)
    #: clients of the grid of lengths
    grid_clients: int = 32

    def closed_requests(self, clients: int) -> int:
        """Requests of a run with so many clients."""
        return max(100, self.answers * clients)


SIZES = Sizes()


#: of the measured context of a step as much is filled: requests with long outputs stay longer, so
#: that a batch has more context than as many requests of the mean length
_OF_CONTEXT = 0.75


def clients_of(
    contenders: Sequence[Contender], tokens_per_request: float, sizes: Sizes = SIZES
) -> int:
    """Clients that fill one server of each.

    As many as the smallest batch takes, as the KV cache of the middle one holds (with more, all
    that grows is the work that is done twice because requests are preempted), and as keep the
    steps within what the profiles were measured for.
    """
    tokens = max(tokens_per_request, 1.0)
    rooms = sorted(c.kv_tokens.value for c in contenders)
    limits = [sizes.most_clients, rooms[len(rooms) // 2] / tokens]
    for c in contenders:
        measured = MeasuredRange.of(c.profile)
        limits.append(c.seats)
        if measured.step_requests is not None:
            limits.append(measured.step_requests)
        if measured.step_context_tokens is not None:
            limits.append(_OF_CONTEXT * measured.step_context_tokens / tokens)
    return max(1, int(min(limits)))
