"""``qsim calibrate run`` from end to end, against the stub of vLLM's server."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsim.calibrate.fit.fitting import FitResult
from qsim.calibrate.measure.run import (
    CampaignState,
    JobState,
    groups_of,
    is_complete,
    load_seconds,
)
from qsim.calibrate.profiling import is_newer, profile_recording
from qsim.calibrate.recordings.data import Recording
from qsim.calibrate.recordings.measured import measured_row
from qsim.calibrate.recordings.read import read_recording
from qsim.catalog.methods import METHODS
from qsim.errors import QsimError, RecordingError, ScenarioError
from qsim.profiles.schema import Profile
from tests.calibrate.stub import HERE, MARK, STUB, none_left, stub_environment
from tests.cli.helpers import fails, qsim

LABELS = ["warm", "idle", "ladder", "pre", "val_moderate"]
Result = tuple[int, dict[str, Any], str]


def command(out: Path, methods: str, *more: str) -> list[str]:
    return [
        sys.executable, str(HERE / "drive.py"), "run", "--model", "llama-3.1-8b", "--dummy-weights",
        "--methods", methods, "--out", str(out), "--serve-command", shlex.join(STUB), *more,
    ]  # fmt: skip


def run(out: Path, methods: str, *more: str, **environment: str) -> Result:
    """Run a campaign of short loads: exit code, JSON from stdout, stderr."""
    env = stub_environment(**{MARK: str(out)}, **environment)
    done = subprocess.run(
        command(out, methods, *more), env=env, capture_output=True, text=True, timeout=1800
    )
    assert none_left(str(out)) == []
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Two methods on two GPUs side by side, and one that does not exist for this model."""
    out = tmp_path_factory.mktemp("campaign") / "out"
    return out, run(
        out, "bf16,fp8-w8a8", "--server-arg", "--max-num-seqs=64", "--holdout-clients", "4"
    )


@pytest.fixture(scope="module")
def recording(campaign: tuple[Path, Result]) -> Recording:
    return read_recording(campaign[0] / "llama-3.1-8b--fp8-w8a8")


def test_a_campaign_leaves_recordings(campaign: tuple[Path, Result]) -> None:
    out, (code, result, stderr) = campaign
    assert code == 0, stderr
    names = ["llama-3.1-8b--bf16", "llama-3.1-8b--fp8-w8a8"]
    assert result["complete"] == {n: str(out / n) for n in names}
    assert result["failed"] == result["refused"] == {}
    assert sorted(p.name for p in out.iterdir()) == ["campaign.json", *names]
    state = CampaignState(out)
    assert {n: state.jobs[n].status for n in names} == dict.fromkeys(names, "complete")
    # both at a time, each on a GPU of its own; with a word on what is done and on the time left
    gpus = []
    for name in names:
        (gpu,) = json.loads((out / name / "server.json").read_text())["gpus"]
        gpus.append(gpu)
        for label in [*LABELS, "clients4"]:
            assert re.search(rf"GPU {gpu}: {name} {label} \(\d+:\d\d left\)", stderr)
        assert f"GPU {gpu}: {name} complete" in stderr
    assert sorted(gpus) == [0, 1]


def test_the_recording_can_be_read_and_balances(recording: Recording) -> None:
    assert [p.label for p in recording.phases] == [*LABELS, "clients4"]
    assert [p.use for p in recording.phases] == ["skip", "fit", "fit", "fit", "holdout", "holdout"]
    assert [p.clients for p in recording.phases] == [None] * 5 + [4]
    s, q = recording.steps, recording.requests
    assert s.prefill_tokens.sum() == q.prompt_tokens.sum() == 100 + 512 + 90 + 9740 + 380 + 600
    assert s.decodes.sum() == (q.output_tokens - 1).sum()
    for i, phase in enumerate(recording.phases):
        assert s.prefill_tokens[s.phase == i].sum() == q.prompt_tokens[q.phase == i].sum()
        mine = s.schedule_s[s.phase == i]
        if len(mine):
            assert phase.start_s <= mine.min()
            assert mine.max() <= phase.end_s
    # a prompt longer than the budget of 8192 tokens is computed in chunks
    chunks = [c for step in s.chunks for c in step]
    ((tokens, computed),) = [(n, c) for n, c in chunks if c > 0]
    assert tokens + computed == 9000
    assert 8000 < computed <= 8192
    assert (computed, 0) in chunks
    assert recording.server.raw["token_balance"] == {
        "prompt_tokens": 11422, "prefill_tokens_in_steps": 11422,
        "decode_tokens": 611, "decode_tokens_in_steps": 611,
    }  # fmt: skip


def test_times_are_on_one_clock(recording: Recording) -> None:
    s, q, p = recording.steps, recording.requests, recording.power
    assert recording.phases[0].start_s == 0.0
    for before, after in (
        (s.schedule_s, s.launch_start_s),
        (s.launch_start_s, s.launch_end_s),
        (s.launch_end_s, s.sample_start_s),
        (s.sample_start_s, s.sample_end_s),
        (s.sample_end_s, s.update_s),
    ):
        assert (before <= after + 2e-6).all()
    assert np.isfinite(s.gpu_ms).all()
    # the stub's model of a step
    tokens = s.prefill_tokens + s.decodes
    modelled_ms = 0.5 + 0.004 * (s.num_chunks + s.decodes) + 0.001 * tokens
    assert (s.gpu_ms >= modelled_ms - 1e-3).all()  # more if the host launched late
    assert (s.gpu_ms <= (s.update_s - s.launch_start_s) * 1e3 + 2e-3).all()
    # a client's first token comes after the update of its step: not before the engine's first
    for i in range(len(recording.phases)):
        if (q.phase == i).any():
            assert q.first_token_s[q.phase == i].min() > s.update_s[s.phase == i].min()
            assert q.last_token_s[q.phase == i].max() > s.update_s[s.phase == i].max()
    assert p.t_s[0] < 0.0 < recording.phases[-1].end_s < p.t_s[-1]


def test_power_and_energy(recording: Recording) -> None:
    power = recording.power
    for phase in recording.phases:
        counter_j = np.interp([phase.start_s, phase.end_s], power.t_s, power.energy_j)
        assert phase.energy_j == pytest.approx(counter_j[1] - counter_j[0], abs=2e-3)
    # a GPU of 100 W, whose counter is read between a reading's time and that of the next one
    since_j = power.energy_j - power.energy_j[0]
    assert (since_j[1:] >= 100.0 * (power.t_s[1:] - power.t_s[1]) - 2e-3).all()
    assert (since_j[:-1] <= 100.0 * (power.t_s[1:] - power.t_s[0]) + 2e-3).all()
    assert set(recording.power.power_instant_w) == {100.0}


def test_what_was_served_is_written_down(recording: Recording) -> None:
    server, raw = recording.server, recording.server.raw
    assert (server.gpu, server.model, server.method) == ("h200_sxm", "llama-3.1-8b", "fp8-w8a8")
    assert server.num_gpu_blocks == 20001
    assert server.vllm_version == "0.24.0"
    assert server.quantization_config == METHODS["fp8-w8a8"].config
    assert server.model_config["hidden_size"] == 4096
    assert "quantization_config" not in server.model_config
    flags = server.server_flags
    assert flags[:2] == ("--load-format", "dummy")
    assert flags[-1] == "--max-num-seqs=64"
    assert raw["max_num_seqs"] == 64
    assert raw["weights_gib"] == 8.46
    assert raw["power_limit_w"] == 700.0
    assert raw["driver"] == "580.0"
    assert 0 < raw["recorder_cost"]["share_of_step_time"] < 1
    assert raw["recorder_cost"]["mean_us_per_step"] > 0
    assert raw["kernel"] == "CUTLASS FP8"


def test_modes_of_steps(campaign: tuple[Path, Result]) -> None:
    import csv
    import gzip

    with gzip.open(campaign[0] / "llama-3.1-8b--bf16" / "steps.csv.gz", "rt") as f:
        for row in csv.DictReader(f):
            tokens = int(row["num_prefill_tokens"]) + int(row["num_decode"])
            graph = "full" if not row["prefill_chunks"] else "piecewise"
            assert row["mode"] == (graph if tokens <= 512 else "none")
            assert int(row["padded_tokens"]) == tokens
            decodes, context = int(row["num_decode"]), int(row["decode_context_tokens"])
            longest = int(row["decode_context_max"])
            assert longest <= context <= longest * decodes


def test_summaries_agree_with_the_requests(campaign: tuple[Path, Result]) -> None:
    folder = campaign[0] / "llama-3.1-8b--bf16"
    read = read_recording(folder)
    phases = json.loads((folder / "phases.json").read_text())
    q = read.requests
    for i, phase in enumerate(phases):
        m = q.phase == i
        if not m.any():
            assert "summary" not in phase
            continue
        summary = phase["summary"]
        assert summary["completed"] == m.sum()
        assert summary["total_output_tokens"] == q.output_tokens[m].sum()
        ttft_ms = (q.first_token_s - q.sent_s)[m] * 1e3
        assert summary["ttft_ms"]["mean"] == pytest.approx(ttft_ms.mean(), abs=2e-3)
        assert summary["ttft_ms"]["p99"] == pytest.approx(np.percentile(ttft_ms, 99), abs=2e-3)


def test_the_table_shows_measured_steps(
    recording: Recording, campaign: tuple[Path, Result]
) -> None:
    row = measured_row(recording, batches=(1, 8, 256))
    assert set(row.decode) == {1, 8}  # nothing is made up for 256
    eight = row.decode[8]
    assert eight.phase == "ladder"
    assert eight.gpu_ms >= 0.5 + 0.004 * 8 + 0.001 * 8 - 1e-3
    assert eight.step_ms >= eight.gpu_ms
    assert 64 < eight.context_tokens < 64 + 60
    assert row.prefill_tokens_per_s is None  # too few large steps
    val = recording.phases[recording.phase_index("val_moderate")]
    assert row.joules_per_output_token == pytest.approx(val.energy_j / 42, rel=1e-3)
    assert row.kv_cache_tokens == 20000 * 16
    folder = str(campaign[0] / "llama-3.1-8b--bf16")
    lines = qsim("calibrate", "table", folder).stdout.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| llama-3.1-8b | bf16 |")
    assert "| - |" in lines[2]
    (data,) = json.loads(qsim("calibrate", "table", folder, "--json", "--phase", "pre").stdout)
    assert data["energy_phase"] == "pre"
    fails(qsim("calibrate", "table", folder + "x"), 2, "is not a folder")


def test_resume_repeats_nothing(campaign: tuple[Path, Result]) -> None:
    out, _ = campaign
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.gz")}
    assert len(before) == 8
    code, result, stderr = run(out, "bf16,fp8-w8a8")
    assert code == 2
    assert "exists already: add --resume" in stderr
    code, result, stderr = run(out, "bf16,fp8-w8a8", "--resume", "--no-fit")
    assert code == 0
    assert len(result["complete"]) == 2
    assert "starting the server" not in stderr
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.gz")} == before


def test_a_job_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, result, stderr = run(
        out, "bf16,fp8-w8a8", "--gpus", "1", "--no-fit", STUB_MODE_QUANTIZED="oom"
    )
    assert code == 4
    assert list(result["complete"]) == ["llama-3.1-8b--bf16"]
    reason = result["failed"]["llama-3.1-8b--fp8-w8a8"]
    assert "out of GPU memory" in reason
    assert stderr.strip().splitlines()[-1].startswith("Error: llama-3.1-8b--fp8-w8a8 failed: ")
    log = out / "llama-3.1-8b--fp8-w8a8.failed.log"
    assert str(log) in reason
    assert "Tried to allocate" in log.read_text()
    assert not (out / "llama-3.1-8b--fp8-w8a8").exists()
    # the cause is gone: only what failed is measured, and its old log goes
    code, result, stderr = run(out, "bf16,fp8-w8a8", "--gpus", "1", "--no-fit", "--resume")
    assert code == 0
    assert len(result["complete"]) == 2
    assert "--bf16 starting" not in stderr
    assert not log.exists()


def test_a_silent_fall_back_to_bf16_is_an_error(tmp_path: Path) -> None:
    code, result, _ = run(tmp_path / "out", "awq-w4a16", "--no-fit", STUB_WEIGHTS_GIB="14.96")
    assert code == 4
    reason = result["failed"]["llama-3.1-8b--awq-w4a16"]
    assert "awq-w4a16 should load 5.33 GiB of weights on each GPU" in reason
    assert "loaded 14.96 GiB: it does not use this method" in reason


def test_an_old_server_is_refused(tmp_path: Path) -> None:
    code, result, _ = run(tmp_path / "out", "bf16", STUB_VERSION="0.23.1")
    assert code == 4
    assert "vLLM 0.23.1; calibration needs 0.24 or newer" in result["failed"]["llama-3.1-8b--bf16"]


def test_a_server_newer_than_any_that_was_tried_is_measured_with_a_warning(tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = {"FAKE_VLLM_VERSION": "0.40.0", "STUB_WEIGHTS_GIB": "5.41"}
    code, _, stderr = run(out, "mxfp4-w4a16", "--no-fit", **more)
    assert code == 0, stderr
    words = "vLLM 0.40.0 is newer than 0.33, the newest that the recorder was tried on"
    assert words in stderr
    server = json.loads((out / "llama-3.1-8b--mxfp4-w4a16" / "server.json").read_text())
    assert server["vllm_version"] == "0.40.0"
    assert any(words in note for note in server["notes"])
    assert server["kernel"] == "Humming"


def test_a_crash_under_load_keeps_what_was_measured_apart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, result, _ = run(out, "bf16", "--gpus", "0", STUB_MODE="crash-later")
    assert code == 4
    assert "crash" not in result["complete"]
    assert "illegal memory access" in result["failed"]["llama-3.1-8b--bf16"] or (
        "connection lost" in result["failed"]["llama-3.1-8b--bf16"]
    )
    assert [p.name for p in out.iterdir() if p.is_dir()] == []
    # a crash in the last load: the others are not lost, but this is no recording of the campaign
    more = {"STUB_MODE": "crash-later", "STUB_CRASH_PROMPT": "300"}
    code, result, _ = run(out, "bf16", "--gpus", "0", **more)
    partial = out / "llama-3.1-8b--bf16.partial"
    assert str(partial) in result["failed"]["llama-3.1-8b--bf16"]
    assert [p.name for p in out.iterdir() if p.is_dir()] == [partial.name]
    read = read_recording(partial)
    assert [p.label for p in read.phases] == LABELS[:-1]
    assert read.server.raw["incomplete"]


def test_no_driver(tmp_path: Path) -> None:
    code, _, stderr = run(tmp_path / "out", "bf16", FAKE_GPUS="0")
    assert code == 4
    assert "NVML cannot be used: NVML Shared Library Not Found" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("at", "number", "environment"),
    [
        ("starting the server", signal.SIGINT, {"STUB_START_S": "20"}),
        ("ladder", signal.SIGINT, {}),
        ("pre", signal.SIGTERM, {}),
        ("writing the recording", signal.SIGINT, {}),
    ],
)
def test_ctrl_c_leaves_nothing_behind(
    tmp_path: Path, at: str, number: int, environment: dict[str, str]
) -> None:
    out = tmp_path / "out"
    env = stub_environment(**{MARK: str(out)}, **environment)
    process = subprocess.Popen(
        command(out, "bf16,fp8-w8a8"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr
    seen = ""
    while f" {at} (" not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    os.killpg(process.pid, number)  # as a terminal does
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 130
    assert "add --resume to go on" in stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert none_left(str(out)) == []
    left = [p.name for p in out.iterdir()]
    # what was complete a moment before may stay, nothing that is half done
    for name in left:
        assert name == "campaign.json" or is_complete(out / name)
        if name != "campaign.json":
            read_recording(out / name)


def test_a_campaign_that_was_killed_is_cleaned_up_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = stub_environment(**{MARK: str(out)})
    process = subprocess.Popen(
        command(out, "bf16", "--gpus", "0"), env=env, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr
    while " ladder (" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stderr.close()
    assert none_left(str(out)) == []  # the server, the client and the sampler end by themselves
    (left,) = out.iterdir()
    assert left.name.startswith(".llama-3.1-8b--bf16.")
    with pytest.raises(RecordingError):
        read_recording(left)
    code, _, stderr = run(out, "bf16", "--gpus", "0", "--resume", "--no-fit")
    assert code == 0, stderr
    assert sorted(p.name for p in out.iterdir()) == ["campaign.json", "llama-3.1-8b--bf16"]


def test_the_loads_before_a_kill_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = stub_environment(**{MARK: str(out)})
    process = subprocess.Popen(
        command(out, "bf16", "--gpus", "0"), env=env, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr
    while f" {LABELS[-1]} (" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stderr.close()
    assert none_left(str(out)) == []
    code, _, stderr = run(out, "fp8-w8a8", "--gpus", "0", "--no-fit")  # the next campaign
    assert code == 0, stderr
    kept = out / "llama-3.1-8b--bf16.partial"
    assert sorted(p.name for p in out.iterdir()) == [
        "campaign.json",
        kept.name,
        "llama-3.1-8b--fp8-w8a8",
    ]
    read = read_recording(kept)
    labels = [p.label for p in read.phases]
    assert labels == LABELS[: len(labels)]
    assert len(labels) >= 2  # steps and power readings of the last loads may be missing
    assert "killed after" in str(read.server.raw["incomplete"])
    assert len(read.requests) > 0
    assert not is_complete(out / "llama-3.1-8b--bf16")


def test_a_folder_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "llama-3.1-8b--bf16").mkdir()
    code, _, stderr = run(tmp_path, "bf16", "--resume")
    assert code == 2
    assert "is not a whole recording: remove it" in stderr


def test_a_fit_that_fails_does_not_lose_the_recording(campaign: tuple[Path, Result]) -> None:
    # the short loads show too little for a fit
    out, (code, result, stderr) = campaign
    assert code == 0
    assert result["fitted"] == {}
    for name in ("llama-3.1-8b--bf16", "llama-3.1-8b--fp8-w8a8"):
        assert f"Note: {name} was recorded but not fitted: " in stderr
        assert is_complete(out / name)
    assert not list(out.glob("*.profile.json"))


def test_one_bad_fit_does_not_keep_the_others_from_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qsim.calibrate import profiling
    from qsim.cli.calibrate.run import _fit

    def profile_of(folder: Path, out: Path) -> None:
        if folder.name == "a":
            raise ZeroDivisionError("by zero")
        out.write_text("{}")

    monkeypatch.setattr(profiling, "profile_recording", profile_of)
    fitted = _fit({"a": tmp_path / "a", "b": tmp_path / "b"})
    assert fitted == {"b": str(tmp_path / "b.profile.json")}
    assert "a was recorded but not fitted: ZeroDivisionError: by zero" in capsys.readouterr().err


def test_a_profile_states_its_error_on_the_held_out_phases(
    recording_folder: Path, fitted: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one fit is made for all tests: here it matters which are asked for and what becomes of them
    left_out: list[tuple[str, ...]] = []

    def fit_servers(recordings: object, *, exclude_phases: Any, **more: object) -> list[FitResult]:
        left_out.append(tuple(exclude_phases))
        return [fitted]

    monkeypatch.setattr("qsim.calibrate.fit.fitting.fit", lambda recordings, **more: fitted)
    monkeypatch.setattr("qsim.calibrate.validate.validation.fit_servers", fit_servers)
    folder = tmp_path / "toy--bf16"
    shutil.copytree(recording_folder, folder)
    said: list[str] = []
    out = tmp_path / "toy.profile.json"
    profile = profile_recording(folder, out, said.append)
    assert Profile.load(out) == profile
    held_out = {p.label for p in read_recording(folder).phases if p.use == "holdout"}
    assert held_out
    assert set(profile.fit_error["phases"]) == held_out
    assert sorted(left_out) == sorted((label,) for label in held_out)
    assert profile.fit_error["worst_mean"] >= 0
    assert "phases left out, end to end: means within" in (folder / "fit.txt").read_text()
    assert any(label in text for text in said for label in held_out)
    assert not list(tmp_path.glob(".tmp*"))
    # it need not be done again, unless the recording is newer or the profile damaged
    assert is_newer(out, folder)
    os.utime(out, (0, 0))
    assert not is_newer(out, folder)
    out.write_text("{")
    assert not is_newer(out, folder)


PLAN = ["calibrate", "run", "--model", "llama-3.1-8b", "--gpu-type", "h200_sxm", "--out", "x"]


def test_dry_run_prints_plan_commands_and_time(tmp_path: Path) -> None:
    result = qsim(
        *PLAN[:-1], tmp_path / "x", "--methods", "bf16,awq-w4a16+kv-fp8", "--dummy-weights",
        "--dry-run", "--gpus", "2,3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["gpus"] == [[2], [3]]
    assert plan["refused"] == {}
    assert [j["name"] for j in plan["jobs"]] == [
        "llama-3.1-8b--bf16", "llama-3.1-8b--awq-w4a16+kv-fp8",
    ]  # fmt: skip
    for job in plan["jobs"]:
        assert job["command"][:2] == ["vllm", "serve"]
        assert "--no-enable-prefix-caching" in job["command"]
        assert ("--kv-cache-dtype" in job["command"]) == ("kv-fp8" in job["name"])
        assert job["environment"]["CUDA_VISIBLE_DEVICES"] == "2"
        labels = [x["label"] for x in job["loads"]]
        assert labels[0] == "warm"
        assert labels[-1] == "val_overload"
        assert 150 < job["estimated_s"] <= 245
        assert job["complete"] is False
    # side by side: as long as the longer one
    longest = max(j["estimated_s"] for j in plan["jobs"])
    assert plan["estimated_minutes"] == pytest.approx(longest / 60, abs=0.1)
    assert not (tmp_path / "x").exists()


def test_dry_run_of_held_out_loads_alone() -> None:
    result = qsim(
        *PLAN, "--methods", "bf16", "--dummy-weights", "--dry-run", "--only-holdout",
        "--holdout-trace", "burstgpt:requests=900", "--holdout-load", "0.3",
        "--holdout-trace", "azure-conv-2023:requests=900", "--holdout-load", "1.1",
        "--holdout-clients", "8", "--holdout-clients", "32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (planned,) = json.loads(result.stdout)["jobs"]
    assert planned["name"] == "llama-3.1-8b--bf16--check"
    loads = {x["label"]: x["what"] for x in planned["loads"] if x["use"] == "holdout"}
    assert list(loads) == ["val1_30", "val2_110", "clients8", "clients32"]
    assert "burstgpt" in loads["val1_30"]


def test_dry_run_of_real_checkpoints(tmp_path: Path) -> None:
    from tests.catalog.test_models import config

    plain = config(tmp_path / "Plain")
    result = qsim(
        "calibrate", "run", "--model", plain, "--methods", "all", "--gpu-type", "h100_sxm",
        "--out", tmp_path / "x", "--dry-run", "--model-id", "llama-3.1-8b",
    )  # fmt: skip
    plan = json.loads(result.stdout)
    commands = {j["name"]: j["command"] for j in plan["jobs"]}
    assert list(commands) == [f"llama-3.1-8b--{m}" for m in ("bf16", "fp8-w8a8", "fp8-block")]
    for line in commands.values():
        assert line[2] == str(plain)
        assert "dummy" not in line
    fp8 = commands["llama-3.1-8b--fp8-w8a8"]
    assert fp8[fp8.index("--quantization") + 1] == "fp8_per_channel"
    assert "--quantization" not in commands["llama-3.1-8b--bf16"]
    assert "not quantized" in plan["refused"]["llama-3.1-8b--awq-w4a16"]
    for name, reason in plan["refused"].items():
        assert f"Note: {name} is left out: {reason}" in result.stderr


def test_dry_run_with_tensor_parallelism() -> None:
    result = qsim(
        "calibrate", "run", "--model", "llama-3.1-70b", *PLAN[4:], "--methods", "bf16,fp8-w8a8",
        "--dummy-weights", "--dry-run", "--gpus", "0,1,2,3", "--tensor-parallel-size", "2",
    )  # fmt: skip
    plan = json.loads(result.stdout)
    assert plan["gpus"] == [[0, 1], [2, 3]]
    for job in plan["jobs"]:
        assert job["name"].endswith("--tp2")
        assert job["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert job["command"][job["command"].index("--tensor-parallel-size") + 1] == "2"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--methods", "bf17"], ("method is 'bf17'", "bf16")),
        (["--methods", "bf16,bf16"], ("methods has 'bf16' twice",)),
        (["--methods", "bf16", "--minutes", "1"], ("minutes is 1; must be at least 2.0",)),
        (["--methods", "bf16", "--gpus", "a"], ("gpus is 'a'; must be numbers",)),
        (["--methods", "bf16", "--gpus", "0,0"], ("gpus is 0,0; each GPU may be named once",)),
        (["--methods", "bf16", "--gpus", "0", "--tensor-parallel-size", "2"],
         ("tensor_parallel_size is 2; must be at most the number of GPUs, 1",)),
        (["--methods", "bf16", "--server-env", "X"], ("server_env is 'X'; must be NAME=VALUE",)),
        (["--methods", "bf16", "--model-id", "a/b"], ("model_id is 'a/b'; must be of a-z",)),
        (["--methods", "bf16", "--holdout-trace", "no.csv"], ("no.csv",)),
        (["--methods", "bf16", "--holdout-load", "0.5"],
         ("holdout_load is given 1 times, holdout_trace 0 times",)),
        (["--methods", "bf16", "--holdout-trace", "burstgpt:requests=9", "--holdout-load", "65"],
         ("holdout_load is 65; must be 0.01 to 5",)),
        (["--methods", "bf16", "--holdout-clients", "8", "--holdout-clients", "8"],
         ("holdout_clients is 8 twice; give each number once",)),
        (["--methods", "bf16", "--holdout-clients", "0"], ("0 is not in the range 1<=x<=4096",)),
    ],
)  # fmt: skip
def test_wrong_options(more: list[str], words: tuple[str, ...]) -> None:
    fails(qsim(*PLAN, "--dummy-weights", "--dry-run", *more), 2, *words)


def test_a_dry_run_needs_no_gpu(tmp_path: Path) -> None:
    more = ["--model", "llama-3.1-70b", "--dummy-weights", "--methods", "bf16", "--out", "x",
            "--dry-run", "--tensor-parallel-size", "2"]  # fmt: skip
    result = qsim("calibrate", "run", *more)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["gpus"] == [[0, 1]]
    assert "no GPU can be asked here: the plan is for H200 SXM; --gpu-type names" in result.stderr


def test_a_gpu_without_a_power_limit_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "out"
    unknown = {"FAKE_UNSUPPORTED": "limit,clock,temperature"}
    code, _, stderr = run(out, "bf16", "--gpus", "0", "--no-fit", **unknown)
    assert code == 0, stderr
    assert "NVML does not tell the GPU's power limit" in stderr
    server = json.loads((out / "llama-3.1-8b--bf16" / "server.json").read_text())
    assert server["power_limit_w"] is None
    assert any("NVML does not tell the GPU's power limit" in n for n in server["notes"])


def test_an_unknown_gpu() -> None:
    odd = [w if w != "h200_sxm" else "h300" for w in PLAN]
    fails(qsim(*odd, "--methods", "bf16", "--dummy-weights", "--dry-run"), 2, "gpu is 'h300'")


def test_nothing_left_to_measure(tmp_path: Path) -> None:
    code, _, stderr = run(tmp_path / "out", "w4a8-fp8", "--gpu-type", "a100_sxm")
    assert code == 2
    assert "Note: llama-3.1-8b--w4a8-fp8 is left out: not supported on A100" in stderr
    assert "no method is left to measure; see the notes above" in stderr
    assert not (tmp_path / "out").exists()


def test_time_and_groups() -> None:
    assert load_seconds(4.0) == 150.0
    assert load_seconds(8.0, 240.0) == 240.0
    assert groups_of([4, 2, 7], 1) == [(4,), (2,), (7,)]
    assert groups_of([0, 1, 2], 2) == [(0, 1)]
    with pytest.raises(ScenarioError, match="at most the number of GPUs, 1"):
        groups_of([0], 2)


def test_the_state_survives_a_damaged_file(tmp_path: Path) -> None:
    state = CampaignState(tmp_path)
    state.record("a", JobState("complete", 3.0))
    state.record("b", JobState("failed", 1.0, "because"))
    assert CampaignState(tmp_path).jobs == state.jobs
    (tmp_path / "campaign.json").write_text('{"jobs": {"a": {"sta')
    assert CampaignState(tmp_path).jobs == {}


def test_half_a_recording_is_not_complete(tmp_path: Path, campaign: tuple[Path, Result]) -> None:
    folder = tmp_path / "r"
    shutil.copytree(campaign[0] / "llama-3.1-8b--bf16", folder)
    assert is_complete(folder)
    for name in ("server.json", "phases.json", "steps.csv.gz", "requests.csv.gz", "power.csv.gz"):
        moved = (folder / name).rename(tmp_path / name)
        assert not is_complete(folder)
        with pytest.raises(QsimError):
            read_recording(folder)
        moved.rename(folder / name)


def test_calibrate_help_lists_all_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom qsim.cli import main\n"
        "try:\n    main(['calibrate', '--help'])\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("run", "fit", "validate", "agreement", "quality", "table"):
        assert f"\n  {name} " in done.stdout
    loaded = set(done.stderr.split())
    assert not loaded & {"numpy", "scipy", "sklearn", "simpy", "yaml", "pynvml", "matplotlib"}
