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

import csv
import gzip
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qsim.calibrate.recording_data import (
    FIT,
    HOLDOUT,
    SKIP,
    USES,
    Phase,
    PowerSamples,
    Recording,
    Requests,
    Server,
    Steps,
)
from qsim.errors import RecordingError

__all__ = [
    "FIT",
    "HOLDOUT",
    "SKIP",
    "Phase",
    "PowerSamples",
    "Recording",
    "Requests",
    "Server",
    "Steps",
    "default_use",
    "read_recording",
]


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
    server = _server(folder / "server.json")
    phases = _phases(folder / "phases.json")
    index = {p.label: i for i, p in enumerate(phases)}
    return Recording(
        name=folder.resolve().name,
        server=server,
        phases=phases,
        steps=_steps(folder / "steps.csv.gz", index),
        requests=_requests(folder / "requests.csv.gz", index, "incomplete" in server.raw),
        power=_power(folder / "power.csv.gz"),
    )


def default_use(label: str) -> str:
    """How a phase is used when ``phases.json`` does not say."""
    if label.startswith("warm"):
        return SKIP
    return HOLDOUT if label.startswith("val_") or label == "mixhi" else FIT


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise RecordingError(f"cannot read {path}: {e.strerror or e}") from e
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise RecordingError(f"{path}: not JSON: {e}") from e


def _member(data: Mapping[str, Any], name: str, kind: type, where: str, *default: Any) -> Any:
    """``data[name]`` if it is a ``kind``; bool is no int, and an int is a float."""
    if name not in data and not default:
        raise RecordingError(f"{where}: {name!r} is missing")
    value: Any = data.get(name, *default)
    if default and value == default[0]:
        return value
    if kind is float:
        good = isinstance(value, int | float) and math.isfinite(value)
    else:
        good = isinstance(value, kind)
    if not good or (isinstance(value, bool) and kind is not bool):
        raise RecordingError(f"{where}: {name} is {value!r}; must be {_KINDS[kind]}")
    return float(value) if kind is float else value


_KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def _server(path: Path) -> Server:
    data = _json(path)
    if not isinstance(data, Mapping):
        raise RecordingError(f"{path}: must hold an object, got {type(data).__name__}")
    at = str(path)

    def text(name: str, *default: str) -> str:
        return str(_member(data, name, str, at, *default))

    def count(name: str, least: int, *default: int) -> int:
        value = int(_member(data, name, int, at, *default))
        if value < least:
            raise RecordingError(f"{at}: {name} is {value}; must be >= {least}")
        return value

    quantization = data.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise RecordingError(
            f"{at}: quantization_config is {quantization!r}; must be an object or null"
        )
    return Server(
        gpu=text("gpu"),
        model=text("model"),
        method=text("method"),
        vllm_version=text("vllm_version"),
        driver=text("driver", ""),
        host=text("host", ""),
        tensor_parallel=count("tensor_parallel", 1, 1),
        model_config=_member(data, "model_config", dict, at),
        quantization_config=quantization,
        server_flags=tuple(str(x) for x in _member(data, "server_flags", list, at, [])),
        prefix_caching=bool(_member(data, "prefix_caching", bool, at, False)),
        kv_cache_dtype=text("kv_cache_dtype", "auto"),
        max_model_len=count("max_model_len", 2),
        max_num_batched_tokens=count("max_num_batched_tokens", 1),
        block_size=count("block_size", 1),
        num_gpu_blocks=count("num_gpu_blocks", 2),
        raw=dict(data),
    )


def _phases(path: Path) -> tuple[Phase, ...]:
    data = _json(path)
    if not isinstance(data, list) or not data:
        raise RecordingError(f"{path}: must hold a list of phases, got {data!r:.40}")
    phases: list[Phase] = []
    seen: set[str] = set()
    for i, item in enumerate(data):
        at = f"{path}: phase {i}"
        if not isinstance(item, Mapping):
            raise RecordingError(f"{at} is {item!r:.40}; must be an object")
        label = str(_member(item, "label", str, at))
        if label in seen:
            raise RecordingError(f"{at}: label {label!r} was used before; labels must differ")
        seen.add(label)
        at = f"{at} ({label})"
        use = str(_member(item, "use", str, at, default_use(label)))
        if use not in USES:
            raise RecordingError(f"{at}: use is {use!r}; must be one of {', '.join(USES)}")
        start_s = float(_member(item, "start_s", float, at))
        end_s = float(_member(item, "end_s", float, at))
        if end_s < start_s:
            raise RecordingError(f"{at}: end_s is {end_s}; must be >= start_s {start_s}")
        energy_j = item.get("energy_j")
        phases.append(
            Phase(
                label=label,
                what=str(_member(item, "what", str, at, "")),
                load=str(_member(item, "load", str, at, "")),
                start_s=start_s,
                end_s=end_s,
                energy_j=math.nan
                if energy_j is None
                else float(_member(item, "energy_j", float, at)),
                use=use,
            )
        )
    return tuple(phases)


@dataclass(frozen=True)
class _Row:
    """One line of a CSV file, converting fields on demand."""

    path: Path
    line: int
    cells: Mapping[str, str]

    def fail(self, column: str, rule: str) -> RecordingError:
        return RecordingError(
            f"{self.path}: line {self.line}, column {column!r}: {self.cells[column]!r} {rule}"
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
        return value

    def whole(self, column: str, least: int = 0) -> int:
        try:
            value = int(self.cells[column])
        except ValueError:
            raise self.fail(column, "is not a whole number") from None
        if value < least:
            raise self.fail(column, f"must be >= {least}")
        return value

    def phase(self, index: Mapping[str, int]) -> int:
        label = self.cells["phase"]
        if label not in index:
            raise self.fail("phase", f"is not in phases.json; it has: {', '.join(index)}")
        return index[label]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[_Row]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as f:
            reader = csv.reader(f)
            header = next(reader, None)
            if header is None:
                raise RecordingError(f"{path}: the file is empty; line 1 must name the columns")
            missing = [c for c in columns if c not in header]
            if missing:
                raise RecordingError(
                    f"{path}: line 1: column {missing[0]!r} is missing; "
                    f"it must have {', '.join(columns)}"
                )
            for cells in reader:
                if len(cells) != len(header):
                    raise RecordingError(
                        f"{path}: line {reader.line_num}: {len(cells)} fields; "
                        f"the header has {len(header)}"
                    )
                yield _Row(path, reader.line_num, dict(zip(header, cells, strict=True)))
    except FileNotFoundError as e:
        raise RecordingError(f"cannot read {path}: no such file") from e
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as e:
        raise RecordingError(f"cannot read {path}: {e}") from e


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
        if not (new.isdecimal() and computed.isdecimal() and int(new) > 0):
            raise row.fail(
                "prefill_chunks", f"has {part!r}; must be new@computed, as in 512@0, joined by ';'"
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
