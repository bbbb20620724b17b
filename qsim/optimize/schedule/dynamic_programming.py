"""The cheapest sequence of fleets over the windows, by dynamic programming; exact."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["cheapest_path", "fleet_states", "starts_between"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def fleet_states(limits: Sequence[int], max_gpus: int | None, gpus: Sequence[int]) -> IntArray:
    """Every fleet that may be on: rows of counts by pool, at least one server in all.

    Parameters
    ----------
    limits : sequence of int
        The most servers of each pool.
    max_gpus : int, optional
        The most GPUs in all.
    gpus : sequence of int
        GPUs of one server of each pool.

    Returns
    -------
    int64 array, shape (states, pools)
    """
    rows = [s for s in itertools.product(*(range(n + 1) for n in limits)) if any(s)]
    table = np.array(rows, np.int64).reshape(-1, len(limits))
    if max_gpus is not None:
        table = table[table @ np.asarray(gpus) <= max_gpus]
    return table


def starts_between(states: IntArray) -> IntArray:
    """Servers of each pool that a change from one state to another starts.

    Returns
    -------
    int64 array, shape (states before, states after, pools)
    """
    return np.asarray(np.maximum(0, states[None, :, :] - states[:, None, :]))


def cheapest_path(
    costs: FloatArray, changes: FloatArray, scale: FloatArray | None = None
) -> tuple[list[int], float]:
    """The sequence of states of least cost.

    Parameters
    ----------
    costs : float64 array, shape (windows, states)
        What a state costs in a window; inf where it does not do.
    changes : float64 array, shape (states, states)
        What it costs to go from one state (row) to another between two windows; inf if one cannot.
    scale : float64 array, shape (windows,), optional
        Multiplies the changes before each window, for costs that vary over time.

    Returns
    -------
    path : list of int
        The state in each window; of equally cheap ones the first in the order of the states.
    cost : float
        inf, with an empty path, if nothing does.
    """
    windows, states = costs.shape
    best = costs[0].copy()
    back = np.zeros((windows, states), np.int64)
    for t in range(1, windows):
        total = best[:, None] + changes * (1.0 if scale is None else scale[t])
        back[t] = np.argmin(total, axis=0)
        best = total[back[t], np.arange(states)] + costs[t]
    last = int(np.argmin(best))
    if not np.isfinite(best[last]):
        return [], float("inf")
    path = [last]
    for t in range(windows - 1, 0, -1):
        path.append(int(back[t, path[-1]]))
    return path[::-1], float(best[last])
