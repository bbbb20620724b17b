"""The API server's process: by hand, its closed form, and what the simulator makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.profiles.schema import ApiTimes, Profile
from qsim.sim.engine.api_process import ApiProcess
from qsim.sim.fleet.pool import Pool
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from tests.make_profile import constant_profile, make_profile
from tests.sim.engine.test_fast_forward import both, rough_traces
from tests.sim.engine.test_replica import trace

MS = 1_000_000_000


def with_api(
    profile: Profile,
    request_ms: float = 0.0,
    token_ms: float = 0.0,
    send_ms: float = 0.0,
    waits: float = 1.0,
) -> Profile:
    api = ApiTimes(request_ms, token_ms, send_ms, waits)
    return replace(profile, frontend=replace(profile.frontend, api=api))


def test_by_hand() -> None:
    process = ApiProcess(ApiTimes(request_ms=2.0, token_ms=0.5, send_ms=0.25, waits=1.0))
    assert process.request(0) == 0  # busy until 2
    assert process.request(1 * MS) == 1 * MS  # until 4
    process.result(3 * MS, 4)  # 1 late; until 4 + 2 = 6, and alone it would be 3 + 3 = 6
    assert process.late_ps == 1 * MS
    process.result(3 * MS, 4)  # told twice
    assert process.request(5 * MS) == 1 * MS  # until 8
    # far behind, the tokens of both steps are sent together: only 4 x 0.5 is added
    process.result(5 * MS + 1, 4)
    assert process.late_ps == 3 * MS - 1
    assert process.request(6 * MS) == 4 * MS
    process.result(50 * MS, 1)
    assert process.late_ps == 0


def test_results_that_are_to_come_count_when_their_time_is() -> None:
    process = ApiProcess(ApiTimes(request_ms=0.0, token_ms=1.0, send_ms=0.0, waits=1.0))
    process.coming += [(10 * MS, 4), (12 * MS, 4)]
    assert process.request(9 * MS) == 0
    assert process.request(11 * MS) == 3 * MS
    assert process.request(12 * MS) == 6 * MS
    process.coming.append((14 * MS, 4))
    process.result(15 * MS, 1)
    assert process.late_ps == 7 * MS
    assert not process.coming


def test_one_request_alone_waits_for_nothing() -> None:
    profile = make_profile()
    load = trace([0.0, 10.0], [100, 100], [20, 20])
    slow = with_api(profile, request_ms=2.0, token_ms=0.1, send_ms=0.1)
    a, b = simulate(load, profile), simulate(load, slow)
    assert a.ttft_ms.tolist() == b.ttft_ms.tolist()
    assert a.e2el_ms.tolist() == b.e2el_ms.tolist()


def test_who_arrives_while_a_step_is_sent_waits_as_often_as_it_is_taken_up() -> None:
    # 8 requests decode, a step a 50 ms; their tokens keep the process busy for 8 x 2 ms after each
    profile = constant_profile(50.0)
    arrival = [0.0] * 8 + [0.4001]
    load = trace(arrival, [1] * 9, [40] * 9)
    plain = simulate(load, profile)
    # the ninth comes early in a step: three times 15.9 ms still reach the next one
    for waits, steps in ((1.0, 0), (3.0, 0), (6.0, 1)):
        got = simulate(load, with_api(profile, send_ms=2.0, waits=waits))
        assert got.ttft_ms[8] == pytest.approx(plain.ttft_ms[8] + steps * 50.0)


def test_a_full_process_bounds_the_tokens_a_second() -> None:
    # 16 clients, a step of 4 ms; 16 tokens keep the process busy for 8 ms
    load = trace(np.zeros(320), [1] * 320, [50] * 320)
    full = with_api(constant_profile(4.0), token_ms=0.5)
    result = simulate(load, full, concurrency=16)
    tokens_per_s = 320 * 50 / result.duration_s
    assert tokens_per_s < 1000 / 0.5
    assert tokens_per_s > 0.85 * 1000 / 0.5
    free = simulate(load, constant_profile(4.0), concurrency=16)
    assert 320 * 50 / free.duration_s > 1.7 * tokens_per_s


def test_a_process_that_is_behind_sends_several_tokens_together() -> None:
    # the same, but all of it for sending: the last token is late by less than two steps' sending
    load = trace(np.zeros(16), [1] * 16, [200] * 16)
    profile = constant_profile(4.0)
    late_ms = (
        simulate(load, with_api(profile, send_ms=0.5)).e2el_ms - simulate(load, profile).e2el_ms
    )
    assert 4.0 <= late_ms.max() <= 2 * 16 * 0.5
    summed_ms = (
        simulate(load, with_api(profile, token_ms=0.5)).e2el_ms - simulate(load, profile).e2el_ms
    )
    assert summed_ms.max() > 150 * 4.0  # each token adds up


@settings(max_examples=250)
@given(
    rough_traces(),
    st.sampled_from(
        [
            with_api(make_profile(), 1.0, 0.05, 0.1, 2.0),
            with_api(make_profile(throttle=0.3), 0.5, 0.4, 0.0, 1.5),
            with_api(constant_profile(5.0), 3.0, 0.0, 1.0, 1.0),
        ]
    ),
    st.booleans(),
    st.integers(1, 3),
)
def test_jumping_is_stepping(load, profile, asynchronous, replicas) -> None:
    options = EngineOptions(async_scheduling=asynchronous, max_num_seqs=8, max_model_len=900)
    both(load, profile, replicas=replicas, options=options)


def test_pools_have_processes_of_their_own() -> None:
    load = trace(np.zeros(64), [1] * 64, [50] * 64)
    slow = with_api(constant_profile(4.0), token_ms=2.0)
    pools = [Pool(slow, 1), Pool(constant_profile(4.0), 1)]
    result = simulate(load, pools=pools, router="round-robin")
    on_slow = result.replica == 0
    assert result.e2el_ms[on_slow].min() > 5 * result.e2el_ms[~on_slow].max()


def test_clients_of_a_closed_loop_and_timeouts_jump_as_they_step() -> None:
    rng = np.random.default_rng(4)
    load = trace(np.zeros(200), rng.integers(1, 300, 200), rng.integers(1, 60, 200))
    profile = with_api(make_profile(), 1.0, 0.3, 0.3, 2.0)
    both(load, profile, concurrency=12, think_time_s=0.05, client_timeout_s=0.6)
    both(load, profile, concurrency=24, replicas=2, router="power-of-two")
