"""The API server's process: by hand, its closed form, and what the simulator makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import ScenarioError
from qsim.profiles.schema import ApiTimes, Profile
from qsim.sim.engine.api_process import ApiProcess
from qsim.sim.fleet.pool import Pool
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.scheduler.request import Request
from qsim.sim.simulate import simulate
from qsim.sim.simulate_stream import simulate_stream
from tests.make_profile import constant_profile, make_profile
from tests.sim.engine.test_fast_forward import both, rough_traces
from tests.sim.engine.test_replica import trace

MS = 1_000_000_000


def with_api(
    profile: Profile,
    request_ms: float = 0.0,
    token_ms: float = 0.0,
    send_ms: float = 0.0,
    turns: int = 2,
    prompt_ms: float = 0.0,
    input_ms: float = 0.0,
    tokenize_ms: float = 0.0,
) -> Profile:
    api = ApiTimes(request_ms, prompt_ms, tokenize_ms, input_ms, token_ms, send_ms, turns)
    return replace(profile, frontend=replace(profile.frontend, api=api))


def loop(
    request_ms: float, token_ms: float, send_ms: float, turns: int, prompt_ms: float = 0.0
) -> ApiProcess:
    return ApiProcess(ApiTimes(request_ms, prompt_ms, 0.0, 0.0, token_ms, send_ms, turns))


def request(prompt: int = 1, index: int = 0) -> Request:
    return Request(index, prompt, 1)


def ready_ms(process: ApiProcess, until_ms: float) -> list[float]:
    return [t / MS for t, _ in process.advance(int(until_ms * MS))]


def test_tokens_by_hand() -> None:
    process = loop(2.0, 0.5, 0.25, 2)
    process.result(3 * MS, 4)  # until 3 + 3
    assert process.late_ps == 0
    process.result(3 * MS, 4)  # told twice
    assert process.busy_ps == 6 * MS
    # behind, the tokens of both steps are sent together: only 4 x 0.5 is added
    process.result(4 * MS, 4)
    assert process.late_ps == 2 * MS
    assert process.busy_ps == 8 * MS
    process.result(50 * MS, 1)
    assert process.late_ps == 0


def test_requests_by_hand() -> None:
    # of 10 ms the first turn takes 4, the last 4, and one between them 2
    process = loop(10.0, 1.0, 0.5, 3)
    process.enter(request(), 0, 12 * MS)
    assert process.waiting(0)
    assert process.soonest_ps() == 12 * MS
    process.result(1 * MS, 4)
    # 0-4 the first turn; 4-6 the second, and the tokens, 6-10; sending, 10-12; the last turn, -16
    assert ready_ms(process, 9.9) == []
    assert process.soonest_ps() == (10 + 4 + 2) * MS
    assert process.first_ready_ps() == 18 * MS
    assert ready_ms(process, 10) == [18.0]
    assert process.busy_ps == 16 * MS
    assert not process.waiting(10 * MS)


def test_of_requests_that_come_together_the_first_waits_for_the_others_turns() -> None:
    process = loop(10.0, 0.0, 0.0, 2)  # a turn of 6 ms and one of 4
    for i in range(5):
        process.enter(request(index=i), 0, 10 * MS)
    assert ready_ms(process, 1000) == [34.0, 38.0, 42.0, 46.0, 50.0]


def test_long_prompts_keep_others_waiting_and_come_in_one_by_one() -> None:
    process = ApiProcess(ApiTimes(2.0, 10.0, 0.0, 50.0, 0.0, 0.0, 2), MS)
    process.enter(request(1000), 0, 100 * MS)
    process.enter(request(100, 1), 0, 50 * MS)
    # first turns 1.2 + 10 and 1.2 + 1 ms, last ones 0.8 ms each; alone they would take 12 and 3
    a, b = ready_ms(process, 1000)
    assert a == pytest.approx(11.2 + 2.2 + 0.8 + (100 - 12))
    assert b == pytest.approx(a + 1 + 5)


def test_results_that_are_to_come_count_when_their_time_is() -> None:
    process = loop(2.0, 1.0, 0.0, 2)
    process.coming.extend([(10 * MS, 4), (12 * MS, 4)])
    process.enter(request(), 11 * MS, 2 * MS)
    # the tokens of 10 until 14, then those of 12 and the first turn until 19.2
    assert ready_ms(process, 1000) == [20.0]
    process.coming.append((21 * MS, 4))
    process.result(23 * MS, 1)
    assert process.late_ps == 2 * MS
    assert not process.coming


def test_one_request_alone_waits_for_nothing() -> None:
    profile = make_profile()
    load = trace([0.0, 10.0], [100, 100], [20, 20])
    slow = with_api(profile, request_ms=2.0, token_ms=0.1, send_ms=0.1)
    a, b = simulate(load, profile), simulate(load, slow)
    assert a.ttft_ms.tolist() == b.ttft_ms.tolist()
    assert a.e2el_ms.tolist() == b.e2el_ms.tolist()


def test_a_burst_waits_for_the_process() -> None:
    load = trace([0.0] * 16, [1] * 16, [1] * 16)
    plain = simulate(load, constant_profile(50.0))
    got = simulate(load, with_api(constant_profile(50.0), request_ms=5.0))
    # sixteen first turns of 3 ms and a last one of 2; then one more every 2 ms, for the next step
    assert got.ttft_ms[0] == pytest.approx(plain.ttft_ms[0] + 50.0)
    assert got.ttft_ms[1:] == pytest.approx(got.ttft_ms[0] + 50.0)
    # and so do clients who wait for their answers
    closed = simulate(load, with_api(constant_profile(50.0), request_ms=5.0), concurrency=16)
    assert closed.ttft_ms == pytest.approx(got.ttft_ms)


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
            with_api(make_profile(), 1.0, 0.05, 0.1, 6, 2.0, 1.0, 1.5),
            with_api(make_profile(throttle=0.3), 0.5, 0.4, 0.0, 3, tokenize_ms=20.0),
            with_api(constant_profile(5.0), 3.0, 0.0, 1.0, 2, 5.0, 5.0, 200.0),
        ]
    ),
    st.booleans(),
    st.integers(1, 3),
    st.booleans(),
)
def test_jumping_is_stepping(load, profile, asynchronous, replicas, texts) -> None:
    options = EngineOptions(async_scheduling=asynchronous, max_num_seqs=8, max_model_len=900)
    both(load, profile, replicas=replicas, options=options, text_prompts=texts)


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
    profile = with_api(make_profile(), 1.0, 0.3, 0.3, 4)
    both(load, profile, concurrency=12, think_time_s=0.05, client_timeout_s=0.6)
    both(load, profile, concurrency=24, replicas=2, router="power-of-two")
    texts = with_api(make_profile(), 1.0, 0.3, 0.3, 4, tokenize_ms=30.0)
    both(load, texts, concurrency=12, client_timeout_s=0.6, text_prompts=True)


def test_texts_are_tokenized_one_after_the_other() -> None:
    # of a request's 10 ms the first turn takes 6, the last 4; 20 ms for 1,000 tokens of a text
    process = ApiProcess(ApiTimes(10.0, 0.0, 20.0, 0.0, 0.0, 0.0, 2), 0, True)
    process.enter(request(1000), 0, 10 * MS)
    process.enter(request(500, 1), 0, 10 * MS)
    # first turns until 6 and 12, tokenized until 26 and 36
    assert process.soonest_ps() == 30 * MS
    assert ready_ms(process, 1000) == [30.0, 40.0]
    # token ids are not
    ids = ApiProcess(ApiTimes(10.0, 0.0, 20.0, 0.0, 0.0, 0.0, 2))
    ids.enter(request(1000), 0, 10 * MS)
    assert ready_ms(ids, 1000) == [10.0]


def test_a_text_alone_has_its_first_token_later_by_its_tokenizing() -> None:
    profile = with_api(make_profile(), 1.0, 0.05, 0.05, 4, 0.1, tokenize_ms=8.0)
    load = trace([0.0, 10.0, 20.0], [100, 1000, 7000], [20, 20, 20])
    ids, texts = simulate(load, profile), simulate(load, profile, text_prompts=True)
    later_ms = texts.ttft_ms - ids.ttft_ms
    # an idle engine takes it up at once; times are in whole ps
    assert later_ms.tolist() == pytest.approx([0.8, 8.0, 56.0], abs=0.01)
    assert texts.e2el_ms - ids.e2el_ms == pytest.approx(later_ms, abs=0.01)
    assert not texts.notes
    assert texts.scenario["text_prompts"] is True
    assert "text_prompts" not in ids.scenario


def test_where_nobody_knows_how_long_it_takes_texts_are_token_ids_and_that_is_told() -> None:
    load = trace([0.0, 0.1], [1000, 500], [20, 20])
    plain = make_profile()
    result = simulate(load, plain, text_prompts=True)
    assert result.ttft_ms.tolist() == simulate(load, plain).ttft_ms.tolist()
    (note,) = result.notes
    assert note.startswith("prompts count as token ids: the profile does not tell how long")
    assert not simulate(load, plain).notes
    streamed = simulate_stream([load], plain, text_prompts=True)
    assert streamed.notes == [note]
    pools = [Pool(plain, 1), Pool(with_api(constant_profile(4.0), tokenize_ms=1.0), 1)]
    assert simulate(load, pools=pools, text_prompts=True).notes == [f"{plain.id} #1: {note}"]
    with pytest.raises(ScenarioError, match="text_prompts is 'yes'; must be true or false"):
        simulate(load, plain, text_prompts="yes")  # type: ignore[arg-type]


def test_a_process_that_is_nearly_full_is_told_of() -> None:
    # 16 clients, a step of 4 ms, of whose time 16 tokens keep the process busy for a part
    load = trace(np.zeros(320), [1] * 320, [50] * 320)

    def told(token_ms: float, **more: object) -> list[str]:
        profile = with_api(constant_profile(4.0), token_ms=token_ms)
        given = {"concurrency": 16, **more}
        notes = simulate(load, profile, **given).notes  # type: ignore[arg-type]
        return [note for note in notes if "API server" in note]

    assert told(0.1) == []  # 40%
    [note] = told(0.2)
    assert "the API server's process of server 0 is busy 7" in note
    [note] = told(0.5)
    assert "is busy 99% of the time" in note
    assert told(0.2, replicas=2) == []
    # of several, the busiest; and of a stream as well
    pools = [Pool(constant_profile(4.0), 1), Pool(with_api(constant_profile(4.0), 0, 0.2), 1)]
    [note] = [n for n in simulate(load, pools=pools, concurrency=32).notes if "API" in n]
    assert "of server 1 is busy" in note
    burst = with_api(constant_profile(4.0), token_ms=0.2)
    [note] = [n for n in simulate_stream([load], burst).notes if "API" in n]
    assert "of server 0 is busy" in note


def test_clients_who_give_up_while_they_wait_jump_as_they_step() -> None:
    """What a request has had of the process's time it has had, and nobody decodes ahead of that."""
    n = 80
    slow = with_api(make_profile(), 3.0, 1.0, 2.0, 2, 1.0, 2.0, 9.0)
    wide = with_api(make_profile(throttle=0.1), 0.4, 0.2, 0.3, 7, 2.0, 3.0, 15.0)
    waits_s = np.array([np.inf, 0.002, 0.03, 0.05, 0.3])
    for profile in (slow, wide):
        for seed in range(6):
            rng = np.random.default_rng(seed)
            load = replace(
                trace(
                    np.cumsum(rng.exponential(0.006, n)),
                    rng.integers(1, 600, n),
                    rng.choice([1, 3, 17, 60], n),
                ),
                timeout_s=rng.choice(waits_s, n),
            )
            both(load, profile, replicas=2, text_prompts=seed % 2 == 0)
            both(load, profile, replicas=2, concurrency=24, think_time_s=0.01)


def test_a_request_that_has_gone_keeps_the_process_for_what_it_took() -> None:
    # two requests at 0; the first turns take 12 ms, and the first client goes at 5 ms
    profile = with_api(constant_profile(50.0), request_ms=10.0)
    load = trace([0.0, 0.0], [1, 1], [1, 1])
    alone = simulate(replace(load, timeout_s=np.array([0.005, np.inf])), profile)
    # the second has its last turn of 4 ms, and the step takes 50 ms
    assert alone.ttft_ms[1] == pytest.approx(12.0 + 4.0 + 50.0)
