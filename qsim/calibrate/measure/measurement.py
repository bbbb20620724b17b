"""Measure one method on one server: start it, send the loads, stop it, write the recording."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qsim.calibrate.measure.host_speed import HostSpeed, cpu_name, host_speed
from qsim.calibrate.measure.job import SERVED_NAME, Job, prepared_server, server_flags
from qsim.calibrate.measure.journal import LEAST_LOADS, Journal
from qsim.calibrate.measure.load import LoadClient
from qsim.calibrate.measure.power import PowerSampler, read_samples
from qsim.calibrate.measure.server import Server, ServerFacts
from qsim.calibrate.measure.speed import Speed
from qsim.calibrate.measure.tidy import Measured, write_recording
from qsim.calibrate.measure.workload import GAP_S, Limits, Phase, phases, total_s
from qsim.calibrate.recorder import Hooks, StepRow, read_hooks, read_steps
from qsim.catalog.gpus import GIB
from qsim.catalog.methods import METHODS, weight_bytes
from qsim.catalog.versions import NEWEST, OLDEST
from qsim.errors import CalibrationError

#: after the last load: for the energy counter to catch up, and at most for the recorder's files, s
_SETTLE_S, _MOST_WAIT_S = 0.8, 30.0
#: how long the host's own speed is measured
_HOST_S = 0.5

#: called with (what is being measured, seconds of this job that are left)
Progress = Callable[[str, float], None]


def planned(job: Job) -> list[Phase]:
    """The loads as far as they can be known before the server was seen."""
    a, tp = job.model.architecture, job.tensor_parallel_size
    free = job.gpu.memory_bytes * 0.92 - weight_bytes(job.method, a, tp) - 2.5 * GIB
    per_token = a.kv_bytes_per_token(job.method.kv_bytes_per_value, tp)
    limits = _limits(job, max(job.model_len, int(free / per_token)), 8192)
    return list(_phases(job, limits))


def _phases(job: Job, limits: Limits) -> Generator[Phase, Speed | None, None]:
    return phases(
        job.speed, limits, job.load_s, job.seed, job.holdout, job.only_holdout, job.clients
    )


def _limits(job: Job, kv_tokens: int, batched: int) -> Limits:
    return Limits(kv_tokens, job.model_len, job.max_num_seqs, batched)


def measure(
    job: Job,
    gpus: Sequence[int],
    out: Path,
    progress: Progress,
    check_cancelled: Callable[[], None],
) -> Path:
    """Measure one server and return the recording's folder, ``out / job.name``.

    The folder appears at the end, whole; until then the work is in a hidden folder beside it, which
    is removed whatever happens, except that the log of a failed server is kept as
    ``<name>.failed.log``. ``gpus`` are NVML's numbers; ``progress`` is told what is being measured
    and how many seconds are left; what ``check_cancelled`` raises, which is called often, ends it.

    Raises
    ------
    CalibrationError
        If the server does not come up, answers wrongly, or is not what was asked for.
    """
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{job.name}.{os.getpid()}.", dir=out))
    server: Server | None = None
    try:
        server, config = prepared_server(job, gpus, work)
        folder = _run(job, gpus, work, server, config, progress, check_cancelled)
        target = out / job.name
        os.replace(folder, target)
        (out / f"{job.name}.failed.log").unlink(missing_ok=True)  # of an earlier try
        shutil.rmtree(out / f"{job.name}.partial", ignore_errors=True)
        return target
    except CalibrationError as e:
        _sleep(0.5, check_cancelled)  # Ctrl-C may reach a process that is just starting before us
        log, kept = work / "server.log", out / f"{job.name}.failed.log"
        if log.exists():
            shutil.copyfile(log, kept)
        raise CalibrationError(str(e).replace(str(log), str(kept))) from e
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(work, ignore_errors=True)


def _run(
    job: Job,
    gpus: Sequence[int],
    work: Path,
    server: Server,
    config: dict[str, Any],
    progress: Progress,
    check_cancelled: Callable[[], None],
) -> Path:
    plan = planned(job)
    left_s = total_s(plan)

    def waiting(waited_s: float) -> None:
        check_cancelled()
        progress("starting the server", max(5.0, job.start_s - waited_s) + left_s)

    loads: list[Measured] = []
    failure: CalibrationError | None = None
    speed = host_speed(_HOST_S)  # while nothing else runs here
    with ExitStack() as stack:
        sampler = PowerSampler(list(gpus), work / "power.csv")
        stack.callback(sampler.stop)
        stack.callback(server.stop)
        server.start()
        server.wait_healthy(job.start_timeout_s, waiting)
        hooks = read_hooks(work / "recorder")
        facts = server.facts()
        _check_server(job, facts)
        if (newer := _newer(facts.vllm_version)) is not None:
            progress(newer, left_s)
        described = _describe(job, gpus, config, facts, hooks, speed)
        journal = Journal(work, described)
        client = LoadClient(
            server.port, model=SERVED_NAME, vocab_size=job.model.architecture.vocab_size
        )
        stack.callback(client.close)
        try:
            _loads(
                job, server, client, work, facts, plan, loads, journal, progress, check_cancelled
            )
            progress("writing the recording", 5.0)
        except CalibrationError as e:
            if len(loads) < LEAST_LOADS:
                raise
            failure = e  # what was measured was expensive: keep it, under another name
        _sleep(_SETTLE_S, check_cancelled)
        if failure is None:
            _await_steps(work, loads, check_cancelled)
    steps = read_steps(work / "recorder" / "rows")
    power = read_samples(work / "power.csv")
    folder = work / "recording"
    if failure is not None:
        described["incomplete"] = str(failure)
    write_recording(folder, described, loads, steps, power)
    with open(server.log, "rb") as f, gzip.open(folder / "server.log.gz", "wb") as g:
        shutil.copyfileobj(f, g)
    if failure is not None:
        partial = work.parent / f"{job.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        os.replace(folder, partial)
        raise CalibrationError(f"{failure} (the loads before it are kept in {partial})")
    return folder


def _loads(
    job: Job,
    server: Server,
    client: LoadClient,
    work: Path,
    facts: ServerFacts,
    plan: Sequence[Phase],
    loads: list[Measured],
    journal: Journal,
    progress: Progress,
    check_cancelled: Callable[[], None],
) -> None:
    """Send all loads, appending each to ``loads`` and to the journal."""

    def waiting() -> None:
        check_cancelled()
        server.check_alive()

    limits = _limits(
        job,
        (facts.num_gpu_blocks - 1) * facts.block_size,
        facts.max_num_batched_tokens or 8192,
    )
    expected = {p.label: p.expected_s + GAP_S for p in plan}
    maker = _phases(job, limits)
    phase = next(maker)
    while True:
        done = {m.phase.label for m in loads}
        later_s = sum(s for k, s in expected.items() if k not in done and k != phase.label)
        progress(phase.label, phase.expected_s + later_s)
        if phase.streams:
            load = {"label": phase.label, "seed": [job.seed, len(loads)], "streams": phase.streams}
            result = client.run(load, 60.0 + 8.0 * phase.expected_s, waiting)
            loads.append(Measured(phase, result.start_s, result.end_s, result))
        else:
            start = time.perf_counter()
            _sleep(phase.idle_s, waiting)
            loads.append(Measured(phase, start, time.perf_counter(), None))
        journal.append(loads[-1])
        _sleep(GAP_S, waiting)
        try:
            phase = maker.send(job.speed.observed(_steps_so_far(work)))
        except StopIteration:
            return


def _steps_so_far(work: Path) -> list[StepRow]:
    try:
        return read_steps(work / "recorder" / "rows")
    except CalibrationError:  # nothing yet
        return []


def _await_steps(work: Path, loads: Sequence[Measured], check: Callable[[], None]) -> None:
    """Wait, but not for ever, until the recorder has written the steps of all loads."""
    requests = [r for m in loads if m.result is not None for r in m.result.requests]
    decodes = sum(r.output_tokens - 1 for r in requests)
    given_up_s = time.perf_counter() + _MOST_WAIT_S
    while time.perf_counter() < given_up_s:
        steps = (s for s in _steps_so_far(work) if s.schedule_end_s >= loads[0].start_s)
        if sum(s.num_decode for s in steps) >= decodes:
            return
        _sleep(0.5, check)


def _sleep(seconds: float, check: Callable[[], None]) -> None:
    deadline = time.perf_counter() + seconds
    while (left := deadline - time.perf_counter()) > 0:
        check()
        time.sleep(min(0.1, left))


def _check_server(job: Job, facts: ServerFacts) -> None:
    release = _release(facts.vllm_version)
    if release is not None and release < OLDEST:
        raise CalibrationError(
            f"the server is vLLM {facts.vllm_version}; calibration needs 0.24 or newer"
        )
    if facts.weights_gib is None:
        return
    a, tp = job.model.architecture, job.tensor_parallel_size
    expected = weight_bytes(job.method, a, tp) / GIB
    bf16 = weight_bytes(METHODS["bf16"], a, tp) / GIB
    off = abs(facts.weights_gib - expected)
    if off > 0.2 * expected + 0.2 or (
        off > 0.05 * expected and off > abs(facts.weights_gib - bf16)
    ):
        raise CalibrationError(
            f"{job.method.id} should load {expected:.2f} GiB of weights on each GPU, the server "
            f"loaded {facts.weights_gib:.2f} GiB: it does not use this method (vLLM falls back to "
            "bf16 without an error when it does not recognise a configuration)"
        )


def _release(version: str) -> tuple[int, int] | None:
    """(major, minor); None for a version that cannot be read, such as that of a build from git."""
    found = re.match(r"v?(\d+)\.(\d+)(?!\d)", version)
    return (int(found[1]), int(found[2])) if found else None


def _newer(version: str) -> str | None:
    """What to know of a server newer than any that the recorder was tried on; None for others."""
    release = _release(version)
    if release is None or release <= NEWEST:
        return None
    return (
        f"vLLM {version} is newer than {NEWEST[0]}.{NEWEST[1]}, the newest that the recorder was "
        "tried on: all its hooks took hold, but look at the token balance of the recording"
    )


def _describe(
    job: Job,
    gpus: Sequence[int],
    config: dict[str, Any],
    facts: ServerFacts,
    hooks: Sequence[Hooks],
    speed: HostSpeed,
) -> dict[str, Any]:
    drop = ("quantization_config", "compression_config")
    runner = [h.hooks["model_runner"] for h in hooks if "model_runner" in h.hooks]
    waited_s = sum(float(h.hooks.get("waited_for_gpus_s", "0")) for h in hooks)
    notes = [
        "greedy sampling, ignore_eos: every request generates exactly output_tokens tokens",
        "token ids are sent as the prompt; the client runs on the server's host and speaks HTTP "
        "with streaming (/v1/completions)",
        "GPU spans by CUDA events before execute_model and after sample_tokens on the compute "
        "stream of rank 0",
    ]
    if job.dummy_weights:
        notes.append(
            "weights are dummies; integer and FP8 tensors are drawn from normal distributions (FP4 "
            "codes uniformly) so that the power is not that of zeros"
        )
    if job.power_limit_w is None:
        notes.append(
            "NVML does not tell the GPU's power limit: a profile takes its type's usual one"
        )
    if (newer := _newer(facts.vllm_version)) is not None:
        notes.append(newer)
    if facts.weights_gib is None:
        notes.append(
            "the server's log does not tell the bytes of the weights: that it really uses this "
            "method was not checked"
        )
    return {
        "gpu": job.gpu.id,
        "vllm_version": facts.vllm_version,
        "driver": job.driver,
        "host": cpu_name(),
        "host_speed": speed.to_dict(),
        "date": datetime.now(UTC).date().isoformat(),
        "gpu_index": gpus[0],
        "gpus": list(gpus),
        "model": job.model.id,
        "method": job.method.id,
        "model_config": {k: v for k, v in config.items() if k not in drop},
        "quantization_config": config.get("quantization_config"),
        "server_flags": server_flags(job),
        "server_env": dict(job.server_env),
        "dummy_weights": job.dummy_weights,
        "tensor_parallel": job.tensor_parallel_size,
        "prefix_caching": False,
        "kv_cache_dtype": "fp8" if job.method.kv_fp8 else "auto",
        "kv_cache_memory_bytes": None,
        "gpu_memory_utilization": "default",
        "max_model_len": job.model_len,
        "max_num_batched_tokens": facts.max_num_batched_tokens or 8192,
        "max_num_seqs": job.max_num_seqs,
        "block_size": facts.block_size,
        "num_gpu_blocks": facts.num_gpu_blocks,
        "kv_cache_gib": facts.kv_cache_gib,
        "weights_gib": facts.weights_gib,
        **({"memory_gib": dict(facts.memory_gib)} if facts.memory_gib else {}),
        "catalogue_weight_bytes": weight_bytes(
            job.method, job.model.architecture, job.tensor_parallel_size
        ),
        "kernel": job.method.kernel(job.gpu, _release(facts.vllm_version)),
        "graph_sizes": list(facts.graph_sizes),
        "model_runner": runner[0] if runner else "",
        "power_limit_w": job.power_limit_w,
        "server_start_s": round(facts.start_s - waited_s, 1),
        **({"waited_for_gpus_s": round(waited_s, 1)} if waited_s else {}),
        "seed": job.seed,
        "notes": notes,
    }
