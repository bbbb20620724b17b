"""``Scenario``: what is asked of qsim, the same in Python, in a file and on the command line."""

from qsim.scenario.scenario import Scenario

__all__ = ["Scenario"]
