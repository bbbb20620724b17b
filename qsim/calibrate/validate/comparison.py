"""One recorded load, measured and simulated: statistics of its requests, and their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qsim.arrays import FloatArray

METRICS = ("ttft_ms", "tpot_ms", "e2el_ms")
STATISTICS = ("mean", "median", "p90", "p99")
_PERCENTILES = {"median": 50, "p90": 90, "p99": 99}
#: how far from a percentile its neighbours are looked up, percentage points
NEARBY_POINTS = {"median": 5, "p90": 5, "p99": 1}
#: a launch ratio outside of these is told
_LIKE_LAUNCHES = (0.9, 1.1)


@dataclass(frozen=True)
class Nearby:
    """How dense the measured requests lie around a percentile."""

    #: The percentile less and plus ``NEARBY_POINTS``.
    from_percentile: int
    to_percentile: int
    #: Measured values at these.
    low_ms: float
    high_ms: float
    #: Measured requests whose value lies strictly between the measured percentile and the simulated
    #: one.
    between: int


@dataclass(frozen=True)
class Comparison:
    """One phase of one recording, measured and simulated.

    ``measured`` and ``simulated`` hold ``mean_ttft_ms`` and so on, and ``energy_j``.
    ``p99_ttft_band_ms`` spans the replays with shaken send times. ``held_updates`` counts the
    updates that came more than 20 ms later than the GPU and the next launch explain (the longest
    by ``longest_hold_ms``): the real host thread was held, which the simulator does not model.
    ``late_arrivals`` counts the requests that came to the engine more than 20 ms later than the
    front end's model says (the last one by ``longest_arrival_ms``): they were held in the API
    process or the client, which is not modelled either. ``launch_ratio`` is how slowly the host
    launched in this load against the profile (see ``fit_timeline.launch_ratio``), None if launch
    times were not recorded.
    ``nearby`` has, for the percentiles, what was measured around them.
    """

    recording: str
    profile: str
    phase: str
    what: str
    requests: int
    held_out: bool
    measured: Mapping[str, float]
    simulated: Mapping[str, float]
    p99_ttft_band_ms: tuple[float, float]
    held_updates: int = 0
    longest_hold_ms: float = 0.0
    late_arrivals: int = 0
    longest_arrival_ms: float = 0.0
    launch_ratio: float | None = None
    nearby: Mapping[str, Nearby] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Part of the profile's id."""
        return self.profile.split("/")[1]

    @property
    def method(self) -> str:
        """Part of the profile's id."""
        return self.profile.split("/")[2]

    @property
    def launches_differ(self) -> bool:
        """Whether the host launched more than 10% slower or faster than the profile says."""
        low, high = _LIKE_LAUNCHES
        return self.launch_ratio is not None and not low <= self.launch_ratio <= high

    @property
    def disturbed(self) -> bool:
        """Whether the host did in this load what the simulator does not model."""
        return self.held_updates > 0 or self.late_arrivals > 0 or self.launches_differ

    def host_dict(self) -> dict[str, Any]:
        """JSON-ready data on what the host did in this load."""
        return {
            "held_updates": self.held_updates,
            "longest_hold_ms": round(self.longest_hold_ms, 1),
            "late_arrivals": self.late_arrivals,
            "longest_arrival_ms": round(self.longest_arrival_ms, 1),
            "launch_ratio": None if self.launch_ratio is None else round(self.launch_ratio, 3),
        }

    def error_percent(self, name: str) -> float:
        """Simulated against measured."""
        measured = self.measured[name]
        return (self.simulated[name] / measured - 1.0) * 100 if measured else float("nan")

    def inside(self, name: str) -> bool:
        """Whether the simulated value lies among the measured neighbours of that percentile."""
        n = self.nearby.get(name)
        return n is not None and n.low_ms <= self.simulated[name] <= n.high_ms

    def nearby_dict(self, name: str) -> dict[str, Any]:
        """JSON-ready data on the neighbours of one percentile."""
        n = self.nearby[name]
        return {
            "from_percentile": n.from_percentile,
            "to_percentile": n.to_percentile,
            "low_ms": round(n.low_ms, 4),
            "high_ms": round(n.high_ms, 4),
            "inside": self.inside(name),
            "requests_between": n.between,
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "recording": self.recording,
            "profile": self.profile,
            "phase": self.phase,
            "what": self.what,
            "requests": self.requests,
            "held_out": self.held_out,
            "measured": {k: round(v, 4) for k, v in self.measured.items()},
            "simulated": {k: round(v, 4) for k, v in self.simulated.items()},
            "error_percent": {k: percent(self.error_percent(k)) for k in self.measured},
            "nearby": {k: self.nearby_dict(k) for k in self.nearby},
            "p99_ttft_band_ms": [round(v, 3) for v in self.p99_ttft_band_ms],
            **self.host_dict(),
        }


def percent(value: float) -> float | None:
    """A percentage for JSON, which has no NaN."""
    return round(value, 2) if np.isfinite(value) else None


def latencies(
    ttft_ms: FloatArray, e2el_ms: FloatArray, output_tokens: npt.NDArray[Any]
) -> dict[str, FloatArray]:
    """Values of single requests by metric, under vLLM bench's definitions.

    TPOT is that of requests with more than one output token. A metric without values is left out.
    """
    many = output_tokens > 1
    tpot_ms = (e2el_ms - ttft_ms)[many] / (output_tokens[many] - 1)
    values = zip(METRICS, (ttft_ms, tpot_ms, e2el_ms), strict=True)
    return {metric: v for metric, v in values if len(v)}


def statistics(values: Mapping[str, FloatArray]) -> dict[str, float]:
    """Means and percentiles of single requests' values: ``mean_ttft_ms`` and so on."""
    result: dict[str, float] = {}
    for metric, v in values.items():
        result[f"mean_{metric}"] = float(v.mean())
        for name, q in _PERCENTILES.items():
            result[f"{name}_{metric}"] = float(np.percentile(v, q))
    return result


def nearby(
    values: Mapping[str, FloatArray],
    measured: Mapping[str, float],
    simulated: Mapping[str, float],
) -> dict[str, Nearby]:
    """What was measured around each percentile.

    ``values`` are those of single requests by metric, as of :func:`latencies`; ``measured`` and
    ``simulated`` are as of :func:`statistics`.
    """
    result: dict[str, Nearby] = {}
    for metric, v in values.items():
        for statistic, q in _PERCENTILES.items():
            name = f"{statistic}_{metric}"
            first, last = q - NEARBY_POINTS[statistic], q + NEARBY_POINTS[statistic]
            low, high = np.percentile(v, [first, last])
            ends = sorted((measured[name], simulated[name]))
            between = int(np.count_nonzero((v > ends[0]) & (v < ends[1])))
            result[name] = Nearby(first, last, float(low), float(high), between)
    return result
