"""A jump over decode steps leaves everything as the single steps would have."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from qsim.sim.scheduler.config import EngineConfig
from qsim.sim.scheduler.replay import Arrival, Scenario
from qsim.sim.scheduler.request import Request
from tests.sim.scenarios import Driver, scenarios, session_scenarios

ABORTS = st.dictionaries(st.integers(0, 60), st.lists(st.integers(0, 13), max_size=2), max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    scenarios(decode_heavy=True) | scenarios(tight=True) | session_scenarios(),
    st.just({}) | ABORTS,
    st.data(),
)
@pytest.mark.slow
def test_jump_equals_single_steps(
    scenario: Scenario, aborts: dict[int, list[int]], data: st.DataObject
) -> None:
    jumping = Driver(scenario, aborts)
    stepping = Driver(scenario, aborts)
    jumps = 0
    while True:
        jumping.messages()
        stepping.messages()
        horizon = jumping.horizon()
        most = min(horizon, jumping.next_event() - jumping.turn)
        if most > 0 and (n := data.draw(st.integers(0, most), label="turns")):
            jumps += n
            running = [r.index for r in stepping.scheduler._running]
            jumping.jump(n)
            for _ in range(n):
                turn = stepping.step()
                assert turn is not None
                assert [(index, tokens) for index, tokens, _ in turn.items] == [
                    (index, 1) for index in running
                ]
                assert turn.update is not None
                assert [r.index for r in turn.update.tokens] == running
                assert turn.update.finished == []
                assert turn.update.first == []
                assert turn.preempted == ()
        else:
            ours, theirs = jumping.step(), stepping.step()
            if ours is None or theirs is None:
                assert ours is theirs
                if jumping.next_event() == 1 << 40:
                    break
                jumping.turn = stepping.turn = max(jumping.turn + 1, jumping.next_event())
                continue
            assert (ours.items, ours.preempted) == (theirs.items, theirs.preempted)
            if ours.update is not None and theirs.update is not None:
                for name in ("tokens", "first", "finished"):
                    assert [r.index for r in getattr(ours.update, name)] == [
                        r.index for r in getattr(theirs.update, name)
                    ]
        assert jumping.state() == stepping.state()
    event(f"turns jumped: {min(jumps, 20) // 5 * 5}+")


@settings(max_examples=100, deadline=None)
@given(scenarios(decode_heavy=True))
def test_a_whole_jump_leaves_no_other(scenario: Scenario) -> None:
    driver = Driver(scenario)
    while True:
        driver.messages()
        horizon = driver.horizon()
        if 0 < horizon <= driver.next_event() - driver.turn:
            driver.jump(horizon)
            assert driver.horizon() == 0
        if driver.step() is None:
            if driver.next_event() == 1 << 40:
                break
            driver.turn = max(driver.turn + 1, driver.next_event())


def decode_of(
    prompt_tokens: int, output_tokens: int, requests: int = 1, **settings: int | bool
) -> Driver:
    """A driver right after the first batch of nothing but decodes."""
    config = EngineConfig(**{"num_gpu_blocks": 1000, **settings})  # type: ignore[arg-type]
    arrivals = [Arrival(0, str(i), prompt_tokens, output_tokens) for i in range(requests)]
    driver = Driver(Scenario("decode", config, tuple(arrivals)))
    driver.messages()
    while True:
        turn = driver.step()
        assert turn is not None
        assert turn.batch is not None
        if turn.batch.num_decodes == requests and not turn.batch.prefill:
            return driver


def test_horizon_of_one_request() -> None:
    # Schedules of 9 further tokens can follow the first decode, the last one left in flight.
    driver = decode_of(100, 11)
    assert driver.horizon() == 9
    driver.jump(9)
    assert driver.requests[0].num_output_tokens == 10
    turn = driver.step()
    assert turn is not None
    assert turn.update is not None
    assert turn.update.finished == [driver.requests[0]]
    # In synchronous mode the step of the last token is a turn in which somebody finishes.
    driver = decode_of(100, 11, async_scheduling=False)
    assert driver.requests[0].num_output_tokens == 2
    assert driver.horizon() == 8
    driver.jump(8)
    assert driver.requests[0].num_output_tokens == 10
    assert driver.horizon() == 0


def test_horizon_ends_where_blocks_end() -> None:
    # Two requests of 31 tokens hold 2 blocks each; 2 blocks are left and last until token 48.
    driver = decode_of(31, 100, requests=2, num_gpu_blocks=10)
    assert driver.scheduler.free_blocks == 9 - 4
    driver = decode_of(31, 60, requests=2, num_gpu_blocks=7)
    assert driver.scheduler.free_blocks == 2
    assert driver.horizon() == 48 - 32
    driver.jump(16)
    assert driver.scheduler.free_blocks == 0
    turn = driver.step()
    assert turn is not None
    assert turn.preempted == (1,)


def test_a_waiting_request_that_fits_forbids_the_jump() -> None:
    driver = decode_of(31, 60)
    assert driver.horizon() > 0
    driver.scheduler.add(Request(1, 40, 5))
    assert driver.horizon() == 0


def test_advance_beyond_the_horizon_is_refused() -> None:
    driver = decode_of(100, 11)
    with pytest.raises(ValueError, match="n is 1; must be between 1 and 0"):
        driver.jump(1)
    assert driver.horizon() == 9
    with pytest.raises(ValueError, match="n is 10; must be between 1 and 9"):
        driver.jump(10)
