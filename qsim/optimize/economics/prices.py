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
from typing import Any

from qsim.as_json import JsonReady
from qsim.bounds import check_name, shown
from qsim.checks import is_number
from qsim.documents import csv_lines
from qsim.errors import ScenarioError
from qsim.scenario.sections import Accounts

#: classes of provider: the big clouds, GPU clouds, and marketplaces of small ones
PROVIDERS = ("hyperscaler", "specialty", "longtail")
DEFAULT_CLASS = "specialty"
#: largest price of one GPU
MAX_USD_PER_HOUR = 1e6
_MOST_ROWS = 10_000


@dataclass(frozen=True)
class Price(JsonReady):
    """USD for one GPU for one hour, and where the figure comes from."""

    gpu: str
    usd_per_hour: float
    source: str


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
    text = (resources.files("qsim.optimize.economics") / "data" / "gpu_prices.csv").read_text(
        "utf-8"
    )
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
        if not is_number(usd) or not 0 <= usd <= MAX_USD_PER_HOUR:
            raise ScenarioError(
                f"price of {gpu} is {usd!r} USD per hour; must be a finite number >= 0, at most "
                f"{MAX_USD_PER_HOUR:g}"
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


def usd_per_1m(usd_per_hour: float | None, tokens_per_s: float | None) -> float | None:
    """USD per million tokens; None where the rent is not known, or there are no tokens."""
    if usd_per_hour is None or not tokens_per_s:
        return None
    return usd_per_hour / 3600 / tokens_per_s * 1e6


def load_prices(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read a CSV with the columns ``gpu`` and ``usd_per_hour``; others are left alone.

    Raises
    ------
    ScenarioError
        If the file cannot be read, a column is missing, or a line is wrong (it is named).
    """
    where = f"prices {os.fspath(path)!r}"
    rows = csv_lines(path, ScenarioError, most_rows=_MOST_ROWS)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    if not {"gpu", "usd_per_hour"} <= set(header) or len(set(header)) < len(header):
        raise ScenarioError(
            f"{where}: the header is {shown(','.join(header))}; it must have gpu and usd_per_hour, "
            "and each name once"
        )
    prices: dict[str, float] = {}
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise ScenarioError(
                f"{where}, line {line}: {len(cells)} columns; the header has {len(header)}"
            )
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        gpu, text = check_name(f"{where}, line {line}: gpu", row["gpu"]), row["usd_per_hour"]
        try:
            usd = float(text)
        except ValueError:
            usd = math.nan
        if gpu in prices or not 0 <= usd <= MAX_USD_PER_HOUR:
            raise ScenarioError(
                f"{where}, line {line}: gpu is {gpu!r}, usd_per_hour is {shown(text)}; must be a "
                f"GPU, each once, and a finite number >= 0, at most {MAX_USD_PER_HOUR:g}"
            )
        prices[gpu] = usd
    return prices


def prices_of(accounts: Accounts) -> dict[str, float]:
    """USD per GPU and hour as the accounts give them: ``prices`` over ``price_list``.

    Raises
    ------
    ScenarioError
        If the list cannot be read.
    """
    listed = accounts.price_list
    own: dict[str, float] = (
        {} if listed is None else (load_prices(listed) if isinstance(listed, str) else dict(listed))
    )
    return {**own, **accounts.prices}
