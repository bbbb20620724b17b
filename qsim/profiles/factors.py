"""One machine against another of the same type: a few physical factors, applied to a profile.

Two machines with the same GPUs and the same server differ in how fast the host launches and
schedules, in how fast the GPU is where memory or arithmetic sets the pace, in what it draws, and
in how far its clock falls at the power limit. Each is one number here; a profile times these
numbers is the profile of the other machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from qsim.errors import ProfileError
from qsim.profiles.schema import (
    DecodeSpan,
    HostTimes,
    Latency,
    MixedSpan,
    Power,
    Profile,
)

#: running requests at which hosts are compared
SCHEDULER_ROWS = 32


@dataclass(frozen=True)
class Factors:
    """What the profile's numbers are multiplied by; 1 is the machine that was measured.

    Attributes
    ----------
    launch : float
        Host time of launches, in every mode.
    scheduler : float
        Host time of scheduling, updating and the turns between them: Python of the same thread,
        which client times cannot tell apart.
    front_end : float
        Times between the client and the engine.
    memory : float
        GPU spans of decode steps, and what a context costs in mixed steps: memory sets their pace.
    compute : float
        GPU spans of steps with prefill: arithmetic sets their pace.
    limit : float
        How much longer steps take at the power limit (``throttle``); the clock that is left there.
    idle_power : float
        Power of a loaded, idle server.
    busy_power : float
        Power that comes with any step.
    work_power : float
        Energy per token, per context token and per pair.
    """

    launch: float = 1.0
    scheduler: float = 1.0
    front_end: float = 1.0
    memory: float = 1.0
    compute: float = 1.0
    limit: float = 1.0
    idle_power: float = 1.0
    busy_power: float = 1.0
    work_power: float = 1.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Factors:
        """From numbers in the order of :data:`FACTORS`."""
        return cls(*(float(v) for v in values))

    def values(self) -> list[float]:
        """In the order of :data:`FACTORS`."""
        return [float(getattr(self, name)) for name in FACTORS]


FACTORS = tuple(f.name for f in fields(Factors))
#: the factors of the host
HOST = ("launch", "scheduler", "front_end")


def scheduler_ms(host: HostTimes) -> float:
    """What scheduling and updating a step of 32 requests takes, ms: how fast a host is."""
    pairs = (host.schedule_ms, host.update_ms)
    return sum(constant + per_row * SCHEDULER_ROWS for constant, per_row in pairs)


def apply(profile: Profile, factors: Factors) -> Profile:
    """The profile of a machine that differs by ``factors`` from the profile's.

    Nothing else changes: identity, memory and stated errors stay, and the host that a profile was
    put on (``measured_host``) is forgotten, since the factors are for the one that it has.

    Raises
    ------
    ProfileError
        If a factor is not a positive, finite number.
    """
    for name in FACTORS:
        value = getattr(factors, name)
        if not 0.0 < value < 1e3:
            raise ProfileError(f"factor {name} is {value!r}; must be above 0 and below 1000")
    return replace(
        profile,
        latency=_latency(profile.latency, factors),
        host=_host(profile.host, factors),
        frontend=profile.frontend.times(factors.front_end),
        power=_power(profile.power, factors),
        measured_host=None,
    )


def times(values: Iterable[float], factor: float) -> list[float]:
    """Each times ``factor``."""
    return [v * factor for v in values]


def decode_span(span: DecodeSpan, factor: float) -> DecodeSpan:
    """Spans of decode steps, times ``factor``."""
    slopes = [times(row, factor) for row in span.ms_per_context_token]
    return replace(span, base_ms=times(span.base_ms, factor), ms_per_context_token=slopes)


def mixed_span(span: MixedSpan, compute: float, memory: float) -> MixedSpan:
    """Spans of steps with prefill, times factors: ``memory`` for what a decode's context costs."""
    return replace(
        span,
        base_ms=times(span.base_ms, compute),
        ms_per_decode_context_token=span.ms_per_decode_context_token * memory,
        ms_per_pair=span.ms_per_pair * compute,
        ms_per_chunk=span.ms_per_chunk * compute,
        ms_per_decode=span.ms_per_decode * compute,
    )


def _latency(latency: Latency, f: Factors) -> Latency:
    t = latency.throttle
    return replace(
        latency,
        decode=decode_span(latency.decode, f.memory),
        piecewise=mixed_span(latency.piecewise, f.compute, f.memory),
        eager=mixed_span(latency.eager, f.compute, f.memory),
        throttle=replace(
            t, decode=t.decode * f.limit, piecewise=t.piecewise * f.limit, eager=t.eager * f.limit
        ),
    )


def _host(h: HostTimes, f: Factors) -> HostTimes:
    return replace(
        h,
        schedule_ms=times(h.schedule_ms, f.scheduler),
        update_ms=times(h.update_ms, f.scheduler),
        launch_decode_ms=times(h.launch_decode_ms, f.launch),
        launch_piecewise_ms=times(h.launch_piecewise_ms, f.launch),
        launch_eager_ms=times(h.launch_eager_ms, f.launch),
        result_ms=h.result_ms * f.scheduler,
        turn_ms=h.turn_ms * f.scheduler,
        wake_ms=h.wake_ms * f.scheduler,
    )


def _power(p: Power, f: Factors) -> Power:
    return replace(
        p,
        idle_w=p.idle_w * f.idle_power,
        busy_w=p.busy_w * f.busy_power,
        j_per_prefill_token=p.j_per_prefill_token * f.work_power,
        j_per_decode_token=p.j_per_decode_token * f.work_power,
        j_per_context_token=p.j_per_context_token * f.work_power,
        j_per_pair=p.j_per_pair * f.work_power,
    )
