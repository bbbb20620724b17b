"""Request traces: what arrives, when, and how long it is.

Reading guide: ``trace`` is the table of requests, ``load`` reads a file or draws a preset,
``formats`` holds one reader a format, ``write`` the writers, ``statistics`` the numbers that
describe a trace. ``synth`` draws traces from a ``Workload``: ``arrivals`` and ``spells`` say when,
``lengths`` how long, ``prefixes`` what prompts share; ``presets`` are workloads measured from
public traces (``data/``), ``custom`` builds one from options.
"""

from qsim.traces.load import iter_preset, load_trace, shape
from qsim.traces.statistics import trace_statistics
from qsim.traces.trace import HashIds, Trace, merge
from qsim.traces.write import write_trace

__all__ = [
    "HashIds",
    "Trace",
    "iter_preset",
    "load_trace",
    "merge",
    "shape",
    "trace_statistics",
    "write_trace",
]
