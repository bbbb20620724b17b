"""One simulation of a study: what is asked, as a task for any process and as a command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from qsim.optimize.deploy.vllm import option_words
from qsim.optimize.search.fleet_task import FleetTask
from qsim.profiles.schema import Profile
from qsim.sim.results.continued import settled
from qsim.sim.results.result import SimulationResult

#: a bin of the timeline whose mean power is such a share of the limit counts as being at it
AT_LIMIT = 0.98
#: latencies whose sampling error is told: those of few requests
PERCENTILES = ("p99_ttft_ms", "p99_tpot_ms", "p99_e2el_ms")
_LATENCIES = ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", *PERCENTILES)
#: an unclear trace goes on for so many requests, as with ``qsim simulate``
_GOES_ON = 12_000


@dataclass(frozen=True)
class Traffic:
    """Requests, as words of a command."""

    #: TRACE and the options that shape it
    words: tuple[str, ...]
    #: arrivals so many times as fast
    speed: float = 1.0
    #: only so many requests
    head: int | None = None

    @property
    def text(self) -> str:
        """For people and commands."""
        words = [*self.words]
        if self.speed != 1.0:
            words += ["--speed", f"{self.speed:.15g}"]
        if self.head is not None:
            words += ["--head", str(self.head)]
        return shlex.join(words)


@dataclass(frozen=True)
class Point:
    """One simulation."""

    #: its id, or the file that it was read from
    profile: str
    #: whose rules hold
    vllm_version: str
    traffic: Traffic
    replicas: int = 1
    #: engine options that are not the defaults
    settings: tuple[tuple[str, Any], ...] = ()
    #: so many clients, instead of the arrivals of the traffic
    concurrency: int | None = None
    #: make sure whether the fleet keeps up, if the traffic is too short to tell
    settle: bool = False

    def command(self, seed: int, router: str, too_long: str, text_prompts: bool = False) -> str:
        """``qsim simulate ...``, which gives this simulation's figures."""
        words = ["--profile", self.profile, "--vllm-version", self.vllm_version]
        if self.replicas > 1:
            words += ["--replicas", str(self.replicas)]
            if router != "least-requests":
                words += ["--router", router]
        words += option_words(dict(self.settings))
        if self.concurrency is not None:
            words += ["--concurrency", str(self.concurrency)]
        if seed:
            words += ["--seed", str(seed)]
        if too_long != "error":
            words += ["--too-long", too_long]
        if text_prompts:
            words.append("--text-prompts")
        return f"qsim simulate {self.traffic.text} {shlex.join(words)} --json -"


@dataclass(frozen=True)
class PointTask(FleetTask):
    """A point with its trace and profile, so that any process can simulate it."""

    #: as that of :class:`Point`
    settle: bool = False


def run_point(task: PointTask) -> dict[str, Any]:
    """Simulate, and keep what a study needs, JSON-ready.

    That is ``values`` (figures by name), ``intervals`` (of :data:`PERCENTILES`, at 90%, ends that
    the sample does not bound are None), ``load``, ``beyond_measured`` and ``answered`` (share of
    the requests that were answered in full).
    """
    result = task.simulate()
    summary = result.summary()
    load = result.load
    if task.settle:
        load = settled(load, task.trace, lambda longer: task.simulate(trace=longer), _GOES_ON)
    done = summary["completed"]
    values: dict[str, float | None] = {name: summary[name] for name in _LATENCIES}
    throughput, mean_ms = summary["request_throughput"], summary["mean_e2el_ms"]
    values |= {
        "request_throughput": throughput,
        "output_throughput": summary["output_throughput"],
        "output_throughput_per_gpu": _over(summary["output_throughput"], summary["gpus"]),
        "joules_per_request": _over(summary["energy_j"], done),
        "joules_per_output_token": summary["joules_per_output_token"],
        "avg_power_w": summary["avg_power_w"],
        "mean_concurrency": None if None in (throughput, mean_ms) else throughput * mean_ms / 1e3,
        "power_limit_share": _at_limit(result, task.profile, task.replicas),
    }
    requests = len(task.trace)
    return {
        "values": values,
        "intervals": {n: summary["intervals_90"][n] for n in PERCENTILES},
        "load": load.verdict,
        "beyond_measured": 0.0 if result.beyond is None else result.beyond.step_share,
        "answered": (done - summary["truncated"]) / requests,
        "requests": requests,
    }


def _over(value: float | None, count: float) -> float | None:
    return value / count if value is not None and count else None


def _at_limit(result: SimulationResult, profile: Profile, replicas: int) -> float | None:
    """Share of the timeline in which the fleet draws what its limit allows."""
    power = result.timeline["power_w"]
    if not len(power):
        return None
    limit_w = AT_LIMIT * profile.power.cap_w * replicas
    return float((power >= limit_w).mean())
