"""Counts, aims and neighbours, against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from qsim.calibrate.validate.agreement import StepCounts
from qsim.calibrate.validate.comparison import Comparison, Nearby, latencies, nearby, statistics
from qsim.calibrate.validate.fidelity import (
    aims,
    cells_of,
    count,
    fidelity_dict,
    groups,
    off,
    repeats_percent,
)
from qsim.report.text.fidelity import fidelity_page


def comparison(
    errors: Mapping[str, float],
    *,
    recording: str = "a",
    profile: str = "h200_sxm/llama-3.1-8b/bf16",
    held_out: bool = True,
    nearby: Mapping[str, Nearby] | None = None,
    held_updates: int = 0,
    late_arrivals: int = 0,
    launch_ratio: float | None = None,
) -> Comparison:
    """Everything measured as 100; simulated with these errors, percent."""
    return Comparison(
        recording=recording,
        profile=profile,
        phase="val",
        what="a load",
        requests=50,
        held_out=held_out,
        measured=dict.fromkeys(errors, 100.0),
        simulated={k: 100.0 + e for k, e in errors.items()},
        p99_ttft_band_ms=(90.0, 111.0),
        held_updates=held_updates,
        longest_hold_ms=33.0 if held_updates else 0.0,
        late_arrivals=late_arrivals,
        longest_arrival_ms=139.4 if late_arrivals else 0.0,
        launch_ratio=launch_ratio,
        nearby=nearby or {},
    )


ONE = comparison(
    {"mean_ttft_ms": 1.0, "median_ttft_ms": -7.0, "p99_ttft_ms": 7.4, "energy_j": 1.0},
    nearby={
        "median_ttft_ms": Nearby(45, 55, 92.0, 103.0, 2),
        "p99_ttft_ms": Nearby(98, 100, 95.0, 107.0, 1),
    },
    held_updates=4,
)
TWO = comparison(
    {"mean_tpot_ms": -3.0, "median_e2el_ms": 2.0, "p90_e2el_ms": 20.0, "p99_e2el_ms": 4.0,
     "energy_j": -6.0},
    recording="b",
    profile="h200_sxm/llama-3.1-70b/fp8-w8a8/tp2",
    launch_ratio=1.10,
)  # fmt: skip
FITTED = comparison({"mean_ttft_ms": 30.0, "energy_j": 0.5}, held_out=False)
ALL = [ONE, FITTED, TWO]


def test_counts() -> None:
    n = count(cells_of(ALL))
    assert (n.cells, n.off) == (11, 5)
    assert n.largest is not None
    assert (n.largest.comparison, n.largest.name) == (FITTED, "mean_ttft_ms")
    left_out = cells_of([ONE, TWO])
    assert [(c.comparison.recording, c.name) for c in off(left_out)] == [
        ("a", "median_ttft_ms"), ("a", "p99_ttft_ms"), ("b", "p90_e2el_ms"), ("b", "energy_j")
    ]  # fmt: skip
    assert count([]).largest is None


def test_below_five_percent_is_not_off_and_nothing_measured_has_no_error() -> None:
    edge = comparison({"mean_ttft_ms": 4.99, "p90_ttft_ms": -5.01, "p99_ttft_ms": 9.0})
    nothing = replace(edge, measured={**edge.measured, "p99_ttft_ms": 0.0})
    cells = cells_of([nothing])
    assert [c.name for c in cells] == ["mean_ttft_ms", "p90_ttft_ms"]
    assert [c.name for c in off(cells)] == ["p90_ttft_ms"]


def test_aims_are_those_of_loads_left_out() -> None:
    seen = {(a.what, a.quantity): (a.limit, a.seen, a.met) for a in aims(ALL)}
    assert seen == {
        # |errors| 1, 7, 3, 2
        ("mean and median", "median"): (2.0, pytest.approx(2.5), False),
        ("mean and median", "within 5%"): (90.0, 75.0, False),
        # 7.4, 4
        ("p99", "median"): (4.0, pytest.approx(5.7), False),
        ("p99", "90th percentile"): (10.0, pytest.approx(7.06), True),
        # 1, 6
        ("energy", "median"): (1.5, pytest.approx(3.5), False),
        ("energy", "90th percentile"): (3.0, pytest.approx(5.5), False),
    }
    good = comparison({"median_e2el_ms": -1.9, "p99_e2el_ms": 3.9, "energy_j": 1.4})
    assert all(a.met for a in aims([good]))


def test_an_aim_without_cells_is_neither_met_nor_missed() -> None:
    only_means = [comparison({"mean_ttft_ms": 1.0})]
    energy = [a.to_dict() for a in aims(only_means) if a.what == "energy"]
    assert [(a["seen_percent"], a["met"]) for a in energy] == [(None, None)] * 2
    row = "| energy | median | at most 1.5% |  | not measured |"
    assert row in fidelity_page(only_means).splitlines()


def test_groups() -> None:
    again = comparison({"mean_ttft_ms": 3.0}, recording="c")
    by_model = groups([*ALL, again], lambda c: c.model)
    assert [(g.name, g.servers) for g in by_model] == [("llama-3.1-8b", 2), ("llama-3.1-70b", 1)]
    small = by_model[0]
    # |errors| 1, 7, 3
    assert small.center == pytest.approx(3.0)
    assert small.center_within == pytest.approx(200 / 3)
    assert (small.p99, small.energy) == (pytest.approx(7.4), pytest.approx(1.0))
    assert [g.name for g in groups(ALL, lambda c: c.method)] == ["bf16", "fp8-w8a8"]


def test_neighbours() -> None:
    # the k-th percentile of 0, 10, ..., 1000 is 10 k
    ttft = np.random.default_rng(1).permutation(np.arange(0.0, 1001.0, 10.0))
    values = latencies(ttft, ttft + 500.0, np.ones(101, int))
    assert set(values) == {"ttft_ms", "e2el_ms"}
    measured = statistics(values)
    assert measured["median_ttft_ms"] == 500.0
    simulated = {
        **measured,
        "median_ttft_ms": 535.0,
        "p90_ttft_ms": 960.0,
        "p99_ttft_ms": 975.0,
        "p99_e2el_ms": 1999.0,
    }
    got = nearby(values, measured, simulated)
    rounded = {
        k: replace(n, low_ms=round(n.low_ms, 6), high_ms=round(n.high_ms, 6))
        for k, n in got.items()
    }
    assert rounded["median_ttft_ms"] == Nearby(45, 55, 450.0, 550.0, 3)  # 510, 520, 530
    assert rounded["p90_ttft_ms"] == Nearby(85, 95, 850.0, 950.0, 5)  # 910 to 950
    assert rounded["p99_ttft_ms"] == Nearby(98, 100, 980.0, 1000.0, 1)  # 980
    assert rounded["p99_e2el_ms"] == Nearby(98, 100, 1480.0, 1500.0, 1)  # 1500, the slowest
    assert rounded["median_e2el_ms"].between == 0

    c = Comparison("a", "g/m/x", "val", "", 101, True, measured, simulated, (0, 0), nearby=got)
    inside = {n: c.inside(n) for n in ("median_ttft_ms", "p90_ttft_ms", "p99_ttft_ms")}
    assert inside == {"median_ttft_ms": True, "p90_ttft_ms": False, "p99_ttft_ms": False}
    assert not c.inside("mean_ttft_ms")
    assert c.to_dict()["nearby"]["median_ttft_ms"] == {
        "from_percentile": 45, "to_percentile": 55, "low_ms": 450.0, "high_ms": 550.0,
        "inside": True, "requests_between": 3,
    }  # fmt: skip


def test_tpot_leaves_out_requests_of_one_token() -> None:
    values = latencies(np.array([1.0, 2.0]), np.array([1.0, 12.0]), np.array([1, 3]))
    assert values["tpot_ms"].tolist() == [5.0]


def test_the_page_states_it() -> None:
    lines = fidelity_page(ALL, "Prose.", [StepCounts("a", "all", 200, 150, 199)]).splitlines()
    for row in (
        "2 servers, 2 loads. A cell is one statistic of one load:",
        "| left out | 9 | 4 (44.4%) | +20.0%: p90 E2EL of val, b |",
        "| fitted | 2 | 1 (50.0%) | +30.0%: mean TTFT of val, a |",
        "| together | 11 | 5 (45.5%) | +30.0%: mean TTFT of val, a |",
        "| mean and median | within 5% | at least 90% | 75.0% | **missed** |",
        "| bf16 | 1 | 4.0% | 50% | 7.4% | 1.0% |",
        "| llama-3.1-70b | 1 | 2.5% | 100% | 4.0% | 6.0% |",
        "| a | val | 50 | median TTFT, ms | 93 / 100 | -7.0% | 92 to 103: inside | 2 | 2.3% "
        "| 4, 33 ms |",
        "| a | val | 50 | p99 TTFT, ms | 107.4 / 100 | +7.4% | 95 to 107: outside | 1 "
        "| 7.5%; 90 to 111 | 4, 33 ms |",
        "| b | val | 50 | energy, J | 94 / 100 | -6.0% |  |  | 0.6% |  |",
        "| a | all | 200 | 75.0% | 99.5% |",
        "| all |  | 200 | 75.0% | 99.5% |",
        "Prose.",
    ):
        assert row in lines, row
    text = " ".join(lines)
    assert (
        "4 of 9 cells, 2 of them medians or percentiles. In 1 of these the simulated value lies "
        "within *nearby*, and in 1 of those at most two requests lie *between*. In 1 of all "
        "the error is no more than the same server differs from itself (*repeats*). Of all, 2 are "
        "of loads in which the server's host thread was held, 0 of loads with late arrivals, 0 of "
        "loads whose launches took over 10% more or less time than the profile's; 2 of loads with "
        "one of these at least (*held*)."
    ) in text


def test_the_page_tells_of_late_arrivals_and_launches() -> None:
    late = comparison({"mean_ttft_ms": -9.0}, recording="c", late_arrivals=7)
    slow = comparison({"mean_ttft_ms": -9.0}, recording="d", late_arrivals=1, launch_ratio=1.243)
    fast = comparison({"mean_ttft_ms": 9.0}, recording="e", held_updates=4, launch_ratio=0.80)
    page = fidelity_page([*ALL, late, slow, fast])
    ends = [row.rsplit("|", 2)[1] for row in page.splitlines() if "mean TTFT, ms" in row]
    assert ends == [" 7 late, 139 ms ", " 1 late, 139 ms; host x1.24 ", " 4, 33 ms; host x0.80 "]
    text = " ".join(page.splitlines())
    # the two cells of a are of a load with a hold, too
    assert (
        "Of all, 3 are of loads in which the server's host thread was held, 2 of loads with late "
        "arrivals, 2 of loads whose launches took over 10% more or less time than the profile's; 5 "
        "of loads with one of these at least (*held*)."
    ) in text
    for sentences in (
        "\n50 requests. 7 requests came to the engine more than 20 ms late, 139 ms at most.\n",
        "\n50 requests. 1 request came to the engine more than 20 ms late, 139 ms at most. The "
        "host's launches took 1.24 times as long as the profile's.\n",
        "\n50 requests. The server's host thread was held 4 times for more than 20 ms, 33 ms at "
        "most. The host's launches took 0.80 times as long as the profile's.\n",
        # a ratio of 1.10 is not told
        "\n50 requests.\n",
    ):
        assert sentences in page, sentences


@pytest.mark.parametrize(
    ("ratio", "differ"), [(None, False), (0.89, True), (0.91, False), (1.0, False), (1.11, True)]
)
def test_launches_that_differ(ratio: float | None, differ: bool) -> None:
    c = comparison({"mean_ttft_ms": 1.0}, launch_ratio=ratio)
    assert c.launches_differ is differ
    assert c.disturbed is differ
    assert comparison({"mean_ttft_ms": 1.0}, late_arrivals=1, launch_ratio=ratio).disturbed
    assert comparison({"mean_ttft_ms": 1.0}, held_updates=1, launch_ratio=ratio).disturbed


def test_tables_are_whole() -> None:
    """Every row of a Markdown table has as many cells as its head."""
    width = 0
    for line in fidelity_page(ALL, "", [StepCounts("a", "all", 2, 1, 2)]).splitlines():
        bars = line.count("|") if line.startswith("|") else 0
        assert not width or not bars or bars == width, line
        width = bars


def test_nothing_off_and_nothing_left_out() -> None:
    fine = fidelity_page([comparison({"mean_ttft_ms": 1.0})])
    assert "\nNone of 1 cell.\n" in fine
    fitted = fidelity_page([FITTED])
    assert "## Loads left out" not in fitted
    assert "aim" not in fitted


def test_json() -> None:
    data = json.loads(json.dumps(fidelity_dict(ALL, [StepCounts("a", "all", 200, 150, 199)])))
    assert {k: (v["cells"], v["off"]) for k, v in data["cells"].items()} == {
        "left_out": (9, 4), "fitted": (2, 1), "together": (11, 5)
    }  # fmt: skip
    assert data["aims"][1] == {
        "what": "mean and median", "quantity": "within 5%", "at_least_percent": 90.0,
        "seen_percent": 75.0, "met": False,
    }  # fmt: skip
    first = data["off"][0]
    assert (first["recording"], first["name"], first["error_percent"]) == (
        "a", "median_ttft_ms", -7.0
    )  # fmt: skip
    assert first["nearby"]["inside"] is True
    assert first["server_repeats_within_percent"] == repeats_percent("median", "ttft_ms") == 2.3
    assert data["off"][3]["nearby"] is None
    host = ("held_updates", "late_arrivals", "longest_arrival_ms", "launch_ratio")
    assert [first[k] for k in host] == [4, 0, 0.0, None]
    assert [data["comparisons"][2][k] for k in host] == [0, 0, 0.0, 1.1]
    assert data["agreement"] == [
        {"recording": "a", "phase": "all", "steps": 200, "agreeing": 150, "agreeing_recorded": 199}
    ]
    assert len(data["comparisons"]) == 3
