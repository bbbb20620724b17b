"""A made-up recording: what a server that is exactly like a profile would have recorded.

The simulator plays the server, so a fit of the recording must find the profile's numbers again.
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qsim.profiles.schema import ApiTimes, MixedSpan, Power, Profile, Throttle
from qsim.sim.engine.steplog import Step
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace
from tests.make_profile import make_profile

SERVER: dict[str, Any] = {
    "gpu": "h200_sxm",
    "vllm_version": "0.24.0",
    "driver": "1.2",
    "host": "T",
    "model": "toy-1b",
    "method": "bf16",
    "model_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 32000,
        "max_position_embeddings": 16384,
    },
    "quantization_config": None,
    "server_flags": [],
    "tensor_parallel": 1,
    "prefix_caching": False,
    "kv_cache_dtype": "auto",
    "max_model_len": 8192,
    "max_num_batched_tokens": 8192,
    "block_size": 16,
    "num_gpu_blocks": 40000,
}
_GAP_S = 1.0


def true_profile() -> Profile:
    """The server's real numbers; nothing rounds them, nothing throttles."""
    base = make_profile(num_gpu_blocks=40000)
    mixed = MixedSpan(
        tokens=[8, 512],
        base_ms=[5.0, 11.0],
        ms_per_decode_context_token=4e-5,
        ms_per_pair=6e-7,
        ms_per_chunk=0.0,
        ms_per_decode=0.0,
    )
    eager = replace(mixed, tokens=[513, 8192], base_ms=[12.0, 120.0])
    return replace(
        base,
        latency=replace(
            base.latency,
            piecewise=mixed,
            eager=eager,
            throttle=Throttle(690.0, 700.0, 0.0, 0.0, 0.0),
        ),
        host=replace(
            base.host,
            schedule_ms=[0.05, 0.005],
            update_ms=[0.04, 0.002],
            launch_decode_ms=[1.0, 0.002],
            launch_piecewise_ms=[2.5, 0.002],
            launch_eager_ms=[4.0, 0.002],
            wake_ms=0.5,
        ),
        power=Power(
            idle_w=120.0,
            busy_w=300.0,
            j_per_prefill_token=4e-3,
            j_per_decode_token=7e-3,
            j_per_context_token=1.2e-5,
            j_per_pair=1e-7,
            cap_w=2000.0,
            tau_s=0.05,
        ),
    )


def _loads(rng: np.random.Generator) -> list[tuple[str, str, Trace]]:
    def burst(n: int, prompt: int, output: int) -> Trace:
        return _trace(np.zeros(n), np.full(n, prompt), np.full(n, output))

    def poisson(n: int, rate: float) -> Trace:
        prompts = np.exp(rng.uniform(np.log(16), np.log(4096), n)).astype(int)
        outputs = np.exp(rng.uniform(np.log(8), np.log(200), n)).astype(int)
        return _trace(np.cumsum(rng.exponential(1 / rate, n)), prompts, outputs)

    singles = np.repeat([32, 128, 256, 512, 1024, 2048, 4096, 8000], 3)
    loads = [("warm", "burst", burst(8, 64, 8))]
    loads += [(f"dec{n}", "burst", burst(n, 64, 60)) for n in (1, 4, 8, 16, 32, 64)]
    loads.append(("ctx8", "burst", burst(8, 3000, 40)))
    loads.append(("prefill", "rows", _trace(np.arange(24) * 0.25, singles, np.full(24, 2))))
    loads.append(("mixlo", "poisson", poisson(60, 6.0)))
    loads.append(("val_mix", "poisson", poisson(120, 18.0)))
    return loads


def _trace(arrival: Any, prompt: Any, output: Any) -> Trace:
    return Trace(
        arrival_s=np.asarray(arrival, dtype=float),
        prompt_tokens=np.asarray(prompt, dtype=np.int64),
        output_tokens=np.asarray(output, dtype=np.int64),
    )


def write_recording(
    folder: Path, *, gpu_spans: bool = True, seed: int = 0, api: ApiTimes | None = None
) -> Path:
    """Write a recording of a server that is exactly like ``true_profile()``."""
    profile = true_profile()
    profile = replace(profile, frontend=replace(profile.frontend, api=api))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.json").write_text(json.dumps(SERVER))
    phases, steps, requests = [], [], []
    busy: list[tuple[float, float, float]] = []  # start, end, joules of work
    start = 0.0
    for label, load, trace in _loads(np.random.default_rng(seed)):
        log: list[Step] = []
        options = EngineOptions(enable_prefix_caching=False, max_model_len=8192)
        result = simulate(trace, profile, options=options, step_log=log)
        for s in log:
            steps.append(_step(label, s, start, gpu_spans))
            busy.append((start + s.gpu_start_ps / 1e12, start + s.gpu_end_ps / 1e12, _work_j(s)))
        for i in range(len(trace)):
            sent = start + float(trace.arrival_s[i])
            requests.append(
                [label, i, f"{sent:.9f}", trace.prompt_tokens[i], trace.output_tokens[i],
                 f"{sent + result.ttft_ms[i] / 1e3:.9f}", f"{sent + result.e2el_ms[i] / 1e3:.9f}",
                 ""]
            )  # fmt: skip
        first = start + float(trace.arrival_s[0])
        end = max(start + float(trace.arrival_s[i]) + result.e2el_ms[i] / 1e3
                  for i in range(len(trace)))  # fmt: skip
        phases.append({"label": label, "what": label, "load": load, "start_s": first, "end_s": end,
                       "energy_j": sum(r["energy_j"] for r in result.replica_stats)})  # fmt: skip
        start = end + _GAP_S
    (folder / "phases.json").write_text(json.dumps(phases))
    _write(folder / "steps.csv.gz", STEP_COLUMNS, steps)
    _write(folder / "requests.csv.gz", REQUEST_COLUMNS, requests)
    _write(folder / "power.csv.gz", POWER_COLUMNS, _power(profile.power, busy, start))
    return folder


STEP_COLUMNS = [
    *("phase", "schedule_s", "schedule_dur_s", "launch_start_s", "launch_end_s"),
    *("sample_start_s", "sample_end_s", "gpu_ms", "update_s", "update_dur_s", "prefill_chunks"),
    *("num_prefill_tokens", "num_decode", "decode_context_tokens", "running", "waiting"),
    "kv_usage",
]
REQUEST_COLUMNS = [
    *("phase", "request_id", "sent_s", "prompt_tokens", "output_tokens", "first_token_s"),
    *("last_token_s", "max_gap_s"),
]
POWER_COLUMNS = [
    *("t_s", "energy_mj", "power_avg_mw", "power_instant_mw", "sm_clock_mhz", "temperature_c"),
]


def _step(label: str, s: Step, start: float, gpu_spans: bool) -> list[Any]:
    def at(ps: int) -> str:
        return f"{start + ps / 1e12:.9f}"

    rows = s.num_decode + len(s.prefill)
    host = true_profile().host
    update_s = (host.update_ms[0] + host.update_ms[1] * rows) / 1e3
    launch = [at(s.launch_start_ps), at(s.launch_end_ps), at(s.launch_end_ps), at(s.launch_end_ps)]
    gpu_ms = f"{(s.gpu_end_ps - s.gpu_start_ps) / 1e9:.6f}"
    return [
        label,
        at(s.schedule_ps),
        f"{(s.launch_start_ps - s.schedule_ps) / 1e12:.9f}",
        *(launch if gpu_spans else [""] * 4),
        gpu_ms if gpu_spans else "",
        at(s.update_ps),
        f"{update_s:.9f}",
        ";".join(f"{n}@{c}" for n, c in s.prefill),
        sum(n for n, _ in s.prefill),
        s.num_decode,
        s.decode_context_tokens,
        s.running,
        s.waiting,
        f"{s.kv_usage:.6f}",
    ]


def _work_j(s: Step) -> float:
    p = true_profile().power
    pairs = sum(n * (c + (n + 1) / 2) for n, c in s.prefill)
    return (
        p.busy_w * (s.gpu_end_ps - s.gpu_start_ps) / 1e12
        + p.j_per_prefill_token * sum(n for n, _ in s.prefill)
        + p.j_per_decode_token * s.num_decode
        + p.j_per_context_token * s.decode_context_tokens
        + p.j_per_pair * pairs
    )


def _power(p: Power, busy: list[tuple[float, float, float]], end: float) -> list[list[Any]]:
    """The energy counter every 100 ms."""
    x, y, total = [-1.0], [0.0], 0.0
    for a, b, joules in sorted(busy):
        x += [a, b]
        y += [total, total + joules]
        total += joules
    t = np.arange(-1.0, end, 0.1)
    e = 1e6 + p.idle_w * (t + 1.0) + np.interp(t, x, y)
    power = np.gradient(e, t)
    return [
        [f"{a:.4f}", round(b * 1e3), round(c * 1e3), round(c * 1e3), 1980, 40]
        for a, b, c in zip(t, e, power, strict=True)
    ]


def _write(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
