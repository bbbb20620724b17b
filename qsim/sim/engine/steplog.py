"""What every engine step ran, for looking at a run beside a recording of a real server.

The columns are those of a recording's ``steps.csv``, with ``replica`` and ``mode`` before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qsim.sim.engine.timing import PS_PER_MS, PS_PER_S

#: names of the execution modes, by number
MODES = ("decode", "piecewise", "eager")

#: spans of a trace-event file: about 20 MB
MOST_SPANS = 20_000

_US = 1_000_000  # ps


@dataclass(slots=True)
class Step:
    """One launched step of one replica; times in ps from the start of the trace."""

    replica: int
    mode: int
    schedule_ps: int
    launch_start_ps: int
    launch_end_ps: int
    gpu_start_ps: int
    gpu_end_ps: int
    prefill: list[tuple[int, int]]
    num_decode: int
    decode_context_tokens: int
    update_ps: int = 0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The step under the names of a recording's columns: seconds, ms, tokens."""
        return {
            "replica": self.replica,
            "mode": MODES[self.mode],
            "schedule_s": self.schedule_ps / PS_PER_S,
            "launch_start_s": self.launch_start_ps / PS_PER_S,
            "launch_end_s": self.launch_end_ps / PS_PER_S,
            "gpu_start_s": self.gpu_start_ps / PS_PER_S,
            "gpu_ms": (self.gpu_end_ps - self.gpu_start_ps) / PS_PER_MS,
            "update_s": self.update_ps / PS_PER_S,
            "prefill_chunks": ";".join(f"{n}@{c}" for n, c in self.prefill),
            "num_prefill_tokens": sum(n for n, _ in self.prefill),
            "num_decode": self.num_decode,
            "decode_context_tokens": self.decode_context_tokens,
            "running": self.running,
            "waiting": self.waiting,
            "kv_usage": round(self.kv_usage, 6),
        }


def to_json_lines(steps: Iterable[Step]) -> str:
    """One JSON object a step, in order of the updates."""
    return "".join(json.dumps(s.to_dict()) + "\n" for s in steps)


def to_trace_events(steps: Iterable[Step], most: int = MOST_SPANS) -> str:
    """The steps as Chrome trace events: open the file in Perfetto or chrome://tracing.

    A process a replica; its threads are the host (schedule and launch), the GPU, and counters. Of
    more than ``most`` steps, several consecutive ones of a replica are one span
    (:func:`steps_a_span`): viewers take files of some ten MB.
    """
    log = list(steps)
    size = steps_a_span(len(log), most)
    events: list[dict[str, Any]] = []
    mine: dict[int, list[Step]] = {}
    for s in log:
        if s.replica not in mine:
            mine[s.replica] = []
            events.append(_named("process_name", s.replica, 0, f"replica {s.replica}"))
            events.append(_named("thread_name", s.replica, 1, "host thread"))
            events.append(_named("thread_name", s.replica, 2, "GPU"))
        group = mine[s.replica]
        group.append(s)
        if len(group) == size:
            events += _events(group)
            group.clear()
    for group in mine.values():
        if group:
            events += _events(group)
    return (
        json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":")) + "\n"
    )


def steps_a_span(steps: int, most: int = MOST_SPANS) -> int:
    """Steps of a replica that are one span of the trace events."""
    return max(1, -(-steps // most))


def _events(group: list[Step]) -> list[dict[str, Any]]:
    """Consecutive steps of one replica as one span on each of its threads."""
    first, last = group[0], group[-1]
    pid = first.replica
    prefill = sum(n for s in group for n, _ in s.prefill)
    decode = sum(s.num_decode for s in group)
    label = f"{prefill} prefill + {decode} decode"
    if len(group) == 1:
        detail = first.to_dict()
        host = [
            _span("schedule", pid, 1, first.schedule_ps, first.launch_start_ps, {}),
            _span("launch", pid, 1, first.launch_start_ps, first.launch_end_ps, {}),
        ]
    else:
        label = f"{len(group)} steps: {label}"
        detail = {
            "steps": len(group),
            "gpu_ms": sum(s.gpu_end_ps - s.gpu_start_ps for s in group) / PS_PER_MS,
            "num_prefill_tokens": prefill,
            "num_decode": decode,
            "decode_context_tokens": sum(s.decode_context_tokens for s in group),
        }
        host_ms = sum(s.launch_end_ps - s.schedule_ps for s in group) / PS_PER_MS
        told = {"steps": len(group), "host_ms": host_ms}
        name = "schedule and launch"
        host = [_span(name, pid, 1, first.schedule_ps, last.launch_end_ps, told)]
    at = {"pid": pid, "ts": last.update_ps / _US}
    running, waiting = (max(getattr(s, k) for s in group) for k in ("running", "waiting"))
    return [
        *host,
        _span(label, pid, 2, first.gpu_start_ps, last.gpu_end_ps, detail),
        {"name": "update", "ph": "i", "s": "t", "tid": 1, **at},
        {"name": "requests", "ph": "C", **at, "args": {"running": running, "waiting": waiting}},
        {"name": "KV usage", "ph": "C", **at}
        | {"args": {"share": round(max(s.kv_usage for s in group), 6)}},
    ]


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _span(
    name: str, pid: int, tid: int, start_ps: int, end_ps: int, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": start_ps / _US,
        "dur": (end_ps - start_ps) / _US,
        "args": args,
    }
