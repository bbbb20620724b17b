"""What a GPU costs per hour: a shipped table with source and date, and the user's own prices.

The table (``data/gpu_prices.csv``) holds the range of on-demand prices for three classes of
provider. The figure used unless the user gives one is the middle of the *specialty* range (GPU
clouds, between the hyperscalers above and the marketplaces below). List prices found elsewhere lie
inside that range: A100 80 GB at 1.19 and H200 at 3.59 (RunPod, October 2025, by
deploybase.ai/articles/a100-vs-h200). The classes differ by a factor of two and prices move within
months: choose the class with ``--provider``, or give your own with ``--price GPU=USD``,
``--prices FILE`` or ``prices={...}`` when money decides.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from qsim.checks import is_number
from qsim.errors import ScenarioError

__all__ = ["DEFAULT_CLASS", "PROVIDERS", "Price", "load_prices", "price_of", "price_table"]

#: classes of provider: the big clouds, GPU clouds, and marketplaces of small ones
PROVIDERS = ("hyperscaler", "specialty", "longtail")
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

    @property
    def middle(self) -> float:
        """The figure that is used, USD per GPU and hour."""
        return round((self.low + self.high) / 2, 4)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "gpu": self.gpu,
            "provider": self.provider_class,
            "usd_per_hour_low": self.low,
            "usd_per_hour_high": self.high,
            "usd_per_hour": self.middle,
            "date": self.date,
            "source": self.source,
        }


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
        If the user's price is not a finite number >= 0, or the class is unknown.
    """
    if provider_class not in PROVIDERS:
        raise ScenarioError(
            f"provider is {provider_class!r}; must be one of {', '.join(PROVIDERS)}"
        )
    if own and gpu in own:
        usd = own[gpu]
        if not is_number(usd) or not 0 <= usd < math.inf:
            raise ScenarioError(
                f"price of {gpu} is {usd!r} USD per hour; must be a finite number >= 0"
            )
        return Price(gpu, float(usd), "given")
    for row in price_table():
        if row.gpu == gpu and row.provider_class == provider_class:
            return Price(
                gpu,
                row.middle,
                f"middle of {row.low:.2f}-{row.high:.2f} ({row.provider_class} clouds, "
                f"{row.source}, {row.date})",
            )
    return None


def load_prices(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read a CSV with the columns ``gpu`` and ``usd_per_hour``; others are left alone.

    Raises
    ------
    ScenarioError
        If the file cannot be read, a column is missing, or a line is wrong (it is named).
    """
    where = f"prices {os.fspath(path)!r}"
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ScenarioError(f"cannot read {where}: {e}") from e
    rows = csv.DictReader(lines)
    header = [name.strip() for name in rows.fieldnames or ()]
    if not {"gpu", "usd_per_hour"} <= set(header):
        raise ScenarioError(
            f"{where}: the header is {','.join(header)!r}; it must have gpu and usd_per_hour"
        )
    rows.fieldnames = header
    prices: dict[str, float] = {}
    for line, row in enumerate(rows, start=2):
        gpu, text = (row["gpu"] or "").strip(), (row["usd_per_hour"] or "").strip()
        try:
            usd = float(text)
        except ValueError:
            usd = math.nan
        if not gpu or gpu in prices or not 0 <= usd < math.inf:
            raise ScenarioError(
                f"{where}, line {line}: gpu is {gpu!r}, usd_per_hour is {text!r}; must be a GPU, "
                "each once, and a finite number >= 0"
            )
        prices[gpu] = usd
    return prices
