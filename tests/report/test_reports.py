from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qsim.errors import MissingExtraError
from qsim.optimize.plan.planning import plan
from qsim.optimize.plan.result import Plan
from qsim.profiles.lookup import stated_errors
from qsim.report.figures import results
from qsim.report.figures.results import latency_figure, plan_figure, timeline_figure
from qsim.report.figures.style import figure_svg, save_figure
from qsim.report.html.reports import write_plan_report, write_simulation_report
from qsim.report.text.plan import plan_text
from qsim.report.text.profile import profile_text
from qsim.report.text.simulation import simulation_text
from qsim.sim.results.result import SimulationResult
from qsim.sim.results.slo import Slo, attainment, check_slos
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile
from tests.report.browser import opened

SLOS = (Slo.parse("ttft:p95:300"), Slo.parse("tpot:mean:4.5"))


def traffic(n: int = 120) -> Trace:
    rng = np.random.default_rng(3)
    return Trace(
        np.cumsum(rng.exponential(0.02, n)),
        rng.integers(50, 2000, n),
        rng.integers(1, 120, n),
        name="<traffic> & more",
    )


@pytest.fixture(scope="module")
def result() -> SimulationResult:
    return simulate(traffic(), make_profile(), replicas=2)


@pytest.fixture(scope="module")
def answer() -> Plan:
    made = [
        make_profile(method="fp8-w8a8"),
        make_profile(method="bf16", decode_ms=6.0),
        make_profile(method="awq-w4a16", decode_ms=30.0),
    ]
    return plan(traffic(), profiles=made, slos=["ttft:p95:300", "tpot:p99:20"])


@pytest.fixture(scope="module")
def nothing() -> Plan:
    return plan(traffic(20), profiles=[make_profile()], slos=["tpot:p99:0.1"])


class Links(HTMLParser):
    """Collects what a browser would load, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> None:
    page = Links()
    page.feed(text)
    assert page.open == []
    assert all(link.startswith("#") for link in page.loaded), "a page must load nothing"
    assert not re.search(r"@import|url\((?!#)", text)
    assert "<traffic>" not in text
    assert "&lt;traffic&gt; &amp; more" in text


def report(path: Path, result: SimulationResult) -> str:
    outcomes = check_slos(result, SLOS)
    write_simulation_report(path, result, result.summary(SLOS), outcomes, "<traffic> & more")
    return path.read_text(encoding="utf-8")


def test_simulation_report_is_one_file_that_loads_nothing(
    tmp_path: Path, result: SimulationResult
) -> None:
    text = report(tmp_path / "r.html", result)
    check_page(text)
    assert text.count("<svg") == 2
    assert ">met<" in text
    assert ">missed<" in text
    assert report(tmp_path / "again.html", result) == text


def test_plan_report(tmp_path: Path, answer: Plan, nothing: Plan) -> None:
    path = tmp_path / "p.html"
    write_plan_report(path, answer)
    text = path.read_text(encoding="utf-8")
    check_page(text)
    assert "vllm serve path/to/toy-1b-fp8-w8a8" in text
    assert "alone: more GPUs do not help" in text
    write_plan_report(path, nothing)
    check_page(path.read_text(encoding="utf-8"))
    assert "No candidate meets the SLOs" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [400, 1400])
def test_reports_in_a_browser(
    tmp_path: Path, result: SimulationResult, answer: Plan, width: int
) -> None:
    report(tmp_path / "simulation.html", result)
    write_plan_report(tmp_path / "plan.html", answer)
    for name, pictures in (("simulation", 2), ("plan", 1)):
        path = tmp_path / f"{name}.html"
        with opened(path, width) as seen:
            assert seen.overflow_px() <= 0
            sizes = seen.page.evaluate(
                "[...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().width,"
                " s.getBoundingClientRect().height])"
            )
        assert seen.errors == []
        assert seen.requests == [path.resolve().as_uri()]
        assert len(sizes) == pictures
        assert all(w >= 700 and h >= 150 for w, h in sizes)  # large enough to read at any width


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
@pytest.mark.slow
def test_pictures_are_whole_and_the_same_each_time(
    tmp_path: Path, answer: Plan, ending: str
) -> None:
    one, two = tmp_path / f"one{ending}", tmp_path / f"two{ending}"
    for path in (one, two):
        save_figure(plan_figure(answer), path)
    assert one.read_bytes() == two.read_bytes()
    assert len(one.read_bytes()) > 5000
    assert len(list(tmp_path.iterdir())) == 2


def test_figures_show_the_data(result: SimulationResult, answer: Plan, nothing: Plan) -> None:
    latency = latency_figure(result, SLOS)
    curve = latency.axes[0].lines[0]
    assert curve.get_ydata()[-1] == result.ttft_ms.max()
    assert curve.get_xdata()[-1] == len(result.ttft_ms)
    assert any(list(line.get_ydata()) == [300.0, 300.0] for line in latency.axes[0].lines)
    timeline = timeline_figure(result)
    assert np.array_equal(timeline.axes[0].lines[0].get_ydata(), result.timeline["running"])
    bars = plan_figure(answer).subfigs[0].axes[0].patches
    rents = [c.usd_per_hour for c in answer.candidates if c.feasible]
    assert [b.get_width() for b in bars] == rents
    assert "no fleet meets the SLOs" in figure_svg(plan_figure(nothing))


def test_a_result_without_tpot_can_be_drawn() -> None:
    only_one = simulate(Trace(np.zeros(1), np.array([10]), np.array([1])), make_profile())
    assert "<svg" in figure_svg(latency_figure(only_one))
    assert "<svg" in figure_svg(timeline_figure(only_one))


def test_without_matplotlib_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, result: SimulationResult
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"qsim\[report\]"):
        results.latency_figure(result)


def test_simulation_text(result: SimulationResult) -> None:
    outcomes = check_slos(result, SLOS)
    text = simulation_text(result.summary(SLOS), outcomes, attainment(result, SLOS), "title")
    lines = text.splitlines()
    assert lines[0] == "title"
    assert any(line.startswith("ttft:p95:300") and "met, " in line for line in lines)
    assert any(line.startswith("tpot:mean:4.5") and "MISSED, " in line for line in lines)
    assert all(len(line) <= 100 for line in lines)


def test_plan_text(answer: Plan, nothing: Plan) -> None:
    text = plan_text(answer)
    rows = [line.split() for line in text.splitlines()]
    assert ["*", "fp8-w8a8"] in [r[:2] for r in rows]
    assert "h200_sxm/toy-1b/awq-w4a16: " in text
    assert "vllm serve" in text
    assert "vllm serve" not in plan_text(nothing)


def test_profile_text() -> None:
    text = profile_text(make_profile())
    assert text.startswith("h200_sxm/toy-1b/bf16\n")
    assert "65,520 tokens in 4,096 blocks of 16" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_profile_text_states_the_error_on_loads_left_out() -> None:
    errors = {f"{s}_{m}_ms": 1.5 for m in ("ttft", "tpot", "e2el") for s in ("mean", "p99")}
    stated = {
        "unit": "percent",
        "worst_mean": 4.06,
        "worst_p99": 9.0,
        "worst_energy": None,
        "phases": {"busy": {"toy--bf16": {**errors, "mean_ttft_ms": -4.06, "energy_j": None}}},
    }
    profile = replace(make_profile(), fit_error=stated)
    assert stated_errors(profile) == {"mean": 4.06, "p99": 9.0}
    lines = profile_text(profile).splitlines()
    assert any("mean 4.1%, p99 9.0% (worst case" in line for line in lines)
    row = lines[-1].split()
    assert row[:3] == ["busy", "bf16", "-4.1"]
    assert row[-1] == "-"


def test_a_margin_below_the_profiles_own_error_is_told() -> None:
    def told(error: float) -> str:
        profile = replace(make_profile(), fit_error={"worst_p99": error})
        answer = plan(traffic(40), profiles=[profile], slos=["ttft:p99:300"])
        assert answer.best is not None
        assert answer.best.replicas == 1
        return plan_text(answer)

    assert "margin: " not in told(0.1)
    text = " ".join(told(99.9).split())
    assert "to spare, and its profile is off by up to 99.9% (p99)" in text
