"""The step log tells the same story as the result."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np

from qsim.sim.engine.steplog import MOST_SPANS, Step, steps_a_span, to_json_lines, to_trace_events
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile


def run() -> tuple[list[Step], object]:
    rng = np.random.default_rng(2)
    n = 60
    trace = Trace(
        np.cumsum(rng.exponential(0.02, n)), rng.integers(1, 3000, n), rng.integers(1, 60, n)
    )
    steps: list[Step] = []
    return steps, simulate(trace, make_profile(), replicas=2, step_log=steps)


def test_steps_account_for_every_token_and_gpu_second():
    steps, result = run()
    prefill = sum(n for s in steps for n, _ in s.prefill)
    ones = sum(s.num_decode for s in steps)
    # every prompt token and every output token but the first of each request is computed once;
    # a chunk of one token counts as a decode
    assert prefill + ones == result.prompt_tokens.sum() + (result.output_tokens - 1).sum()
    busy_s = sum(s.gpu_end_ps - s.gpu_start_ps for s in steps) / 1e12
    assert busy_s == sum(r["busy_s"] for r in result.replica_stats)
    assert len(steps) == sum(r["steps"] for r in result.replica_stats)


def test_steps_keep_the_order_of_the_pipeline():
    steps, _ = run()
    for replica in (0, 1):
        mine = [s for s in steps if s.replica == replica]
        for s in mine:
            assert s.schedule_ps <= s.launch_start_ps <= s.launch_end_ps
            assert s.launch_start_ps <= s.gpu_start_ps < s.gpu_end_ps < s.update_ps
        for a, b in pairwise(mine):
            assert a.gpu_end_ps < b.gpu_start_ps
            assert a.update_ps >= b.launch_end_ps or b.schedule_ps > a.update_ps


def test_a_log_does_not_change_the_result():
    _, logged = run()
    rng = np.random.default_rng(2)
    n = 60
    trace = Trace(
        np.cumsum(rng.exponential(0.02, n)), rng.integers(1, 3000, n), rng.integers(1, 60, n)
    )
    plain = simulate(trace, make_profile(), replicas=2)
    np.testing.assert_array_equal(plain.e2el_ms, logged.e2el_ms)


def test_both_files_hold_every_step():
    steps, _ = run()
    lines = [json.loads(x) for x in to_json_lines(steps).splitlines()]
    assert len(lines) == len(steps)
    assert {"schedule_s", "gpu_ms", "prefill_chunks", "num_decode", "kv_usage"} <= set(lines[0])
    events = json.loads(to_trace_events(steps))["traceEvents"]
    gpu = [e for e in events if e["ph"] == "X" and e["tid"] == 2]
    assert len(gpu) == len(steps)
    assert {e["pid"] for e in gpu} == {0, 1}
    assert all(e["dur"] > 0 for e in gpu)


def test_a_long_timeline_is_coarser_and_loses_nothing():
    steps, _ = run()
    most = len(steps) // 5
    size = steps_a_span(len(steps), most)
    assert size >= 5
    events = json.loads(to_trace_events(steps, most))["traceEvents"]
    gpu = [e for e in events if e["ph"] == "X" and e["tid"] == 2]
    assert len(gpu) <= most + 2  # one that is not full for each replica
    assert sum(e["args"].get("steps", 1) for e in gpu) == len(steps)
    assert sum(e["args"]["num_decode"] for e in gpu) == sum(s.num_decode for s in steps)
    busy_ms = sum(s.gpu_end_ps - s.gpu_start_ps for s in steps) / 1e9
    assert np.isclose(sum(e["args"]["gpu_ms"] for e in gpu), busy_ms)
    for replica in (0, 1):
        mine = [e for e in gpu if e["pid"] == replica]
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(mine))
    assert steps_a_span(MOST_SPANS) == 1
    assert steps_a_span(MOST_SPANS + 1) == 2
