"""What a fleet may take: GPUs, power, money; and by how much a candidate misses.

And whether it leaves a server up where some are to be down (``--survive``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from qsim.errors import ScenarioError
from qsim.optimize.plan.candidate import Candidate, Shortfall
from qsim.optimize.search.fleet_outcome import FleetOutcome


@dataclass(frozen=True)
class Budget:
    """Upper limits of a fleet; None for no limit."""

    max_gpus: int | None = None
    max_usd_per_hour: float | None = None
    #: mean power of all GPUs over the run, kW
    max_power_kw: float | None = None
    #: highest mean power of all GPUs over a four-hundredth of the trace (0.1 s at least), kW
    max_peak_power_kw: float | None = None
    #: GPUs that there are, by type; of a type that is not named there are none
    stock: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name in ("max_usd_per_hour", "max_power_kw", "max_peak_power_kw"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ScenarioError(f"{name} is {value!r}; must be a finite number > 0")

    def __bool__(self) -> bool:
        return any(v is not None for v in vars(self).values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        limits = dict(vars(self))
        if self.stock is None:
            del limits["stock"]
        return limits

    def in_stock(self, gpu: str) -> int | None:
        """GPUs of a type that there are; None where nothing limits them."""
        return None if self.stock is None else self.stock.get(gpu, 0)

    def largest(
        self, gpus_per_replica: int, usd_per_gpu: float | None, gpu: str | None = None
    ) -> int | None:
        """The most replicas within GPUs, money and stock; None if these do not limit them."""
        sizes = []
        owned = None if gpu is None else self.in_stock(gpu)
        if owned is not None:
            sizes.append(owned // gpus_per_replica)
        if self.max_gpus is not None:
            sizes.append(self.max_gpus // gpus_per_replica)
        if self.max_usd_per_hour is not None and usd_per_gpu:
            share = self.max_usd_per_hour / (gpus_per_replica * usd_per_gpu)
            sizes.append(math.floor(share * (1 + 1e-12)))
        return min(sizes, default=None)

    def overruns(self, candidate: Candidate, outcome: FleetOutcome) -> list[tuple[Shortfall, str]]:
        """Every limit that a fleet of ``candidate`` is beyond, with a sentence, worst first."""
        sizes = outcome.sizes or (outcome.replicas,)
        gpus, usd = candidate.gpus_of(sizes), candidate.usd_of(sizes)
        power_w, peak_w = outcome.summary.get("avg_power_w"), outcome.peak_power_w
        used: list[tuple[str, float | None, float | None, str]] = [
            ("max_gpus", gpus, self.max_gpus, "GPUs"),
            ("max_usd_per_hour", usd, self.max_usd_per_hour, "USD per hour"),
            ("max_power_kw", _kw(power_w), self.max_power_kw, "kW on average"),
            ("max_peak_power_kw", _kw(peak_w), self.max_peak_power_kw, "kW at the peak"),
        ]
        found = []
        for name, value, limit, unit in used:
            if value is None or limit is None or value <= limit * (1 + 1e-12):
                continue
            over = (value - limit) / limit
            text = (
                f"needs {value:.4g} {unit}, {over * 100:.3g}% over the limit of {limit:.15g} "
                f"(--{name.replace('_', '-')})"
            )
            found.append((Shortfall(name, value, limit, over), text))
        for gpu, n in candidate.gpus_by_type(sizes).items():
            owned = self.in_stock(gpu)
            if owned is None or n <= owned:
                continue
            over = (n - owned) / owned if owned else math.inf
            text = (
                f"needs {n} {gpu}, and {owned or 'none'} {'are' if owned != 1 else 'is'} in stock"
            )
            text += f" (--stock {gpu}={owned})" if owned else " (--stock)"
            found.append((Shortfall("stock", n, owned, over), text))
        return sorted(found, key=lambda f: -f[0].excess)


def _kw(watts: Any) -> float | None:
    return None if watts is None else float(watts) / 1000


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
