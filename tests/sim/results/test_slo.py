from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.sim.results.slo import METRICS, Slo, SloOutcome, attainment, check_slos, parse_slos
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

STATISTICS = st.one_of(
    st.sampled_from(["mean", "median"]),
    st.integers(1, 100).map(lambda n: f"p{n}"),
    st.decimals("0.1", "99.9", places=1).map(lambda d: f"p{d}"),
)


@given(st.sampled_from(METRICS), STATISTICS, st.floats(1e-3, 1e6))
def test_text_and_back(metric: str, statistic: str, limit: float) -> None:
    slo = Slo(metric, statistic, float(f"{limit:.12g}"))
    assert Slo.parse(str(slo)) == slo


def test_parse_is_lenient_about_case_and_blanks() -> None:
    assert Slo.parse(" TTFT : P99 : 500 ") == Slo("ttft", "p99", 500.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ttft:p99", ["'ttft:p99'", "metric:statistic:limit"]),
        ("", ["''", "does not parse"]),
        ("ttft:p99:500:9", ["'ttft:p99:500:9'", "does not parse"]),
        ("latency:p99:500", ["'latency'", "ttft, tpot, itl, e2el"]),
        ("ttft:max:500", ["'max'", "mean, median"]),
        ("ttft:p0:500", ["'p0'"]),
        ("ttft:p101:500", ["'p101'"]),
        ("ttft:99:500", ["'99'", "p99"]),
        ("ttft:p99:fast", ["'fast'", "milliseconds"]),
        ("ttft:p99:0", ["0 ms", "> 0"]),
        ("ttft:p99:-5", ["-5 ms", "> 0"]),
        ("ttft:p99:nan", ["nan ms", "finite"]),
        ("ttft:p99:inf", ["inf ms", "finite"]),
    ],
)
def test_parse_errors_name_the_part(text: str, words: list[str]) -> None:
    with pytest.raises(ScenarioError) as e:
        Slo.parse(text)
    for word in words:
        assert word in str(e.value)


def trace(outputs: list[int]) -> Trace:
    n = len(outputs)
    return Trace(np.arange(n) * 0.05, np.full(n, 300), np.array(outputs))


def test_value_is_numpys_percentile_of_the_requests_that_have_one() -> None:
    result = simulate(trace([1, 40, 7, 100, 1, 3]), make_profile())
    tpot = result.tpot_ms[~np.isnan(result.tpot_ms)]
    assert len(tpot) == 4
    for text, expected in [
        ("ttft:p90:1", np.percentile(result.ttft_ms, 90)),
        ("ttft:mean:1", np.mean(result.ttft_ms)),
        ("tpot:p99.5:1", np.percentile(tpot, 99.5)),
        ("e2el:median:1", np.median(result.e2el_ms)),
        ("itl:p99:1", result.summary()["p99_itl_ms"]),
    ]:
        assert Slo.parse(text).value(result) == pytest.approx(float(expected), rel=1e-12)


def test_met_is_exact_at_the_limit() -> None:
    result = simulate(trace([5, 5, 5]), make_profile())
    value = Slo.parse("ttft:mean:1").value(result)
    assert Slo("ttft", "mean", value).met(result)
    assert not Slo("ttft", "mean", float(np.nextafter(value, 0))).met(result)


@pytest.mark.parametrize("text", ["tpot:p99:1", "tpot:mean:1", "itl:p99:1", "itl:mean:1"])
def test_a_statistic_over_nothing_is_not_met(text: str) -> None:
    result = simulate(trace([1, 1]), make_profile())  # no request has a TPOT
    slo = Slo.parse(text)
    assert not slo.met(result)
    (outcome,) = check_slos(result, [slo])
    told = outcome.to_dict()
    assert (told["value_ms"], told["met"]) == (None, None)
    assert told["verdict"] == outcome.verdict == "nothing to judge"
    assert outcome.ratio > 1
    assert "nothing to judge" in outcome.sentence()
    assert attainment(result, [slo]) is None
    assert result.summary([slo])["slos"] == [told]
    assert result.summary([slo])["request_goodput"] is None
    # with a limit that requests do have, they are counted as vLLM counts them
    assert attainment(result, [slo, Slo.parse("ttft:p99:1e6")]) == 1.0


def test_attainment_counts_requests_within_every_limit() -> None:
    result = simulate(trace([2, 50, 2, 50]), make_profile())
    split = float(np.sort(result.e2el_ms)[2]) - 1.0  # the two long answers are above it
    assert attainment(result, [Slo("e2el", "p99", split)]) == 0.5
    assert attainment(result, [Slo("e2el", "p99", split), Slo("ttft", "mean", 1e-3)]) == 0.0
    assert attainment(result, [Slo("itl", "p99", 1e-3)]) is None


def test_rejected_requests_do_not_attain() -> None:
    t = Trace(np.zeros(4), np.array([100, 100, 100, 5000]), np.full(4, 2))
    result = simulate(t, make_profile(max_model_len=1000), too_long="reject")
    assert attainment(result, [Slo("e2el", "p99", 1e6)]) == 0.75


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (612.0, "ttft p99 612 ms, 22% over its limit of 500 ms"),
        (400.0, "ttft p99 400 ms, 20% under its limit of 500 ms"),
        (500.0, "ttft p99 500 ms, 0% under its limit of 500 ms"),
        (50_000.0, "ttft p99 50,000 ms, 100 times its limit of 500 ms"),
    ],
)
def test_sentence(value: float, words: str) -> None:
    assert SloOutcome(Slo.parse("ttft:p99:500"), value).sentence() == words


def test_parse_slos_takes_text_and_objects() -> None:
    one: Any = Slo("ttft", "p99", 1.0)
    assert parse_slos([one, "tpot:mean:2"]) == (one, Slo("tpot", "mean", 2.0))


def test_value_asks_the_result() -> None:
    asked: list[tuple[str, str]] = []
    fake: Any = SimpleNamespace(statistic=lambda m, s: asked.append((m, s)) or 3.0)
    assert Slo.parse("itl:p99.9:4").value(fake) == 3.0
    assert asked == [("itl", "p99.9")]
