"""What an autoscaler did in a run: servers over time, what they cost, and who waited for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: a server that goes and is missed so soon after was taken away too early, s
_SOON_S = 600.0
Change = tuple[float, int, int, int, int]


@dataclass(frozen=True)
class PoolScaling:
    """One pool."""

    pool: str
    #: servers that were on
    least_servers: int
    mean_servers: float
    most_servers: int
    #: how often more servers were wanted, and how often fewer
    scale_ups: int
    scale_downs: int
    #: how often more were wanted within 600 s after fewer
    reversals: int
    #: servers that were started; those of the beginning are not among them
    starts: int
    #: of all states but off
    server_hours: float
    #: those of them before a server answers
    starting_hours: float
    #: that are paid for
    gpu_hours: float
    #: of all states, and of starting
    energy_j: float
    starting_energy_j: float


@dataclass(frozen=True)
class Scaling:
    """A whole fleet."""

    pools: tuple[PoolScaling, ...]
    #: that waited at the gateway because no server was on
    held_requests: int
    #: for how long those waited
    mean_held_s: float
    most_held_s: float
    #: time in which no server was on
    none_on_s: float
    #: servers of a pool (by its number) after every change, on the trace's clock
    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "pools": [asdict(p) for p in self.pools],
            "held_requests": self.held_requests,
            "mean_held_s": self.mean_held_s,
            "most_held_s": self.most_held_s,
            "none_on_s": self.none_on_s,
            "changes": [
                dict(zip(("time_s", "pool", "on", "starting", "draining"), c, strict=True))
                for c in self.changes
            ],
        }


def servers_over_time(
    changes: Sequence[Change], pool: int, begin_s: float, end_s: float
) -> tuple[int, float, int]:
    """Least, mean and most servers of a pool that are on between two times."""
    on, since, area = 0, begin_s, 0.0
    least: int | None = None
    most = 0
    for time_s, number, now_on, *_ in changes:
        if number != pool:
            continue
        if time_s > since:
            area += on * (time_s - since)
            least = on if least is None else min(least, on)
            most = max(most, on)
            since = time_s
        on = now_on
    if end_s > since or least is None:
        area += on * max(0.0, end_s - since)
        least = on if least is None else min(least, on)
        most = max(most, on)
    span_s = max(end_s, since) - begin_s
    return least, area / span_s if span_s > 0 else float(on), most


def none_on_s(changes: Sequence[Change], begin_s: float, end_s: float) -> float:
    """For how long no server of any pool is on."""
    on: dict[int, int] = {}
    since, none = begin_s, 0.0
    for time_s, number, now_on, *_ in changes:
        if not any(on.values()):
            none += time_s - since
        since = time_s
        on[number] = now_on
    return none + (max(0.0, end_s - since) if not any(on.values()) else 0.0)


def decisions_of(
    decisions: Sequence[tuple[float, tuple[int, ...]]], pool: int
) -> tuple[int, int, int]:
    """How often a pool was to have more servers, fewer, and more again soon after fewer."""
    ups = downs = reversals = 0
    before: int | None = None
    fell_s: float | None = None
    for time_s, counts in decisions:
        now = counts[pool]
        if before is not None and now > before:
            ups += 1
            if fell_s is not None and time_s - fell_s <= _SOON_S:
                reversals += 1
            fell_s = None
        elif before is not None and now < before:
            downs += 1
            fell_s = time_s
        before = now
    return ups, downs, reversals


def last_of_each_time(changes: Sequence[Change]) -> list[Change]:
    """Changes of one pool at one time as one."""
    found: dict[tuple[float, int], Change] = {}
    for change in changes:
        found[change[:2]] = change
    return list(found.values())
