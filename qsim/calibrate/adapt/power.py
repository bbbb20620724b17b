"""Energy of the GPUs while loads are sent: by NVML here, by DCGM's exporter, or not at all."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from time import perf_counter as now

import numpy as np

from qsim.calibrate.measure.power import Nvml
from qsim.errors import CalibrationError, QsimError
from qsim.prometheus import samples

__all__ = ["EnergyMeter", "dcgm_reader", "energy_between", "nvml_reader"]

#: energy of the GPUs since some time, J
Reader = Callable[[], float]
#: when a counter was asked and when it answered, s, and the energy, J
Reading = tuple[float, float, float]

#: between readings: NVML's counter moves every 0.1 s, and a reading should tell when it did
_INTERVAL_S = 0.02
#: so long is waited for a counter to move, s
_MOST_WAIT_S = 2.0
_DCGM_ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
#: readings must lie this close around a load, s
_NEAR_S = 1.0
#: when a load began and ended must be known within this share of how long it took
_MOST_UNKNOWN = 0.25


def nvml_reader(gpus: Sequence[int]) -> Reader:
    """Energy counters of this machine's GPUs.

    Raises
    ------
    CalibrationError, MissingExtraError
        If NVML cannot be used, or has no such GPU.
    """
    nvml = Nvml()
    try:
        handles = [nvml.lib.nvmlDeviceGetHandleByIndex(g) for g in gpus]
        nvml.sample(handles)
    except nvml.lib.NVMLError as e:
        raise CalibrationError(f"NVML does not read GPU {list(gpus)}: {e}") from None
    return lambda: float(nvml.sample(handles).energy_mj) / 1e3


def dcgm_reader(url: str, gpus: Sequence[int]) -> Reader:
    """Energy counters of DCGM's exporter (``DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION``, mJ).

    Raises
    ------
    CalibrationError
        If it does not answer, or does not tell the energy of each of these GPUs.
    """

    def read() -> float:
        try:
            with urllib.request.urlopen(url, timeout=3.0) as answer:
                text = answer.read(16 << 20).decode("utf-8", "replace")
        except (OSError, ValueError) as e:
            raise CalibrationError(f"{url} does not answer: {e}") from None
        seen_mj = {s.labels.get("gpu"): s.value for s in samples(text) if s.name == _DCGM_ENERGY}
        missing = [g for g in gpus if str(g) not in seen_mj]
        if missing:
            raise CalibrationError(f"{url} has no {_DCGM_ENERGY} of GPU {missing[0]}")
        return sum(seen_mj[str(g)] for g in gpus) / 1e3

    read()
    return read


def energy_between(readings: Sequence[Reading], begin_s: float, end_s: float) -> float | None:
    """Energy between two times, J, by the readings of a counter.

    A counter moves in steps (NVML's every 0.1 s, an exporter's whenever it asks NVML), and what it
    says is true of the moment at which it moved: only readings at which it had moved are used, and
    it moved between the reading before and that one.

    None if it was not read then, or not often enough: where the readings around the two times do
    not tell what was drawn in between from what was drawn before and after. That is so of a load
    that is too short, of a counter that moves too seldom, or on a machine that was too busy to read
    in time.
    """
    if len(readings) < 3:
        return None
    asked, told, joules = np.array(readings).T
    moved = np.flatnonzero(np.diff(joules) > 0) + 1
    if len(moved) < 2:
        return None
    middle = (asked + told) / 2
    times, joules = (middle[moved - 1] + middle[moved]) / 2, joules[moved]
    took = (told - asked)[moved]
    if times[0] > begin_s + _NEAR_S or times[-1] < end_s - _NEAR_S:
        return None
    inside = times[(times >= begin_s - _NEAR_S) & (times <= end_s + _NEAR_S)]
    if len(inside) < 2 or np.diff(inside).max() > 2 * _NEAR_S:
        return None
    after = np.clip(np.searchsorted(times, [begin_s, end_s]), 1, len(times) - 1)
    unknown_s = float((times[after] - times[after - 1] + took[after]).sum()) / 2
    if unknown_s > _MOST_UNKNOWN * (end_s - begin_s):
        return None
    a, b = np.interp([begin_s, end_s], times, joules)
    return float(b - a) if b > a else None


class EnergyMeter:
    """Reads a counter in a thread of its own; ``stop`` it when done."""

    def __init__(self, read: Reader) -> None:
        self._read, self._stop = read, threading.Event()
        self._readings: list[Reading] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            begin = now()
            try:
                joules = self._read()
            except (QsimError, OSError):
                self._stop.wait(_INTERVAL_S)
                continue
            self._readings.append((begin, now(), joules))
            self._stop.wait(_INTERVAL_S)

    def joules(self, begin_s: float, end_s: float) -> float | None:
        """Energy between two times of ``time.perf_counter``: :func:`energy_between`.

        Waits up to two seconds until the counter has moved after ``end_s``: what it says before
        that is of an earlier moment.
        """
        while now() < end_s + _MOST_WAIT_S and not self._moved_since(end_s):
            time.sleep(_INTERVAL_S)
        return energy_between(list(self._readings), begin_s, end_s)

    def _moved_since(self, end_s: float) -> bool:
        """Whether it moved between two readings after a time."""
        later = [r for r in list(self._readings) if r[0] >= end_s]
        return len(later) > 1 and later[-1][2] > later[0][2]

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=30.0)
