"""The pictures of a study: one small panel each, those of a group with the same axes."""

from __future__ import annotations

from collections.abc import Iterator

from qsim.optimize.study.result import StudyResult
from qsim.report.figures.study.application import application_panels
from qsim.report.figures.study.panel import Panel
from qsim.report.figures.study.systems import hardware_panels, parallelism_panels
from qsim.report.figures.study.workload import workload_panels

__all__ = ["Panel", "study_panels"]


def study_panels(found: StudyResult) -> Iterator[Panel]:
    """Every picture of a study, in the order of the levels.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    yield from application_panels(found)
    yield from workload_panels(found)
    yield from parallelism_panels(found)
    yield from hardware_panels(found)
