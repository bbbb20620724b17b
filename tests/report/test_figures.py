"""What pictures promise: one look for a method, colours for all eyes, names that do not collide."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.catalog.methods import KV_FP8, METHODS
from qsim.optimize.capacity.curve import curve
from qsim.optimize.plan.candidate import Part
from qsim.optimize.plan.planning import plan
from qsim.optimize.plan.result import Plan
from qsim.optimize.search.fleet_outcome import QUANTILES
from qsim.report.figures.curve import curve_figure
from qsim.report.figures.labels import EndLabel, label_ends, spread
from qsim.report.figures.results import plan_figure
from qsim.report.figures.style import (
    blank_figure,
    distinct_names,
    gpu_dashes,
    method_look,
    method_of,
    plain_log_axis,
    policy_look,
    style,
)
from qsim.report.figures.tails import tail_of_quantiles, tail_of_values
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", 2009: severity 1, on linear RGB
_VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
_TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
           [0.0193339, 0.1191920, 0.9503041]]  # fmt: skip


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    f = np.array(_TO_XYZ) @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", _VISION)
def test_any_two_methods_are_told_apart_with_any_colour_vision(vision: str) -> None:
    seen = {m: lab(np.array(_VISION[vision]) @ linear(method_look(m).color)) for m in METHODS}
    near = min(
        (float(np.linalg.norm(seen[a] - seen[b])), a, b) for a, b in itertools.combinations(seen, 2)
    )
    assert near[0] > 15, near  # a just noticeable difference is 2.3


def test_every_method_has_its_own_look_wherever_it_is_met() -> None:
    looks = [method_look(m) for m in METHODS]
    assert len({v.color for v in looks}) == len({v.marker for v in looks}) == len(METHODS)
    for m in METHODS:
        assert method_look(f"h100_sxm/llama-3.1-8b/{m}/tp2") == method_look(m)
        assert method_look(f"h200_sxm/llama-3.1-8b/{m}@0.33") == method_look(m)
        assert method_look(m + KV_FP8).color == method_look(m).color
        assert method_look(m + KV_FP8) != method_look(m)
    assert method_of("h200_sxm/qwen2.5-14b/fp8-w8a8+kv-fp8@0.33") == "fp8-w8a8+kv-fp8"
    assert method_look("my-own").color not in {v.color for v in looks}
    assert len({str(gpu_dashes(g)) for g in ("h200_sxm", "h100_sxm", "a100_sxm", "b200")}) == 4
    assert policy_look("static fp8-w8a8") == policy_look("static bf16")


def test_names_can_be_read_on_white() -> None:
    for m in (*METHODS, "my-own"):
        luminance = float(np.array(_TO_XYZ)[1] @ linear(method_look(m).text))
        assert 1.05 / (luminance + 0.05) >= 4.45


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.001, 0.2))
def test_spread_keeps_the_order_and_the_gap(at: list[float], gap: float) -> None:
    places = spread(at, gap)
    order = sorted(range(len(at)), key=lambda i: (at[i], i))
    for i, j in itertools.pairwise(order):
        assert places[j] - places[i] >= gap * (1 - 1e-9)
    if gap * (len(at) - 1) <= 1:
        assert all(-1e-9 <= p <= 1 + 1e-9 for p in places)


def test_spread_moves_nothing_that_has_room() -> None:
    assert spread([0.9, 0.1, 0.5], 0.2) == pytest.approx([0.9, 0.1, 0.5])
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.0], 0.2) == pytest.approx([0.0, 0.2])


def boxes_of_names(figure: Any, names: list[str]) -> list[tuple[str, Any, Any]]:
    from matplotlib.text import Text  # whose extent leaves the leading line out

    figure.draw_without_rendering()
    found = [t for ax in figure.findobj() if hasattr(ax, "texts") for t in ax.texts]
    unique = {id(t): t for t in found if t.get_text() in names}
    return [(t.get_text(), t.axes, Text.get_window_extent(t)) for t in unique.values()]


def panels(figure: Any, title: str) -> list[Any]:
    from matplotlib.axes import Axes

    return [ax for ax in figure.findobj(Axes) if title in ax.get_title(loc="left")]


def check_no_name_hides_another(figure: Any, names: list[str], times: int) -> None:
    boxes = boxes_of_names(figure, names)
    assert sorted(b[0] for b in boxes) == sorted(names * times)
    for (_, ax, one), (_, other_ax, two) in itertools.combinations(boxes, 2):
        assert ax is not other_ax or not one.overlaps(two)
    for _, ax, box in boxes:
        assert box.x0 >= ax.get_window_extent().x1  # beside its panel, not over its curves


@pytest.mark.parametrize("count", [1, 2, 7, 14])
def test_no_name_of_a_curve_hides_another(count: int) -> None:
    with style():
        figure = blank_figure(6, 3)
        ax = figure.add_subplot()
        names = [f"fleet {k}" for k in range(count)]
        ax.plot([0, 1], [1, 1000])
        plain_log_axis(ax)
        label_ends(figure, [(ax, [EndLabel(n, 1, 900, "#000000") for n in names])])
        check_no_name_hides_another(figure, names, 1)


def test_tails_are_over_one_over_the_share_that_is_as_slow() -> None:
    x, y = tail_of_values([3.0, 1.0, 2.0, 4.0])
    assert y.tolist() == [1, 2, 3, 4]
    assert x.tolist() == pytest.approx([1, 4 / 3, 2, 4])  # one of four is as slow as the slowest
    values = np.sort(np.random.default_rng(5).exponential(100.0, 4001))
    at, kept = tail_of_quantiles(QUANTILES, np.quantile(values, QUANTILES).tolist(), len(values))
    assert (at[-1], kept[-1]) == (4001, values[-1])
    p99 = int(np.argmin(abs(at - 100)))
    assert kept[p99] == pytest.approx(np.quantile(values, 0.99))
    assert np.all(np.diff(at) > 0)
    assert np.all(np.diff(kept) >= 0)
    few_at, few = tail_of_quantiles(QUANTILES, np.quantile([1.0, 9.0], QUANTILES).tolist(), 2)
    assert (few_at[-1], few[-1]) == (2.0, 9.0)
    assert few_at.max() == 2.0  # two requests say nothing of p99
    assert len(tail_of_quantiles(QUANTILES, [], 0)[0]) == 0


def test_quantiles_go_from_the_least_to_the_highest() -> None:
    assert QUANTILES[0] == 0
    assert QUANTILES[-1] == 1
    assert all(a < b for a, b in itertools.pairwise(QUANTILES))
    assert {0.5, 0.9, 0.95, 0.99, 0.999} <= set(QUANTILES)


def test_names_say_what_differs_and_no_two_are_equal() -> None:
    assert distinct_names(["h200/m/bf16", "h200/m/fp8"]) == ["bf16", "fp8"]
    assert distinct_names(["h200/m/bf16", "h100/m/bf16"]) == ["h200 bf16", "h100 bf16"]
    assert distinct_names(["h200/m/bf16", "h200/m/bf16/tp2"]) == ["bf16", "bf16 tp2"]
    twice = distinct_names(["h200/m/bf16", "h200/m/bf16"])
    assert len(set(twice)) == 2
    assert distinct_names(["own"]) == ["own"]


@pytest.fixture(scope="module")
def traffic() -> Trace:
    rng = np.random.default_rng(3)
    n = 300
    return Trace(
        np.cumsum(rng.exponential(0.02, n)), rng.integers(50, 900, n), rng.integers(1, 120, n)
    )


@pytest.fixture(scope="module")
def answer(traffic: Trace) -> Plan:
    made = [
        make_profile(method="fp8-w8a8"),
        make_profile(method="int8-w8a8"),
        make_profile(method="fp8-block"),
        make_profile(method="bf16", decode_ms=6.0),
        make_profile(method="gptq-w8a16", decode_ms=6.0),
    ]
    return plan(traffic, profiles=made, slos=["ttft:p95:300", "tpot:p99:20"])


def test_a_plan_of_equal_fleets_names_each_and_shows_the_tail(answer: Plan) -> None:
    figure = plan_figure(answer)
    bars = panels(figure, "USD per hour")
    names = [t.get_text() for t in bars[0].get_yticklabels()]
    assert len(set(names)) == 5
    check_no_name_hides_another(figure, names, times=2)
    tails = panels(figure, "by percentile")
    assert [ax.get_xscale() for ax in tails] == ["log", "log"]
    tpot = tails[1]
    dot = [line for line in tpot.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert dot[0].get_xdata()[0] == pytest.approx(100)  # p99: one of a hundred is as slow
    assert dot[0].get_ydata()[0] == 20
    drawn = {line.get_color() for line in tpot.lines}
    assert {method_look(c.method).color for c in answer.candidates} <= drawn


def test_two_settings_of_one_profile_are_two_bars(traffic: Trace) -> None:
    one = plan(traffic, profiles=[make_profile(method="fp8-w8a8")], slos=["ttft:p95:300"])
    both = replace(one, candidates=(one.candidates[0], replace(one.candidates[0])))
    figure = plan_figure(both)
    bars = panels(figure, "USD per hour")[0]
    assert len(bars.patches) == 2
    assert len({t.get_text() for t in bars.get_yticklabels()}) == 2


def test_a_mixed_fleet_is_named_by_its_pools_and_has_the_colours_of_both(answer: Plan) -> None:
    one, two = answer.candidates[:2]
    assert one.outcome is not None
    mix = replace(one, profile="toy mix", parts=(Part(one, 2), Part(two, 1)),
                  outcome=replace(one.outcome, replicas=3, sizes=(2, 1)))  # fmt: skip
    figure = plan_figure(replace(answer, candidates=(mix, one, two)))
    bars = panels(figure, "USD per hour")[0]
    first = bars.get_yticklabels()[0].get_text()
    assert first == f"2 x {one.method} + 1 x {two.method}"
    assert bars.patches[0].get_hatch()
    assert not bars.patches[1].get_hatch()
    colors = [line.get_color() for line in panels(figure, "TTFT")[0].lines[:2]]
    assert colors == [method_look(one.method).color, method_look(two.method).color]
    names = [t.get_text() for t in bars.get_yticklabels()]
    check_no_name_hides_another(figure, names, times=2)


def test_a_load_curve_is_named_beside_its_lines_with_the_profiles_error(traffic: Trace) -> None:
    made = [make_profile(method=m) for m in ("fp8-w8a8", "bf16", "int8-w8a8")]
    made[0] = replace(made[0], fit_error={"worst_p99": 20.0, "worst_energy": 5.0})
    found = curve(made, traffic, rates=[5.0, 20.0, 40.0], slos=["ttft:p99:300"])
    figure = curve_figure(found)
    names = [f"{f.name} x {f.fleet.replicas}" for f in found.fleets]
    check_no_name_hides_another(figure, names, times=3)
    ttft = figure.axes[0]
    assert len(ttft.collections) == 1  # the band of the profile that states an error
    rows = [r for r in found.rows() if r["fleet"] == found.fleets[0].name]
    band = ttft.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(r["ttft:p99:300"] for r in rows) * 1.2)
