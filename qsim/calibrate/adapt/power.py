"""Energy of the GPUs while loads are sent: by NVML here, by DCGM's exporter, or not at all."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Sequence
from time import perf_counter as now

import numpy as np

from qsim.calibrate.measure.power import Nvml
from qsim.errors import CalibrationError, QsimError
from qsim.prometheus import samples

__all__ = ["EnergyMeter", "dcgm_reader", "nvml_reader"]

#: energy of the GPUs since some time, J
Reader = Callable[[], float]

_INTERVAL_S = 0.1
_DCGM_ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
#: readings must lie this close around a load, s
_NEAR_S = 1.0


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


class EnergyMeter:
    """Reads a counter in a thread of its own; ``stop`` it when done."""

    def __init__(self, read: Reader) -> None:
        self._read, self._stop = read, threading.Event()
        self._times: list[float] = []
        self._joules: list[float] = []
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
            self._times.append((begin + now()) / 2)
            self._joules.append(joules)
            self._stop.wait(_INTERVAL_S)

    def joules(self, begin_s: float, end_s: float) -> float | None:
        """Energy between two times of ``time.perf_counter``; None if it was not read then."""
        times, joules = np.array(self._times), np.array(self._joules[: len(self._times)])
        n = min(len(times), len(joules))
        times, joules = times[:n], joules[:n]
        if n < 2 or times[0] > begin_s + _NEAR_S or times[-1] < end_s - _NEAR_S:
            return None
        inside = times[(times >= begin_s - _NEAR_S) & (times <= end_s + _NEAR_S)]
        if len(inside) < 2 or np.diff(inside).max() > 2 * _NEAR_S:
            return None
        a, b = np.interp([begin_s, end_s], times, joules)
        return float(b - a) if b > a else None

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5.0)
