"""``simulate``: a trace through a fleet of equal replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qsim.profile import Profile
from qsim.sim.admission import Admission, beyond_measured, resolve, scenario_of
from qsim.sim.config import EngineConfig, EngineOptions
from qsim.sim.fleet import Finished, Fleet
from qsim.sim.result import Gaps, SimulationResult
from qsim.sim.steplog import Step
from qsim.sim.timing import PS_PER_MS, PS_PER_S
from qsim.traces.trace import Trace

__all__ = ["replica_stats", "simulate"]

#: requests that the fleet takes at a time
_PART = 1 << 15


def simulate(
    trace: Trace,
    profile: Profile | str,
    *,
    replicas: int = 1,
    router: str = "least-requests",
    options: EngineOptions | None = None,
    seed: int = 0,
    too_long: str = "error",
    frontend: bool = True,
    progress: Callable[[float], None] | None = None,
    jump: bool = True,
    step_log: list[Step] | None = None,
) -> SimulationResult:
    """Replay ``trace`` against ``replicas`` servers described by ``profile``.

    Parameters
    ----------
    trace : Trace
    profile : Profile or str
        A profile, the id of a shipped one, or a path.
    replicas : int
        Servers, each on ``tensor_parallel_size`` GPUs; >= 1.
    router : str
        How requests are spread: see :data:`qsim.sim.router.ROUTERS`.
    options : EngineOptions, optional
        vLLM settings that differ from the profile's.
    seed : int
        Of the router's random draws.
    too_long : {"error", "reject"}
        What to do with a prompt that leaves no room for a token within ``max_model_len``: raise,
        or count it as failed as the server would (HTTP 400).
    frontend : bool
        Include the times of the API server before and after the engine.
    progress : callable, optional
        Called now and then with the share of requests that have arrived.
    jump : bool
        Plan decode runs in one go (the default); False steps one by one to the same result.
    step_log : list of Step, optional
        Takes every engine step, for :mod:`qsim.sim.steplog`.

    Raises
    ------
    ScenarioError
        If an option is not allowed.
    ProfileError
        If the profile is unknown or malformed.
    TraceError
        If a prompt is too long and ``too_long`` is "error".
    """
    profile, config = resolve(profile, options, replicas, router, seed, too_long)
    admission = Admission(config, too_long)
    run, output, admissible = admission.admit(trace)
    notes = admission.notes()
    if run is None:
        raise admission.too_long_error()

    n = len(run)
    gaps = Gaps(np.empty(0, np.int64))
    had: list[Finished] = []

    def release(finished: Finished) -> None:
        had.append(finished)
        gaps.pack(fleet.gaps)

    # in parts, so that the fleet's columns are those of the requests that are in it
    parts = _parts(run, output)
    fleet = Fleet(
        *next(parts),
        profile,
        config,
        replicas=replicas,
        router=router,
        seed=seed,
        frontend=frontend,
        jump=jump,
        step_log=step_log,
        progress=None if progress is None else lambda arrived: progress(arrived / n),
        more=parts,
        release=release,
        span_s=(float(run.arrival_s[0]), float(run.arrival_s[-1])),
    )
    fleet.run()
    notes += beyond_measured(profile, config, max(r.peak_running for r in fleet.replicas))
    if progress is not None:
        progress(1.0)
    scenario = scenario_of(
        trace.name, len(trace), profile, config, replicas, router, seed, too_long, frontend
    )
    truncated = admission.truncated
    return _collect(
        fleet, had, gaps, trace, output, admissible, profile, config, truncated, notes, scenario
    )


def _parts(
    trace: Trace, output: np.ndarray[Any, np.dtype[np.int64]]
) -> Iterator[tuple[Trace, list[int]]]:
    n = len(trace)
    for begin in range(0, n, _PART):
        end = min(begin + _PART, n)
        part = trace if end - begin == n else trace.take(np.arange(begin, end))
        yield part, output[begin:end].tolist()


def _collect(
    fleet: Fleet,
    had: list[Finished],
    gaps: Gaps,
    trace: Trace,
    output: np.ndarray[Any, np.dtype[np.int64]],
    admissible: np.ndarray[Any, np.dtype[np.bool_]],
    profile: Profile,
    config: EngineConfig,
    truncated: int,
    notes: list[str],
    scenario: dict[str, Any],
) -> SimulationResult:
    n = len(trace)
    index = np.flatnonzero(admissible)
    names = Finished.__dataclass_fields__
    finished = Finished(**{k: np.concatenate([getattr(h, k) for h in had]) for k in names})
    had.clear()
    arrival_ps, end_ps = finished.arrival_ps, fleet.end_ps

    def spread(values: Any, fill: float, dtype: Any) -> Any:
        if len(index) == n:
            return np.asarray(values, dtype)
        column = np.full(n, fill, dtype=dtype)
        column[index] = values
        return column

    ttft_ms = (finished.first_token_ps - arrival_ps) / PS_PER_MS
    e2el_ms = (finished.last_token_ps - arrival_ps) / PS_PER_MS
    tpot_ms = np.full(len(index), np.nan)
    np.divide(e2el_ms - ttft_ms, output - 1, out=tpot_ms, where=output > 1)
    requests = np.bincount(finished.replica, minlength=len(fleet.replicas))
    stats = replica_stats(fleet, requests, config)
    return SimulationResult(
        request_id=np.arange(n, dtype=np.int64),
        arrival_s=trace.arrival_s,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=spread(output, 0, np.int64),
        replica=spread(finished.replica, -1, np.int64),
        cached_tokens=spread(finished.cached_tokens, 0, np.int64),
        ttft_ms=spread(ttft_ms, np.nan, np.float64),
        tpot_ms=spread(tpot_ms, np.nan, np.float64),
        e2el_ms=spread(e2el_ms, np.nan, np.float64),
        preemptions=spread(finished.preemptions, 0, np.int64),
        completed=admissible,
        itl=gaps,
        duration_s=(end_ps - int(arrival_ps[0])) / PS_PER_S,
        replica_stats=stats,
        timeline=fleet.timeline.columns(end_ps, len(fleet.replicas)),
        gpus=len(fleet.replicas) * profile.identity.tensor_parallel_size,
        scenario=scenario,
        truncated=truncated,
        notes=notes,
    )


def replica_stats(
    fleet: Fleet, requests: np.ndarray[Any, np.dtype[np.int64]], config: EngineConfig
) -> list[dict[str, Any]]:
    """One dict a replica; ``requests`` is how many each of them served."""
    usable = config.num_gpu_blocks - 1
    return [
        {
            "replica": r.index,
            "requests": int(requests[r.index]),
            "steps": r.steps,
            "busy_s": r.meter.total_busy_ps / PS_PER_S,
            "energy_j": r.meter.energy_j,
            "preemptions": r.preemptions,
            "peak_running": r.peak_running,
            "peak_waiting": r.peak_waiting,
            "peak_kv_usage": 1.0 - r.least_free_blocks / usable,
        }
        for r in fleet.replicas
    ]
