"""One fleet as a task that any process can simulate, and what a plan keeps of the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import ScenarioError
from qsim.optimize.search.fleet_outcome import QUANTILES, Degraded, FleetOutcome
from qsim.profiles.schema import Profile
from qsim.sim.fleet.routers.router import check_weights
from qsim.sim.results.backlog import Load
from qsim.sim.results.continued import settled
from qsim.sim.results.goodput import Goodput
from qsim.sim.results.slo import METRICS, Slo, attainment, check_slos
from qsim.sim.scheduler.config import EngineConfig, EngineOptions
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.sim.engine.steplog import Step
    from qsim.sim.fleet.pool import Pool
    from qsim.sim.results.machine_ranges import MachineRanges
    from qsim.sim.results.result import SimulationResult


@dataclass(frozen=True)
class TaskPool:
    """Equal servers of a fleet, and how many requests each gets beside one of weight 1."""

    profile: Profile
    replicas: int
    options: EngineOptions
    weight: float = 1.0

    @property
    def gpus(self) -> int:
        """Of all its servers."""
        return self.replicas * self.profile.identity.tensor_parallel_size


@dataclass(frozen=True)
class FleetTask:
    """One fleet to simulate, complete in itself, so that any process can do it."""

    trace: Trace
    #: with ``replicas``, ``options`` and ``weight`` the servers of a fleet of one pool, or of the
    #: first pool of a mixed fleet
    profile: Profile
    replicas: int
    slos: tuple[Slo, ...]
    options: EngineOptions
    router: str
    seed: int
    too_long: str
    goodput: Goodput | None = None
    allow_backlog: bool = False
    #: the further pools of a mixed fleet
    beside: tuple[TaskPool, ...] = ()
    weight: float = 1.0
    #: the goals are to be met with any so many servers down
    survive: int = 0
    #: clients of a closed loop: see :func:`qsim.simulate`
    concurrency: int | None = None
    think_time_s: float | None = None
    #: prompts are texts, and not token ids
    text_prompts: bool = False

    @property
    def pools(self) -> tuple[TaskPool, ...]:
        """All pools; of a plain fleet the one."""
        return (TaskPool(self.profile, self.replicas, self.options, self.weight), *self.beside)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The servers of each pool."""
        return (self.replicas, *(p.replicas for p in self.beside))

    @property
    def servers(self) -> int:
        """The servers of all pools."""
        return sum(self.sizes)

    @property
    def gpus(self) -> int:
        """The GPUs of all pools."""
        return sum(p.gpus for p in self.pools)

    def of_pools(self, pools: Sequence[TaskPool]) -> FleetTask:
        """The same with these pools; a single one is a plain fleet, whose weight means nothing."""
        first, *others = pools
        return replace(
            self,
            profile=first.profile,
            replicas=first.replicas,
            options=first.options,
            beside=tuple(others),
            weight=first.weight if others else 1.0,
        )

    def sized(self, sizes: Sequence[int]) -> FleetTask:
        """The same with so many servers of each pool; a pool without any is left out."""
        pools = [replace(p, replicas=n) for p, n in zip(self.pools, sizes, strict=True) if n]
        return self.of_pools(pools)

    def with_first(self, replicas: int) -> FleetTask:
        """The same with so many servers, of a mixed fleet in the first pool."""
        return replace(self, replicas=replicas)

    def simulate(
        self, step_log: list[Step] | None = None, trace: Trace | None = None
    ) -> SimulationResult:
        """Run it, or another trace; ``step_log`` takes every engine step."""
        from qsim.sim.simulate import simulate

        return simulate(
            self.trace if trace is None else trace,
            pools=_simulated(self.pools),
            router=self.router,
            seed=self.seed,
            too_long=self.too_long,
            concurrency=self.concurrency,
            think_time_s=self.think_time_s,
            text_prompts=self.text_prompts,
            step_log=step_log,
        )

    def settled(self, load: Load) -> Load:
        """Whether the fleet keeps up; the trace goes on where ``load`` does not tell."""
        return settled(load, self.trace, lambda longer: self.simulate(trace=longer))


def _simulated(pools: Sequence[TaskPool]) -> list[Pool]:
    from qsim.sim.fleet.pool import Pool

    return [Pool(p.profile, p.replicas, p.options, p.weight) for p in pools]


def run_fleet(task: FleetTask) -> FleetOutcome:
    """Simulate one fleet and keep what a plan needs of the result.

    One that is to survive servers that are down is simulated as a whole, and without each choice
    of them that differs; it meets its goals if all of these do.
    """
    whole = _run(task)
    if not task.survive:
        return whole
    return replace(whole, degraded=tuple(_without(task, down) for down in _down(task)))


def _down(task: FleetTask) -> Iterator[tuple[int, ...]]:
    """By pool, how many servers are down: every way to take ``survive`` of all pools."""
    sizes = task.sizes
    most = min(task.survive, sum(sizes))
    for down in product(*(range(min(most, n) + 1) for n in sizes)):
        if sum(down) == most:
            yield down


def _without(task: FleetTask, down: tuple[int, ...]) -> Degraded:
    left = tuple(n - d for n, d in zip(task.sizes, down, strict=True))
    if task.beside:
        names = [f"{d} of {p.profile.id}" for p, d in zip(task.pools, down, strict=True) if d]
        text = f"with {' and '.join(names)} down"
    else:
        text = f"with {sum(down)} server{'s' if sum(down) != 1 else ''} down"
    return Degraded(left, text, _run(task.sized(left)) if any(left) else None)


def _run(task: FleetTask) -> FleetOutcome:
    result = task.simulate()
    quantiles: dict[str, list[float]] = {}
    for name in ("ttft_ms", "tpot_ms", "e2el_ms"):
        values = np.asarray(getattr(result, name))
        values = values[~np.isnan(values)]
        quantiles[name] = np.quantile(values, QUANTILES).tolist() if len(values) else []
    outcome = FleetOutcome(
        task.servers,
        result.summary(),
        tuple(check_slos(result, task.slos)),
        attainment(result, task.slos),
        quantiles,
        None if task.goodput is None else task.goodput.check(result),
        _peak_power_w(result),
        result.load,
        task.allow_backlog,
        {f"p95_{name}_ms": _known(result.statistic(name, "p95")) for name in METRICS},
        task.sizes if task.beside else (),
    )
    if outcome.met and not task.allow_backlog:  # one that misses an SLO has missed
        outcome = replace(outcome, load=task.settled(result.load))
    return outcome


def _known(value: float) -> float | None:
    return None if value != value else value


def _peak_power_w(result: SimulationResult) -> float:
    """Highest mean power of the fleet over a bin of the timeline, W; not over a part of one."""
    power = result.timeline["power_w"]
    return float(power[: max(1, len(power) - 1)].max())


def fleet_ranges(task: FleetTask) -> MachineRanges:
    """90% ranges of a fleet's figures over machines; those of its SLOs are among them."""
    from qsim.sim.machines import quick_ranges

    return quick_ranges(
        task.trace,
        _simulated(task.pools),
        seed=task.seed,
        statistics=[(s.metric, s.statistic) for s in task.slos],
        router=task.router,
        too_long=task.too_long,
        text_prompts=task.text_prompts,
    )


def describe(trace: Trace) -> dict[str, Any]:
    """The trace in a few numbers, for reports."""
    duration_s = trace.duration_s
    rate = len(trace) / duration_s if duration_s > 1e-9 else None  # a burst has no rate
    return {
        "name": trace.name,
        "requests": len(trace),
        "duration_s": duration_s,
        "request_rate": rate,
        "mean_prompt_tokens": float(trace.prompt_tokens.mean()),
        "mean_output_tokens": float(trace.output_tokens.mean()),
    }


def offered_load(trace: Trace, profile: Profile, engine: EngineConfig) -> float:
    """Replicas that the trace keeps busy at the profile's best efficiency.

    Prompts in full chunks, decodes in the largest measured batch without context: what any real
    schedule takes is more. It only tells the search where to begin.
    """
    duration_s = trace.duration_s
    if duration_s < 1.0:  # a burst: what it needs is not a matter of its rate
        return 1.0
    return busy_s(trace, profile, engine) / duration_s


def busy_s(trace: Trace, profile: Profile, engine: EngineConfig) -> float:
    """Seconds that the trace keeps one replica busy at the profile's best efficiency."""
    eager, decode = profile.latency.eager, profile.latency.decode
    chunk = engine.max_num_batched_tokens
    prefill_ms = float(np.interp(chunk, eager.tokens, eager.base_ms)) / min(chunk, eager.tokens[-1])
    rows = min(decode.rows[-1], engine.max_num_seqs)
    decode_ms = float(np.interp(rows, decode.rows, decode.base_ms)) / rows
    busy_ms = prefill_ms * float(trace.prompt_tokens.sum()) + decode_ms * float(
        trace.output_tokens.sum()
    )
    return busy_ms / 1000


def weights_of(
    router: str, trace: Trace, servers: Sequence[tuple[Profile, EngineConfig]]
) -> list[float]:
    """How many requests a server of each kind gets beside one of the slowest.

    By how long the traffic takes each at its best efficiency, to three digits. All 1 where
    the router takes no weights; one that knows the profiles (``expected-finish``) needs none.
    """
    try:
        check_weights(router, [1.0, 2.0])
    except ScenarioError:
        return [1.0] * len(servers)
    loads = [max(busy_s(trace, profile, engine), 1e-12) for profile, engine in servers]
    return [float(f"{max(loads) / load:.3g}") for load in loads]
