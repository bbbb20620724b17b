"""Grams of CO2 equivalent behind a kilowatt-hour: a shipped table, and hourly series.

The table (``data/carbon_intensity.csv``) holds yearly averages of countries (generation mix) and
averages of cloud regions, with source and, where the source gives it, the year. An average hides
that a grid's intensity changes by the hour: for schedules give a series of your own grid.

qsim's energy is that of the GPUs alone. ``pue`` (power usage effectiveness, energy of the whole
site over that of the IT equipment) scales it; it is 1.0 unless given, so that nothing is added
silently: CPUs, memory, network, cooling and making the hardware are not in the figure.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from qsim.bounds import shown
from qsim.checks import is_number
from qsim.documents import csv_lines
from qsim.errors import ScenarioError

DEFAULT_PUE = 1.0
J_PER_KWH = 3.6e6
HOUR_S = 3600.0
#: coal is at 1,000
MAX_GCO2E_PER_KWH = 1e5
MAX_PUE = 100.0
#: a hundred years
_MOST_HOURS = 876_600


@dataclass(frozen=True)
class GridIntensity:
    """A constant intensity, gCO2e per kWh, and where it comes from; ``year`` 0 if not stated."""

    key: str
    name: str
    gco2e_per_kwh: float
    year: int
    kind: str
    source: str
    iso3: str = ""
    iso2: str = ""

    def mean(self, start_s: float = 0.0, end_s: float | None = None) -> float:
        """The intensity, at any time."""
        return self.gco2e_per_kwh

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "region": self.key,
            "name": self.name,
            "gco2e_per_kwh": self.gco2e_per_kwh,
            "year": self.year or None,
            "kind": self.kind,
            "source": self.source,
        }


@dataclass(frozen=True)
class CarbonSeries:
    """Intensity by the hour, gCO2e per kWh, from time 0 of the trace.

    After its last hour the series begins again: 24 values are a day that repeats.
    """

    hourly: tuple[float, ...]
    source: str = "given"

    def __post_init__(self) -> None:
        if not self.hourly:
            raise ScenarioError(f"carbon series {self.source}: has no hours")
        for i, v in enumerate(self.hourly):
            if not is_number(v) or not 0 <= v <= MAX_GCO2E_PER_KWH:
                raise ScenarioError(
                    f"carbon series {self.source}: hour {i} is {v!r} gCO2e/kWh; must be a finite "
                    f"number >= 0, at most {MAX_GCO2E_PER_KWH:g}"
                )

    def at(self, time_s: float) -> float:
        """Intensity at a time of the trace, s."""
        return self.hourly[int(time_s // HOUR_S) % len(self.hourly)]

    def mean(self, start_s: float = 0.0, end_s: float | None = None) -> float:
        """Mean intensity over [start_s, end_s); over the whole series without an end.

        Raises
        ------
        ScenarioError
            If the end is before the start.
        """
        if end_s is None:
            return math.fsum(self.hourly) / len(self.hourly)
        if not 0 <= start_s <= end_s < math.inf:
            raise ScenarioError(f"window is [{start_s!r}, {end_s!r}) s; must be 0 <= start <= end")
        if start_s == end_s:
            return self.at(start_s)
        return (self._integral(end_s) - self._integral(start_s)) / (end_s - start_s)

    def _integral(self, time_s: float) -> float:
        hours, rest_s = divmod(time_s, HOUR_S)
        rounds, hour = divmod(int(hours), len(self.hourly))
        whole = rounds * math.fsum(self.hourly) + math.fsum(self.hourly[:hour])
        return whole * HOUR_S + rest_s * self.hourly[hour]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"hourly_gco2e_per_kwh": list(self.hourly), "source": self.source}


@lru_cache(maxsize=1)
def carbon_table() -> tuple[GridIntensity, ...]:
    """The shipped table."""
    text = (resources.files("qsim.optimize.economics") / "data" / "carbon_intensity.csv").read_text(
        "utf-8"
    )
    rows: Iterator[dict[str, Any]] = csv.DictReader(text.splitlines())
    return tuple(
        GridIntensity(
            **{**r, "gco2e_per_kwh": float(r["gco2e_per_kwh"]), "year": int(r["year"] or 0)}
        )
        for r in rows
    )


def grid_intensity(region: str | float) -> GridIntensity:
    """The intensity of a region, or a number of one's own.

    Parameters
    ----------
    region : str or float
        A country by ISO 3166 code (``DEU``, ``de``) or name, a cloud region (``gcp:us-central1``,
        with its provider or without), ``world``, or a number of gCO2e per kWh.

    Raises
    ------
    ScenarioError
        For an unknown region (near ones are named), or a number that is not finite and >= 0.
    """
    number = _number(region)
    if number is not None:
        if not 0 <= number <= MAX_GCO2E_PER_KWH:
            raise ScenarioError(
                f"carbon intensity is {region!r} gCO2e/kWh; must be a finite number >= 0, at most "
                f"{MAX_GCO2E_PER_KWH:g}"
            )
        return GridIntensity("given", "given", number, 0, "given", "given")
    wanted = str(region).strip().lower()
    for row in carbon_table():
        names = {row.key.lower(), row.key.lower().removeprefix("gcp:")}
        if row.kind == "country":
            names |= {row.name.lower(), row.iso2.lower()}
        if wanted in names:
            return row
    known = {n: r for r in carbon_table() for n in (r.key.lower(), r.name.lower())}
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.6)
    hint = (
        "did you mean " + " or ".join(dict.fromkeys(repr(known[n].key) for n in near)) + "?"
        if near
        else f"known: {', '.join(r.key for r in carbon_table())}."
    )
    raise ScenarioError(
        f"grid region is {region!r}; {hint} A number of gCO2e per kWh or an hourly series may be "
        "given instead"
    )


def _number(value: str | float) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def load_carbon_series(path: str | os.PathLike[str]) -> CarbonSeries:
    """Read a CSV with the header ``hour,gco2e_per_kwh`` and the hours 0, 1, 2, ... in order.

    Raises
    ------
    ScenarioError
        If the file cannot be read, or a line is wrong (it is named).
    """
    where = f"carbon series {os.fspath(path)!r}"
    rows = csv_lines(path, ScenarioError, most_rows=_MOST_HOURS)
    header = next(rows, (1, ["nothing"]))[1]
    if [c.strip() for c in header] != ["hour", "gco2e_per_kwh"]:
        got = shown(",".join(header))
        raise ScenarioError(f"{where}: the header is {got}; must be 'hour,gco2e_per_kwh'")
    values: list[float] = []
    for line, row in rows:
        if not any(c.strip() for c in row):
            continue
        if len(row) != 2:
            raise ScenarioError(f"{where}, line {line}: {len(row)} columns; must be 2")
        hour, value = (c.strip() for c in row)
        if hour != str(len(values)):
            raise ScenarioError(
                f"{where}, line {line}: hour is {shown(hour)}; must be {len(values)}: hours count "
                "from 0 without gaps"
            )
        number = _number(value)
        if number is None or not 0 <= number <= MAX_GCO2E_PER_KWH:
            raise ScenarioError(
                f"{where}, line {line}: gco2e_per_kwh is {shown(value)}; must be a finite number "
                f">= 0, at most {MAX_GCO2E_PER_KWH:g}"
            )
        values.append(number)
    if not values:
        raise ScenarioError(f"{where}: has no hours")
    return CarbonSeries(tuple(values), os.fspath(path))


def gco2e(
    energy_j: float,
    grid: str | float | GridIntensity | CarbonSeries,
    pue: float = DEFAULT_PUE,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> float:
    """Grams of CO2 equivalent of ``energy_j`` used evenly over [start_s, end_s).

    ``energy_j / 3.6e6 * pue * mean intensity``. Without an end a series counts with its plain mean.

    Parameters
    ----------
    energy_j : float
        Of the GPUs, J.
    grid : str, float, GridIntensity or CarbonSeries
        A region, gCO2e per kWh, or an hourly series.
    pue : float
        Energy of the site over that of the IT equipment.

    Raises
    ------
    ScenarioError
        For an unknown region, or an energy, a PUE or a window that cannot be.
    """
    if not 0 <= energy_j < math.inf:
        raise ScenarioError(f"energy is {energy_j!r} J; must be a finite number >= 0")
    if not 1 <= pue <= MAX_PUE:
        raise ScenarioError(f"pue is {pue!r}; must be a finite number >= 1, at most {MAX_PUE:g}")
    if not isinstance(grid, GridIntensity | CarbonSeries):
        grid = grid_intensity(grid)
    return energy_j / J_PER_KWH * pue * grid.mean(start_s, end_s)
