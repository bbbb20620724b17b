"""One fleet as a task that any process can simulate, and what a plan keeps of the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.optimize.search.fleet_outcome import FleetOutcome
from qsim.profiles.schema import Profile
from qsim.sim.results.backlog import Load
from qsim.sim.results.continued import settled
from qsim.sim.results.goodput import Goodput
from qsim.sim.results.slo import Slo, attainment, check_slos
from qsim.sim.scheduler.config import EngineConfig, EngineOptions
from qsim.traces.trace import Trace

if TYPE_CHECKING:
    from qsim.sim.engine.steplog import Step
    from qsim.sim.results.result import SimulationResult

__all__ = ["FleetTask", "describe", "offered_load", "run_fleet"]


_LATENCIES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True)
class FleetTask:
    """One fleet to simulate, complete in itself, so that any process can do it."""

    trace: Trace
    profile: Profile
    replicas: int
    slos: tuple[Slo, ...]
    options: EngineOptions
    router: str
    seed: int
    too_long: str
    goodput: Goodput | None = None
    allow_backlog: bool = False

    def simulate(
        self, step_log: list[Step] | None = None, trace: Trace | None = None
    ) -> SimulationResult:
        """Run it, or another trace; ``step_log`` takes every engine step."""
        from qsim.sim.simulate import simulate

        return simulate(
            self.trace if trace is None else trace,
            self.profile,
            replicas=self.replicas,
            router=self.router,
            options=self.options,
            seed=self.seed,
            too_long=self.too_long,
            step_log=step_log,
        )

    def settled(self, load: Load) -> Load:
        """Whether the fleet keeps up; the trace goes on where ``load`` does not tell."""
        return settled(load, self.trace, lambda longer: self.simulate(trace=longer))


def run_fleet(task: FleetTask) -> FleetOutcome:
    """Simulate one fleet and keep what a plan needs of the result."""
    result = task.simulate()
    at = np.linspace(0, 1, 101)
    quantiles: dict[str, list[float]] = {}
    for name in ("ttft_ms", "tpot_ms", "e2el_ms"):
        values = np.asarray(getattr(result, name))
        values = values[~np.isnan(values)]
        quantiles[name] = np.quantile(values, at).tolist() if len(values) else []
    outcome = FleetOutcome(
        task.replicas,
        result.summary(),
        tuple(check_slos(result, task.slos)),
        attainment(result, task.slos),
        quantiles,
        None if task.goodput is None else task.goodput.check(result),
        _peak_power_w(result),
        result.load,
        task.allow_backlog,
        {f"p95_{name}_ms": _known(result.statistic(name, "p95")) for name in _LATENCIES},
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
    eager, decode = profile.latency.eager, profile.latency.decode
    chunk = engine.max_num_batched_tokens
    prefill_ms = float(np.interp(chunk, eager.tokens, eager.base_ms)) / min(chunk, eager.tokens[-1])
    rows = min(decode.rows[-1], engine.max_num_seqs)
    decode_ms = float(np.interp(rows, decode.rows, decode.base_ms)) / rows
    busy_ms = prefill_ms * float(trace.prompt_tokens.sum()) + decode_ms * float(
        trace.output_tokens.sum()
    )
    return busy_ms / 1000 / duration_s
