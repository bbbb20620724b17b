"""What a fleet may take: GPUs, power, money; and by how much a candidate misses."""

from __future__ import annotations

import math
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
    """

    max_gpus: int | None = None
    max_usd_per_hour: float | None = None
    max_power_kw: float | None = None
    max_peak_power_kw: float | None = None

    def __bool__(self) -> bool:
        return any(v is not None for v in vars(self).values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))

    def largest(self, gpus_per_replica: int, usd_per_gpu: float | None) -> int | None:
        """The most replicas within GPUs and money; None if these do not limit them."""
        sizes = []
        if self.max_gpus is not None:
            sizes.append(self.max_gpus // gpus_per_replica)
        if self.max_usd_per_hour is not None and usd_per_gpu:
            share = self.max_usd_per_hour / (gpus_per_replica * usd_per_gpu)
            sizes.append(math.floor(share * (1 + 1e-12)))
        return min(sizes, default=None)

    def overruns(self, candidate: Candidate, outcome: FleetOutcome) -> list[tuple[Shortfall, str]]:
        """Every limit that a fleet of ``candidate`` is beyond, with a sentence, worst first."""
        gpus = outcome.replicas * candidate.tensor_parallel_size
        usd = None if candidate.price is None else gpus * candidate.price.usd_per_hour
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
        return sorted(found, key=lambda f: -f[0].excess)


def _kw(watts: Any) -> float | None:
    return None if watts is None else float(watts) / 1000


def budget_of(
    max_gpus: int | None = None,
    max_usd_per_hour: float | None = None,
    max_power_kw: float | None = None,
    max_peak_power_kw: float | None = None,
) -> Budget:
    """Check the limits.

    Raises
    ------
    ScenarioError
        If one is not a finite number > 0 (GPUs: a whole number >= 1).
    """
    if max_gpus is not None:
        whole("max_gpus", max_gpus, 1, MAX_GPUS)
    for name, value in (
        ("max_usd_per_hour", max_usd_per_hour),
        ("max_power_kw", max_power_kw),
        ("max_peak_power_kw", max_peak_power_kw),
    ):
        if value is not None and not (is_number(value) and 0 < value < math.inf):
            raise ScenarioError(f"{name} is {value!r}; must be a finite number > 0")
    return Budget(max_gpus, max_usd_per_hour, max_power_kw, max_peak_power_kw)
