"""Power and queue lengths over time, in a bounded number of bins."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from struct import Struct

import numpy as np

from qsim.arrays import FloatArray, IntArray
from qsim.sim.engine.timing import PS_PER_S

_BINS = 400
#: stretches that are kept before they are put into their bins, which bounds the memory
_KEPT = 1 << 15
_pack = Struct("=6q").pack  # an array takes bytes faster than numbers


class Timeline:
    """Time-weighted sums over the fleet; the bins widen by two when a run takes longer.

    Every stretch of one replica's time is added once, with its energy and the state at its end. The
    time from ``start_ps`` to ``last_arrival_ps`` is divided into some hundreds of bins; a
    ``width_ps`` that is given is kept as long as a run does not take twice that time. ``kv_blocks``
    are the usable ones of every server.
    """

    def __init__(
        self,
        start_ps: int,
        last_arrival_ps: int,
        replicas: int,
        kv_blocks: Sequence[int],
        width_ps: int | None = None,
    ) -> None:
        self._start_ps = start_ps
        self._width_ps = max(PS_PER_S // 10, (last_arrival_ps - start_ps) // _BINS + 1)
        self._limit = 2 * _BINS
        if width_ps is not None:
            self._width_ps = width_ps
            self._limit = 2 * max(_BINS, (last_arrival_ps - start_ps) // width_ps + 1)
        self._kv_blocks = np.array(kv_blocks, np.int64)
        self._since_ps = [start_ps] * replicas
        # stretches: begin, end, running, waiting, free KV blocks, replica; and their energy
        self._stretches = array("q")
        self._energies_j = array("d")
        self._last_bin = 0
        # per bin: energy in J, then running, waiting and KV usage, each times ps
        self._sums = np.zeros((4, self._limit))

    def add(
        self,
        replica: int,
        now_ps: int,
        energy_j: float,
        running: int,
        waiting: int,
        free_blocks: int,
    ) -> None:
        """Account for ``replica``'s time from the last call (or the start) to ``now_ps``."""
        begin = self._since_ps[replica]
        self._since_ps[replica] = now_ps
        self._stretches.frombytes(_pack(begin, now_ps, running, waiting, free_blocks, replica))
        energies = self._energies_j
        energies.append(energy_j)
        if len(energies) == _KEPT:
            self._settle()

    def _settle(self) -> None:
        """Put what was added into bins, in the order in which it came."""
        table = np.array(self._stretches, np.int64).reshape(-1, 6)
        energy = np.array(self._energies_j, np.float64)
        self._stretches = array("q")
        self._energies_j = array("d")
        keep = table[:, 1] > table[:, 0]
        table, energy = table[keep], energy[keep]
        while len(table):
            last = (table[:, 1] - self._start_ps) // self._width_ps
            beyond = last >= self._limit
            stop = int(np.argmax(beyond)) if beyond.any() else len(table)
            if stop:
                self._put(table[:stop], energy[:stop], last[:stop])
                table, energy = table[stop:], energy[stop:]
            else:
                self._widen()

    def _put(self, table: IntArray, energy: FloatArray, last: IntArray) -> None:
        begin, end, running, waiting, free, replica = table.T
        width, start = self._width_ps, self._start_ps
        first = (begin - start) // width
        self._last_bin = max(self._last_bin, int(last.max()))
        # a stretch has a part in each bin that it touches
        parts = last - first + 1
        row = np.repeat(np.arange(len(table)), parts)
        bins = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts - first, parts)
        left = start + bins * width
        part = np.minimum(end[row], left + width) - np.maximum(begin[row], left)
        usage = 1.0 - free / self._kv_blocks[replica]
        total = end - begin
        values = (
            energy[row] * part / total[row],
            running[row] * part,
            waiting[row] * part,
            usage[row] * part,
        )
        for sums, value in zip(self._sums, values, strict=True):
            np.add.at(sums, bins, value)

    def _widen(self) -> None:
        self._width_ps *= 2
        self._last_bin //= 2
        pairs = self._sums[:, ::2] + self._sums[:, 1::2]
        self._sums = np.concatenate([pairs, np.zeros_like(pairs)], axis=1)

    def columns(self, end_ps: int, replicas: int, origin_s: float = 0.0) -> dict[str, FloatArray]:
        """Bin centres (s) with mean power (W), running, waiting (fleet sums), KV usage (mean).

        The centres are on the trace's clock, which is at ``origin_s`` when the run's is at 0.
        """
        self._settle()
        bins = self._last_bin + 1
        energy, running, waiting, kv_usage = self._sums[:, :bins]
        left = self._start_ps + np.arange(bins, dtype=np.float64) * self._width_ps
        width = np.minimum(float(self._width_ps), np.maximum(end_ps - left, 1.0))
        keep = left < end_ps
        return {
            "t_s": ((left + width / 2) / PS_PER_S)[keep] + origin_s,
            "power_w": (energy / (width / PS_PER_S))[keep],
            "running": (running / width)[keep],
            "waiting": (waiting / width)[keep],
            "kv_usage": (kv_usage / width / replicas)[keep],
        }
