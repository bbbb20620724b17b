"""How fast a host is at what vLLM's Python host thread does, in miniature: no GPU, a second.

A step of vLLM's engine is scheduled, its inputs are prepared, and its tokens are given to requests,
by one thread of Python: attributes and dictionaries of a few dozen requests, lists that grow, small
numpy arrays, a message to the client. :func:`host_speed` does about that for 32 requests, and takes
the time of a step. It is compared with that of another host; whether their vLLM differ likewise has
to be measured, since it is not the same code.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import IntArray
from qsim.bounds import Number, Text, Whole
from qsim.documents import read_text
from qsim.edge import build
from qsim.errors import CalibrationError

SCHEMA = "qsim-host/1"
#: requests that a step serves, and tokens of a KV block
ROWS, _BLOCK = 32, 16
#: steps between two looks at the clock, and the fewest such rounds
_STEPS, _ROUNDS = 20, 8
#: quantiles of the rounds' times that lie further apart than this tell of a host that is not idle
_MOST_NOISE = 1.5

Ms = Annotated[float, Number(1e-6, 1e6)]


@dataclass(frozen=True)
class HostSpeed:
    """What a step of the miniature took."""

    #: Median over rounds of steps.
    step_ms: Ms
    #: 10th and 90th percentile.
    low_ms: Ms
    high_ms: Ms
    rounds: Annotated[int, Whole(1, 10**9)]
    #: On which it ran.
    cpu: Annotated[str, Text(200)]
    python: Annotated[str, Text(200)]

    @property
    def noisy(self) -> bool:
        """Whether something else used the host."""
        return self.high_ms > _MOST_NOISE * self.low_ms

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


class _Request:
    """A request as a scheduler sees it."""

    __slots__ = ("blocks", "computed", "id", "most", "output", "prompt")

    def __init__(self, number: int) -> None:
        self.id = f"cmpl-{number:032x}"
        self.prompt = 200 + 37 * number
        self.computed = self.prompt
        self.most = 64 + number
        self.output: list[int] = []
        self.blocks = list(range(self.prompt // _BLOCK + 1))


class _Miniature:
    """The steps of an engine that serves as many requests for ever."""

    def __init__(self) -> None:
        self._running = [_Request(i) for i in range(ROWS)]
        self._next = ROWS
        self._tables: npt.NDArray[np.int32] = np.zeros((ROWS, 128), np.int32)
        self._positions: IntArray = np.zeros(ROWS, np.int64)
        self.sent = 0

    def step(self) -> None:
        """Schedule, prepare, update and answer."""
        scheduled = self._schedule(8192)
        self._prepare(scheduled)
        self._update(scheduled)

    def _schedule(self, budget: int) -> dict[str, int]:
        scheduled: dict[str, int] = {}
        for r in self._running:
            new = min(r.prompt + len(r.output) + 1 - r.computed, budget)
            if new <= 0:
                continue
            needed = (r.computed + new + _BLOCK - 1) // _BLOCK
            while len(r.blocks) < needed:
                r.blocks.append(len(r.blocks) + 7)
            scheduled[r.id] = new
            budget -= new
        return scheduled

    def _prepare(self, scheduled: dict[str, int]) -> None:
        for i, r in enumerate(self._running):
            n = len(r.blocks)
            self._tables[i, :n] = r.blocks
            self._positions[i] = r.computed
        counts = np.fromiter(scheduled.values(), np.int32, len(scheduled))
        starts = np.cumsum(counts)
        slots = self._tables[np.arange(ROWS), self._positions // _BLOCK] * _BLOCK
        self.sent += int(starts[-1] + slots[0] * 0)

    def _update(self, scheduled: dict[str, int]) -> None:
        outputs = []
        for i, r in enumerate(self._running):
            r.computed += scheduled.get(r.id, 0)
            token = (r.computed * 7919 + i) % 32000
            r.output.append(token)
            done = len(r.output) >= r.most
            outputs.append({"id": r.id, "token_ids": [token], "finished": done, "text": str(token)})
            if done:
                self._running[i] = _Request(self._next % ROWS)
                self._next += 1
        self.sent += len(json.dumps(outputs))


def host_speed(seconds: float = 2.0, clock: Callable[[], float] = thread_time) -> HostSpeed:
    """Time the steps of the miniature for about so many seconds, by the clock.

    ``clock`` gives seconds that only grow; by default the CPU's, so that others on the host count
    little.
    """
    engine = _Miniature()
    for _ in range(_STEPS):  # what Python and numpy do once
        engine.step()
    times: list[float] = []
    begin = clock()
    while len(times) < _ROUNDS or clock() - begin < seconds:
        at = clock()
        for _ in range(_STEPS):
            engine.step()
        times.append((clock() - at) / _STEPS * 1e3)
    low, high = np.percentile(times, [10, 90])
    return HostSpeed(
        step_ms=round(median(times), 5),
        low_ms=round(float(low), 5),
        high_ms=round(float(high), 5),
        rounds=len(times),
        cpu=cpu_name(),
        python=platform.python_version(),
    )


def cpu_name() -> str:
    """The host's CPU, and how many there are."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} CPUs"
    except OSError:
        pass
    return f"{platform.machine()}, {os.cpu_count()} CPUs"


def read_host_speed(path: Path) -> HostSpeed:
    """That of another host: a file that ``qsim calibrate host --out`` wrote, or a recording.

    Raises
    ------
    CalibrationError
        If it is neither, the recording does not hold it, or a value of it is not allowed.
    """
    file = path / "server.json" if path.is_dir() else path
    try:
        data = json.loads(read_text(file, CalibrationError))
    except (ValueError, RecursionError) as e:
        raise CalibrationError(f"{file}: cannot be read as JSON: {e}") from None
    if path.is_dir() and isinstance(data, dict):
        data = data.get("host_speed")
        if data is None:
            raise CalibrationError(
                f"{path}: the recording does not hold its host's speed; those of 'qsim calibrate "
                "run' do since it measures it"
            )
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise CalibrationError(f"{file}: no {SCHEMA}, as 'qsim calibrate host --out' writes it")
    return build(HostSpeed, data, str(file), CalibrationError)
