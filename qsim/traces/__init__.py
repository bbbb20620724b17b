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
    from qsim.traces.load import iter_preset as iter_preset
    from qsim.traces.load import load_trace as load_trace
    from qsim.traces.load import shape as shape
    from qsim.traces.reconstruct.reconstruct import (
        reconstruct_from_metrics as reconstruct_from_metrics,
    )
    from qsim.traces.reconstruct.reconstruct import (
        reconstruct_from_numbers as reconstruct_from_numbers,
    )
    from qsim.traces.statistics import trace_statistics as trace_statistics
    from qsim.traces.trace import HashIds as HashIds
    from qsim.traces.trace import Trace as Trace
    from qsim.traces.trace import Turns as Turns
    from qsim.traces.trace import merge as merge
    from qsim.traces.write import write_trace as write_trace

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

__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(f"qsim.traces.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'qsim.traces' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
