"""Fast-forward against the engine turn by turn, above all where they take over."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from qsim.profiles.schema import ApiTimes, Profile
from qsim.sim.engine import replica
from qsim.sim.engine.steplog import Step
from qsim.sim.engine.timing import PS_PER_S
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import HashIds, Trace
from tests.make_profile import constant_profile, make_profile
from tests.sim.engine.test_replica import same, trace


def both(load: Trace, profile: Profile, **settings: object) -> None:
    """Jumping and stepping give the same."""
    same(*(simulate(load, profile, jump=jump, **settings) for jump in (True, False)))  # type: ignore[arg-type]


@st.composite
def rough_traces(draw: st.DrawFn) -> Trace:
    """Requests that join, leave and push each other out, in every mixture."""
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # bursts, steps apart, or far apart: then the engine is idle in between
    gap_s = draw(st.sampled_from([0.0, 0.004, 0.03, 0.5]))
    arrival = np.cumsum(rng.exponential(1.0, n)) * gap_s
    if draw(st.booleans()):
        arrival = np.floor(arrival / 0.02) * 0.02  # several at one time
    prompt = rng.integers(1, draw(st.sampled_from([3, 60, 700])), n)
    output = rng.choice([1, 2, 3, 17, 150, 180], n)
    if draw(st.booleans()):
        output[:] = draw(st.integers(1, 40))  # they finish with one step
    ids = None
    if draw(st.booleans()):
        ids = HashIds.from_lists(
            [list(range(int(rng.integers(0, p // 16 + 1)))) for p in prompt], 16
        )
    return trace(arrival, prompt, output, ids)


@settings(max_examples=250)
@given(
    rough_traces(),
    st.builds(
        EngineOptions,
        max_num_seqs=st.sampled_from([1, 2, 5, 64]),
        # prompts above the budget go chunk by chunk
        max_num_batched_tokens=st.sampled_from([64, 200, 8192]),
        enable_prefix_caching=st.booleans(),
        async_scheduling=st.booleans(),
        # just enough for the longest, so that most are preempted; a few more; plenty
        num_gpu_blocks_override=st.sampled_from([58, 60, 75, 5000]),
        long_prefill_token_threshold=st.sampled_from([0, 0, 50]),
        scheduling_policy=st.sampled_from(["fcfs", "fcfs", "priority"]),
        max_model_len=st.just(900),
    ),
    st.sampled_from(
        [
            make_profile(),
            make_profile(throttle=0.3),
            make_profile(host_ms=0.5, launch_ms=3.0, decode_ms=2.0, throttle=0.1),
            constant_profile(5.0),
        ]
    ),
    st.integers(1, 3),
)
def test_taking_over_and_giving_back(
    load: Trace, options: EngineOptions, profile: Profile, replicas: int
) -> None:
    runs = [
        simulate(load, profile, replicas=replicas, options=options, jump=jump)
        for jump in (True, False)
    ]
    event(f"preempted: {bool(runs[0].preemptions.any())}")
    event(f"found in the prefix cache: {bool(runs[0].cached_tokens.any())}")
    same(*runs)


@settings(max_examples=150)
@given(
    rough_traces(),
    st.builds(
        EngineOptions,
        max_num_seqs=st.sampled_from([1, 5, 64]),
        enable_prefix_caching=st.booleans(),
        async_scheduling=st.booleans(),
        num_gpu_blocks_override=st.sampled_from([58, 75, 5000]),
        max_model_len=st.just(900),
    ),
    st.sampled_from([1, 2, 7, 256]),
    # an API server's process that is there, one that falls behind, or none
    st.sampled_from(
        [
            None,
            ApiTimes(0.1, 0.05, 0.5, 0.1, 0.01, 0.02, 5),
            ApiTimes(3.0, 1.0, 9.0, 2.0, 1.0, 2.0, 2),
        ]
    ),
)
def test_a_replica_that_nobody_watches_does_what_it_would_if_watched(
    load: Trace, options: EngineOptions, together: int, api: ApiTimes | None
) -> None:
    """However many requests are handed in before it makes its turns."""
    profile = make_profile(throttle=0.2)
    profile = replace(
        profile,
        host=replace(profile.host, wake_ms=0.3),
        frontend=replace(profile.frontend, api=api),
    )
    with patch.object(replica, "_TOGETHER", together):
        unwatched = simulate(load, profile, options=options)
    # clients who may give up: then each arrival has the replica catch up
    watched = simulate(load, profile, options=options, client_timeout_s=1e5)
    same(unwatched, watched)
    for name, values in watched.timeline.items():
        assert values.tolist() == unwatched.timeline[name].tolist(), name
    assert watched.replica_stats == unwatched.replica_stats


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("output", [1, 2, 3, 12])
def test_somebody_joins_at_every_turn_around_a_finish(asynchronous: bool, output: int) -> None:
    profile = make_profile()
    options = EngineOptions(async_scheduling=asynchronous)
    steps: list[Step] = []
    alone = trace([0.0, 0.0], [90, 40], [14, 9])
    simulate(alone, profile, options=options, frontend=False, step_log=steps)
    for step in steps[1:]:
        for beside in (-1, 0, 1):
            arrival_s = (step.schedule_ps + beside) / PS_PER_S
            load = trace([0.0, 0.0, arrival_s], [90, 40, 50], [14, 9, output])
            both(load, profile, options=options, frontend=False)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("seats", [1, 2, 3])
def test_a_seat_that_is_free_again_is_taken_in_the_same_step(
    asynchronous: bool, seats: int
) -> None:
    options = EngineOptions(async_scheduling=asynchronous, max_num_seqs=seats)
    for output in range(1, 8):
        load = trace(np.zeros(7), np.full(7, 30), [output, 5, 1, output, 2, 9, 3])
        both(load, make_profile(throttle=0.2), options=options)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_blocks_run_out_within_a_run_and_come_back(asynchronous: bool) -> None:
    # five requests of up to 17 blocks want 85 of 59: they are preempted, resumed, preempted again
    load = trace(np.zeros(5), np.full(5, 70), np.full(5, 200))
    for caching in (True, False):
        options = EngineOptions(
            async_scheduling=asynchronous,
            num_gpu_blocks_override=60,
            enable_prefix_caching=caching,
            max_model_len=400,
        )
        result = simulate(load, make_profile(), options=options)
        assert result.preemptions.sum() >= 2
        both(load, make_profile(), options=options)


@pytest.mark.parametrize("router", ["least-requests", "least-tokens", "vllm"])
def test_a_router_sees_each_finish_in_time(router: str) -> None:
    # arrivals every other millisecond, steps of four: replicas lag behind most of the time
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n = 300
        arrival = np.cumsum(rng.exponential(0.002, n))
        load = trace(arrival, rng.integers(1, 40, n), rng.integers(1, 30, n))
        both(load, make_profile(frontend=False), replicas=5, router=router)


@pytest.mark.parametrize("frontend", [True, False])
def test_a_router_sees_the_kv_cache_as_it_is(frontend: bool) -> None:
    # queues before caches more than half full, which decide where requests go
    options = EngineOptions(vllm_version="0.33.0", num_gpu_blocks_override=60, max_model_len=400)
    older = replace(options, vllm_version="0.24.0")
    differing = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n = 300
        arrival = np.cumsum(rng.exponential(0.004, n))
        load = trace(arrival, rng.integers(1, 200, n), rng.choice([1, 30, 90, 180], n))
        profile = make_profile(frontend=frontend)
        both(load, profile, replicas=3, router="vllm", options=options)
        results = [
            simulate(load, profile, replicas=3, router="vllm", options=o) for o in (options, older)
        ]
        differing += not np.array_equal(*(r.replica for r in results))
    assert differing == 4


@pytest.mark.parametrize("options", [
    EngineOptions(),
    EngineOptions(async_scheduling=False),
    EngineOptions(num_gpu_blocks_override=60, max_model_len=400),
    EngineOptions(max_num_batched_tokens=96, max_num_seqs=6),
    EngineOptions(scheduling_policy="priority", max_num_seqs=3),
])  # fmt: skip
@pytest.mark.parametrize("router", ["least-requests", "least-tokens", "vllm"])
def test_no_replica_lags_behind_its_next_finish(options: EngineOptions, router: str) -> None:
    # fleets of many that lag behind, with blocks that run out, prompts in chunks, full seats, and
    # profiles in which more rows can be faster, and a step with prefill than one without
    plain = make_profile()
    span = plain.latency.decode
    base = [ms * (0.6 if i % 2 else 1.0) for i, ms in enumerate(span.base_ms)]
    jagged = replace(plain.latency, decode=replace(span, base_ms=base))
    mixed = [
        replace(m, base_ms=[ms / 100 for ms in m.base_ms], ms_per_pair=0.0)
        for m in (plain.latency.piecewise, plain.latency.eager)
    ]
    short = replace(plain.latency, piecewise=mixed[0], eager=mixed[1])
    profiles = [plain, *(replace(plain, latency=x) for x in (jagged, short))]
    for seed, profile in enumerate(profiles):
        rng = np.random.default_rng(seed)
        n = 250
        arrival = np.cumsum(rng.exponential(0.004, n))
        output = rng.choice([1, 2, 30, 90, 180], n)
        load = trace(arrival, rng.integers(1, 200, n), output)
        both(load, profile, replicas=7, router=router, options=options)
