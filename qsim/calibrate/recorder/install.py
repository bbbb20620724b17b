"""Put the recorder where vLLM finds it, without installing a package; see whether it took hold.

vLLM discovers plugins through the metadata of installed packages. A folder on PYTHONPATH that
holds a module and a ``*.dist-info`` folder beside it counts as an installed package.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qsim.calibrate.recorder import plugin
from qsim.documents import read_json
from qsim.errors import CalibrationError

MODULE = "qsim_vllm_recorder"


@dataclass(frozen=True)
class Hooks:
    """What the recorder patched in one process of the server."""

    process: str
    pid: int
    hooks: dict[str, str]

    @property
    def failure(self) -> str | None:
        """What went wrong, if anything did."""
        status = self.hooks.get("status", "failed: not finished")
        if status != "ok":
            return status
        missing = [k for k, v in self.hooks.items() if v == "missing" or v.startswith("failed")]
        return f"not found in this version of vLLM: {', '.join(missing)}" if missing else None


def install(
    folder: Path,
    environment: Mapping[str, str],
    *,
    tensor_parallel_size: int = 1,
    random_dummy_bits: bool = False,
    weight_bits: int = 0,
    steps: bool = True,
) -> dict[str, str]:
    """Write the plugin into ``folder`` and return the environment that loads it.

    ``folder`` gets ``site`` (the plugin) and ``rows`` (what it records). PYTHONPATH of
    ``environment`` is kept behind ours. With ``random_dummy_bits`` dummy weights get random bits:
    ``weight_bits`` is 4 or 8, for the distribution of integer ones, 0 for other formats. Without
    ``steps`` only dummy weights are looked after, which is the server to compare with when the
    recorder's cost is measured.
    """
    site, rows = folder / "site", folder / "rows"
    info = site / f"{MODULE}-0.1.dist-info"
    for path in (info, rows):
        path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(plugin.__file__, site / f"{MODULE}.py")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {MODULE.replace('_', '-')}\nVersion: 0.1\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\nqsim_recorder = {MODULE}:register\n", encoding="utf-8"
    )
    (info / "RECORD").write_text("", encoding="utf-8")
    result = dict(environment)
    behind = result.get("PYTHONPATH")
    result["PYTHONPATH"] = f"{site}{os.pathsep}{behind}" if behind else str(site)
    result["QSIM_RECORDER_DIR"] = str(rows)
    result["QSIM_RECORDER_TP"] = str(tensor_parallel_size)
    result["QSIM_RANDOM_DUMMY_BITS"] = "1" if random_dummy_bits else "0"
    result["QSIM_DUMMY_WEIGHT_BITS"] = str(weight_bits)
    result["QSIM_RECORDER_STEPS"] = "1" if steps else "0"
    if result.get("VLLM_PLUGINS"):  # a list of the plugins that may be loaded
        result["VLLM_PLUGINS"] += ",qsim_recorder"
    # a forked engine would inherit the API process's "plugins are loaded" and skip ours
    result["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    return result


def read_hooks(folder: Path) -> list[Hooks]:
    """What the recorder patched, one entry a process.

    Raises
    ------
    CalibrationError
        If no engine was patched, or a patch failed: nothing would be recorded.
    """
    found = []
    for path in sorted((folder / "rows").glob("hooks-*.json")):
        data = read_json(path, CalibrationError)
        found.append(Hooks(str(data["process"]), int(data["pid"]), dict(data["hooks"])))
    if not any(h.hooks.get("Scheduler.schedule") == "ok" for h in found):
        raise CalibrationError(
            "the step recorder was not loaded by the server's engine process: check that "
            "VLLM_PLUGINS does not exclude 'qsim_recorder' and that the server is vLLM >= 0.24; "
            f"processes that loaded it: {[h.process for h in found] or 'none'}"
        )
    for h in found:
        if h.failure is not None:
            raise CalibrationError(f"the step recorder failed in process {h.process}: {h.failure}")
    if not any(h.hooks.get("Worker.execute_model") == "ok" for h in found):
        raise CalibrationError("the step recorder was not loaded by the server's GPU worker")
    return found
