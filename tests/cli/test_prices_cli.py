from __future__ import annotations

import json
from pathlib import Path

from tests.cli.helpers import fails, qsim, write

SLOS = ("--slo", "ttft:p99:400", "--slo", "tpot:p99:9")


def test_the_tables_are_shown_with_source_and_date() -> None:
    text = qsim("prices").stdout
    assert "specialty (default)  3.50-4.50   4.00  2026-05" in text
    only = json.loads(
        qsim("prices", "--gpu", "h100_sxm", "--provider", "longtail", "--json", "-").stdout
    )
    assert only == [
        {
            "gpu": "h100_sxm", "provider": "longtail", "usd_per_hour_low": 1.99,
            "usd_per_hour_high": 2.5, "usd_per_hour": 2.245, "date": "2026-05",
            "source": "mercatus-ai.com/blog/cloud-gpu-pricing, on demand",
        }
    ]  # fmt: skip
    grids = qsim("prices", "--carbon").stdout
    assert "DEU" in grids
    assert "codecarbon" in grids


def test_wrong_names() -> None:
    fails(qsim("prices", "--gpu", "h300"), 2, "gpu is 'h300'", "h200_sxm")
    fails(qsim("prices", "--provider", "cheap"), 2, "provider is 'cheap'", "longtail")
    fails(qsim("prices", "--carbon", "--gpu", "h200_sxm"), 2, "--carbon")


def test_a_plan_takes_a_file_a_provider_and_a_price_in_that_order(
    tmp_path: Path, trace: Path, profile: Path
) -> None:
    args = ("plan", trace, "--profile", profile, *SLOS, "--jobs", 1, "--no-headroom", "--json", "-")
    file = write(tmp_path / "p.csv", "gpu,usd_per_hour\nh200_sxm,7.5\nb300_sxm,20\n")

    def usd(*more: object) -> float:
        found: float = json.loads(qsim(*args, *more).stdout)["prices"][0]["usd_per_hour"]
        return found

    assert usd() == 4.0
    assert usd("--provider", "longtail") == 3.0
    assert usd("--provider", "longtail", "--prices", file) == 7.5
    assert usd("--prices", file, "--price", "h200_sxm=1") == 1.0


def test_limits_that_bind_exit_with_3_and_say_by_how_much(trace: Path, profile: Path) -> None:
    args = ("plan", trace, "--profile", profile, *SLOS, "--jobs", 1)
    result = qsim(*args, "--max-usd-per-hour", 2)
    assert result.exit_code == 3
    assert "needs 4 USD per hour, 1e+02% over" not in result.stderr
    assert "needs 4 USD per hour, 100% over the limit of 2 (--max-usd-per-hour)" in result.stderr
    good = qsim("plan", trace, "--profile", profile, "--goodput", "ttft:400", "--jobs", 1)
    assert good.exit_code == 0
    assert "SLO goodput:ttft:400:0.99" in good.stdout
