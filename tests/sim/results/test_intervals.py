"""Intervals of percentiles and shares against scipy's binomial law, and against draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from qsim.sim.results.intervals import percentile_of_rank, ranks, requests_needed, share_interval
from qsim.sim.results.slo import Slo, SloOutcome, check_slos
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile


@pytest.mark.parametrize(
    ("quantile", "needed"),
    [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299), (0.999, 2995), (1.0, 1), (0.05, 1)],
)
def test_the_requests_that_a_percentile_needs(quantile: float, needed: int) -> None:
    assert requests_needed(quantile) == needed
    if quantile < 1:
        assert 1 - quantile**needed >= 0.95
        assert needed == 1 or 1 - quantile ** (needed - 1) < 0.95
        assert ranks(needed, quantile)[1] is not None
        assert needed == 1 or ranks(needed - 1, quantile)[1] is None


@pytest.mark.parametrize("quantile", [0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("n", [1, 2, 5, 10, 50, 100, 299, 300, 1000, 3000, 20_000, 1_000_000])
def test_the_ranks_hold_the_quantile_at_ninety_percent(n: int, quantile: float) -> None:
    low, high = ranks(n, quantile)
    # x(low) <= quantile unless fewer than low values are below it; x(high) likewise
    exact = 1e-9 if n * min(quantile, 1 - quantile) <= 100 else 0.012  # the normal law is near
    if low is not None:
        assert binom.cdf(low - 1, n, quantile) <= 0.05 + exact
        assert binom.cdf(low, n, quantile) > 0.05 - exact  # the best such rank
    else:
        assert binom.cdf(0, n, quantile) > 0.05 - exact
    if high is not None:
        assert binom.cdf(high - 1, n, quantile) >= 0.95 - exact
        assert binom.cdf(high - 2, n, quantile) < 0.95 + exact
    else:
        assert binom.cdf(n - 1, n, quantile) < 0.95 + exact


def test_nothing_has_no_interval() -> None:
    assert ranks(0, 0.5) == (None, None)
    assert math.isnan(percentile_of_rank(None, 10))
    assert share_interval(0.5, 0) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 3, 40, 1000])
def test_the_interval_of_a_share_is_wilsons(n: int) -> None:
    for k in {0, 1, n // 3, n}:
        want = binomtest(k, n).proportion_ci(0.9, method="wilson")
        assert share_interval(k / n, n) == pytest.approx((want.low, want.high), abs=1e-9)


def _result(n: int, gap_s: float = 0.05) -> object:
    rng = np.random.default_rng(n)
    arrival_s = np.arange(n) * gap_s
    return simulate(
        Trace(arrival_s, rng.integers(50, 900, n), rng.integers(2, 30, n)), make_profile()
    )


@pytest.mark.parametrize("n", [40, 298, 299, 900])
def test_an_slo_has_the_interval_of_its_sample(n: int) -> None:
    result = _result(n)
    slo = Slo("ttft", "p99", 1e6)
    (outcome,) = check_slos(result, [slo])  # type: ignore[arg-type]
    ordered = np.sort(result.ttft_ms)  # type: ignore[attr-defined]
    low, high = ranks(n, 0.99)
    assert outcome.sample == n
    if low is not None:
        assert outcome.low_ms == pytest.approx(ordered[low - 1])
    told = outcome.to_dict()
    if high is None:
        assert n < 299
        assert told["verdict"] == "not enough requests to judge"
        assert told["met"] is None
        assert told["interval_ms"][1] is None
        assert "299 are needed" in outcome.doubt()
    else:
        assert outcome.high_ms == pytest.approx(ordered[high - 1])
        assert (told["verdict"], told["met"], outcome.doubt()) == ("met", True, "")


def test_a_miss_needs_no_sample() -> None:
    outcome = SloOutcome(Slo("ttft", "p99", 10.0), 12.0, 3)
    assert (outcome.verdict, outcome.to_dict()["met"], outcome.doubt()) == ("missed", False, "")


def test_a_limit_within_the_interval_is_told() -> None:
    outcome = SloOutcome(Slo("ttft", "p99", 10.0), 9.0, 400, 8.0, 11.0)
    assert outcome.verdict == "met"
    assert "not surely" in outcome.doubt()
    assert "11 ms" in outcome.doubt()


def test_the_largest_value_and_the_mean_are_of_the_sample() -> None:
    result = _result(10)
    for text in ("ttft:p100:1e6", "ttft:mean:1e6"):
        (outcome,) = check_slos(result, [Slo.parse(text)])  # type: ignore[arg-type]
        assert (outcome.verdict, outcome.doubt()) == ("met", "")


def test_the_intervals_cover_what_the_sample_was_drawn_from() -> None:
    """Of a thousand samples of a known law at least nine in ten hold its p90."""
    rng = np.random.default_rng(5)
    held = 0
    low, high = ranks(200, 0.9)
    assert low is not None
    assert high is not None
    for _ in range(1000):
        ordered = np.sort(rng.exponential(size=200))
        held += ordered[low - 1] <= -math.log(0.1) <= ordered[high - 1]
    assert held >= 880
