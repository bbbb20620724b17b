"""The types of a study: bands, and that a result says everything as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qsim.optimize.study.figures import FIGURES, Band
from qsim.optimize.study.levels import AXES
from qsim.optimize.study.result import LEVELS
from tests.optimize.study.example import example_study


def test_a_band_is_a_factor_wide_on_both_sides():
    band = Band.around(110.0, 10.0)
    assert (band.low, band.value, band.high) == pytest.approx((100.0, 110.0, 121.0))


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        (Band(1.0, 0.9, 1.1), Band(1.3, 1.2, 1.4), True),
        (Band(1.3, 1.2, 1.4), Band(1.0, 0.9, 1.1), True),
        (Band(1.0, 0.9, 1.1), Band(1.2, 1.1, 1.3), False),
        (Band(1.0, 0.5, 2.0), Band(1.1, 1.0, 1.2), False),
        (Band.exact(1.0), Band.exact(1.0), False),
    ],
)
def test_bands_are_apart_only_without_anything_in_common(a, b, apart):
    assert a.apart(b) is apart


def test_a_result_is_json_with_every_level_and_run():
    study = example_study()
    data = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert list(data["levels"]) == list(LEVELS)
    for name in LEVELS:
        rows = data["levels"][name]
        assert len(rows) == len(getattr(study, name)) > 0
        for row in rows:
            assert row["run"] in data["runs"]
            assert set(row["figures"]) == set(FIGURES)
    assert {r["axis"] for r in data["levels"]["workload"]} == set(AXES)
    for finding in data["findings"]:
        assert set(finding["runs"]) <= set(data["runs"])
        assert finding["commands"]


def test_a_decision_is_open_where_another_is_as_good():
    decision = example_study().decisions[0]
    assert decision.decided
    assert not replace(decision, as_good=("int8-w8a8",)).decided
