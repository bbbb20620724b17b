"""Turn what was measured into a recording: five files on one clock that starts at the first load.

``qsim.calibrate.recordings.read`` reads the result.
"""

from __future__ import annotations

import csv
import gzip
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qsim.calibrate.measure.load import LoadResult, RequestRow
from qsim.calibrate.measure.power import PowerSample
from qsim.calibrate.measure.workload import Phase
from qsim.calibrate.recorder.read import StepRow
from qsim.calibrate.validate.comparison import METRICS, STATISTICS, latencies, statistics
from qsim.errors import CalibrationError

STEP_COLUMNS = ["phase", "schedule_s", "schedule_dur_s", "launch_start_s", "launch_end_s"]
STEP_COLUMNS += ["sample_start_s", "sample_end_s", "gpu_ms", "update_s", "update_dur_s"]
STEP_COLUMNS += ["prefill_chunks", "num_prefill_tokens", "num_decode", "decode_context_tokens"]
STEP_COLUMNS += ["running", "waiting", "kv_usage", "mode", "padded_tokens"]
STEP_COLUMNS += ["decode_context_max"]
REQUEST_COLUMNS = ["phase", "request_id", "sent_s", "prompt_tokens", "output_tokens"]
REQUEST_COLUMNS += ["first_token_s", "last_token_s", "max_gap_s"]
#: readings of the power kept before the first load, s
LEAD_S = 1.0
POWER_COLUMNS = ["t_s", "energy_mj", "power_avg_mw", "power_instant_mw", "sm_clock_mhz"]
POWER_COLUMNS += ["temperature_c"]


@dataclass(frozen=True)
class Measured:
    """One load that was run. Idling has no result, only its times."""

    phase: Phase
    start_s: float
    end_s: float
    result: LoadResult | None


def write_recording(
    folder: Path,
    server: dict[str, Any],
    loads: Sequence[Measured],
    steps: Sequence[StepRow],
    power: Sequence[PowerSample],
) -> dict[str, Any]:
    """Write the files into ``folder``.

    Returns
    -------
    dict
        Facts about the recording: ``zero_s`` (the clock's start), counts, the recorder's cost, and
        the tokens that requests and steps disagree on.

    Raises
    ------
    CalibrationError
        If no step was recorded, the steps lack GPU spans, or power was not sampled throughout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    zero = loads[0].start_s
    index = phase_of_steps(loads, steps)
    kept = [(i, s) for i, s in zip(index, steps, strict=True) if i >= 0]
    if not kept:
        raise CalibrationError("no engine step was recorded during the loads")
    if not power or power[0].t_s > zero or power[-1].t_s < loads[-1].end_s:
        raise CalibrationError(
            f"power was not sampled during all of the loads ({len(power)} readings): the process "
            "that reads NVML ended early"
        )
    with_span = sum(s.gpu_ms is not None for _, s in kept)
    if with_span < 0.99 * len(kept):
        raise CalibrationError(
            f"only {with_span} of {len(kept)} steps have a GPU span: the recorder in the GPU "
            "worker failed; see the server's log"
        )
    labels = [m.phase.label for m in loads]
    _write_csv(folder / "steps.csv.gz", STEP_COLUMNS, (_step(labels[i], s, zero) for i, s in kept))
    _write_csv(
        folder / "requests.csv.gz",
        REQUEST_COLUMNS,
        (
            _request(m.phase.label, r, zero)
            for m in loads
            if m.result is not None
            for r in sorted(m.result.requests, key=lambda r: r.sent_s)
        ),
    )
    _write_csv(
        folder / "power.csv.gz",
        POWER_COLUMNS,
        (
            [
                _seconds(p.t_s - zero),
                p.energy_mj,
                p.power_avg_mw,
                p.power_instant_mw,
                p.sm_clock_mhz,
                p.temperature_c,
            ]
            for p in power
            if p.t_s >= zero - LEAD_S  # before, the server started up
        ),
    )
    balance = _balance(loads, [s for _, s in kept])
    facts: dict[str, Any] = {
        "zero_s": zero,
        "steps": len(kept),
        "requests": sum(len(m.result.requests) for m in loads if m.result is not None),
        "recorder_cost": recorder_cost([s for _, s in kept]),
        "token_balance": balance,
    }
    if list(balance.values())[::2] != list(balance.values())[1::2]:
        note = "steps and requests differ in tokens, as they do when requests were preempted"
        facts["notes"] = [*server.get("notes", []), note]
    _write_json(folder / "phases.json", [_phase(m, zero, power) for m in loads])
    _write_json(folder / "server.json", {**server, **facts})
    return facts


def phase_of_steps(loads: Sequence[Measured], steps: Sequence[StepRow]) -> list[int]:
    """The load that each step was scheduled in, by time; -1 for none.

    A step may be scheduled a moment after the last token was received: it belongs to that load.
    """
    starts = [m.start_s for m in loads]
    return [bisect_right(starts, s.schedule_end_s) - 1 for s in steps]


def recorder_cost(steps: Sequence[StepRow]) -> dict[str, Any]:
    """The recorder's own time: mean us a step, its share of the time of a step, us by mode.

    A step takes its GPU span, or the host's time for it where that is longer. The mean counts what
    the recorder's CUDA events wait for room in a full launch queue, where the next launch would
    have waited otherwise; the median of each mode (``full``, ``piecewise``, ``none``) does not.
    """

    def own_s(s: StepRow) -> float:
        return s.own_s + s.worker_own_s

    total_s = sum(map(own_s, steps))
    step_s = sum(
        max(
            (s.gpu_ms or 0.0) / 1e3,
            (s.schedule_end_s - s.schedule_s)
            + (s.sample_end_s - s.launch_start_s)
            + (s.update_end_s - s.update_s),
        )
        for s in steps
    )
    modes = {m: [own_s(s) for s in steps if s.mode == m] for m in sorted({s.mode for s in steps})}
    return {
        "mean_us_per_step": round(1e6 * total_s / max(1, len(steps)), 2),
        "share_of_step_time": round(total_s / step_s, 6) if step_s > 0 else 0.0,
        "by_mode": {
            mode or "unknown": {
                "steps": len(own),
                "mean_us": round(1e6 * sum(own) / len(own), 2),
                "median_us": round(1e6 * median(own), 2),
            }
            for mode, own in modes.items()
        },
    }


def summary(requests: Sequence[RequestRow], duration_s: float) -> dict[str, Any]:
    """Latencies and throughputs with the definitions of vLLM's serving benchmark."""
    outputs = np.array([r.output_tokens for r in requests], dtype=int)
    ttft_ms = np.array([1e3 * (r.first_token_s - r.sent_s) for r in requests])
    e2el_ms = np.array([1e3 * (r.last_token_s - r.sent_s) for r in requests])
    values = latencies(ttft_ms, e2el_ms, outputs)
    told = statistics(values)
    return {
        "completed": len(requests),
        "duration_s": round(duration_s, 6),
        "total_input_tokens": sum(r.prompt_tokens for r in requests),
        "total_output_tokens": int(outputs.sum()),
        "request_throughput": len(requests) / duration_s,
        "output_throughput": int(outputs.sum()) / duration_s,
        **{m: {s: told[f"{s}_{m}"] for s in STATISTICS} if m in values else {} for m in METRICS},
    }


def _phase(m: Measured, zero: float, power: Sequence[PowerSample]) -> dict[str, Any]:
    t = [p.t_s for p in power]
    e = [p.energy_mj / 1e3 for p in power]
    energy_j = float(np.interp(m.end_s, t, e) - np.interp(m.start_s, t, e))
    duration_s = m.end_s - m.start_s
    data: dict[str, Any] = {
        "label": m.phase.label,
        "what": m.phase.what,
        "load": m.phase.load,
        "use": m.phase.use,
        "start_s": round(m.start_s - zero, 6),
        "end_s": round(m.end_s - zero, 6),
        "energy_j": round(energy_j, 3),
        "avg_power_w": round(energy_j / duration_s, 2),
    }
    if m.phase.clients is not None:
        data["clients"] = m.phase.clients
    if m.result is not None:
        data["summary"] = summary(m.result.requests, duration_s)
    return data


def _balance(loads: Sequence[Measured], steps: Sequence[StepRow]) -> dict[str, int]:
    """Prompt and output tokens of the requests, and those found in the steps.

    Every request's first token comes from its prefill, so the decodes are the tokens behind it.
    """
    requests = [r for m in loads if m.result is not None for r in m.result.requests]
    return {
        "prompt_tokens": sum(r.prompt_tokens for r in requests),
        "prefill_tokens_in_steps": sum(n for s in steps for n, _ in s.chunks),
        "decode_tokens": sum(r.output_tokens - 1 for r in requests),
        "decode_tokens_in_steps": sum(s.num_decode for s in steps),
    }


def _seconds(value: float) -> str:
    return f"{value:.6f}"


def _step(label: str, s: StepRow, zero: float) -> list[Any]:
    def time(value: float) -> str:
        return _seconds(value - zero) if value > 0 else ""

    return [
        label,
        time(s.schedule_s),
        _seconds(s.schedule_end_s - s.schedule_s),
        time(s.launch_start_s),
        time(s.launch_end_s),
        time(s.sample_start_s),
        time(s.sample_end_s),
        "" if s.gpu_ms is None else f"{s.gpu_ms:.4f}",
        time(s.update_s),
        _seconds(s.update_end_s - s.update_s),
        ";".join(f"{n}@{c}" for n, c in s.chunks),
        sum(n for n, _ in s.chunks),
        s.num_decode,
        s.decode_context_tokens,
        s.running,
        s.waiting,
        f"{s.kv_usage:.6f}",
        s.mode,
        s.padded_tokens or "",
        s.decode_context_max,
    ]


def _request(label: str, r: RequestRow, zero: float) -> list[Any]:
    return [
        label,
        r.request_id,
        _seconds(r.sent_s - zero),
        r.prompt_tokens,
        r.output_tokens,
        _seconds(r.first_token_s - zero),
        _seconds(r.last_token_s - zero),
        _seconds(r.max_gap_s),
    ]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
