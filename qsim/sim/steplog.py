"""What every engine step ran, for looking at a run beside a recording of a real server.

The columns are those of a recording's ``steps.csv``, with ``replica`` and ``mode`` before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qsim.sim.timing import PS_PER_MS, PS_PER_S

__all__ = ["MODES", "Step", "to_json_lines", "to_trace_events"]

#: names of the execution modes, by number
MODES = ("decode", "piecewise", "eager")

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


def to_trace_events(steps: Iterable[Step]) -> str:
    """The steps as Chrome trace events: open the file in Perfetto or chrome://tracing.

    A process a replica; its threads are the host (schedule and launch), the GPU, and counters.
    """
    events: list[dict[str, Any]] = []
    seen: set[int] = set()
    for s in steps:
        if s.replica not in seen:
            seen.add(s.replica)
            events.append(_named("process_name", s.replica, 0, f"replica {s.replica}"))
            events.append(_named("thread_name", s.replica, 1, "host thread"))
            events.append(_named("thread_name", s.replica, 2, "GPU"))
        label = f"{sum(n for n, _ in s.prefill)} prefill + {s.num_decode} decode"
        detail = s.to_dict()
        events += [
            _span("schedule", s.replica, 1, s.schedule_ps, s.launch_start_ps, {}),
            _span("launch", s.replica, 1, s.launch_start_ps, s.launch_end_ps, {}),
            _span(label, s.replica, 2, s.gpu_start_ps, s.gpu_end_ps, detail),
            {"name": "update", "ph": "i", "s": "t", "pid": s.replica, "tid": 1}
            | {"ts": s.update_ps / _US},
            {"name": "requests", "ph": "C", "pid": s.replica, "ts": s.update_ps / _US}
            | {"args": {"running": s.running, "waiting": s.waiting}},
            {"name": "KV usage", "ph": "C", "pid": s.replica, "ts": s.update_ps / _US}
            | {"args": {"share": round(s.kv_usage, 6)}},
        ]
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}) + "\n"


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
