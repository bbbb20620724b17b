"""What the levels share: the highest throughput of each server, and rates that all can carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qsim.optimize.study.contenders import Contender
from qsim.optimize.study.point import Point, Traffic
from qsim.optimize.study.runner import Asked, Outcome, Runner
from qsim.optimize.study.sizes import Sizes, clients_of

__all__ = ["ANSWERED", "Context", "busy_rate", "comparable", "full_clients", "saturated"]

#: a method that answers so much less of the same requests in full is not compared with the others
ANSWERED = 0.01


@dataclass(frozen=True)
class Context:
    """A study under way."""

    runner: Runner
    sizes: Sizes

    def outcome(self, point: Point) -> Outcome | None:
        """What came of a point; None if it failed."""
        return self.runner.get(point)


def full_clients(context: Context, line: Sequence[Contender], traffic: Traffic) -> int:
    """Clients that fill the batches of every server of a line with such requests."""
    trace = context.runner.load(traffic)
    tokens = float(trace.prompt_tokens.mean() + trace.output_tokens.mean())
    return clients_of(line, tokens, context.sizes)


def saturated(line: Sequence[Contender], traffic: Traffic, clients: int) -> list[Asked]:
    """Each server with full batches."""
    return [(c, c.point(traffic, concurrency=clients)) for c in line]


def busy_rate(context: Context, asked: Sequence[Asked]) -> float | None:
    """Requests/s that all of them carry: a share of what the slowest does under saturation.

    None if there is nothing to compare.
    """
    known = [o for _, p in asked if (o := context.outcome(p)) is not None]
    rates = [o.run.values["request_throughput"] for o in comparable(known)]
    slowest = min((r for r in rates if r), default=None)
    if slowest is None:
        return None
    return float(f"{context.sizes.busy_share * slowest:.3g}")


def comparable(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that answered as many of the requests in full as the best of them."""
    most = max((o.answered for o in outcomes), default=0.0)
    return [o for o in outcomes if o.answered >= most - ANSWERED]
