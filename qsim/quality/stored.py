"""What a profile holds under ``quality``, and the file of one lm-eval run.

``profile.quality`` (schema ``qsim-quality/1``)::

    {"schema": "qsim-quality/1", "method": "fp8-w8a8", "served_model": "...", "date": "2026-11-20",
     "harness": {"name": "lm-eval", "version": "0.4.9"},
     "baseline": {"served_model": "...", "date": "...", "harness_version": "...", "source": "..."},
     "tasks": {"gsm8k": {"score_pct": 76.5, "stderr_pct": 1.17, "metric": "exact_match,...",
                         "version": 3, "num_fewshot": 5, "items": 1319, "lm_eval_task": "gsm8k",
                         "baseline_pct": 77.0, "baseline_stderr_pct": 1.16,
                         "recovery_pct": 99.35, "recovery_stderr_pct": 0.61, "paired": true}}}

The last five keys of a task are absent for the baseline itself (``method`` is ``bf16``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qsim.checks import is_number
from qsim.errors import ProfileError
from qsim.quality.tasks import OWN, OWN_NAME, TASKS

QUALITY_SCHEMA = "qsim-quality/1"

_AGAIN = "run 'qsim calibrate quality' again"
_NUMBERS = ("score_pct", "stderr_pct")
_COMPARED = ("baseline_pct", "baseline_stderr_pct", "recovery_pct", "recovery_stderr_pct")


def read_quality(data: Mapping[str, Any]) -> dict[str, Any]:
    """Check a profile's ``quality`` and return it.

    Raises
    ------
    ProfileError
        Naming the field, its value and what is allowed.
    """
    where = "profile: quality"
    if not isinstance(data, Mapping):
        raise ProfileError(f"{where} is {data!r}; must be an object")
    if data.get("schema") != QUALITY_SCHEMA:
        raise ProfileError(
            f"{where}.schema is {data.get('schema')!r}; must be {QUALITY_SCHEMA!r}: {_AGAIN}"
        )
    for name in ("method", "date"):
        if not isinstance(data.get(name), str) or not data[name]:
            raise ProfileError(f"{where}.{name} is {data.get(name)!r}; must be a text: {_AGAIN}")
    harness = data.get("harness")
    if not isinstance(harness, Mapping) or not {"name", "version"} <= set(harness):
        raise ProfileError(f"{where}.harness is {harness!r}; must have a name and a version")
    tasks = data.get("tasks")
    if not isinstance(tasks, Mapping) or not tasks:
        raise ProfileError(f"{where}.tasks is {tasks!r}; must name at least one task")
    for task, entry in tasks.items():
        here = f"{where}.tasks.{task}"
        if not isinstance(entry, Mapping):
            raise ProfileError(f"{here} is {entry!r}; must be an object")
        own = entry.get("family") == OWN
        if task not in TASKS and not (own and OWN_NAME.fullmatch(str(task))):
            raise ProfileError(f"{here}: unknown task; known are {', '.join(TASKS)}, and those of "
                               f"one's own, with family {OWN!r}")  # fmt: skip
        _numbers(entry, _NUMBERS, here)
        if data["method"] != "bf16":
            _numbers(entry, _COMPARED, here)
            expected = 100 * entry["score_pct"] / entry["baseline_pct"]
            if abs(expected - entry["recovery_pct"]) > 0.05:
                raise ProfileError(
                    f"{here}.recovery_pct is {entry['recovery_pct']!r}; score over baseline is "
                    f"{expected:.2f}: {_AGAIN}"
                )
    return dict(data)


def _numbers(entry: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in names:
        value = entry.get(name)
        positive = name in ("baseline_pct", "recovery_stderr_pct")
        if not is_number(value) or not 0 <= value < math.inf or (positive and value == 0):
            raise ProfileError(
                f"{where}.{name} is {value!r}; must be a number {'>' if positive else '>='} 0"
            )
