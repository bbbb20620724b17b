"""Priorities and timeouts of a trace reach the servers, whole and in parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.cli import main
from qsim.errors import TraceError
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces import Trace, load_trace, write_trace
from qsim.traces.parts import open_parts

PROFILE = "h200_sxm/llama-3.1-8b/fp8-w8a8"


def crowd(n: int = 400) -> Trace:
    rng = np.random.default_rng(0)
    return Trace(
        np.sort(rng.uniform(0, 4, n)),
        rng.integers(50, 3000, n),
        rng.integers(20, 300, n),
        priority=rng.integers(0, 3, n),
    )


@pytest.mark.parametrize("jump", [True, False])
def test_the_smaller_goes_first_under_the_priority_policy(jump: bool) -> None:
    trace = crowd()
    assert trace.priority is not None
    waits = []
    for policy in ("fcfs", "priority"):
        options = EngineOptions(scheduling_policy=policy, max_num_seqs=32)
        result = simulate(trace, PROFILE, options=options, jump=jump)
        waits.append([float(result.ttft_ms[trace.priority == p].mean()) for p in range(3)])
        told = any("--scheduling-policy priority" in note for note in result.notes)
        assert told == (policy == "fcfs")
    assert waits[1][0] < 0.2 * waits[0][0]
    assert waits[1][2] > 1.3 * waits[0][2]


def test_fast_forward_gives_the_same_times() -> None:
    options = EngineOptions(scheduling_policy="priority", max_num_seqs=32)
    found = [simulate(crowd(), PROFILE, options=options, jump=jump) for jump in (True, False)]
    assert np.array_equal(found[0].ttft_ms, found[1].ttft_ms)
    assert np.array_equal(found[0].e2el_ms, found[1].e2el_ms)


def test_a_trace_without_priorities_is_told_nothing() -> None:
    trace = Trace(np.zeros(3), np.full(3, 50), np.full(3, 5), priority=np.zeros(3))
    assert not any("priority" in note for note in simulate(trace, PROFILE).notes)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_file_simulates_alike_in_parts(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / f"t{ending}"
    trace = crowd()
    wait = np.where(np.arange(len(trace)) % 2 == 0, 3.0, np.inf)
    write_trace(Trace(trace.arrival_s, trace.prompt_tokens, trace.output_tokens,
                      priority=trace.priority, timeout_s=wait), path)  # fmt: skip
    summaries = []
    for stream in ("--stream", "--no-stream"):
        done = CliRunner().invoke(
            main,
            ["simulate", str(path), "--profile", PROFILE, "--scheduling-policy", "priority",
             "--max-num-seqs", "16", stream, "--json", "-"],
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        summaries.append(json.loads(done.stdout))
    assert summaries[0]["completed"] == summaries[1]["completed"] < len(trace)
    assert summaries[0]["total_output_tokens"] == summaries[1]["total_output_tokens"]


def test_what_begins_late_in_a_file_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qsim.traces.formats.mooncake._BATCH_ROWS", 30)
    path = tmp_path / "t.jsonl"
    rows = [{"timestamp": i * 100, "input_length": 9, "output_length": 9} for i in range(100)]
    rows[70]["timeout_s"] = 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = load_trace(path)
    assert whole.timeout_s is not None
    assert np.flatnonzero(np.isfinite(whole.timeout_s)).tolist() == [70]
    with pytest.raises(TraceError, match=r"timeout_s .* after 60 requests; give --no-stream"):
        list(open_parts(path))
    rows[10]["timeout_s"] = 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = list(open_parts(path))
    assert all(part.timeout_s is not None for part in parts)


def test_tiers_of_clients_are_drawn_and_written(tmp_path: Path) -> None:
    out = tmp_path / "tiers.csv"
    plain = tmp_path / "plain.csv"
    base = ["traces", "synth", "azure-conv-2023:requests=20000"]
    tiers = ["--tier", "share=1,timeout=20", "--tier", "share=3,priority=5"]
    assert CliRunner().invoke(main, [*base, str(out), *tiers]).exit_code == 0
    assert CliRunner().invoke(main, [*base, str(plain)]).exit_code == 0
    drawn, without = load_trace(out), load_trace(plain)
    assert drawn.priority is not None
    assert drawn.timeout_s is not None
    paying = drawn.priority == 0
    assert set(drawn.priority.tolist()) == {0, 5}
    assert abs(paying.mean() - 0.25) < 5 * (0.25 * 0.75 / 20000) ** 0.5
    assert (drawn.timeout_s[paying] == 20.0).all()
    assert np.isinf(drawn.timeout_s[~paying]).all()
    # nothing else is drawn otherwise
    assert without.priority is None
    assert without.timeout_s is None
    assert np.array_equal(drawn.arrival_s, without.arrival_s)
    assert np.array_equal(drawn.prompt_tokens, without.prompt_tokens)


@pytest.mark.parametrize(
    ("tier", "error"),
    [
        ("priority=1", "share is missing"),
        ("share=0", "share is 0.0; must be a finite number > 0"),
        ("share=nan", "share is nan; must be a finite number > 0"),
        ("share=1,priority=0.5", "priority is '0.5'; must be a whole number"),
        ("share=1,priority=9999999999", "priority is 9999999999; must be a whole number"),
        ("share=1,timeout=-3", "timeout_s is -3.0; must be a finite number > 0"),
        ("share=1,prio=1", "unknown key 'prio'"),
        ("share", "is no KEY=VALUE pair"),
    ],
)
def test_a_tier_that_is_none_is_refused(tier: str, error: str, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    result = CliRunner().invoke(
        main, ["traces", "synth", "azure-conv-2023", str(out), "--tier", tier]
    )
    assert result.exit_code != 0
    assert error in result.output
    assert not out.exists()
