"""Arrival processes, lengths, bursts and prefixes against their closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import ScenarioError, TraceError
from qsim.traces.statistics import prefix_hit_blocks, trace_statistics
from qsim.traces.synth.arrivals import (
    Bursts,
    Gaps,
    RateProfile,
    arrival_blocks,
    bursts_for_fano,
    weibull_shape,
)
from qsim.traces.synth.custom import custom_workload, read_rate_profile
from qsim.traces.synth.lengths import LengthModel, QuantileTable, parse_lengths
from qsim.traces.synth.prefixes import PrefixModel
from qsim.traces.synth.synthesize import Span, iter_chunks, synthesize


def arrivals(profile: RateProfile, gaps: Gaps, duration_s: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate(list(arrival_blocks(profile, gaps, rng, duration_s=duration_s)))


@pytest.mark.parametrize("kind", ["gamma", "weibull"])
@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gaps_have_mean_one_and_the_cv(kind: str, cv: float) -> None:
    gaps = Gaps(kind, cv).draw(np.random.default_rng(0), 400_000)
    assert gaps.mean() == pytest.approx(1.0, rel=0.02)
    assert gaps.std() == pytest.approx(cv, rel=0.03)


@given(st.floats(0.02, 20))
def test_the_weibull_shape_gives_the_cv(cv: float) -> None:
    k = weibull_shape(cv)
    log_ratio = math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k)
    assert math.sqrt(math.expm1(log_ratio)) == pytest.approx(cv, rel=1e-5)


def test_poisson_counts_have_the_rate_and_a_fano_factor_of_one() -> None:
    times = arrivals(RateProfile.constant(20.0), Gaps(), 5000.0)
    counts = np.bincount(times.astype(int), minlength=5000)
    assert counts.mean() == pytest.approx(20.0, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.08)


def test_arrivals_follow_the_profile() -> None:
    profile = RateProfile.steps(np.array([10.0, 0.0, 30.0]), 100.0)
    times = arrivals(profile, Gaps(), 600.0)
    counts = np.bincount((times // 100).astype(int), minlength=6)
    assert counts[1] == counts[4] == 0
    expected = np.array([1000, 0, 3000, 1000, 0, 3000])
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected + 1)).all()


PROFILES = st.lists(st.floats(0, 100), min_size=1, max_size=8).filter(lambda r: sum(r) > 1e-3)


@given(PROFILES, st.floats(0.5, 50), st.floats(0, 1000), st.floats(0.1, 1000))
def test_a_window_has_the_rates_of_the_profile_there(
    rates: list[float], step_s: float, start_s: float, duration_s: float
) -> None:
    profile = RateProfile.steps(np.array(rates), step_s)
    try:
        part = profile.window(start_s, duration_s)
    except ScenarioError:
        return  # nothing but silence in this window
    assert part.period_s == pytest.approx(duration_s)
    for share in (0.1, 0.37, 0.9):
        at = start_s + share * duration_s
        near_edge = min(at % step_s, step_s - at % step_s) < 1e-6 * max(at, 1)
        if not near_edge:
            own = part.rates_rps[np.searchsorted(part.edges_s, share * duration_s) - 1]
            assert own == rates[int(at // step_s) % len(rates)]


@given(PROFILES, st.lists(st.floats(0, 1e4), min_size=2))
def test_the_inverse_of_the_rate_integral_rises_and_inverts(
    rates: list[float], expected: list[float]
) -> None:
    profile = RateProfile.steps(np.array(rates), 10.0)
    times = profile.seconds_at(np.sort(np.array(expected)))
    assert (np.diff(times) >= -1e-9 * np.abs(times[1:])).all()
    per_period = profile.mean_rps * profile.period_s
    lap = profile.seconds_at(np.array([per_period * 3.0]))[0]
    assert lap / profile.period_s == pytest.approx(3.0, abs=1.0 + 1e-9)


@pytest.mark.parametrize("requests", [1, 65_536, 65_537, 150_000])
def test_exactly_the_requests_asked_for(requests: int) -> None:
    workload = custom_workload("poisson", Span(requests=requests, rate_rps=10.0))
    trace = synthesize(workload, Span(requests=requests, rate_rps=10.0))
    assert len(trace) == requests


def test_requests_and_duration_fix_the_rate() -> None:
    span = Span(requests=5000, duration_s=100.0)
    trace = synthesize(custom_workload("poisson", span), span)
    assert len(trace) == 5000
    assert trace.arrival_s[-1] == pytest.approx(100.0, rel=0.06)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"requests": 1, "duration_s": 1.0, "rate_rps": 1.0}, "two of them fix the third"),
        ({"requests": 0}, "requests is 0; must be a whole number >= 1"),
        ({"duration_s": -1.0}, "duration_s is -1.0; must be a finite number > 0"),
        ({"rate_rps": float("nan")}, "rate_rps is nan"),
        ({"start_s": -1.0}, "start_s is -1.0"),
    ],
)
def test_impossible_spans(values: dict[str, float], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        Span(**values)  # type: ignore[arg-type]


@given(
    st.lists(st.floats(1, 1e5), min_size=2, max_size=8).map(sorted),
    st.lists(st.floats(0, 1), min_size=1, max_size=50),
)
def test_a_quantile_table_is_monotone_and_keeps_its_ends(
    values: list[float], u: list[float]
) -> None:
    table = QuantileTable.of(np.linspace(0, 1, len(values)).tolist(), values)
    drawn = table.at(np.sort(np.array(u)))
    assert (np.diff(drawn) >= -1e-9 * drawn[1:]).all()
    assert table.at(np.array([0.0, 1.0])) == pytest.approx([values[0], values[-1]])


@given(st.lists(st.floats(1, 1e5), min_size=2, max_size=8).map(sorted))
def test_the_mean_of_a_table_is_the_integral_of_its_quantiles(values: list[float]) -> None:
    table = QuantileTable.of(np.linspace(0, 1, len(values)).tolist(), values)
    u = (np.arange(200_000) + 0.5) / 200_000
    assert table.mean == pytest.approx(float(table.at(u).mean()), rel=1e-3)


def test_closed_forms_of_tables() -> None:
    assert QuantileTable.exponential(30.0).mean == pytest.approx(30.0, rel=0.01)
    lognormal = QuantileTable.lognormal(100.0, 0.5, 1.0, 1e5)
    assert lognormal.mean == pytest.approx(100.0 * math.exp(0.125), rel=0.02)
    assert lognormal.at(np.array([0.5]))[0] == pytest.approx(100.0)


@pytest.mark.parametrize("rho", [-0.8, 0.0, 0.6])
def test_the_copula_keeps_the_marginals_and_gives_the_rank_correlation(rho: float) -> None:
    table = QuantileTable.lognormal(1000.0, 1.0, 1.0, 1e6)
    prompt, output = LengthModel(table, table, rho).draw(np.random.default_rng(0), 100_000)
    for column in (prompt, output):
        assert np.median(column) == pytest.approx(1000.0, rel=0.02)
    ranks = [np.argsort(np.argsort(x)) for x in (prompt, output)]
    spearman = np.corrcoef(*ranks)[0, 1]
    assert spearman == pytest.approx(6 / math.pi * math.asin(rho / 2), abs=0.02)


@pytest.mark.parametrize("text", ["", "x", "0.5", "nan", "lognormal:1", "quantiles:0=1", "a:1"])
def test_bad_length_distributions(text: str) -> None:
    with pytest.raises(ScenarioError):
        parse_lengths("prompt_tokens", text)


def test_length_distributions_from_text() -> None:
    assert parse_lengths("p", "512").tokens_at(np.array([0.0, 1.0])).tolist() == [512, 512]
    table = parse_lengths("p", "quantiles:0=10,0.5=100,1=1000")
    assert table.tokens_at(np.array([0.0, 0.25, 0.5, 1.0])).tolist() == [10, 32, 100, 1000]


@pytest.mark.parametrize("fano", [3.0, 12.0])
def test_bursty_arrivals_have_the_fano_factor(fano: float) -> None:
    span = Span(rate_rps=5.0, duration_s=200_000.0)
    workload = custom_workload(
        "bursty", span, fano=fano, prompt_tokens="10", output_tokens="10", busy_seconds=20.0
    )
    s = trace_statistics(synthesize(workload, span))
    assert s["count_fano_60s"] == pytest.approx(fano, rel=0.12)
    assert s["mean_rps"] == pytest.approx(5.0, rel=0.01)


def test_a_fano_factor_out_of_reach_says_how_far_one_can_go() -> None:
    with pytest.raises(ScenarioError, match=r"fano is 500.*it can be at most [\d.e+]+"):
        bursts_for_fano(500.0, 60.0, 5.0, 0.25, 20.0)


@given(st.floats(1, 1e5), st.integers(0, 9))
@settings(max_examples=30)
def test_a_burst_path_covers_its_horizon(horizon_s: float, seed: int) -> None:
    bursts = Bursts(QuantileTable.exponential(20.0), QuantileTable.exponential(60.0))
    path = bursts.path(np.random.default_rng(seed), horizon_s)
    assert path.edges_s[0] == 0
    assert path.edges_s[-1] == horizon_s


def test_diurnal_rates_have_their_peak_where_asked() -> None:
    span = Span(rate_rps=10.0, duration_s=86400.0)
    workload = custom_workload("diurnal", span, peak_to_trough=4.0, peak_hour=15.0)
    hours = (synthesize(workload, span).arrival_s // 3600).astype(int)
    counts = np.bincount(hours, minlength=24)
    assert counts.argmax() in (14, 15)
    assert counts.max() / counts.min() == pytest.approx(4.0, rel=0.1)
    assert counts.sum() == pytest.approx(864_000, rel=0.01)


def test_a_rate_profile_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("t_s,rate_rps\n0,1\n600,3\n")
    profile = read_rate_profile(path)
    assert profile.mean_rps == 2.0
    assert profile.period_s == 1200.0
    for text in ("t_s,rate_rps\n0,1\n600,1\n700,1\n", "t_s,rate_rps\n0,1\n", "t,rate_rps\n0,1\n"):
        path.write_text(text)
        with pytest.raises(TraceError, match=r"rates\.csv"):
            read_rate_profile(path)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("steady", {}, "arrivals is 'steady'; must be one of poisson"),
        ("gamma", {}, "gamma arrivals need --cv"),
        ("poisson", {"cv": 2.0}, "poisson arrivals take none; use gamma"),
        ("gamma", {"cv": -1.0}, "cv is -1.0; must be from 0.003 to 100"),
        ("poisson", {"lengths": "gpt"}, "preset is 'gpt'; must be one of"),
        ("poisson", {"correlation": 1.0}, "correlation is 1.0; must be > -1 and < 1"),
        ("diurnal", {"peak_to_trough": 0.5}, "peak_to_trough is 0.5; must be >= 1"),
        ("poisson", {"rate_profile": Path("x")}, "use diurnal"),
    ],
)
def test_bad_workloads(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises((ScenarioError, TraceError), match=message):
        custom_workload(kind, Span(rate_rps=1.0, duration_s=10.0), **options)  # type: ignore[arg-type]


def test_a_workload_needs_a_rate_and_a_length() -> None:
    with pytest.raises(ScenarioError, match="the rate is missing"):
        custom_workload("poisson", Span(duration_s=10.0))
    with pytest.raises(ScenarioError, match="the length is missing"):
        custom_workload("poisson", Span(rate_rps=10.0))


def test_a_span_without_arrivals_is_an_error() -> None:
    span = Span(rate_rps=1e-9, duration_s=1.0)
    with pytest.raises(ScenarioError, match="no request arrives in this span"):
        synthesize(custom_workload("poisson", span), span)


def prefix_model(**changes: object) -> PrefixModel:
    values = {
        "block_tokens": 16,
        "common_blocks": 1,
        "later_blocks": (3,),
        "later_share": (0.0, 0.6),
        "age_s": QuantileTable.exponential(50.0),
        "growth_p": (0.0, 1.0),
        "growth_blocks": (0.0, 4.0),
        "branch_share": 0.2,
        "branch_kept": 0.4,
    }
    return PrefixModel(**(values | changes))  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(0, 5))
def test_prefix_ids_cover_the_prompt_and_form_a_tree(prompts: list[int], seed: int) -> None:
    draw = prefix_model().start(np.random.default_rng(seed))
    tokens = np.array(prompts)
    ids = draw.assign(np.arange(len(tokens)) * 1.0, tokens)
    assert np.diff(ids.offsets).tolist() == (-(-tokens // 16)).tolist()
    before: dict[int, tuple[int, ...]] = {}
    for i in range(len(ids)):
        own = ids[i].tolist()
        for k, one in enumerate(own):
            # an id stands for the text and all that came before it, so its path is unique
            assert before.setdefault(one, tuple(own[:k])) == tuple(own[:k])


def test_prefix_ids_do_not_depend_on_the_chunks() -> None:
    rng = np.random.default_rng(3)
    times, tokens = np.cumsum(rng.exponential(1.0, 500)), rng.integers(1, 900, 500)
    one = prefix_model(later_share=(0.0, 0.0)).start(np.random.default_rng(0))
    whole = one.assign(times, tokens)
    two = prefix_model(later_share=(0.0, 0.0)).start(np.random.default_rng(0))
    parts = [two.assign(times[:200], tokens[:200]), two.assign(times[200:], tokens[200:])]
    assert np.concatenate([p.values for p in parts]).tolist() == whole.values.tolist()


def test_without_later_turns_only_the_common_blocks_hit() -> None:
    draw = prefix_model(later_share=(0.0, 0.0)).start(np.random.default_rng(0))
    ids = draw.assign(np.arange(100.0), np.full(100, 160))
    assert prefix_hit_blocks(ids).tolist() == [0] + [1] * 99


def test_chunks_join_to_the_whole() -> None:
    span = Span(rate_rps=100.0, requests=140_000)
    workload = custom_workload("gamma", span, cv=2.0, correlation=0.3)
    whole = synthesize(workload, span, seed=5)
    chunks = list(iter_chunks(workload, span, seed=5))
    assert [len(c) for c in chunks] == [65_536, 65_536, 8_928]
    for column in ("arrival_s", "prompt_tokens", "output_tokens"):
        joined = np.concatenate([getattr(c, column) for c in chunks])
        assert joined.tobytes() == getattr(whole, column).tobytes()
