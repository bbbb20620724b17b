"""Power and queue lengths over time, in a bounded number of bins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qsim.sim.timing import PS_PER_S

__all__ = ["Timeline"]

_BINS = 400


class Timeline:
    """Time-weighted sums over the fleet; the bins widen by two when a run takes longer.

    Every stretch of one replica's time is added once, with its energy and the state at its end.
    """

    def __init__(self, start_ps: int, last_arrival_ps: int) -> None:
        self._start_ps = start_ps
        self._width_ps = max(PS_PER_S // 10, (last_arrival_ps - start_ps) // _BINS + 1)
        self._since_ps: dict[int, int] = {}
        # per bin: energy in J, then running, waiting and KV usage, each times ps
        self._energy_j = [0.0]
        self._running = [0.0]
        self._waiting = [0.0]
        self._kv_usage = [0.0]

    def add(
        self,
        replica: int,
        now_ps: int,
        energy_j: float,
        running: int,
        waiting: int,
        kv_usage: float,
    ) -> None:
        """Account for ``replica``'s time from the last call (or the start) to ``now_ps``."""
        begin = self._since_ps.get(replica, self._start_ps)
        self._since_ps[replica] = now_ps
        total = now_ps - begin
        if total <= 0:
            return
        first = (begin - self._start_ps) // self._width_ps
        last = (now_ps - self._start_ps) // self._width_ps
        while last >= 2 * _BINS:
            self._widen()
            first, last = first // 2, (now_ps - self._start_ps) // self._width_ps
        while len(self._energy_j) <= last:
            for column in (self._energy_j, self._running, self._waiting, self._kv_usage):
                column.append(0.0)
        for i in range(first, last + 1):
            if first == last:
                part = total
            else:
                left = self._start_ps + i * self._width_ps
                part = min(now_ps, left + self._width_ps) - max(begin, left)
            self._energy_j[i] += energy_j * part / total
            self._running[i] += running * part
            self._waiting[i] += waiting * part
            self._kv_usage[i] += kv_usage * part

    def _widen(self) -> None:
        self._width_ps *= 2
        for column in (self._energy_j, self._running, self._waiting, self._kv_usage):
            if len(column) % 2:
                column.append(0.0)
            column[:] = [a + b for a, b in zip(column[::2], column[1::2], strict=True)]

    def columns(self, end_ps: int, replicas: int) -> dict[str, npt.NDArray[np.float64]]:
        """Bin centres (s) with mean power (W), running, waiting (fleet sums), KV usage (mean)."""
        bins = len(self._energy_j)
        left = self._start_ps + np.arange(bins, dtype=np.float64) * self._width_ps
        width = np.minimum(float(self._width_ps), np.maximum(end_ps - left, 1.0))
        keep = left < end_ps
        return {
            "t_s": ((left + width / 2) / PS_PER_S)[keep],
            "power_w": (np.array(self._energy_j) / (width / PS_PER_S))[keep],
            "running": (np.array(self._running) / width)[keep],
            "waiting": (np.array(self._waiting) / width)[keep],
            "kv_usage": (np.array(self._kv_usage) / width / replicas)[keep],
        }
