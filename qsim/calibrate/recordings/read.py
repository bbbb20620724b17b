"""Recordings of a real server: every engine step, request and power sample, as columns.

A recording is a folder with five files; ``docs/profile-format.md`` describes each column.

* ``server.json``: what was served, with which settings, and the number of KV blocks.
* ``phases.json``: the loads that were sent, one after another.
* ``steps.csv.gz``: one row an engine step.
* ``requests.csv.gz``: one row a request, times as the client saw them.
* ``power.csv.gz``: readings of the GPU's power, energy counter and clock.

Times are seconds on one clock. A field that was not recorded is empty and becomes NaN; only the
launch times, the GPU span and the readings that a board may lack can be empty.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from qsim.bounds import Line, Number, Text, Whole, shown
from qsim.calibrate.recordings.data import (
    FIT,
    HOLDOUT,
    SKIP,
    Phase,
    PowerSamples,
    Recording,
    Requests,
    Server,
    Steps,
    Word,
)
from qsim.documents import csv_lines, read_json
from qsim.errors import RecordingError


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording's folder.

    Raises
    ------
    RecordingError
        If a file is missing or malformed; the message names file, line, column and value.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RecordingError(
            f"{os.fspath(path)!r} is not a folder: give the folder that holds server.json"
        )
    name = folder.resolve().name  # it goes into profiles and reports
    if not Text(200).allows(name):
        rule = Text(200).rule.removeprefix("a ")
        raise RecordingError(f"the recording's folder is named {shown(name)}; must be a {rule}")
    server = _server(folder / "server.json")
    phases = _phases(folder / "phases.json")
    index = {p.label: i for i, p in enumerate(phases)}
    return Recording(
        name=name,
        server=server,
        phases=phases,
        steps=_steps(folder / "steps.csv.gz", index),
        requests=_requests(folder / "requests.csv.gz", index, server.incomplete is not None),
        power=_power(folder / "power.csv.gz"),
    )


def default_use(label: str) -> str:
    """How a phase is used when ``phases.json`` does not say."""
    if label.startswith("warm"):
        return SKIP
    return HOLDOUT if label.startswith("val_") or label == "mixhi" else FIT


def _server(path: Path) -> Server:
    from qsim.edge import build

    data = read_json(path, RecordingError)
    if not isinstance(data, dict):
        raise RecordingError(f"{path}: must hold an object, got {type(data).__name__}")
    if "model_config" not in data:
        raise RecordingError(f"{path}: model_config is missing")
    return build(Server, {**data, "raw": data}, str(path), RecordingError)


Seconds = Annotated[float, Number(-1e9, 1e9)]


@dataclass(frozen=True, kw_only=True)
class _PhaseItem:
    """A load as ``phases.json`` has it."""

    label: Annotated[str, Text(100, 1)]
    what: Line = ""
    load: Word = ""
    use: Literal["fit", "holdout", "skip"] | None = None
    clients: Annotated[int, Whole(1, 100_000)] | None = None
    start_s: Seconds
    end_s: Seconds
    energy_j: Annotated[float, Number(-1e12, 1e12)] | None = None


def _phases(path: Path) -> tuple[Phase, ...]:
    from qsim.edge import build

    data = read_json(path, RecordingError)
    if not isinstance(data, list) or not data:
        raise RecordingError(f"{path}: must hold a list of phases, got {shown(data, 40)}")
    if len(data) > _MOST_PHASES:
        raise RecordingError(f"{path}: has {len(data)} phases; at most {_MOST_PHASES} are read")
    phases: dict[str, Phase] = {}
    for i, given in enumerate(data):
        label = given.get("label") if isinstance(given, dict) else None
        at = f"{path}: phase {i}" + (f" ({shown(label)[1:-1]})" if isinstance(label, str) else "")
        item = build(_PhaseItem, given, at, RecordingError)
        if item.label in phases:
            raise RecordingError(f"{at}: label {item.label!r} was used before; labels must differ")
        if item.end_s < item.start_s:
            raise RecordingError(f"{at}: end_s is {item.end_s}; must be >= start_s {item.start_s}")
        energy_j = math.nan if item.energy_j is None else item.energy_j
        use = item.use or default_use(item.label)
        phases[item.label] = Phase(
            item.label, item.what, item.load, item.start_s, item.end_s, energy_j, use, item.clients
        )
    return tuple(phases.values())


_MOST_PHASES = 10_000
#: largest number in a cell: energy counters are in mJ
_MOST = 1e18
_MOST_WHOLE = 1 << 53
_COUNT = re.compile(r"[0-9]{1,12}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")


@dataclass(frozen=True)
class _Row:
    """One line of a CSV file, converting fields on demand."""

    path: Path
    line: int
    cells: Mapping[str, str]

    def fail(self, column: str, rule: str) -> RecordingError:
        return RecordingError(
            f"{self.path}: line {self.line}, column {column!r}: {shown(self.cells[column])} {rule}"
        )

    def number(self, column: str, *, optional: bool = False) -> float:
        text = self.cells[column]
        if text == "" and optional:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            raise self.fail(column, "is not a number") from None
        if not math.isfinite(value):
            raise self.fail(column, "is not a finite number")
        if abs(value) > _MOST:
            raise self.fail(column, f"must be within {_MOST:g}")
        return value

    def whole(self, column: str, least: int = 0) -> int:
        text = self.cells[column]
        if not _WHOLE.fullmatch(text):
            raise self.fail(column, "is not a whole number")
        value = int(text)
        if value < least:
            raise self.fail(column, f"must be >= {least}")
        if value > _MOST_WHOLE:
            raise self.fail(column, f"must be <= {_MOST_WHOLE}")
        return value

    def phase(self, index: Mapping[str, int]) -> int:
        label = self.cells["phase"]
        if label not in index:
            raise self.fail("phase", f"is not in phases.json; it has: {', '.join(index)}")
        return index[label]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[_Row]:
    header: list[str] | None = None
    for line, cells in csv_lines(path, RecordingError):
        if header is None:
            header = cells
            missing = [c for c in columns if c not in header]
            if missing:
                raise RecordingError(
                    f"{path}: line 1: column {missing[0]!r} is missing; "
                    f"it must have {', '.join(columns)}"
                )
            continue
        if len(cells) != len(header):
            raise RecordingError(
                f"{path}: line {line}: {len(cells)} fields; the header has {len(header)}"
            )
        yield _Row(path, line, dict(zip(header, cells, strict=True)))
    if header is None:
        raise RecordingError(f"{path}: the file is empty; line 1 must name the columns")


_STEP_TIMES = (
    "schedule_s",
    "schedule_dur_s",
    "launch_start_s",
    "launch_end_s",
    "sample_start_s",
    "sample_end_s",
    "gpu_ms",
    "update_s",
    "update_dur_s",
)
_OPTIONAL = frozenset(
    ("launch_start_s", "launch_end_s", "sample_start_s", "sample_end_s", "gpu_ms")
)
_STEP_COUNTS = (
    "num_prefill_tokens",
    "num_decode",
    "decode_context_tokens",
    "running",
    "waiting",
)


def _chunks(row: _Row) -> tuple[tuple[int, int], ...]:
    text = row.cells["prefill_chunks"]
    if not text:
        return ()
    out = []
    for part in text.split(";"):
        new, _, computed = part.partition("@")
        if not (_COUNT.fullmatch(new) and _COUNT.fullmatch(computed) and int(new) > 0):
            raise row.fail(
                "prefill_chunks",
                f"has {shown(part)}; must be new@computed, as in 512@0, joined by ';'",
            )
        out.append((int(new), int(computed)))
    return tuple(out)


def _steps(path: Path, index: Mapping[str, int]) -> Steps:
    times: dict[str, list[float]] = {c: [] for c in (*_STEP_TIMES, "kv_usage")}
    counts: dict[str, list[int]] = {c: [] for c in ("phase", *_STEP_COUNTS)}
    chunks: list[tuple[tuple[int, int], ...]] = []
    columns = ("phase", *_STEP_TIMES, "prefill_chunks", *_STEP_COUNTS, "kv_usage")
    for row in _rows(path, columns):
        counts["phase"].append(row.phase(index))
        for c in _STEP_TIMES:
            times[c].append(row.number(c, optional=c in _OPTIONAL))
        times["kv_usage"].append(row.number("kv_usage"))
        for c in _STEP_COUNTS:
            counts[c].append(row.whole(c))
        step = _chunks(row)
        if sum(n for n, _ in step) != counts["num_prefill_tokens"][-1]:
            raise row.fail("num_prefill_tokens", "is not the sum of prefill_chunks")
        if not step and counts["num_decode"][-1] == 0:
            raise row.fail("num_decode", "and no prefill_chunks: a step must do something")
        if times["update_s"][-1] < times["schedule_s"][-1]:
            raise row.fail("update_s", "is before schedule_s")
        chunks.append(step)
    if not chunks:
        raise RecordingError(f"{path}: no steps")
    t = {k: np.array(v, dtype=np.float64) for k, v in times.items()}
    n = {k: np.array(v, dtype=np.int64) for k, v in counts.items()}
    order = np.argsort(t["schedule_s"], kind="stable")
    t = {k: v[order] for k, v in t.items()}
    n = {k: v[order] for k, v in n.items()}
    chunks = [chunks[i] for i in order]
    return Steps(
        phase=n["phase"],
        **{c: t[c] for c in _STEP_TIMES},
        chunks=tuple(chunks),
        num_chunks=np.array([len(c) for c in chunks], dtype=np.int64),
        pairs=np.array([sum(m * (c + (m + 1) / 2) for m, c in s) for s in chunks], dtype=float),
        prefill_tokens=n["num_prefill_tokens"],
        decodes=n["num_decode"],
        decode_context_tokens=n["decode_context_tokens"],
        running=n["running"],
        waiting=n["waiting"],
        kv_usage=t["kv_usage"],
    )


def _requests(path: Path, index: Mapping[str, int], incomplete: bool) -> Requests:
    rows = []
    columns = (
        "phase",
        "request_id",
        "sent_s",
        "prompt_tokens",
        "output_tokens",
        "first_token_s",
        "last_token_s",
    )
    for row in _rows(path, columns):
        sent, first, last = (row.number(c) for c in ("sent_s", "first_token_s", "last_token_s"))
        if first < sent:
            raise row.fail("first_token_s", f"is before sent_s {sent}")
        if last < first:
            raise row.fail("last_token_s", f"is before first_token_s {first}")
        prompt, output = row.whole("prompt_tokens", 1), row.whole("output_tokens", 1)
        phase = row.phase(index)
        rows.append((sent, phase, row.cells["request_id"], prompt, output, first, last))
    if not rows and not incomplete:
        raise RecordingError(f"{path}: no requests")
    rows.sort(key=lambda r: (r[1], r[0]))
    sent_s, phases, ids, prompts, outputs, firsts, lasts = list(zip(*rows, strict=True)) or [()] * 7
    return Requests(
        phase=np.array(phases, dtype=np.int64),
        request_id=tuple(ids),
        sent_s=np.array(sent_s),
        prompt_tokens=np.array(prompts, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        first_token_s=np.array(firsts),
        last_token_s=np.array(lasts),
    )


def _power(path: Path) -> PowerSamples:
    columns = ("t_s", "energy_mj", "power_avg_mw")
    optional = ("power_instant_mw", "sm_clock_mhz", "temperature_c")
    rows = [
        (*(row.number(c) for c in columns), *(row.number(c, optional=True) for c in optional))
        for row in _rows(path, columns + optional)
    ]
    if len(rows) < 2:
        raise RecordingError(f"{path}: {len(rows)} readings; a fit needs at least 2")
    a = np.array(sorted(rows), dtype=np.float64)
    return PowerSamples(
        t_s=a[:, 0],
        energy_j=a[:, 1] / 1e3,
        power_avg_w=a[:, 2] / 1e3,
        power_instant_w=a[:, 3] / 1e3,
        sm_clock_mhz=a[:, 4],
        temperature_c=a[:, 5],
    )
