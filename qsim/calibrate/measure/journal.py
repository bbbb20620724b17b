"""What was measured so far, kept on disk load by load, so that a killed campaign loses little.

The steps and the power readings are written as they come by processes of their own; a journal adds
what only this process knows: the server, and each load with its requests as the client saw them.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qsim.calibrate.measure.load import LoadResult, RequestRow
from qsim.calibrate.measure.power import read_samples
from qsim.calibrate.measure.tidy import Measured, write_recording
from qsim.calibrate.measure.workload import Phase
from qsim.calibrate.recorder import read_steps
from qsim.documents import parse_json, read_json
from qsim.errors import CalibrationError
from qsim.files import write_text

#: fewer loads than this are not worth keeping
LEAST_LOADS = 4
#: of a load with all its requests, characters
_LONGEST_LINE = 256 << 20


class Journal:
    """Writes ``server.json``, the server as the recording will describe it, and ``loads.jsonl`` in
    the folder of a measurement that is under way.
    """

    def __init__(self, work: Path, server: dict[str, Any]) -> None:
        self._path = work / "loads.jsonl"
        write_text(work / "server.json", json.dumps(server))

    def append(self, m: Measured) -> None:
        """Add a load; it is on disk when this returns."""
        phase = {k: getattr(m.phase, k) for k in ("label", "what", "load", "use", "clients")}
        line = {"phase": phase, "start_s": m.start_s, "end_s": m.end_s}
        if m.result is not None:
            line["result"] = asdict(m.result)
        with open(self._path, "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
            f.flush()
            os.fsync(f.fileno())


def _loads(path: Path) -> list[Measured]:
    loads = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            data = parse_json(line, path.name, CalibrationError, most=_LONGEST_LINE)
        except CalibrationError:  # the last one, half-written
            break
        result = data.get("result")
        if result is not None:
            requests = tuple(RequestRow(**r) for r in result["requests"])
            result = LoadResult(result["start_s"], result["end_s"], requests)
        loads.append(Measured(Phase(**data["phase"]), data["start_s"], data["end_s"], result))
    return loads


def salvage(work: Path, target: Path) -> int:
    """Make a recording of the loads that a killed measurement had finished in the folder ``work``.

    It replaces ``target``. Returns the number of loads in it; 0 if there were fewer than
    ``LEAST_LOADS``, or their steps or power readings are missing, and nothing was written.
    """
    try:
        server = read_json(work / "server.json", CalibrationError)
        loads = _loads(work / "loads.jsonl")
        if len(loads) < LEAST_LOADS:
            return 0
        power = read_samples(work / "power.csv")
        steps = read_steps(work / "recorder" / "rows")
    except (OSError, ValueError, KeyError, TypeError, CalibrationError):
        return 0
    folder = work / "salvaged"
    while loads:
        # steps and readings are written now and then: those of the last loads may be missing
        seen = [s for s in steps if s.update_s <= loads[-1].end_s]
        server["incomplete"] = f"the measurement was killed after {loads[-1].phase.label}"
        try:
            write_recording(folder, server, loads, seen, power)
        except CalibrationError:
            loads.pop()
            continue
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)
        return len(loads)
    return 0
