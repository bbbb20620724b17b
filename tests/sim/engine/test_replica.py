"""The replica's pipeline against closed forms, and jumping against stepping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.profiles.schema import Profile
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_MS, PS_PER_S
from qsim.sim.fleet.routers.router import ROUTERS
from qsim.sim.results.result import SimulationResult
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import HashIds, Trace
from tests.make_profile import constant_profile, make_profile


def trace(arrival_s, prompt, output, hash_ids=None) -> Trace:
    return Trace(
        np.array(arrival_s, float),
        np.array(prompt, np.int64),
        np.array(output, np.int64),
        hash_ids=hash_ids,
    )


def decode_ms(profile: Profile, context: int) -> float:
    d = profile.latency.decode
    knot = d.context_knots_tokens[1]
    return (
        d.base_ms[0]
        + d.ms_per_context_token[0][0] * min(context, knot)
        + d.ms_per_context_token[1][0] * max(0, context - knot)
    )


def eager_ms(profile: Profile, n: int, computed: int) -> float:
    m = profile.latency.eager
    base = float(np.interp(n, m.tokens, m.base_ms))
    return base + m.ms_per_pair * n * (computed + (n + 1) / 2) + m.ms_per_chunk


@pytest.mark.parametrize(("prompt", "output"), [(1000, 1), (1000, 2), (1500, 700), (3000, 40)])
def test_one_request_alone_costs_its_steps_and_overheads(prompt, output):
    profile = make_profile()
    result = simulate(trace([0.25], [prompt], [output]), profile)
    h, f = profile.host, profile.frontend
    prefill = eager_ms(profile, prompt, 0)
    decodes = [decode_ms(profile, prompt + k) for k in range(output - 1)]
    receive = f.receive_ms + f.receive_ms_per_1k_prompt_tokens * prompt / 1000
    engine = receive + sum(h.schedule_ms) + prefill + h.result_ms
    first = f.first_token_ms + f.first_token_ms_per_1k_prompt_tokens * prompt / 1000
    assert result.ttft_ms[0] == pytest.approx(
        engine + first + f.first_token_ms_per_running, abs=1e-6
    )
    if output > 1:
        e2el = engine + sum(h.gpu_gap_ms + d for d in decodes)
        e2el += f.last_token_ms + f.last_token_ms_per_running
        assert result.e2el_ms[0] == pytest.approx(e2el, abs=1e-6)
        assert result.tpot_ms[0] == pytest.approx(
            (result.e2el_ms[0] - result.ttft_ms[0]) / (output - 1)
        )
    else:
        assert result.e2el_ms[0] == result.ttft_ms[0]
        assert np.isnan(result.tpot_ms[0])


def test_a_prompt_above_the_token_budget_is_chunked():
    profile = make_profile(max_num_batched_tokens=1024, max_num_seqs=256)
    result = simulate(trace([0.0], [2500], [1]), profile, frontend=False)
    spans = [eager_ms(profile, 1024, 0), eager_ms(profile, 1024, 1024)]
    m = profile.latency.piecewise  # 452 tokens run at the captured size 464
    last = float(np.interp(464, m.tokens, m.base_ms)) + m.ms_per_chunk
    spans.append(last + m.ms_per_pair * 452 * (2048 + 453 / 2))
    h = profile.host
    want = sum(h.schedule_ms) + sum(spans) + 2 * h.gpu_gap_ms + h.result_ms
    assert result.ttft_ms[0] == pytest.approx(want, abs=1e-6)


def test_host_bound_decode_takes_the_host_time():
    profile = make_profile(host_ms=1.0, launch_ms=6.0, decode_ms=2.0)
    result = simulate(trace([0.0], [1000], [100]), profile, frontend=False)
    h = profile.host
    # per step: schedule, launch, wait for the older step (already done), update, next turn
    period = sum(h.schedule_ms) + h.launch_decode_ms[0] + h.result_ms
    period += sum(h.update_ms) + h.turn_ms
    gaps = np.repeat(result.itl.ms, result.itl.count)
    assert np.median(gaps) == pytest.approx(period, abs=1e-6)


def test_sync_scheduling_does_not_overlap_the_host():
    profile = make_profile()
    options = EngineOptions(async_scheduling=False)
    result = simulate(trace([0.0], [600], [50]), profile, frontend=False, options=options)
    h = profile.host
    host = sum(h.schedule_ms) + h.result_ms + sum(h.update_ms) + h.turn_ms
    want = [decode_ms(profile, 600 + k) + host for k in range(49)]
    gaps = np.repeat(result.itl.ms, result.itl.count)
    assert np.sort(gaps) == pytest.approx(np.sort(want), abs=1e-6)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_one_seat_and_constant_service_agree_with_m_d_1(asynchronous):
    service_s, load, n = 0.010, 0.7, 40_000
    rng = np.random.default_rng(1)
    arrival = np.cumsum(rng.exponential(service_s / load, n))
    profile = constant_profile(service_s * 1000, max_num_seqs=1)
    result = simulate(
        trace(arrival, np.full(n, 64), np.full(n, 1)),
        profile,
        options=EngineOptions(async_scheduling=asynchronous, enable_prefix_caching=False),
    )
    wait_s = result.ttft_ms / 1000 - service_s
    want = load * service_s / (2 * (1 - load))  # Pollaczek-Khinchine for constant service
    batches = wait_s[: n // 40 * 40].reshape(40, -1).mean(axis=1)
    error = 4 * batches.std(ddof=1) / np.sqrt(40)
    assert error < 0.15 * want  # sharp enough to mean something
    assert abs(wait_s.mean() - want) < error


def test_an_arrival_during_a_step_joins_the_step_after_the_next():
    profile = constant_profile(10.0)
    # steps end at 10, 20, 30, ...; the second request arrives at 12 ms: the step that runs from
    # 10 to 20 has begun, the one from 20 to 30 is queued behind it, so it joins the third
    result = simulate(trace([0.0, 0.012], [64, 64], [20, 2]), profile)
    assert result.ttft_ms[1] == pytest.approx(40.0 - 12.0)
    sync = simulate(
        trace([0.0, 0.012], [64, 64], [20, 2]),
        profile,
        options=EngineOptions(async_scheduling=False),
    )
    assert sync.ttft_ms[1] == pytest.approx(30.0 - 12.0)


def test_energy_of_an_idle_fleet_is_idle_power_times_time():
    profile = constant_profile(10.0)
    result = simulate(trace([0.0, 100.0], [64, 64], [1, 1]), profile, replicas=3)
    p = profile.power
    busy = 2 * 0.010 * p.busy_w
    work = 2 * (64 * p.j_per_prefill_token + 64 * 65 / 2 * p.j_per_pair)
    assert result.energy_j == pytest.approx(3 * 100.01 * p.idle_w + busy + work, rel=1e-9)
    assert result.duration_s == pytest.approx(100.01)
    assert sum(result.timeline["power_w"]) > 0


def test_the_power_cap_bounds_the_mean_power():
    profile = make_profile()
    n = 200
    load = trace(np.zeros(n), np.full(n, 4000), np.full(n, 5))
    result = simulate(load, profile)
    p = profile.power
    # the first tau seconds may draw more: the trailing mean starts from idle
    assert result.energy_j <= p.cap_w * (result.duration_s + p.tau_s)
    uncapped = simulate(load, replace(profile, power=replace(p, cap_w=5000.0)))
    assert uncapped.energy_j > 1.02 * result.energy_j


def test_throttling_makes_a_long_burst_slower_but_not_a_lone_request():
    cold, capped = make_profile(), make_profile(throttle=0.1)
    lone = trace([0.0], [1000], [5])
    assert simulate(lone, cold).e2el_ms[0] == simulate(lone, capped).e2el_ms[0]
    burst = trace(np.zeros(100), np.full(100, 4000), np.full(100, 5))
    ratio = simulate(burst, capped).duration_s / simulate(burst, cold).duration_s
    assert 1.05 < ratio < 1.101


@pytest.mark.parametrize("decode_step_ms", [4.0, 20.0, 60.0])
def test_the_clock_recovers_with_the_power_during_a_run_of_decodes(decode_step_ms):
    """A run of many steps must not keep the clock that the prefill before it left."""
    hot, cold = (make_profile(decode_ms=decode_step_ms, throttle=t) for t in (0.1, 0.0))
    hot = replace(hot, power=replace(hot.power, busy_w=60.0, tau_s=0.05))
    load = trace(np.zeros(9), np.full(9, 8000), [1] * 8 + [200])
    steps: list[Step] = []
    simulate(load, hot, jump=False, step_log=steps)
    last = max(i for i, step in enumerate(steps) if step.prefill)
    run = steps[last + 1 :]
    assert len(run) == 199
    factors = [
        (s.gpu_end_ps - s.gpu_start_ps) / PS_PER_MS / decode_ms(cold, s.decode_context_tokens)
        for s in run
    ]
    assert factors[0] > 1.05
    p = hot.power
    since_s = [(s.gpu_start_ps - steps[last].gpu_end_ps) / PS_PER_S for s in run]
    # from the cap the trailing power needs this long to the power at which throttling ends
    decode_w = p.idle_w + p.busy_w + p.j_per_decode_token / (decode_step_ms / 1e3)
    start_w = hot.latency.throttle.start_w
    assert decode_w < start_w
    needs_s = p.tau_s * np.log((p.cap_w - decode_w) / (start_w - decode_w))
    late = [f for f, t in zip(factors, since_s, strict=True) if t > needs_s + 0.5 * p.tau_s]
    assert len(late) > 150
    assert late == pytest.approx([1.0] * len(late), abs=1e-6)
    assert simulate(load, hot).e2el_ms.tolist() == simulate(load, hot, jump=False).e2el_ms.tolist()


@pytest.mark.parametrize("queue", [(0.0, 0.0), (0.9, 0.0), (1.6, 0.0), (0.6, 0.3)])
def test_a_launch_that_fills_the_queue_holds_the_result_before_it(queue):
    """A launch of K kernels, Q of which fit into the queue, ends when 1 - Q/K of its span has."""
    profile = make_profile(launch_queue=queue)
    h = profile.host
    # the second arrives while the first is being launched, and is launched behind it
    load = trace([0.0, 0.001], [4000, 8000], [1, 1])
    result = simulate(load, profile, frontend=False)
    first, second = eager_ms(profile, 4000, 0), eager_ms(profile, 8000, 0)
    begin = h.schedule_ms[0] + h.schedule_ms[1]
    held = [max(0.0, 1 - 1 / max(queue[0] + queue[1] * k, 1)) for k in (4, 8)]
    end = begin + first
    # the second's launch may have to wait for the GPU longer than for the first's end
    out = max(end, end + h.gpu_gap_ms + held[1] * second if held[1] else 0.0) + h.result_ms
    assert result.ttft_ms[0] == pytest.approx(out, abs=1e-3)
    last = end + h.gpu_gap_ms + second + h.result_ms
    assert result.ttft_ms[1] == pytest.approx(last - 1.0, abs=1e-3)


def test_who_comes_while_a_launch_is_held_goes_with_the_next_step():
    held = simulate(
        trace([0.0, 0.02], [4000, 100], [1, 1]),
        make_profile(launch_queue=(2.0, 0.0)),
        frontend=False,
        step_log=(log := []),
        jump=False,
    )
    span = eager_ms(make_profile(), 4000, 0)
    assert [len(s.prefill) for s in log] == [1, 1]
    # scheduled when half of the first is done, not at 20 ms
    assert log[1].schedule_ps / PS_PER_MS == pytest.approx(0.5 * span, abs=0.3)
    assert held.completed.all()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_held_launches_of_decodes_without_a_graph(asynchronous):
    """Above the largest graph a step of decodes is launched like one with prompts."""
    profile = make_profile(launch_queue=(1.4, 0.0), num_gpu_blocks=20000)
    rng = np.random.default_rng(5)
    load = trace(np.sort(rng.uniform(0, 0.2, 700)), np.full(700, 30), rng.integers(20, 90, 700))
    options = EngineOptions(async_scheduling=asynchronous)
    runs = [simulate(load, profile, options=options, jump=jump) for jump in (True, False)]
    same(*runs)
    free = simulate(load, make_profile(num_gpu_blocks=20000), options=options)
    # a step that is awaited anyway is held for nothing
    assert np.array_equal(runs[0].e2el_ms, free.e2el_ms) != asynchronous


# ---------------------------------------------------------------------- random traces


@st.composite
def traces(draw: st.DrawFn, shared: bool = True) -> Trace:
    n = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    scale = draw(st.sampled_from([0.0, 0.001, 0.02, 0.3]))
    arrival = np.cumsum(rng.exponential(1.0, n)) * scale
    prompt = rng.integers(1, draw(st.sampled_from([8, 100, 900])), n)
    output = rng.integers(1, draw(st.sampled_from([2, 40, 300])), n)
    ids = None
    if shared and draw(st.booleans()):
        ids = HashIds.from_lists(
            [list(range(int(rng.integers(0, p // 16 + 1)))) for p in prompt], 16
        )
    return trace(arrival, prompt, output, ids)


OPTIONS = st.builds(
    EngineOptions,
    max_num_seqs=st.sampled_from([1, 3, 16, 256]),
    max_num_batched_tokens=st.sampled_from([256, 1024, 8192]),
    enable_prefix_caching=st.booleans(),
    async_scheduling=st.booleans(),
    num_gpu_blocks_override=st.sampled_from([90, 200, 5000]),
    long_prefill_token_threshold=st.sampled_from([0, 0, 0, 64]),
    max_model_len=st.just(1300),
)
PROFILES = st.sampled_from(
    [
        make_profile(throttle=0.1),
        make_profile(host_ms=0.5, launch_ms=3.0, decode_ms=2.0),  # host and GPU take turns
        # the GPU becomes the bottleneck where rows and context grow
        make_profile(host_ms=0.3, launch_ms=2.4, decode_ms=3.0),
        make_profile(host_ms=0.5, launch_ms=3.4, decode_ms=4.0, throttle=0.1),
        constant_profile(5.0),
        make_profile(throttle=0.1, launch_queue=(0.7, 0.6)),
    ]
)


def same(a: SimulationResult, b: SimulationResult) -> None:
    for name in ("ttft_ms", "e2el_ms", "replica", "cached_tokens", "preemptions"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for q in (0, 50, 90, 99, 100):
        assert a.statistic("itl", f"p{q}") == b.statistic("itl", f"p{q}") or not a.itl.count.sum()
    gaps = [np.sort(np.repeat(r.itl.ms, r.itl.count)) for r in (a, b)]
    np.testing.assert_array_equal(*gaps)
    for x, y in zip(a.replica_stats, b.replica_stats, strict=True):
        assert x == y
    for name, column in a.timeline.items():
        np.testing.assert_allclose(column, b.timeline[name], rtol=1e-9, atol=1e-9, err_msg=name)


@settings(max_examples=120)
@given(
    traces(),
    OPTIONS,
    PROFILES | st.just(constant_profile(0.0)),  # all events at one time
    st.integers(1, 3),
    st.sampled_from(sorted(ROUTERS)),
)
def test_jumping_over_decode_runs_equals_single_steps(load, options, profile, replicas, router):
    runs = [
        simulate(
            load, profile, replicas=replicas, router=router, options=options, seed=3, jump=jump
        )
        for jump in (True, False)
    ]
    same(*runs)


def with_knots(profile: Profile, *knots: int) -> Profile:
    """Spans that grow by other amounts from knot to knot, and not little."""
    slopes = [[2e-4 + 1e-4 * j] * 4 for j in range(len(knots))]
    decode = replace(
        profile.latency.decode, context_knots_tokens=list(knots), ms_per_context_token=slopes
    )
    return replace(profile, latency=replace(profile.latency, decode=decode))


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("offset", range(-2, 3))
def test_knots_on_and_beside_the_steps_of_a_run(asynchronous, offset):
    # contexts are 300 + 3 k: knots one after the other, on a step and between steps
    profile = with_knots(make_profile(), 0, 330 + offset, 331 + offset, 390 + offset, 600)
    load = trace(np.zeros(3), np.full(3, 100), np.full(3, 150))
    options = EngineOptions(async_scheduling=asynchronous)
    same(*(simulate(load, profile, options=options, jump=jump) for jump in (True, False)))


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("frontend", [True, False])
def test_an_arrival_at_every_turn_of_a_run_and_beside_it(asynchronous, replicas, frontend):
    # the turns of one request alone, from the log of its steps; then another request comes to
    # the engine's queue 1 ps before a turn starts, as it starts, and 1 ps after
    profile = with_knots(make_profile(), 0, 112)
    options = EngineOptions(async_scheduling=asynchronous)
    steps: list[Step] = []
    simulate(trace([0.0], [100], [25]), profile, options=options, frontend=frontend, step_log=steps)
    f = profile.frontend
    receive_ms = f.receive_ms + f.receive_ms_per_1k_prompt_tokens * 50 / 1000 if frontend else 0.0
    receive_ps = round(receive_ms * PS_PER_MS)
    for step in steps[2:]:
        for beside in (-1, 0, 1):
            arrival_s = (step.schedule_ps + beside - receive_ps) / PS_PER_S
            # with two replicas, a short request keeps the other one's turn
            between = [0.0] * (replicas - 1)
            load = trace(
                [0.0, *between, arrival_s],
                [100, *[8] * (replicas - 1), 50],
                [25, *[1] * (replicas - 1), 5],
            )
            runs = [
                simulate(
                    load,
                    profile,
                    replicas=replicas,
                    router="round-robin",
                    options=options,
                    frontend=frontend,
                    jump=jump,
                )
                for jump in (True, False)
            ]
            assert runs[0].replica[-1] == 0
            same(*runs)


@pytest.mark.parametrize("launch_ms", [3.0, 3.85, 3.95, 4.0, 4.05, 4.5])
def test_runs_near_the_change_from_host_bound_to_gpu_bound(launch_ms):
    # spans grow with the context from 4 ms on and overtake the host's time within a run
    profile = with_knots(make_profile(launch_ms=launch_ms, throttle=0.1), 0, 150, 400)
    load = trace([0.0, 0.3, 0.3, 1.1], [40, 60, 30, 200], [150, 80, 1, 90])
    same(*(simulate(load, profile, jump=jump) for jump in (True, False)))


def test_a_run_that_passes_a_context_knot_equals_single_steps():
    # 7 rows: the total context passes the knot of 2000 tokens in the middle of a step
    load = trace(np.zeros(7), np.full(7, 270), np.full(7, 60))
    same(*(simulate(load, make_profile(), jump=jump) for jump in (True, False)))


@settings(max_examples=80)
@given(traces(), OPTIONS, PROFILES, st.integers(1, 3), st.sampled_from(sorted(ROUTERS)))
def test_every_request_ends_once_and_every_token_is_counted(
    load, options, profile, replicas, router
):
    result = simulate(load, profile, replicas=replicas, router=router, options=options)
    assert result.completed.all()
    want = np.minimum(load.output_tokens, 1300 - load.prompt_tokens)
    np.testing.assert_array_equal(result.output_tokens, want)
    # one gap between every two tokens of a request
    assert result.itl.count.sum() == (want - 1).sum()
    assert (result.ttft_ms > 0).all()
    assert (result.e2el_ms >= result.ttft_ms).all()
    assert sum(r["requests"] for r in result.replica_stats) == len(load)
    assert sum(r["preemptions"] for r in result.replica_stats) == result.preemptions.sum()
    for r in result.replica_stats:
        assert 0 <= r["peak_kv_usage"] <= 1
        assert r["busy_s"] <= result.duration_s + 1e-9
        assert r["energy_j"] >= result.duration_s * profile.power.idle_w * (1 - 1e-9)
    engine_gaps = float(result.itl.ms @ result.itl.count)
    client = float((result.e2el_ms - result.ttft_ms).sum())
    assert client <= engine_gaps + 10.0 * len(load)


@settings(max_examples=20)
@given(traces(), OPTIONS, st.sampled_from(sorted(ROUTERS)))
def test_the_same_seed_gives_the_same_result(load, options, router):
    profile = make_profile(throttle=0.1)
    a, b = (
        simulate(load, profile, replicas=3, router=router, options=options, seed=5)
        for _ in range(2)
    )
    assert a.summary() == b.summary()


def test_a_request_at_time_zero_and_bursts_of_equal_times():
    result = simulate(trace([0.0, 0.0, 0.0], [10, 10, 10], [3, 3, 3]), make_profile())
    assert result.completed.all()
    assert result.duration_s > 0
