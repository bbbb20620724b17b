"""Whether the limits of a plan leave a server up where some are to be down (``--survive``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from qsim.errors import ScenarioError
from qsim.optimize.plan.budget import Budget
from qsim.optimize.plan.candidate import Candidate, Shortfall

__all__ = ["left_with_servers"]


def left_with_servers(blanks: Sequence[Candidate], budget: Budget, survive: int) -> list[Candidate]:
    """The candidates; without a point in searching where all servers that may be are down.

    A candidate of which the stock holds too few servers alone may still be half of a mixed fleet,
    so under a stock all are searched if some fleet is left.

    Raises
    ------
    ScenarioError
        If no fleet within GPUs, money and stock has more than ``survive`` servers.
    """
    able = [b for b in blanks if b.engine is not None and not b.reason]
    most = [_most(b, budget) for b in able]
    largest = max(most, default=0.0)
    if budget.stock is not None:
        pairs = combinations(range(len(able)), 2)
        largest = max([largest, *(_together(able[i], able[j], budget) for i, j in pairs)])
    if able and largest <= survive:
        raise ScenarioError(
            f"survive is {survive}, and no fleet within {_limits(budget)} has more than "
            f"{largest:.0f} server{'s' if largest != 1 else ''}: a server must be left; lower "
            "survive, or raise the limit"
        )
    if budget.stock is not None:
        return list(blanks)
    few = {
        b.profile: _without(b, int(n), survive, budget)
        for b, n in zip(able, most, strict=True)
        if n <= survive
    }
    return [few.get(b.profile, b) for b in blanks]


def _most(blank: Candidate, budget: Budget) -> float:
    """The most servers of one kind; inf where nothing limits them."""
    price = blank.price.usd_per_hour if blank.price else None
    found = budget.largest(blank.tensor_parallel_size, price, blank.gpu)
    return math.inf if found is None else float(found)


def _together(a: Candidate, b: Candidate, budget: Budget) -> float:
    """No mixed fleet of two kinds within the stock has more servers than this."""
    if a.model != b.model:
        return 0.0
    if a.gpu == b.gpu:  # they share what there is
        return max(_most(a, budget), _most(b, budget))
    owned = replace(budget, max_gpus=None, max_usd_per_hour=None)
    unowned = replace(budget, stock=None)
    return min(_most(a, owned) + _most(b, owned), max(_most(a, unowned), _most(b, unowned)))


def _limits(budget: Budget) -> str:
    stock = [f"stock {gpu}={n}" for gpu, n in (budget.stock or {}).items()]
    others = [
        f"{name} {value:g}"
        for name, value in (
            ("max_gpus", budget.max_gpus), ("max_usd_per_hour", budget.max_usd_per_hour),
        )
        if value is not None
    ]  # fmt: skip
    return ", ".join(stock + others)


def _without(blank: Candidate, most: int, survive: int, budget: Budget) -> Candidate:
    reason = (
        f"no server is left with {survive} down: {_limits(budget)} allows {most} "
        f"server{'s' if most != 1 else ''} (--survive)"
    )
    over = (survive + 1 - most) / most if most else math.inf
    return replace(blank, reason=reason, shortfall=Shortfall("survive", survive + 1, most, over))
