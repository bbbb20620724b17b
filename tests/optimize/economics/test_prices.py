from __future__ import annotations

from pathlib import Path

import pytest

from qsim.errors import ScenarioError
from qsim.optimize.economics.prices import (
    DEFAULT_CLASS,
    PROVIDERS,
    load_prices,
    price_of,
    price_table,
)


def test_every_row_is_a_dated_range_with_a_source() -> None:
    rows = price_table()
    assert {r.gpu for r in rows} == {"a100_sxm", "h100_sxm", "h200_sxm"}
    assert len({(r.gpu, r.provider_class) for r in rows}) == len(rows) == 9
    for row in rows:
        assert 0 < row.low < row.high
        assert row.source
        assert row.date.startswith("20")


def test_the_figure_is_the_middle_of_the_default_class() -> None:
    row = next(r for r in price_table() if (r.gpu, r.provider_class) == ("h200_sxm", DEFAULT_CLASS))
    price = price_of("h200_sxm")
    assert price is not None
    assert price.usd_per_hour == pytest.approx((row.low + row.high) / 2)
    for word in (f"{row.low:.2f}-{row.high:.2f}", DEFAULT_CLASS, row.date):
        assert word in price.source


def test_own_price_goes_first() -> None:
    price = price_of("h200_sxm", {"h200_sxm": 3})
    assert price is not None
    assert (price.usd_per_hour, price.source) == (3.0, "given")
    other = price_of("h100_sxm", {"h200_sxm": 3})
    assert other is not None
    assert other.source != "given"


def test_unknown_gpu_has_no_price() -> None:
    assert price_of("toaster") is None


@pytest.mark.parametrize("usd", [-1.0, float("nan"), float("inf"), True, "3"])
def test_a_wrong_price_is_refused(usd: float) -> None:
    with pytest.raises(ScenarioError, match=r"h200_sxm is .*finite number >= 0"):
        price_of("h200_sxm", {"h200_sxm": usd})


def test_classes_of_provider_differ() -> None:
    by = {c: price_of("h200_sxm", None, c) for c in PROVIDERS}
    usd = [p.usd_per_hour for p in by.values() if p]
    assert usd == sorted(usd, reverse=True)
    assert len(set(usd)) == 3
    with pytest.raises(ScenarioError, match="provider is 'mine'; must be one of hyperscaler"):
        price_of("h200_sxm", None, "mine")


def test_prices_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("gpu, usd_per_hour,who\nh200_sxm,2.75,us\nb300_sxm, 9,them\n")
    assert load_prices(file) == {"h200_sxm": 2.75, "b300_sxm": 9.0}
    for text, words in (
        ("gpu,usd\nx,1\n", "must have gpu and usd_per_hour"),
        ("gpu,usd_per_hour\nx,a\n", "line 2.*'a'"),
        ("gpu,usd_per_hour\nx,1\nx,2\n", "line 3"),
        ("gpu,usd_per_hour\nx,-1\n", "line 2"),
        ("", "header"),
    ):
        file.write_text(text)
        with pytest.raises(ScenarioError, match=words):
            load_prices(file)
    with pytest.raises(ScenarioError, match=r"cannot read .*none\.csv"):
        load_prices(tmp_path / "none.csv")
