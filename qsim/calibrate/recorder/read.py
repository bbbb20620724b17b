"""Read the recorder's binary files and join both sides of each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qsim.calibrate.recorder import plugin
from qsim.errors import CalibrationError


@dataclass(frozen=True)
class StepRow:
    """One engine step; times are ``time.perf_counter`` in seconds.

    ``gpu_ms`` is None when the GPU side was not written (a step that was in flight at the end).
    ``mode`` is the CUDA graph that the step ran with: "full", "piecewise", "none" or "".
    ``own_s`` is the time that the recorder itself took on the engine's host thread; with tensor
    parallelism ``worker_own_s`` was spent in another process.
    """

    step: int
    schedule_s: float
    schedule_end_s: float
    launch_start_s: float
    launch_end_s: float
    sample_start_s: float
    sample_end_s: float
    update_s: float
    update_end_s: float
    num_decode: int
    decode_context_tokens: int
    decode_context_max: int
    running: int
    waiting: int
    kv_usage: float
    own_s: float
    chunks: tuple[tuple[int, int], ...]
    gpu_ms: float | None = None
    worker_launch_start_s: float | None = None
    worker_sample_end_s: float | None = None
    mode: str = ""
    padded_tokens: int = 0
    worker_own_s: float = 0.0


def read_steps(rows: Path) -> list[StepRow]:
    """All steps of a server, from the folder that the recorder wrote to, in the order of
    scheduling.

    Raises
    ------
    CalibrationError
        If nothing was recorded, or by more than one engine.
    """
    engines = sorted(rows.glob("engine-*.bin"))
    if len(engines) != 1:
        raise CalibrationError(
            f"{rows}: {len(engines)} engines recorded steps; expected exactly one "
            "(data parallelism is not supported)"
        )
    workers = {w[0]: w for path in rows.glob("worker-*.bin") for w in _workers(path)}
    result = []
    for fields, chunks in _engine(engines[0]):
        worker = workers.get(fields[0])
        step = StepRow(*fields, chunks)  # type: ignore[call-arg]
        if worker is not None:
            _, launch_start, _, _, sample_end, gpu_ms, mode, padded, own = worker
            step = replace(
                step,
                gpu_ms=gpu_ms,
                worker_launch_start_s=launch_start,
                worker_sample_end_s=sample_end,
                mode=plugin.MODES[mode] if 0 <= mode < len(plugin.MODES) else "",
                padded_tokens=padded,
                worker_own_s=own,
            )
        result.append(step)
    result.sort(key=lambda s: s.step)
    return result


def _body(path: Path, magic: bytes) -> memoryview:
    data = path.read_bytes()
    if not data.startswith(magic):
        raise CalibrationError(f"{path} was not written by this version of the recorder")
    return memoryview(data)[len(magic) :]


def _engine(path: Path) -> Iterator[tuple[tuple[Any, ...], tuple[tuple[int, int], ...]]]:
    data, at = _body(path, plugin.ENGINE_MAGIC), 0
    size, chunk = plugin.ENGINE_ROW.size, plugin.CHUNK
    while at + size <= len(data):  # a killed server may leave half a row
        *fields, count = plugin.ENGINE_ROW.unpack_from(data, at)
        at += size
        if at + count * chunk.size > len(data):
            return
        chunks = tuple(chunk.iter_unpack(data[at : at + count * chunk.size]))
        at += count * chunk.size
        yield tuple(fields), chunks


def _workers(path: Path) -> Iterator[tuple[Any, ...]]:
    data, size = _body(path, plugin.WORKER_MAGIC), plugin.WORKER_ROW.size
    yield from plugin.WORKER_ROW.iter_unpack(data[: len(data) // size * size])
