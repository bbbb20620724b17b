"""Which single change would help a fleet most: each is simulated under the load that breaks it.

And a profile as it would be if one thing were different: slower by its error, a faster host, ...
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from qsim.errors import QsimError, ScenarioError
from qsim.optimize.search.drive import Progress
from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.optimize.search.fleet_task import FleetTask, run_fleet
from qsim.profiles.factors import Factors, apply
from qsim.profiles.schema import Profile


@dataclass(frozen=True)
class Change:
    """One thing that is different from the fleet as planned."""

    name: str
    task: FleetTask


@dataclass(frozen=True)
class Effect:
    """The goal that binds with a change, under the load that breaks the fleet as planned.

    ``ratio`` is its value over its limit; ``sentence`` says it for people.
    """

    name: str
    ratio: float
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"change": self.name, "value_over_limit": self.ratio, "binding": self.sentence}


@dataclass(frozen=True)
class WhatIf:
    """The effects of single changes, the most helpful first."""

    #: how many times as fast the trace ran
    speed: float
    #: the fleet as planned at that speed
    before: Effect
    effects: tuple[Effect, ...]

    def text(self) -> list[str]:
        """Sentences for people."""
        more = f"with {(self.speed - 1) * 100:+.1f}% traffic" if self.speed != 1 else "as planned"
        lines = [f"single changes, {more} (now {self.before.sentence})"]
        lines += [f"  {e.name}: {e.sentence}{self._gain(e)}" for e in self.effects]
        return lines

    def _gain(self, effect: Effect) -> str:
        gain = 1 - effect.ratio / self.before.ratio if self.before.ratio else 0.0
        if abs(gain) < 0.005:
            return " (no change)"
        return f" ({abs(gain):.0%} {'less' if gain > 0 else 'more'})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "speed": self.speed,
            "before": self.before.to_dict(),
            "effects": [e.to_dict() for e in self.effects],
            "most_helpful": self.effects[0].name if self.effects else None,
        }


def changes_of(task: FleetTask, other: FleetTask | None = None) -> list[Change]:
    """The changes to try: KV memory, batch, token budget, host, power cap, a replica, a method.

    ``other`` is the fleet of the next best candidate; it is tried with as many GPUs. What does
    not suit the profile is left out.
    """
    if task.beside:
        return _of_pools(task, other)
    options, profile = task.options, task.profile
    config = options.resolve(profile)

    def engine(name: str, **changed: Any) -> Change | None:
        merged = replace(options, **changed)
        try:
            merged.resolve(profile)
        except ScenarioError:
            return None
        return Change(name, replace(task, options=merged))

    blocks = int(config.num_gpu_blocks * 1.25)
    seats, budget = 2 * config.max_num_seqs, 2 * config.max_num_batched_tokens
    found = [
        engine("KV memory x1.25", num_gpu_blocks_override=blocks),
        engine(f"max_num_seqs {seats}", max_num_seqs=seats),
        engine(f"max_num_batched_tokens {budget}", max_num_batched_tokens=budget),
        Change("host times x0.5", replace(task, profile=scaled_host(profile, 0.5))),
        Change("one replica more", replace(task, replicas=task.replicas + 1)),
    ]
    if any((profile.latency.throttle.decode, profile.latency.throttle.eager)):
        found.append(Change("no power cap", replace(task, profile=without_power_cap(profile))))
    if other is not None and other.beside:
        found.append(
            Change(" + ".join(f"{p.replicas} x {p.profile.id}" for p in other.pools), other)
        )
    elif other is not None:
        per_replica = other.profile.identity.tensor_parallel_size
        n = task.replicas * profile.identity.tensor_parallel_size // per_replica
        if n:
            found.append(Change(f"{other.profile.id} on as many GPUs", replace(other, replicas=n)))
    return [c for c in found if c is not None]


def _of_pools(task: FleetTask, other: FleetTask | None) -> list[Change]:
    """Those of a mixed fleet: a server more of each pool, a faster host, the next best fleet."""
    found = []
    for i, pool in enumerate(task.pools):
        sizes = [n + (k == i) for k, n in enumerate(task.sizes)]
        found.append(Change(f"one server more of {pool.profile.id}", task.sized(sizes)))
    hosts = [replace(p, profile=scaled_host(p.profile, 0.5)) for p in task.pools]
    found.append(Change("host times x0.5", task.of_pools(hosts)))
    if other is not None:
        found.append(
            Change(" + ".join(f"{p.replicas} x {p.profile.id}" for p in other.pools), other)
        )
    return found


def what_if(
    executor: Executor,
    task: FleetTask,
    changes: list[Change],
    speed: float = 1.0,
    progress: Progress | None = None,
) -> WhatIf:
    """Simulate the fleet and every change of it on the trace at ``speed``.

    At the speed that broke an SLO (:class:`qsim.optimize.plan.headroom.Headroom`) a change shows
    what it is good for; on an easy load all of them look alike.
    """
    trace = task.trace.speed(speed)
    jobs = [Change("", task), *changes]
    futures = [executor.submit(run_fleet, replace(c.task, trace=trace)) for c in jobs]
    effects = []
    for done, (change, future) in enumerate(zip(jobs, futures, strict=True), 1):
        try:
            outcome: FleetOutcome = future.result()
        except QsimError:
            continue  # a change that the trace does not suit
        binding = outcome.binding
        effects.append(Effect(change.name, min(binding.ratio, 1e9), binding.sentence()))
        if progress is not None:
            progress(done / len(jobs), "single changes")
    before, *after = effects
    return WhatIf(speed, before, tuple(sorted(after, key=lambda e: e.ratio)))


#: no factor below it: a profile cannot be off by so much
_LEAST = 0.1


def stated_sigma(profile: Profile) -> float:
    """Relative standard error of a profile's times: the worst error of a mean latency it states.

    That is the largest of the errors of the mean TTFT, TPOT and end-to-end latency on loads that
    were not fitted; as a standard deviation it is on the careful side. A transferred profile states
    its estimate under the same key. 0 where none is stated.
    """
    value = profile.fit_error.get("worst_mean")
    return abs(float(value)) / 100 if isinstance(value, int | float) else 0.0


def stated_kv_sigma(profile: Profile) -> float:
    """Relative standard error of the KV cache's size: of a transferred profile, what it states.

    A measured profile has the number of blocks that the server told: 0.
    """
    if profile.transfer is None:
        return 0.0
    return abs(float(profile.transfer.error_percent.get("kv_tokens", 0.0))) / 100


def scaled_memory(profile: Profile, factor: float) -> Profile:
    """So many times the KV blocks, at least two."""
    blocks = max(2, round(profile.memory.num_gpu_blocks * max(factor, _LEAST)))
    return replace(profile, memory=replace(profile.memory, num_gpu_blocks=blocks))


def scaled_times(profile: Profile, factor: float) -> Profile:
    """Every time multiplied by ``factor``: GPU spans, host and front end; energy a token stays."""
    factor = max(factor, _LEAST)
    spans = apply(profile, Factors(front_end=factor, memory=factor, compute=factor))
    return replace(scaled_host(profile, factor), latency=spans.latency, frontend=spans.frontend)


def scaled_host(profile: Profile, factor: float) -> Profile:
    """The host thread's times multiplied by ``factor``.

    The gap between GPU spans stays, and so does how full a step makes the queue of launches.
    """
    values: dict[str, Any] = {
        k: [x * factor for x in v] if isinstance(v, list) else v * factor
        for k, v in vars(profile.host).items()
        if k not in ("gpu_gap_ms", "launch_eager_queue")
    }
    return replace(profile, host=replace(profile.host, **values))


def without_power_cap(profile: Profile) -> Profile:
    """Steps at full clock whatever the power."""
    free = replace(profile.latency.throttle, decode=0.0, piecewise=0.0, eager=0.0)
    return replace(profile, latency=replace(profile.latency, throttle=free))
