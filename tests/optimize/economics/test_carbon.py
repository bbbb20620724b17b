from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.optimize.economics.carbon import (
    CarbonSeries,
    carbon_table,
    gco2e,
    grid_intensity,
    load_carbon_series,
)
from tests.optimize.economics import derive_carbon

KWH = 3.6e6
hours = st.lists(st.floats(0, 2000), min_size=1, max_size=50).map(lambda v: CarbonSeries(tuple(v)))


def test_every_row_has_a_source_and_a_plausible_value() -> None:
    table = carbon_table()
    assert len({r.key for r in table}) == len(table) >= 60
    for r in table:
        assert 0 < r.gco2e_per_kwh < 1200, r
        assert r.source
        assert r.kind in ("country", "cloud region", "world")
        assert r.year == 0 or 2015 <= r.year <= 2026
        assert r.kind == "world" or (len(r.iso3) == 3 and len(r.iso2) == 2)
    # a number that anybody can look up: France's grid is nuclear, Poland's burns coal
    assert grid_intensity("FRA").gco2e_per_kwh == 56.039
    assert grid_intensity("Poland").gco2e_per_kwh == 661.926


def test_the_table_is_what_the_collected_numbers_give() -> None:
    if not derive_carbon.RAW.is_file():
        pytest.skip("the optional developer folder ../shared is absent")
    assert derive_carbon.SHIPPED.read_text("utf-8") == derive_carbon.derive()


@pytest.mark.parametrize("name", ["DEU", "deu", "de", "Germany", " germany "])
def test_a_country_has_many_names(name: str) -> None:
    assert grid_intensity(name).key == "DEU"


def test_cloud_regions() -> None:
    assert grid_intensity("gcp:us-central1").gco2e_per_kwh == 430
    assert grid_intensity("us-central1") == grid_intensity("GCP:us-central1")
    assert grid_intensity("gcp:me-central1").name == "Doha"


@pytest.mark.parametrize("value", [120.5, "120.5"])
def test_a_number_of_ones_own(value: float | str) -> None:
    assert grid_intensity(value).gco2e_per_kwh == 120.5
    assert grid_intensity(value).source == "given"


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ("Germnay", ["'Germnay'", "did you mean", "'DEU'"]),
        ("gcp:us-centrall1", ["'gcp:us-central1'"]),
        ("Atlantis-9", ["known:", "USA", "hourly series"]),
        (-1, ["-1", ">= 0"]),
        ("nan", ["nan", ">= 0"]),
    ],
)
def test_a_wrong_region(region: str | float, words: list[str]) -> None:
    with pytest.raises(ScenarioError) as e:
        grid_intensity(region)
    for word in words:
        assert word in str(e.value)


def test_one_kilowatt_hour() -> None:
    assert gco2e(KWH, 400.0) == 400
    assert gco2e(KWH, 400.0, pue=1.25) == 500
    assert gco2e(0, "FRA") == 0


def test_a_series_counts_the_hours_it_covers() -> None:
    day = CarbonSeries((100.0, 300.0))
    assert gco2e(KWH, day) == 200
    assert gco2e(KWH, day, start_s=0, end_s=3600) == 100
    assert gco2e(KWH, day, start_s=1800, end_s=5400) == 200
    assert gco2e(KWH, day, start_s=7200, end_s=10800) == 100  # it begins again
    assert day.at(3599.9) == 100
    assert day.at(3600.0) == 300
    assert day.mean(3600.0, 3600.0) == 300


@given(hours, st.floats(0, 4e5), st.floats(1, 4e5), st.floats(0.01, 0.99))
def test_a_window_is_the_sum_of_its_halves(
    series: CarbonSeries, start_s: float, length_s: float, cut: float
) -> None:
    middle, end = start_s + cut * length_s, start_s + length_s
    whole = gco2e(KWH, series, start_s=start_s, end_s=end)
    split = sum(
        gco2e(KWH * (b - a) / (end - start_s), series, start_s=a, end_s=b)
        for a, b in ((start_s, middle), (middle, end))
    )
    # integrals from time 0 are subtracted, so the error grows with the time, not with the window
    assert math.isclose(whole, split, rel_tol=1e-9, abs_tol=1e-6)
    assert min(series.hourly) - 1e-6 <= whole <= max(series.hourly) + 1e-6


@given(st.floats(0, 1e12), st.floats(0, 2000), st.floats(1, 3))
def test_proportional_to_energy_intensity_and_pue(energy: float, grid: float, pue: float) -> None:
    assert math.isclose(
        gco2e(energy, grid, pue), energy / KWH * grid * pue, rel_tol=1e-12, abs_tol=1e-300
    )


@pytest.mark.parametrize(
    ("energy", "pue", "word"),
    [(-1.0, 1.0, "energy is -1.0 J"), (math.nan, 1.0, "energy"), (1.0, 0.9, "pue is 0.9"),
     (1.0, math.inf, "pue")],
)  # fmt: skip
def test_wrong_numbers(energy: float, pue: float, word: str) -> None:
    with pytest.raises(ScenarioError, match=word):
        gco2e(energy, "FRA", pue)


def test_wrong_windows() -> None:
    with pytest.raises(ScenarioError, match="start <= end"):
        gco2e(1.0, CarbonSeries((1.0,)), start_s=5, end_s=4)
    with pytest.raises(ScenarioError, match="hour 1 is -3"):
        CarbonSeries((1.0, -3.0))


def test_a_series_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    path.write_text("hour,gco2e_per_kwh\n0,410.5\n1,90\n\n", encoding="utf-8")
    series = load_carbon_series(path)
    assert series.hourly == (410.5, 90.0)
    assert series.to_dict()["source"] == str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["'nothing'", "hour,gco2e_per_kwh"]),
        ("h,g\n0,1\n", ["'h,g'"]),
        ("hour,gco2e_per_kwh\n", ["no hours"]),
        ("hour,gco2e_per_kwh\n0,1\n2,1\n", ["line 3", "'2'", "must be 1"]),
        ("hour,gco2e_per_kwh\n0,much\n", ["line 2", "'much'"]),
        ("hour,gco2e_per_kwh\n0,-4\n", ["line 2", "'-4'", ">= 0"]),
        ("hour,gco2e_per_kwh\n0,1,2\n", ["line 2", "3 columns"]),
    ],
)
def test_a_malformed_series_file(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "grid.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError) as e:
        load_carbon_series(path)
    for word in (*words, "grid.csv"):
        assert word in str(e.value)
    with pytest.raises(ScenarioError, match="cannot read"):
        load_carbon_series(tmp_path / "none.csv")
