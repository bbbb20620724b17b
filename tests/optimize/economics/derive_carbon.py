"""Derive qsim/optimize/economics/data/carbon_intensity.csv from the collected numbers.

Run in the checkout: ``python -m tests.optimize.economics.derive_carbon``. The collected numbers are
in the optional developer folder ``../shared`` (data/ref/carbon_intensity.csv).
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
RAW = ROOT.parent / "shared" / "data" / "ref" / "carbon_intensity.csv"
SHIPPED = ROOT / "qsim" / "optimize" / "economics" / "data" / "carbon_intensity.csv"
FIELDS = ("key", "name", "iso3", "iso2", "gco2e_per_kwh", "year", "kind", "source")
COMMIT = "b05965e43b690cdc53787c7577adbe6e2caf4ed9"
ISO2 = {
    "ARE": "AE", "AUS": "AU", "BEL": "BE", "BRA": "BR", "CAN": "CA", "CHE": "CH", "CHL": "CL",
    "CHN": "CN", "DEU": "DE", "DNK": "DK", "ESP": "ES", "FIN": "FI", "FRA": "FR", "GBR": "GB",
    "IDN": "ID", "IND": "IN", "IRL": "IE", "ISR": "IL", "ITA": "IT", "JPN": "JP", "KOR": "KR",
    "NLD": "NL", "NOR": "NO", "POL": "PL", "QAT": "QA", "SAU": "SA", "SGP": "SG", "SWE": "SE",
    "TWN": "TW", "USA": "US", "ZAF": "ZA",
}  # fmt: skip
#: slips of the source
TYPOS = {"gcp:me-cenrtal1": "gcp:me-central1"}


def derive() -> str:
    """The shipped table as text: countries, cloud regions, the world; fuels are no regions."""
    rows = []
    with RAW.open(encoding="utf-8", newline="") as f:
        for r in csv.DictReader(f):
            source = f"{r['source']} (mlco2/codecarbon@{COMMIT[:12]})"
            common = {
                "iso3": r["iso"],
                "iso2": ISO2.get(r["iso"], ""),
                "gco2e_per_kwh": f"{float(r['gco2e_per_kwh']):g}",
                "year": r["year"],
                "source": source,
            }
            if r["kind"].startswith("country"):
                rows.append({"key": r["iso"], "name": r["name"], "kind": "country", **common})
            elif r["kind"].startswith("cloud"):
                match = re.fullmatch(r"(\S+) \((.+)\)", r["name"])
                if match is None:
                    raise ValueError(f"a cloud region without a place: {r}")
                key = TYPOS.get(match[1], match[1])
                rows.append({"key": key, "name": match[2], "kind": "cloud region", **common})
            elif r["name"] == "world_average":
                common["year"] = "2018"  # the year that the report of 2019 is about
                rows.append({"key": "world", "name": "World", "kind": "world", **common})
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda r: (r["kind"] != "country", r["kind"], r["key"])))
    return out.getvalue()


if __name__ == "__main__":
    SHIPPED.write_text(derive(), encoding="utf-8")
