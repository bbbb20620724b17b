"""A session's next turn is sent its delay after the answer before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qsim
from qsim.errors import ScenarioError, TraceError
from qsim.profiles.lookup import load_profile
from qsim.sim.fleet.dynamic import simulate_dynamic
from qsim.sim.fleet.policy import Constant
from qsim.sim.fleet.pool import ServerPool
from qsim.sim.fleet.routers.router import ROUTERS
from qsim.sim.simulate import simulate
from qsim.sim.simulate_stream import simulate_stream
from qsim.traces import Trace, load_trace, merge
from qsim.traces.trace import Turns
from tests.make_profile import constant_profile

PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"
MOONCAKE = (
    '{"session_id": "a", "timestamp": 0, "input_length": 800, "output_length": 100, '
    '"hash_ids": [1, 2]}\n'
    '{"session_id": "a", "delay": 2000, "input_length": 1300, "output_length": 100, '
    '"hash_ids": [1, 2, 3]}\n'
    '{"session_id": "b", "timestamp": 500, "input_length": 400, "output_length": 50, '
    '"hash_ids": [9]}\n'
    '{"session_id": "b", "delay": 1000, "input_length": 700, "output_length": 50, '
    '"hash_ids": [9, 10]}\n'
)


def sessions(count: int, turns: int, seed: int) -> Trace:
    """Sessions with delays that overlap; the lengths of all prompts differ."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.uniform(0, count / 4, count))
    rows: list[tuple[float, int, float]] = []
    for start in starts.tolist():
        at = start
        for turn in range(turns):
            delay = float(rng.exponential(0.5)) if turn else 0.0
            at += delay
            rows.append((at, len(rows) - 1 if turn else -1, delay))
    order = np.argsort([r[0] for r in rows], kind="stable")
    made = Turns(np.array([r[1] for r in rows]), np.array([r[2] for r in rows])).take(order)
    prompts = rng.permutation(np.arange(100, 100 + len(rows)))
    return Trace(
        np.array([rows[i][0] for i in order]), prompts, rng.integers(1, 200, len(rows)), turns=made
    )


@given(st.integers(1, 12), st.integers(1, 4), st.sampled_from(list(ROUTERS)), st.integers(1, 3))
@settings(max_examples=25)
def test_turns_follow_answers_and_the_same_arrivals_give_the_same_answers(
    count: int, turns: int, router: str, replicas: int
) -> None:
    trace = sessions(count, turns, seed=count)
    # an open loop does not know what its prompts begin with
    options = qsim.EngineOptions(enable_prefix_caching=False)
    run = qsim.simulate(trace, PROFILE, replicas=replicas, router=router, options=options)
    assert (np.diff(run.arrival_s) >= 0).all()
    assert sorted(run.prompt_tokens) == sorted(trace.prompt_tokens)
    place = {int(p): i for i, p in enumerate(run.prompt_tokens)}
    assert trace.turns is not None
    for i, previous in enumerate(trace.turns.previous.tolist()):
        mine = place[int(trace.prompt_tokens[i])]
        if previous < 0:
            assert run.arrival_s[mine] == trace.arrival_s[i]
            continue
        before = place[int(trace.prompt_tokens[previous])]
        answered_s = run.arrival_s[before] + run.e2el_ms[before] / 1000
        assert run.arrival_s[mine] == pytest.approx(answered_s + trace.turns.delay_s[i], abs=1e-9)
    # an open loop that is sent at these times fares the same, to the last bit
    numbers = trace.sessions()
    session = np.full(len(trace), -1)
    if numbers is not None:
        session[[place[int(p)] for p in trace.prompt_tokens]] = numbers
    replay = Trace(run.arrival_s, run.prompt_tokens, run.output_tokens, session=session)
    again = qsim.simulate(
        replay, PROFILE, replicas=replicas, router=router, options=options, jump=False
    )
    np.testing.assert_allclose(again.e2el_ms, run.e2el_ms, rtol=0, atol=1e-6)


def test_mooncake_sessions(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(MOONCAKE)
    trace = load_trace(path)
    assert trace.turns is not None
    assert trace.arrival_s.tolist() == [0.0, 0.5, 1.5, 2.0]
    assert trace.turns.previous.tolist() == [-1, -1, 1, 0]
    assert trace.turns.delay_s.tolist() == [0.0, 0.0, 1.0, 2.0]
    run = qsim.simulate(trace, PROFILE)
    answered_s = run.arrival_s + run.e2el_ms / 1000
    assert run.prompt_tokens.tolist() == [800, 400, 700, 1300]
    assert run.arrival_s[2] == pytest.approx(answered_s[1] + 1.0, abs=1e-9)
    assert run.arrival_s[3] == pytest.approx(answered_s[0] + 2.0, abs=1e-9)
    open_ = load_trace(f"{path}:turns=open")
    assert open_.turns is None
    assert open_.arrival_s.tolist() == trace.arrival_s.tolist()


def test_a_turn_needs_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(MOONCAKE.replace('"timestamp": 500, ', ""))
    with pytest.raises(TraceError, match=r"line 3: no 'timestamp'.*session_id"):
        load_trace(path)
    path.write_text(MOONCAKE.replace('"delay": 2000', '"delay": -1'))
    with pytest.raises(TraceError, match="line 2, column 'delay': '-1'"):
        load_trace(path)


def test_what_cannot_wait_says_so(tmp_path: Path) -> None:
    trace = sessions(2, 2, 0)
    with pytest.raises(TraceError, match="--no-stream"):
        simulate_stream([trace], PROFILE)
    pool = ServerPool(load_profile(PROFILE), replicas=1)
    with pytest.raises(ScenarioError, match=":turns=open"):
        simulate_dynamic(trace, [pool], Constant((1,)))


def test_parts_of_a_trace_keep_the_turns_that_they_can() -> None:
    trace = sessions(3, 3, 1)
    assert trace.turns is not None
    head = trace.head(4)
    assert head.turns is not None
    assert (head.turns.previous == trace.turns.previous[:4]).all()
    later = trace.take(np.arange(3, len(trace)))
    assert later.turns is not None
    expected = trace.turns.previous[3:] - 3
    assert later.turns.previous.tolist() == np.where(expected < 0, -1, expected).tolist()
    both = merge([trace, trace])
    assert both.turns is not None
    assert (both.turns.previous >= 0).sum() == 2 * (trace.turns.previous >= 0).sum()
    assert (both.turns.previous < np.arange(len(both))).all()
    run = qsim.simulate(both, PROFILE, replicas=2)
    assert run.summary()["completed"] == len(both)


def test_an_answer_at_time_zero_is_one() -> None:
    """A server that takes no time answers at once; its client does not give up afterwards."""
    turns = Turns(np.array([-1, 0, 1]), np.array([0.0, 0.0, 2.0]))
    load = Trace(np.zeros(3), np.ones(3), np.ones(3), turns=turns)
    for jump in (True, False):
        result = simulate(
            load, constant_profile(0.0), client_timeout_s=1.0, frontend=False, jump=jump
        )
        assert result.completed.all()
        assert result.arrival_s.tolist() == pytest.approx([0.0, 0.0, 2.0])
