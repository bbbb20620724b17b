"""A study as a folder: one page, Markdown, JSON, and CSV for every level."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from qsim.files import write_text
from qsim.optimize.study.result import StudyResult
from qsim.report.text.study import study_csvs, study_markdown

__all__ = ["write_study"]

_PAGE = "qsim.report.html.study"


def write_study(folder: Path, found: StudyResult, json_text: str) -> list[str]:
    """Write everything; what was written, by name.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    files = {"study.md": study_markdown(found), "study.json": json_text, **study_csvs(found)}
    if find_spec(_PAGE) is not None and find_spec("matplotlib") is not None:
        page: str = import_module(_PAGE).study_page(found)
        files = {"study.html": page, **files}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
    return list(files)
