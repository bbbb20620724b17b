"""The search for the smallest number of replicas, without knowing what a replica is."""

from __future__ import annotations

from collections.abc import Generator


def smallest_fleet(start: int, limit: int) -> Generator[int, bool, int | None]:
    """Find the smallest fleet that suffices, by doubling and bisection.

    A generator: it yields a number of replicas, is sent whether that many suffice, and returns
    the answer. No number is yielded twice, and nothing is concluded about the answer ``n`` but
    from what was sent: ``n`` sufficed and ``n - 1`` did not (or ``n`` is 1). If more replicas
    are never worse, ``n`` is the smallest fleet of all.

    It begins at ``start``, from 1 to ``limit``, the largest fleet to try; a poor guess costs
    probes, not correctness. The answer is None when ``limit`` replicas do not suffice.
    """
    low, high = 0, start  # low never suffices
    while not (yield high):
        if high == limit:
            return None
        low, high = high, min(2 * high, limit)
    if low == 0:  # the start sufficed: look below it
        while high > 1:
            probe = max(1, high // 2)
            if not (yield probe):
                low = probe
                break
            high = probe
    while high - low > 1:
        probe = (low + high) // 2
        if (yield probe):
            high = probe
        else:
            low = probe
    return high


def probes_left(largest_failed: int, smallest_met: int | None) -> int:
    """About how many probes are still to come; for a progress bar."""
    if smallest_met is None:
        return 3
    return max(0, (smallest_met - largest_failed - 1).bit_length())
