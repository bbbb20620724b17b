"""Compiles the modules of the simulator's inner loop, if asked to; all else is in pyproject.toml.

    QSIM_COMPILE=1 pip install .                      # a compiled qsim
    QSIM_COMPILE=1 python setup.py build_ext --inplace  # in a source tree; `make compiled`

mypyc compiles the very sources that otherwise run as they are, so the results are the same bytes.
Where there is no compiler the sources run as they are.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

#: mypyc, and what the modules' types come from
NEEDED = ["mypy==2.4.1", "numpy>=1.26", "simpy>=4.1"]
MODULES = [
    "engine/api_process", "engine/energy", "engine/fast_forward", "engine/next_finish",
    "engine/replica", "engine/timing", "engine/token_times", "engine/wakeups", "fleet/clients",
    "fleet/columns", "fleet/dispatcher", "fleet/fleet", "fleet/routers/affinity",
    "fleet/routers/base", "fleet/routers/kv_aware", "fleet/routers/mixed", "fleet/routers/router",
    "fleet/routers/view", "results/timeline", "scheduler/batch", "scheduler/block_ids",
    "scheduler/decode_group", "scheduler/kv_cache", "scheduler/prefix_tree", "scheduler/request",
    "scheduler/rules", "scheduler/scheduler", "scheduler/waiting",
]  # fmt: skip


class AllOrNothing(build_ext):
    """Builds every extension, or none."""

    def run(self) -> None:
        try:
            super().run()
            # what did not change is not built again, and must not look older than its source
            for extension in self.extensions:
                path = self.get_ext_fullpath(extension.name)
                if os.path.exists(path):
                    os.utime(path)
        except Exception as error:
            print(f"qsim is not compiled, it runs as Python: {error}", file=sys.stderr)
            self.extensions = []


def extensions() -> list[Extension]:
    """What mypyc makes of the modules; nothing where it is missing or fails."""
    try:
        from mypyc.build import mypycify
    except ImportError:
        return []  # it comes with the requirements of the build
    # only these modules have to be sound where other packages are missing
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    try:
        made: list[Any] = mypycify(
            [*options, *(f"qsim/sim/{name}.py" for name in MODULES)],
            opt_level="3",
            debug_level="0",
            group_name="qsim.sim.inner",
        )
    except (Exception, SystemExit) as error:
        print(f"qsim is not compiled, it runs as Python: {error}", file=sys.stderr)
        return []
    return made


if os.environ.get("QSIM_COMPILE") == "1":
    setup(setup_requires=NEEDED, ext_modules=extensions(), cmdclass={"build_ext": AllOrNothing})
else:
    setup()
