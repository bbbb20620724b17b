"""What a GPU costs per hour: a shipped table with source and date, and the user's own prices.

The table (``data/gpu_prices.csv``) holds the range of on-demand prices for three classes of
provider. The figure used unless the user gives one is the middle of the *specialty* range (GPU
clouds, between the hyperscalers above and the marketplaces below). List prices found elsewhere lie
inside that range: A100 80 GB at 1.19 and H200 at 3.59 (RunPod, October 2025, by
deploybase.ai/articles/a100-vs-h200). The classes differ by a factor of two and prices move within
months: give your own with ``--price GPU=USD`` or ``prices={...}`` when money decides.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from qsim.errors import ScenarioError

__all__ = ["DEFAULT_CLASS", "Price", "price_of", "price_table"]

DEFAULT_CLASS = "specialty"


@dataclass(frozen=True)
class Price:
    """USD for one GPU for one hour, and where the figure comes from."""

    gpu: str
    usd_per_hour: float
    source: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"gpu": self.gpu, "usd_per_hour": self.usd_per_hour, "source": self.source}


@dataclass(frozen=True)
class PriceRange:
    """One row of the shipped table, USD per GPU and hour."""

    gpu: str
    provider_class: str
    low: float
    high: float
    date: str
    source: str


def price_table() -> list[PriceRange]:
    """The shipped table."""
    text = (resources.files("qsim.optimize") / "data" / "gpu_prices.csv").read_text("utf-8")
    return [
        PriceRange(
            row["gpu"],
            row["provider_class"],
            float(row["usd_per_hour_low"]),
            float(row["usd_per_hour_high"]),
            row["date"],
            row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    ]


def price_of(
    gpu: str, own: Mapping[str, float] | None = None, provider_class: str = DEFAULT_CLASS
) -> Price | None:
    """The price of one ``gpu``: the user's if there is one, else the middle of the table's range.

    Returns None for a GPU that neither knows.

    Raises
    ------
    ScenarioError
        If the user's price is not a finite number >= 0.
    """
    if own and gpu in own:
        usd = own[gpu]
        if isinstance(usd, bool) or not isinstance(usd, int | float) or not 0 <= usd < math.inf:
            raise ScenarioError(
                f"price of {gpu} is {usd!r} USD per hour; must be a finite number >= 0"
            )
        return Price(gpu, float(usd), "given")
    for row in price_table():
        if row.gpu == gpu and row.provider_class == provider_class:
            middle = round((row.low + row.high) / 2, 4)
            return Price(
                gpu,
                middle,
                f"middle of {row.low:.2f}-{row.high:.2f} ({row.provider_class} clouds, "
                f"{row.source}, {row.date})",
            )
    return None
