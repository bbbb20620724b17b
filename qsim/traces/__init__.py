"""Request traces: what arrives, when, and how long it is."""

from qsim.traces.trace import HashIds, Trace, merge

__all__ = ["HashIds", "Trace", "merge"]
