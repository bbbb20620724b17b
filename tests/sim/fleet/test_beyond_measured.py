"""Beyond the measured range nothing gets cheaper: over all shipped profiles and far ranges."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.calibrate.fit.modes import DEEPEST_TOOTH
from qsim.cli import main
from qsim.profiles.lookup import list_profiles, load_profile
from qsim.profiles.measured_range import MeasuredRange
from qsim.profiles.schema import MixedSpan, Profile
from qsim.profiles.spans import mixed_base_ms, tile_tokens
from qsim.sim.engine.timing import EAGER, PIECEWISE, PS_PER_MS, Timing
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

IDS = [e.name for e in list_profiles(all_versions=True)]
FULL = (1.0, 1.0, 1.0)
FAR_TOKENS = 70_000
FAR_ROWS = 3000

Profiles = st.sampled_from(IDS)


def roomy(id_: str) -> Profile:
    """The profile on a GPU whose memory holds any budget: step times are what is asked for."""
    profile = load_profile(id_)
    return replace(profile, memory=replace(profile.memory, num_gpu_blocks=100_000_000))


@cache
def timing(id_: str) -> Timing:
    profile = roomy(id_)
    options = EngineOptions(max_num_seqs=FAR_ROWS, max_num_batched_tokens=FAR_TOKENS)
    return Timing(profile, options.resolve(profile))


@cache
def prefill_ps(id_: str, tokens: int) -> int:
    """A step with one prompt, without what its attention takes."""
    return timing(id_).mixed_span_ps(tokens, 0, 0, [(tokens, 0)], FULL)[1]


@cache
def ceiling(id_: str) -> float:
    """Tokens a ms of the fastest measured step."""
    latency = load_profile(id_).latency
    best = 0.0
    for span in (latency.piecewise, latency.eager):
        sizes = np.arange(span.tokens[0], span.tokens[-1] + 1)
        best = max(best, float((sizes / mixed_base_ms(span, sizes)).max()))
    return best


@pytest.mark.parametrize("id_", IDS)
def test_a_step_beyond_the_largest_measured_one_is_never_cheaper(id_: str) -> None:
    profile = load_profile(id_)
    span = profile.latency.eager
    last = span.tokens[-1]
    sizes = np.r_[np.arange(1, last + 2000), np.arange(last + 3000, 300_000, 997)]
    base = mixed_base_ms(span, sizes)
    beyond = sizes > last
    assert (np.diff(base[beyond]) >= 0).all()
    assert base[beyond].min() >= base[~beyond].max()
    # whole tiles, so that it rises over each of them
    tile = tile_tokens(span)
    tiles = base[beyond][:1900:tile]
    assert (np.diff(tiles) > 0).all()
    # nor faster
    assert (sizes / base)[beyond].max() <= last / base[sizes == last][0] + 1e-9


@pytest.mark.parametrize("id_", IDS)
def test_within_the_measured_range_only_the_teeth_of_tiles_fall(id_: str) -> None:
    latency = load_profile(id_).latency
    for span in (latency.piecewise, latency.eager):
        base = mixed_base_ms(span, np.arange(1, span.tokens[-1] + 1))
        so_far = np.maximum.accumulate(base)
        assert (base >= (1 - DEEPEST_TOOTH) * so_far).all()


@settings(max_examples=150)
@given(
    id_=Profiles,
    tokens=st.integers(1, FAR_TOKENS - 1),
    more=st.integers(1, FAR_TOKENS),
    computed=st.integers(0, 1_000_000),
)
def test_a_longer_prompt_beyond_the_range_takes_longer(
    id_: str, tokens: int, more: int, computed: int
) -> None:
    t = timing(id_)
    larger = min(tokens + more, FAR_TOKENS)
    small = t.mixed_span_ps(tokens, 0, 0, [(tokens, computed)], FULL)[1]
    large = t.mixed_span_ps(larger, 0, 0, [(larger, computed)], FULL)[1]
    if larger > t.largest_step_tokens:
        assert large > small
    else:
        assert large > (1 - DEEPEST_TOOTH) * small


@settings(max_examples=150)
@given(
    id_=Profiles,
    rows=st.integers(1, FAR_ROWS - 1),
    more=st.integers(1, FAR_ROWS),
    each=st.integers(1, 200_000),
)
def test_more_decodes_take_no_less_beyond_the_largest_graph(
    id_: str, rows: int, more: int, each: int
) -> None:
    t = timing(id_)
    larger = min(rows + more, FAR_ROWS)
    context = rows * each
    small, large = (
        t.decode_span_ps(rows, context, 1.0),
        t.decode_span_ps(larger, context + (larger - rows) * each, 1.0),
    )
    if larger > t.largest_step_tokens:
        assert large >= small
    elif larger > t.graph_max >= rows:
        assert t.decode_base_ps[larger] >= t.decode_base_ps[rows]
        assert large >= small * (1 - 1e-9)
    else:
        assert large >= (1 - DEEPEST_TOOTH) * small


@settings(max_examples=150)
@given(
    id_=Profiles,
    rows=st.integers(1, FAR_ROWS),
    context=st.integers(0, 5_000_000),
    more=st.integers(1, 5_000_000),
)
def test_more_context_never_takes_less(id_: str, rows: int, context: int, more: int) -> None:
    t = timing(id_)
    assert t.decode_span_ps(rows, context + more, 1.0) >= t.decode_span_ps(rows, context, 1.0)
    tokens = rows + 100
    chunk = [(100, context)]
    small = t.mixed_span_ps(tokens, rows, context, chunk, FULL)[1]
    assert t.mixed_span_ps(tokens, rows, context + more, chunk, FULL)[1] >= small
    assert t.mixed_span_ps(tokens, rows, context, [(100, context + more)], FULL)[1] > small


@settings(max_examples=150)
@given(id_=Profiles, tokens=st.integers(1, FAR_TOKENS))
def test_no_step_is_faster_than_the_fastest_measured_one(id_: str, tokens: int) -> None:
    assert tokens / (prefill_ps(id_, tokens) / PS_PER_MS) <= ceiling(id_) * (1 + 1e-9)
    rows = min(tokens, FAR_ROWS)
    t = timing(id_)
    if rows > t.graph_max:
        assert rows / (t.decode_base_ps[rows] / PS_PER_MS) <= ceiling(id_) * (1 + 1e-9)


def burst(n: int = 60, prompt: int = 1000, output: int = 1) -> Trace:
    return Trace(np.zeros(n), np.full(n, prompt), np.full(n, output), name="burst")


@pytest.mark.parametrize("id_", IDS[::9])
def test_a_larger_token_budget_does_not_raise_throughput_beyond_what_was_measured(
    id_: str,
) -> None:
    profile = roomy(id_)

    def tokens_per_s(budget: int) -> float:
        options = EngineOptions(max_num_batched_tokens=budget)
        summary = simulate(burst(), profile, options=options).summary()
        return float(summary["total_token_throughput"])

    largest = tokens_per_s(profile.latency.eager.tokens[-1])
    for budget in (16_384, 65_536, 1_000_000):
        assert (
            tokens_per_s(budget) <= largest * 1.005
        )  # the rest of a burst may fill its steps better


@pytest.mark.parametrize("id_", IDS[::9])
def test_energy_is_between_idle_and_cap_and_more_replicas_are_not_worse(id_: str) -> None:
    profile = load_profile(id_)
    rng = np.random.default_rng(3)
    n = 120
    prompt = np.minimum(rng.integers(20, 3000, n), 3000)
    trace = Trace(np.sort(rng.uniform(0, 6, n)), prompt, rng.integers(1, 200, n))
    means = []
    for replicas in (1, 2, 4):
        result = simulate(trace, profile, replicas=replicas)
        power, servers = profile.power, replicas
        least = power.idle_w * result.duration_s * servers
        # a burst may pass the cap until the trailing mean has followed
        most = (power.cap_w * result.duration_s + power.cap_w * power.tau_s) * servers
        assert least * (1 - 1e-6) <= result.energy_j <= most
        means.append((result.statistic("e2el", "mean"), result.statistic("ttft", "mean")))
    for before, after in pairwise(means):
        assert after[0] <= before[0] * 1.03
        assert after[1] <= before[1] * 1.05


def test_tiles_go_on_beyond_the_last_measured_one() -> None:
    saw = MixedSpan([513, 768, 769, 1024, 1025, 1280], [9.0, 8.0, 12.0, 11.0, 15.0, 14.0],
                    0.0, 0.0, 0.0, 0.0)  # fmt: skip
    assert tile_tokens(saw) == 256
    got = mixed_base_ms(saw, [1281, 1536, 1537, 12_800])
    rate = 14.0 / 1280
    assert got == pytest.approx([15.0 + 1.8, 16.8, rate * 1792, 140.0])
    partly = replace(saw, tokens=[513, 768, 769, 1024, 1025, 1100])
    assert tile_tokens(partly) == 256
    assert mixed_base_ms(partly, [1101])[0] == pytest.approx(14.0 / 1100 * 1280)
    smooth = replace(saw, tokens=[513, 1024, 1280], base_ms=[5.0, 9.0, 12.0])
    assert tile_tokens(smooth) == 1
    assert mixed_base_ms(smooth, [2560])[0] == pytest.approx(24.0)
    falling = replace(smooth, base_ms=[5.0, 30.0, 12.0])
    assert mixed_base_ms(falling, [1300])[0] == 30.0


def test_rows_beyond_those_of_a_graph_are_not_cheaper() -> None:
    profile = make_profile()
    decode = profile.latency.decode
    slow = replace(decode, base_ms=[50.0] * 4, ms_per_context_token=[[1e-4] * 4] * 2)
    profile = replace(profile, latency=replace(profile.latency, decode=slow))
    t = Timing(profile, EngineOptions().resolve(profile))
    assert t.decode_mode[513] == EAGER
    assert t.decode_span_ps(513, 90_000, 1.0) >= t.decode_span_ps(512, 90_000, 1.0)
    falling = replace(decode, rows=[1, 16, 32, 64], base_ms=[4.0, 4.3, 6.0, 5.0])
    profile = replace(profile, latency=replace(profile.latency, decode=falling))
    t = Timing(profile, EngineOptions().resolve(profile))
    bases = t.decode_base_ps[64:513]
    assert bases == sorted(bases)
    assert PIECEWISE not in t.decode_mode


def measured(**ranges: list[int]) -> Profile:
    return replace(make_profile(num_gpu_blocks=60_000), measured_range=ranges)


@pytest.mark.parametrize("jump", [True, False])
def test_steps_beyond_the_range_are_counted_and_told(jump: bool) -> None:
    n = 40
    trace = Trace(np.linspace(0, 2, n), np.full(n, 400), np.full(n, 300), name="t")
    profile = measured(
        step_requests=[1, 30],
        step_tokens=[1, 350],
        decode_context_tokens=[0, 12_000],
        request_context_tokens=[1, 699],
    )
    log = None if jump else []
    result = simulate(trace, profile, jump=jump, step_log=log)
    beyond = result.beyond
    assert beyond is not None
    counts = (beyond.by_requests, beyond.by_tokens, beyond.by_context)
    assert all(counts)
    if log is not None:
        rows = [s.num_decode + len(s.prefill) for s in log]
        tokens = [s.num_decode + sum(k for k, _ in s.prefill) for s in log]
        over_rows = [r > 30 for r in rows]
        over_tokens = [k > 350 and not o for k, o in zip(tokens, over_rows, strict=True)]
        over_context = [
            s.decode_context_tokens > 12_000 and not (a or b)
            for s, a, b in zip(log, over_rows, over_tokens, strict=True)
        ]
        assert counts == (sum(over_rows), sum(over_tokens), sum(over_context))
    else:
        slow = simulate(trace, profile, jump=False).beyond
        assert slow == beyond
    assert beyond.request_share == 1.0
    assert len(result.notes) == 4
    assert "measured up to 30" in result.notes[0]
    summary = result.summary()["beyond_measured"]
    assert summary["steps"]["all"] == sum(r["steps"] for r in result.replica_stats)
    assert summary["step_share"] == sum(counts) / summary["steps"]["all"]
    json.dumps(summary, allow_nan=False)


def test_nothing_is_told_within_the_range_and_nothing_known_is_nothing_said() -> None:
    trace = burst(4)
    inside = simulate(trace, measured(step_requests=[1, 512], step_tokens=[1, 8192]))
    assert inside.notes == []
    assert inside.summary()["beyond_measured"]["step_share"] == 0.0
    unknown = simulate(trace, make_profile())
    assert unknown.beyond is None
    assert "beyond_measured" not in unknown.summary()
    assert MeasuredRange.of(measured(decode_rows=[1, 77])).step_requests == 77


def test_simulate_says_it_on_stderr_and_in_json(tmp_path) -> None:
    path = tmp_path / "burst.csv"
    rows = "\n".join("0,1000,1" for _ in range(60))
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}\n")
    args = ["simulate", str(path), "--profile", "h200_sxm/llama-3.1-8b/fp8-w8a8",
            "--max-num-batched-tokens", "16384", "--json", "-"]  # fmt: skip
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0
    assert "beyond the measured range" in done.stderr
    assert json.loads(done.stdout)["beyond_measured"]["steps"]["tokens"] == 4
    streamed = CliRunner().invoke(main, [*args, "--stream"])
    assert "beyond the measured range" in streamed.stderr
    assert json.loads(streamed.stdout)["beyond_measured"]["steps"]["tokens"] == 4
