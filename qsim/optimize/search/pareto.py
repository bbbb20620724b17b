"""Fronts of points that are to be small in every objective."""

from __future__ import annotations

import numpy as np

from qsim.arrays import BoolArray, FloatArray


def front_mask(values: FloatArray) -> BoolArray:
    """Which points no other one dominates.

    A point dominates another if it is not above it in any objective and below it in one. Of equal
    points all are kept.

    Parameters
    ----------
    values : array, shape (n, m)
        Less is better in each of the m columns.

    Returns
    -------
    array of bool, shape (n,)
    """
    n = len(values)
    kept = np.ones(n, dtype=np.bool_)
    for i in range(n):
        if kept[i]:
            worse = np.all(values >= values[i], axis=1) & np.any(values > values[i], axis=1)
            kept &= ~worse
    return kept


def hypervolume(values: FloatArray, reference: FloatArray) -> float:
    """Volume of what the points dominate, up to ``reference``.

    By slicing along the last objective: exact, and quick enough for some hundred points and three
    or four objectives. (Zitzler and Thiele, PPSN 1998, for the measure.)

    Parameters
    ----------
    values : array, shape (n, m)
        Less is better. Points that are not below the reference in every objective add nothing.
    reference : array, shape (m,)
    """
    inside = values[np.all(values < reference, axis=1)]
    return _volume(inside, reference)


def _volume(values: FloatArray, reference: FloatArray) -> float:
    if len(values) == 0:
        return 0.0
    if values.shape[1] == 1:
        return float(reference[0] - values.min())
    points = np.unique(values[front_mask(values)], axis=0)
    points = points[np.argsort(points[:, -1], kind="stable")]
    if values.shape[1] == 2:  # a staircase
        lowest = np.minimum.accumulate(points[:, 0])
        ends = np.append(points[1:, 1], reference[1])
        return float(np.sum((reference[0] - lowest) * (ends - points[:, 1])))
    total = 0.0
    ends = np.append(points[1:, -1], reference[-1])
    for k, end in enumerate(ends):
        if end > points[k, -1]:
            total += _volume(points[: k + 1, :-1], reference[:-1]) * (end - points[k, -1])
    return float(total)


def knee(values: FloatArray) -> int:
    """The point that gives up least: nearest to the best value of every objective at once.

    Each objective is scaled to [0, 1] over the points; one in which all are equal does not count.
    Of equally near points the first.

    Parameters
    ----------
    values : array, shape (n, m), n >= 1
        A front; less is better.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return int(np.argmin(np.sum(((values - low) / span) ** 2, axis=1)))
