"""Tasks of one's own: a folder of lm-eval's task files (YAML)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qsim.errors import ScenarioError
from qsim.quality.tasks import OWN_NAME, TASKS

__all__ = ["own_tasks"]

#: lm-eval's own key at the beginning of a line; its files hold tags (``!function``) and includes
#: that only it can read
_KEY = re.compile(
    r"""^(?:task|group):[ \t]*(["']?)([^"'#\[{\s][^"'#]*?)\1[ \t]*(?:#.*)?$""", re.MULTILINE
)
#: task files that are looked at, and the largest of them, bytes
_MOST_FILES, _MOST_BYTES = 10_000, 1 << 20


def own_tasks(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Names of the tasks and groups in a folder, with the file of each.

    Raises
    ------
    ScenarioError
        If it is no folder, or a name is one that cannot be stored or given to ``--tasks``.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ScenarioError(
            f"--include-path {os.fspath(folder)!r} is no folder; give the one that holds the task "
            "files (*.yaml)"
        )
    found: dict[str, Path] = {}
    for i, path in enumerate(sorted(root.rglob("*.yaml"))):
        if i >= _MOST_FILES or path.stat().st_size > _MOST_BYTES:
            raise ScenarioError(f"--include-path {os.fspath(folder)!r} holds more than task files")
        for match in _KEY.finditer(path.read_text("utf-8", errors="replace")):
            name = match.group(2).strip()
            if not OWN_NAME.fullmatch(name):
                raise ScenarioError(
                    f"{path}: task {name!r}: must be of letters, digits, '-', '_' and '.', at most "
                    "64, and begin with a letter or digit"
                )
            if name in TASKS or any(name == t.lm_eval for t in TASKS.values()):
                raise ScenarioError(
                    f"{path}: {name!r} is the name of a public task, whose published numbers it "
                    "would be compared with; give yours another name"
                )
            found[name] = path
    return found
