"""The simulator: scheduler, engine, fleet, results.

Some modules may have been compiled (setup.py). They come from the same sources, which are used
instead if the environment sets QSIM_PURE=1, or if a source tree holds newer ones.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path

__all__: list[str] = []


class _Sources:
    """Finds this package's modules among its sources only."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """As importlib wants it."""
        if not name.startswith("qsim.sim."):
            return None
        specs = (FileFinder(p, (SourceFileLoader, [".py"])).find_spec(name) for p in path or ())
        return next((spec for spec in specs if spec is not None), None)


def _outdated() -> bool:
    """Whether a source tree's modules were compiled before they were last written."""
    folder = Path(__file__).parent
    if not (folder.parents[1] / "pyproject.toml").exists():
        return False
    for compiled in folder.rglob("*"):
        if compiled.suffix in (".so", ".pyd"):
            source = compiled.with_name(f"{compiled.name.partition('.')[0]}.py")
            if source.exists() and compiled.stat().st_mtime < source.stat().st_mtime:
                return True
    return False


if os.environ.get("QSIM_PURE") == "1" or _outdated():
    sys.meta_path.insert(0, _Sources)
