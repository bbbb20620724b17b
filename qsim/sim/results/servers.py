"""What each server of a fleet did beside the others, and whether one is much hotter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qsim.arrays import IntArray

#: what is counted of each server's answered requests
SERVED = ("requests", "input_tokens", "output_tokens", "cached_tokens")
#: a server with so many times the tokens of the mean of its pool is hot
HOT = 1.5
#: with fewer requests a server, on average, that may be chance
_FEWEST = 100
_LOADS = ("requests", "tokens", "utilisation", "peak_kv_usage")


class Served:
    """Requests that each of so many servers answered, and their tokens."""

    def __init__(self, servers: int) -> None:
        self._sums = {name: np.zeros(servers, np.int64) for name in SERVED}

    def add(
        self, server: IntArray, prompt_tokens: IntArray, output_tokens: IntArray, cached: IntArray
    ) -> None:
        """Count answered requests."""
        for name, values in zip(SERVED, (None, prompt_tokens, output_tokens, cached), strict=True):
            sums = self._sums[name]
            sums += np.bincount(server, weights=values, minlength=len(sums)).astype(np.int64)

    def row(self, server: int) -> dict[str, int]:
        """Of one server, by the names of :data:`SERVED`."""
        return {name: int(sums[server]) for name, sums in self._sums.items()}


def hot_spots(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How unevenly a fleet is loaded, by a row a server (:func:`qsim.sim.run_facts.run_facts`).

    Returns
    -------
    dict or None
        ``largest_over_mean`` by load: the largest ratio of a server's to the mean of its pool, of
        requests, tokens and computing while it was on, and of the peak KV use; None over nothing.
        ``hottest``: the server with the largest ratio of tokens. ``hot``: whether that is at least
        1.5, of 100 requests a server or more. None for a single server.
    """
    if len(rows) < 2 or "utilisation" not in rows[0]:
        return None
    pools: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        pools.setdefault(row.get("pool"), []).append(row)
    largest: dict[str, float | None] = dict.fromkeys(_LOADS)
    hottest, hot = int(rows[0]["replica"]), False
    for own in pools.values():
        on_s = [r["on_s"] for r in own]
        for name in _LOADS:
            loads = [_load(r, name) for r in own]
            while_on = loads
            mean = sum(loads) / len(own)
            if name != "peak_kv_usage":  # some servers may be on for a part of the time
                while_on = [n / s if s else 0.0 for n, s in zip(loads, on_s, strict=True)]
                mean = sum(loads) / max(sum(on_s), 1e-9)
            if not mean > 0:
                continue
            most = max(while_on)
            before = largest[name]
            if before is None or most / mean > before:
                largest[name] = most / mean
                if name == "tokens":
                    hottest = int(own[while_on.index(most)]["replica"])
                    enough = sum(r["requests"] for r in own) >= _FEWEST * len(own)
                    hot = most / mean >= HOT and enough
    return {"largest_over_mean": largest, "hottest": hottest, "hot": hot}


def _load(row: Mapping[str, Any], name: str) -> float:
    if name == "tokens":
        return float(row["input_tokens"] + row["output_tokens"])
    return float(row["busy_s" if name == "utilisation" else name])


def hot_sentence(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """For people; "" unless a server is much hotter than the others."""
    if not found["hot"]:
        return ""
    row = next(r for r in rows if r["replica"] == found["hottest"])
    share = _load(row, "tokens") / sum(_load(r, "tokens") for r in rows)
    return (
        f"server {found['hottest']} is hot: it had {share:.1%} of all tokens, "
        f"{found['largest_over_mean']['tokens']:.3g} times the mean of its pool, and computed "
        f"{row['utilisation']:.1%} of the time; another router, or a lower limit of this one, "
        "spreads them"
    )
