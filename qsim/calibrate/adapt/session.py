"""A minute of loads against a running server, sized by the profile, and what its client saw."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qsim.calibrate.adapt.load import Load
from qsim.calibrate.adapt.power import EnergyMeter
from qsim.calibrate.adapt.server import RunningServer, read_metrics
from qsim.calibrate.measure.load import LoadClient, LoadResult
from qsim.errors import CalibrationError
from qsim.profiles.schema import Profile
from qsim.sim.scheduler.config import EngineOptions
from qsim.sim.simulate import simulate
from qsim.traces.trace import Trace

__all__ = ["Plan", "Session", "plan_loads", "send_loads"]

Say = Callable[[str], None]

#: what a load asks for: client streams, as of ``qsim.calibrate.measure.client.run_load``
Streams = list[dict[str, Any]]
IDLE_S = 3.0
#: shares of the capacity, and of the time, of the two loads of arrivals
_ARRIVALS = (("moderate", 0.6, 0.5), ("full", 1.2, 0.3))
_LONGEST_PROMPT, _LONGEST_OUTPUT = 4096, 512
#: requests sent at once before anything is measured
WARM_UP = 128


@dataclass(frozen=True)
class Plan:
    """One load to be sent."""

    label: str
    what: str
    streams: Streams
    expected_s: float


@dataclass(frozen=True)
class Session:
    """What came of it.

    Attributes
    ----------
    loads : list of Load
        Without the idle one.
    idle_w : float or None
        Mean power while nothing was sent.
    lost : list of str
        What could not be measured.
    """

    loads: list[Load]
    idle_w: float | None
    lost: list[str]


def plan_loads(profile: Profile, seconds: float, longest: int, seed: int = 0) -> list[Plan]:
    """Single prompts, a batch ladder, arrivals at 60% and 120% of the profile's capacity.

    Parameters
    ----------
    seconds : float
        For all of it, by the profile; a slower machine takes longer.
    longest : int
        Tokens of the longest request.
    """
    rng = np.random.default_rng(seed)

    def lengths(n: int, most: int) -> list[int]:
        most = max(2, min(most, longest // 2))
        drawn = np.exp(rng.uniform(np.log(min(16, most)), np.log(most), n))
        return [int(x) for x in drawn]

    singles = [64, 136, 264, 520, 1030, 2100, 4100] * 3
    singles = [max(1, min(p, longest - 16)) for p in singles]
    ladder = [i // 8 for i in range(64)]
    plans = [
        Plan(
            "single",
            "single prompts, one after another",
            [{"prompt": singles, "output": [8] * len(singles), "concurrency": 1}],
            seconds * 0.08,
        ),
        Plan(
            "ladder",
            "64 requests at once; outputs end in steps",
            [
                {
                    "prompt": [min(256, longest // 2)] * 64,
                    "output": [max(1, min(40 * (s + 1), longest // 2)) for s in ladder],
                    "at_s": [0.0] * 64,
                }
            ],
            seconds * 0.08,
        ),
    ]
    rate = _capacity_rps(profile, lengths(200, _LONGEST_PROMPT), lengths(200, _LONGEST_OUTPUT))
    for label, share, part in _ARRIVALS:
        duration = seconds * part
        n = min(max(24, int(rate * share * duration)), 4000)
        at = np.cumsum(rng.exponential(1 / (rate * share), n))
        stream = {
            "prompt": lengths(n, _LONGEST_PROMPT),
            "output": lengths(n, _LONGEST_OUTPUT),
            "at_s": (at - at[0]).round(4).tolist(),
        }
        what = f"Poisson arrivals at about {share:.0%} of the capacity"
        plans.append(Plan(label, what, [stream], duration))
    return plans


def _capacity_rps(profile: Profile, prompts: list[int], outputs: list[int]) -> float:
    """Requests per second of a server that is never short of them."""
    trace = Trace(
        arrival_s=np.zeros(len(prompts)),
        prompt_tokens=np.array(prompts, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        name="capacity",
    )
    result = simulate(trace, profile)
    return len(prompts) / (float(np.max(result.e2el_ms)) / 1e3)


def send_loads(
    server: RunningServer,
    profile: Profile,
    plans: list[Plan],
    meter: EnergyMeter | None,
    say: Say,
    *,
    timeout_s: float = 300.0,
    options: EngineOptions | None = None,
) -> Session:
    """Send the loads one after another. Prompts are never the same twice.

    Raises
    ------
    CalibrationError
        If the server serves others, stops to answer, or fails a request.
    """
    lost = []
    before = _check_idle(server)
    begin = time.perf_counter()
    say(f"idle, {IDLE_S:.0f} s")
    time.sleep(IDLE_S)
    end = time.perf_counter()
    _check_idle(server)
    idle_j = None if meter is None else meter.joules(begin, end)
    vocabulary = int(profile.identity.architecture.get("vocab_size", 32000))
    client = LoadClient(server.port, host=server.host, model=server.model, vocab_size=vocabulary)
    given = options or EngineOptions()
    settings = replace(
        given,
        max_model_len=given.max_model_len or server.max_model_len,
        enable_prefix_caching=False,  # prompts are random and share nothing
        vllm_version=given.vllm_version or server.version or None,
    )
    loads, sent = [], 0
    try:
        for warm in _warm_up(settings.max_model_len):
            sent += len(client.run(_request("warm", warm), timeout_s, lambda: None).requests)
        for plan in plans:
            say(f"{plan.label}: {plan.what}, about {plan.expected_s:.0f} s")
            result = client.run(_request(plan.label, plan.streams), timeout_s, lambda: None)
            sent += len(result.requests)
            joules = None if meter is None else meter.joules(result.start_s, result.end_s)
            loads.append(_load(plan.label, result, joules, settings, server.num_gpu_blocks))
            time.sleep(0.3)
    finally:
        client.close()
    after = read_metrics(server.host, server.port)
    if before is not None and after is not None and None not in (before, after.finished):
        others = round((after.finished or 0.0) - before) - sent
        if others > max(2, 0.01 * sent):
            raise CalibrationError(
                f"the server answered {others} requests of others meanwhile; adapt while nothing "
                "else uses it"
            )
    if meter is None or all(x.energy_j is None for x in loads):
        lost.append("no power was measured: power and energy stay those expected of a machine")
    watts = idle_j / (end - begin) if idle_j is not None else None
    return Session(loads, watts, lost)


def _warm_up(longest: int | None) -> list[Streams]:
    """Two single prompts, and a burst: what is not measured.

    In the first steps of many prompts the host waits in the sampler for the end of the step on the
    GPU (``sample_end_s - sample_start_s`` of recordings, most of it in their first three bursts),
    by all signs because memory is allocated. So a new server answers its first burst up to 100 ms
    late.
    """
    prompt = min(256, (longest or 8192) // 2)
    single = {"prompt": [64, prompt], "output": [4, 4], "concurrency": 1}
    many = {"prompt": [prompt] * WARM_UP, "output": [8] * WARM_UP, "at_s": [0.0] * WARM_UP}
    return [[single], [many]]


def _request(label: str, streams: Streams) -> dict[str, Any]:
    """A load for the client; the server may cache prefixes, so the tokens are always new ones."""
    return {"label": label, "streams": streams, "seed": secrets.randbits(64)}


def _check_idle(server: RunningServer) -> float | None:
    """Requests finished so far; None where that is not told."""
    metrics = read_metrics(server.host, server.port)
    if metrics is None:
        return None
    busy = (metrics.running or 0.0) + (metrics.waiting or 0.0)
    if busy > 0:
        raise CalibrationError(
            f"the server is busy with {busy:.0f} requests of others; adapt while nothing else uses "
            "it"
        )
    return metrics.finished


def _load(
    label: str,
    result: LoadResult,
    joules: float | None,
    options: EngineOptions,
    blocks: int | None,
) -> Load:
    rows = sorted(result.requests, key=lambda r: r.sent_s)
    sent = np.array([r.sent_s for r in rows])
    trace = Trace(
        arrival_s=sent - sent[0],
        prompt_tokens=np.array([r.prompt_tokens for r in rows], dtype=np.int64),
        output_tokens=np.array([r.output_tokens for r in rows], dtype=np.int64),
        name=label,
    )
    return Load(
        name=label,
        trace=trace,
        ttft_ms=np.array([(r.first_token_s - r.sent_s) * 1e3 for r in rows]),
        e2el_ms=np.array([(r.last_token_s - r.sent_s) * 1e3 for r in rows]),
        energy_j=joules,
        options=options,
        num_gpu_blocks=blocks,
    )
