"""What a fleet may take: GPUs, power, money; and by how much a candidate misses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsim.bounds import MAX_GPUS
from qsim.checks import is_number, whole
from qsim.errors import ScenarioError
from qsim.optimize.plan.candidate import Candidate, Shortfall
from qsim.optimize.search.fleet_outcome import FleetOutcome

__all__ = ["Budget", "budget_of"]


@dataclass(frozen=True)
class Budget:
    """Upper limits of a fleet; None for no limit.

    Attributes
    ----------
    max_gpus : int or None
    max_usd_per_hour : float or None
    max_power_kw : float or None
        Mean power of all GPUs over the run, kW.
    max_peak_power_kw : float or None
        Highest mean power of all GPUs over a four-hundredth of the trace (0.1 s at least), kW.
    stock : dict or None
        GPUs that there are, by type; of a type that is not named there are none.
    """

    max_gpus: int | None = None
    max_usd_per_hour: float | None = None
    max_power_kw: float | None = None
    max_peak_power_kw: float | None = None
    stock: Mapping[str, int] | None = None

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


def budget_of(
    max_gpus: int | None = None,
    max_usd_per_hour: float | None = None,
    max_power_kw: float | None = None,
    max_peak_power_kw: float | None = None,
    stock: Mapping[str, int] | None = None,
) -> Budget:
    """Check the limits.

    Raises
    ------
    ScenarioError
        If one is not a finite number > 0 (GPUs: a whole number >= 1).
    """
    for gpu, count in (stock or {}).items():
        whole(f"stock of {gpu}", count, 1, MAX_GPUS)
    if max_gpus is not None:
        whole("max_gpus", max_gpus, 1, MAX_GPUS)
    for name, value in (
        ("max_usd_per_hour", max_usd_per_hour),
        ("max_power_kw", max_power_kw),
        ("max_peak_power_kw", max_peak_power_kw),
    ):
        if value is not None and not (is_number(value) and 0 < value < math.inf):
            raise ScenarioError(f"{name} is {value!r}; must be a finite number > 0")
    owned = dict(stock) if stock else None
    return Budget(max_gpus, max_usd_per_hour, max_power_kw, max_peak_power_kw, owned)
