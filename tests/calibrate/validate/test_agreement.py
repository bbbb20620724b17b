"""Feeding a recording's times to the scheduler gives back its batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qsim.calibrate.recordings.data import Phase, PowerSamples, Recording, Requests, Server, Steps
from qsim.calibrate.recordings.read import read_recording
from qsim.calibrate.validate.agreement import compare_steps, count_steps
from qsim.cli import main
from qsim.profiles.lookup import load_profile
from qsim.sim.engine.steplog import Step
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

PROFILE = make_profile()


def simulated_recording(n: int = 150, gap_s: float = 0.04) -> Recording:
    """A recording of qsim's own engine, with what ``compare_steps`` needs."""
    rng = np.random.default_rng(5)
    trace = Trace(
        np.cumsum(rng.exponential(gap_s, n)), rng.integers(2, 4000, n), rng.integers(1, 80, n)
    )
    log: list[Step] = []
    options = EngineOptions(enable_prefix_caching=False, max_model_len=8192)
    result = simulate(trace, PROFILE, options=options, step_log=log)
    second = 1e-12

    def column(name: str) -> np.ndarray:
        return np.array([getattr(s, name) for s in log], float) * second

    zeros = np.zeros(len(log), np.int64)
    nan = np.full(len(log), np.nan)
    schedule_s = column("schedule_ps")
    steps = Steps(
        phase=zeros,
        schedule_s=schedule_s,
        schedule_dur_s=column("launch_start_ps") - schedule_s,
        launch_start_s=column("launch_start_ps"),
        launch_end_s=column("launch_end_ps"),
        sample_start_s=nan,
        sample_end_s=column("launch_end_ps"),
        gpu_ms=(column("gpu_end_ps") - column("gpu_start_ps")) * 1e3,
        update_s=column("update_ps"),
        update_dur_s=nan,
        chunks=tuple(tuple(s.prefill) for s in log),
        num_chunks=np.array([len(s.prefill) for s in log]),
        pairs=nan,
        prefill_tokens=np.array([sum(n for n, _ in s.prefill) for s in log]),
        decodes=np.array([s.num_decode for s in log]),
        decode_context_tokens=zeros,
        running=zeros,
        waiting=zeros,
        kv_usage=nan,
    )
    requests = Requests(
        phase=np.zeros(n, np.int64),
        request_id=tuple(map(str, range(n))),
        sent_s=trace.arrival_s,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        first_token_s=trace.arrival_s + result.ttft_ms / 1e3,
        last_token_s=trace.arrival_s + result.e2el_ms / 1e3,
    )
    server = Server(
        gpu="h200_sxm",
        model="toy-1b",
        method="bf16",
        vllm_version="0.24.0",
        driver="",
        host="",
        tensor_parallel=1,
        model_config={},
        quantization_config=None,
        server_flags=(),
        prefix_caching=False,
        kv_cache_dtype="auto",
        max_model_len=8192,
        max_num_batched_tokens=8192,
        block_size=16,
        num_gpu_blocks=4096,
    )
    empty = np.empty(0)
    return Recording(
        "simulated",
        server,
        (Phase("load", "made up", "poisson", 0.0, 1.0, 0.0, "fit"),),
        steps,
        requests,
        PowerSamples(empty, empty, empty, empty, empty, empty),
    )


@pytest.mark.parametrize("recorded_arrivals", [False, True])
def test_the_engine_s_own_steps_agree_with_themselves(recorded_arrivals):
    recording = simulated_recording()
    (a,) = compare_steps(recording, PROFILE, recorded_arrivals=recorded_arrivals)
    assert a.steps > 200
    assert a.share == 1.0
    assert (a.other_prefill, a.other_decodes, a.tokens_differ) == (0, 0, 0)


def test_a_late_arrival_is_seen_as_a_difference():
    recording = simulated_recording()
    recording.requests.sent_s[40:] += 0.02
    (a,) = compare_steps(recording, PROFILE)
    assert a.share < 1.0
    assert a.other_prefill > 0


def test_only_the_phases_asked_for_are_compared():
    recording = simulated_recording(20)
    assert not list(compare_steps(recording, PROFILE, ["other"]))
    assert [a.phase for a in compare_steps(recording, PROFILE, ["load"])] == ["load"]


RECORDING = Path(__file__).parents[3] / "recordings" / "llama-3.1-8b--nvfp4-w4a16--2026-11-20"


def test_a_real_server_ran_the_batches_that_the_scheduler_runs():
    result = CliRunner().invoke(
        main, ["calibrate", "agreement", str(RECORDING), "--phase", "mix80"]
    )
    assert result.exit_code == 0, result.output
    header, _, row, overall = result.stdout.splitlines()
    assert header.startswith("| recording | phase | steps | agree |")
    cells = [c.strip() for c in row.split("|")]
    assert cells[1:4] == [RECORDING.name, "mix80", "1825"]
    assert float(cells[4].rstrip("%")) > 95  # what is left is when an arrival was taken in
    assert float(cells[5].rstrip("%")) > 99
    assert overall.split("|")[4:] == row.split("|")[4:]


def test_totals_have_a_row_a_recording():
    options = ["--phase", "over40", "--phase", "mix80", "--total"]
    result = CliRunner().invoke(main, ["calibrate", "agreement", str(RECORDING), *options])
    names = [line.split("|")[1].strip() for line in result.stdout.splitlines()[2:]]
    assert names == [RECORDING.name, "all"]


def test_a_slow_machine_by_its_own_front_end() -> None:
    """Its profile is on another machine; the recording is compared with what was measured."""
    path = RECORDING.with_name("llama-3.1-8b--fp8-w8a8-static--2026-11-25")
    profile = load_profile("h200_sxm/llama-3.1-8b/fp8-w8a8-static@0.24")
    assert profile.measured_host is not None
    labels = ["val_moderate"]
    (own,) = count_steps(read_recording(path), profile.as_measured(), labels)
    arguments = ["calibrate", "agreement", str(path), "--phase", *labels]
    shown = CliRunner().invoke(main, arguments).stdout.splitlines()
    assert shown[2] == own.row()
    # twelve requests came more than 20 ms late
    (late,) = count_steps(read_recording(path), profile.as_measured(), labels, near_s=0.2)
    assert late.agreeing == own.agreeing
    assert late.agreeing_recorded > own.agreeing_recorded + 100
    again = CliRunner().invoke(main, [*arguments, "--near-ms", "200"]).stdout.splitlines()
    assert again[2] == late.row()
