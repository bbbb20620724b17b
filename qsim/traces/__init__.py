"""Request traces: what arrives, when, and how long it is."""

from qsim.traces.load import load_trace, shape
from qsim.traces.trace import HashIds, Trace, merge

__all__ = ["HashIds", "Trace", "load_trace", "merge", "shape"]
