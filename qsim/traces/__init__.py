"""Request traces: what arrives, when, and how long it is.

Reading guide: ``trace`` is the table of requests, ``load`` reads a file or draws a preset,
``parts`` does so part by part, ``formats`` holds one reader a format, ``write`` the writers,
``statistics`` the numbers that describe a trace. ``synth`` draws traces from a ``Workload``:
``arrivals`` and ``bursts`` say when, ``lengths`` how long, ``prefixes`` what prompts share;
``presets`` are workloads measured from public traces (``data/``), ``custom`` builds one from
options. ``reconstruct`` makes workloads of aggregates.

The names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsim.traces.load import iter_preset, load_trace, shape
    from qsim.traces.reconstruct.reconstruct import (
        reconstruct_from_metrics,
        reconstruct_from_numbers,
    )
    from qsim.traces.statistics import trace_statistics
    from qsim.traces.trace import HashIds, Trace, Turns, merge
    from qsim.traces.write import write_trace

_WHERE = {
    "HashIds": "trace",
    "Trace": "trace",
    "Turns": "trace",
    "iter_preset": "load",
    "load_trace": "load",
    "merge": "trace",
    "reconstruct_from_metrics": "reconstruct.reconstruct",
    "reconstruct_from_numbers": "reconstruct.reconstruct",
    "shape": "load",
    "trace_statistics": "statistics",
    "write_trace": "write",
}

__all__ = [
    "HashIds",
    "Trace",
    "Turns",
    "iter_preset",
    "load_trace",
    "merge",
    "reconstruct_from_metrics",
    "reconstruct_from_numbers",
    "shape",
    "trace_statistics",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(f"qsim.traces.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'qsim.traces' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
