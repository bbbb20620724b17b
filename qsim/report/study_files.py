"""A study as a folder: one page, its pictures, Markdown, JSON, and CSV for every level."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from qsim.files import write_text
from qsim.optimize.study.result import StudyResult
from qsim.report.text.study import study_csvs, study_markdown

__all__ = ["write_study"]

#: folder of the pictures, in that of the study
PICTURES = "pictures"


def write_study(folder: Path, found: StudyResult, json_text: str) -> list[str]:
    """Write everything; what was written, by name.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    files = {"study.md": study_markdown(found), "study.json": json_text, **study_csvs(found)}
    drawn = []
    if all(find_spec(name) is not None for name in ("matplotlib", "jinja2")):
        from qsim.report.figures.study import study_panels
        from qsim.report.html.study import study_page

        drawn = list(study_panels(found))
        files = {"study.html": study_page(found, drawn), **files}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
    if drawn:
        from qsim.report.html.study import write_study_pictures

        pictures = write_study_pictures(folder / PICTURES, drawn)
        return [*files, *(f"{PICTURES}/{name}" for name in pictures)]
    return list(files)
